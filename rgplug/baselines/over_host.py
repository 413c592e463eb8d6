"""What of a training script's own policy stays under a method of a comparison.

Layers, later ones on top: the script's keys, those that tell methods apart at their defaults, keys common to all
methods, the method's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rgplug import schema
from rgplug.policy import Policy, SnapshotPolicy, StartPolicy

# method -> keys by which the methods of a comparison differ from each other. A script that prunes G alone would
# otherwise make rg-gan the same as rg-gan-ar-g, and one with uniform masks make sparse the same as sparse-uniform.
APART: dict[str, tuple[str, ...]] = {
    "rg-gan": (
        *("threshold.networks", "threshold.task_gradient"),
        *("regeneration.recurrent", "regeneration.augmented.networks"),
    ),
    "sparse": ("masks.criterion", "masks.distribution", "masks.channels", "masks.file"),
    "re-gan": ("cycle.networks",),
}


def over_host(common: Mapping[str, Any], method: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that go on top of a script's policy. common: those for all methods that this one reads; method: its own.

    Where one of them asks for a start or for snapshots, all keys of that group are there: a script that starts from a
    pair of its own, with its moments, is no reason for a ticket to do so.
    """
    defaults = schema.leaves(Policy().to_dict())
    apart = schema.resolve({key: defaults[key] for key in APART.get(method["method"], ())}, {})
    keys = schema.merge(schema.merge(apart, common), method)
    for group, empty in (("start", StartPolicy()), ("snapshots", SnapshotPolicy())):
        if keys.get(group):
            keys[group] = schema.merge(schema.plain(empty), keys[group])
    return keys

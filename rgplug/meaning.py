"""The keys of a policy that give a state its meaning: a threshold of .3 is another one in other units.

Others may change from one part of a run to the next: the metric, the schedule, folders, kernels, logs, the dtype that
pruned values wait in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rgplug.expected import short

_MISSING = object()
_KEYS = {  # key -> the methods that it matters to
    "granularity": ("rg-gan", "re-gan", "sparse"),
    "threshold.units": ("rg-gan",),
    "threshold.networks": ("rg-gan",),
    "cycle.networks": ("re-gan",),
    "exploration": ("sparse",),
    "exploration.networks": ("sparse",),
    "exploration.grow": ("sparse",),
    "balance": ("sparse",),
    "regeneration.augmented": ("rg-gan", "re-gan", "sparse", "dense"),
}
_DEFAULTS = {"granularity": "weight", "threshold.units": "absolute"}  # of a network that a mapping does not name
_PRESENCE = ("exploration", "balance", "regeneration.augmented")  # compared: whether the policy has it at all


def difference(saved: Any, own: Mapping[str, Any], networks: Iterable[str]) -> str:
    """Where two policies (as `Policy.to_dict` gives them) mean different states, as a sentence; "" if nowhere.

    Keys that `saved` lacks, of an older policy, are taken to be alike.
    """
    method = own["method"]
    if not isinstance(saved, Mapping) or not isinstance(saved.get("method"), str):
        return "the state's policy names no method"
    if saved["method"] != method:
        return f"the state is one of method {saved['method']}, this policy's method is {method}"
    for label in networks:
        for key in (k for k, methods in _KEYS.items() if method in methods):
            before, now = _of(saved, key, label), _of(own, key, label)
            if before is not _MISSING and before != now:
                return (
                    f"the state was made with {key}: {_shown(before)}{_at(label, key)}, this policy has {_shown(now)}"
                )
        before, now = (_dims(policy, label) for policy in (saved, own))
        if before != now:
            return (
                f"the state was made with networks.{label}.filter_dim: {_shown(before)}, this policy has {_shown(now)}"
            )
    return ""


def _of(policy: Mapping[str, Any], key: str, network: str) -> Any:
    """The value for a network: of a key that names networks, whether this one is among them."""
    value: Any = policy
    for part in key.split("."):
        if value is None:
            return _MISSING  # below a part that the policy leaves out
        if not isinstance(value, Mapping) or part not in value:
            return _MISSING
        value = value[part]
    if key in _PRESENCE:
        return value is not None
    if key.endswith(".networks"):
        return isinstance(value, (list, tuple)) and network in value
    own = value.get(network) if isinstance(value, Mapping) else value
    return own if isinstance(own, str) else _DEFAULTS.get(key) if own is None else short(own)


def _dims(policy: Mapping[str, Any], network: str) -> dict[str, Any]:
    networks = policy.get("networks")
    own = networks.get(network) if isinstance(networks, Mapping) else None
    dims = own.get("filter_dim") if isinstance(own, Mapping) else None
    return {str(pattern): short(dim) for pattern, dim in dims.items()} if isinstance(dims, Mapping) else {}


def _at(network: str, key: str) -> str:
    return "" if key in _PRESENCE else f" for {network}"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) and len(value) <= 40 else short(value)

"""What a run by itself is called: its method and seed, from its policy and the command that started it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rgplug import schema
from rgplug.baselines.keys import options_of
from rgplug.run_setup import Setup

UNKNOWN = "unknown"  # of a run of an earlier version, which left no setup.json
SCALED = ("masks.density", "exploration.every", "exploration.end", "balance.every", "balance.end")  # any run's own
OLD_SEED = 0  # where nothing says one


def method_of(setup: Setup | None, presets: Mapping[str, Mapping[str, Any]]) -> str:
    """The preset whose keys the run's policy has, densities and schedules aside; of several the most particular one.

    A policy that no preset matches is called by its `method`; one whose masks come from a file is a `ticket`.
    """
    if setup is None:
        return UNKNOWN
    policy = schema.leaves(setup.policy)
    method = str(policy.get("method") or UNKNOWN)
    if policy.get("masks.file"):
        return "ticket"
    found, most = method, 0
    for name, preset in presets.items():
        keys = {k: v for k, v in schema.leaves(preset).items() if not k.startswith(SCALED)}
        if all(_same(policy, key, value) for key, value in keys.items()) and len(keys) > most:
            found, most = name, len(keys)
    return found


def _same(policy: Mapping[str, Any], key: str, value: Any) -> bool:
    """Whether a policy holds a preset's value; a group that is off is None there and false in a preset."""
    held = policy.get(key)
    if value is False and held is None:
        return not any(k.startswith(f"{key}.") for k in policy)
    return bool((list(held) if isinstance(held, tuple) else held) == value)


def seed_of(setup: Setup | None) -> int:
    """The option --seed of the run's command, 0 where it has none."""
    if setup is None:
        return OLD_SEED
    said = options_of(setup.command[1:]).get("seed")
    whole = isinstance(said, int | float) and not isinstance(said, bool) and said == int(said)
    return int(said) if whole and abs(said) <= 2**53 else OLD_SEED  # type: ignore[arg-type]

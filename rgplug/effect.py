"""Which keys of a policy have an effect: what the user wrote has to be read, by the method, on a network that is there.

Only keys of the user count. A preset may carry more than a run reads: `stu-gan` has a density of D, and trains a G
alone too. READ_BY, COUNTS_IF and NETWORKS_OF are the whole of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rgplug import schema
from rgplug.errors import RgplugError

if TYPE_CHECKING:
    from rgplug.policy import Policy

PRUNES = ("rg-gan", "re-gan", "sparse")

# group of keys -> the methods that read it; every method reads the others
READ_BY: dict[str, tuple[str, ...]] = {
    "threshold": ("rg-gan",),
    "sparsity_weight": ("rg-gan",),
    "regularization": ("rg-gan",),
    "target": ("rg-gan",),
    "regeneration": ("rg-gan",),
    "masks": ("sparse",),
    "exploration": ("sparse",),
    "balance": ("sparse",),
    "cycle": ("re-gan",),
    "optimizer_state": PRUNES,
    "dormant": PRUNES,
}

# what asks for a density, where the method has no such key
_INSTEAD = {"rg-gan": "target: {G: ...}", "sparse": "masks: {density: ...}", "re-gan": "cycle: {sparsity: ...}"}


@dataclasses.dataclass(frozen=True)
class Condition:
    """Keys that are read only where `holds`; `why` is what a message says where it does not."""

    keys: tuple[str, ...]
    holds: Callable[[Policy], bool]
    why: str


COUNTS_IF = (
    Condition(
        ("masks.sampling",),
        lambda p: p.masks.file is not None or (p.masks.criterion == "random" and p.masks.distribution != "global"),
        "weights are drawn one by one only with criterion: random and a density per layer (erk, er, uniform)",
    ),
)

# keys with a value per network, or a list of networks -> the networks whose value is read; None: all that are managed
NETWORKS_OF: dict[str, Callable[[Policy], tuple[str, ...] | None]] = {
    "networks": lambda p: None,
    "target": lambda p: p.threshold.networks,
    "sparsity_weight": lambda p: p.threshold.networks,
    "threshold.units": lambda p: p.threshold.networks,
    "threshold.networks": lambda p: None,
    "granularity": lambda p: pruned(p),
    "masks.density": lambda p: None,
    "exploration.networks": lambda p: None,
    "exploration.every": lambda p: None,  # comparisons give both networks' steps, whichever explores
    "exploration.end": lambda p: None,
    "cycle.networks": lambda p: None,
    "regeneration.recurrent": lambda p: p.threshold.networks,
    "regeneration.augmented.networks": lambda p: p.threshold.networks,
}

# groups that `false` turns off: it asks for nothing, so it needs no reader
_OFF = (
    *("exploration", "balance", "target", "metric", "start", "snapshots"),
    *("regeneration.augmented", "regeneration.recurrent"),
)
_USUAL = {"regeneration.recurrent": True}  # stands in policies of every method, and has to be taken back by none


def reads(method: str, key: str) -> bool:
    """Whether a method reads a key (dotted), if it has any effect at all."""
    return method in READ_BY.get(key.partition(".")[0], (method,))


def is_common(key: str) -> bool:
    """Whether a key (dotted) says something about the host or the run, whatever the method."""
    return key.partition(".")[0] not in {*READ_BY, "method", "granularity"}


def readable(keys: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The groups of keys that a method reads. `regeneration` stays: every method has it, most of them turned off."""
    return {k: v for k, v in keys.items() if k == "regeneration" or reads(method, k)}


def written(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of what keys ask for; null, empty groups and groups that are turned off ask for nothing."""
    return {k: v for k, v in schema.leaves(keys).items() if not _nothing(k, v)}


def changes(policy: Policy) -> frozenset[str]:
    """What counts as the user's in a policy that has every key: those whose value is not the default.

    Networks in it are not held against a run that lacks one of them: they may be a preset's.
    """
    return frozenset(_changes(policy, type(policy)(), ""))


def _changes(group: Any, default: Any, path: str) -> Iterator[str]:
    for f in (f for f in dataclasses.fields(group) if not f.name.startswith("_")):
        key, value, usual = f"{path}{f.name}", getattr(group, f.name), getattr(default, f.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from _changes(value, usual if dataclasses.is_dataclass(usual) else type(value)(), f"{key}.")
        elif value != usual and not _nothing(key, value) and not isinstance(value, tuple):
            yield key


def _nothing(key: str, value: Any) -> bool:
    return value is None or value == {} or (value is False and key in _OFF) or _USUAL.get(key) is value


def check(policy: Policy, own: Collection[str], attached: Collection[str] = ("G", "D")) -> None:
    """Raise RgplugError for the first of the user's keys that has no effect, and for a method that prunes nothing."""
    for key in sorted(own):
        if reason := without_effect(policy, key, attached):
            raise RgplugError(f"policy.{key} has no effect: {reason}")
    there = managed(policy, attached)
    for name, networks in _working(policy).items():
        if networks and there and not set(networks) & set(there):
            raise RgplugError(
                f"policy.{name} is [{', '.join(networks)}], and {_missing(policy, networks[0])}, so that nothing would "
                f"be {'exchanged' if name.startswith('exploration') else 'pruned'}; name a network that is there"
            )


def check_base(policy: Policy, keys: Mapping[str, Any]) -> None:
    """Raise RgplugError where a method is written over a preset of another method, whose keys it does not read."""
    for key in written(keys):
        if not reads(policy.method, key):
            raise RgplugError(
                f"policy.{key} comes from the base and has no effect, since method {policy.method} does not read it; "
                f"begin with base: {policy.method}"
            )


def without_effect(policy: Policy, key: str, attached: Collection[str] = ("G", "D")) -> str:
    """Why a key that the user wrote changes nothing, and what to do; "" where it has an effect."""
    method = policy.method
    if not reads(method, key):
        readers = READ_BY[key.partition(".")[0]]
        density = key.startswith(("masks.density", "target", "cycle.sparsity"))
        instead = f", or give {_INSTEAD[method]}" if density and method in _INSTEAD else ""
        return f"method {method} does not read it ({' and '.join(readers)} do); leave it out{instead}"
    for condition in COUNTS_IF:
        if key.startswith(condition.keys) and not condition.holds(policy):
            return f"{condition.why}; leave it out"
    return _of_networks(policy, key, attached)


def _of_networks(policy: Policy, key: str, attached: Collection[str]) -> str:
    group = next((g for g in NETWORKS_OF if key == g or key.startswith(f"{g}.")), None)
    if group is None:
        return ""
    rest = key[len(group) + 1 :].split(".")[0]
    value: Any = policy
    for part in group.split("."):
        value = getattr(value, part, None)
    named = [rest] if rest else list(value) if isinstance(value, tuple) else []
    read = NETWORKS_OF[group](policy)
    for network in (n for n in named if n in ("G", "D")):
        if network not in managed(policy, attached):
            return f"{_missing(policy, network)}; leave {network} out of it"
        if read is not None and network not in read:
            return f"{network} is not among the networks that it is for ({', '.join(read) or 'none'}); leave it out"
    return ""


def managed(policy: Policy, attached: Collection[str]) -> list[str]:
    return [n for n in ("G", "D") if n in attached and policy.networks.get(n, True) is not None]


def pruned(policy: Policy) -> tuple[str, ...]:
    """The networks that the method prunes, where they are managed; a dense run may say what its tickets will prune."""
    return {"re-gan": policy.cycle.networks, "rg-gan": policy.threshold.networks}.get(policy.method, ("G", "D"))


def _working(policy: Policy) -> dict[str, tuple[str, ...]]:
    """The lists without which a method does nothing."""
    found = {"re-gan": {"cycle.networks": pruned(policy)}, "rg-gan": {"threshold.networks": pruned(policy)}}
    explored = {} if policy.exploration is None else {"exploration.networks": policy.exploration.networks}
    return {**found.get(policy.method, {}), **explored}


def _missing(policy: Policy, network: str) -> str:
    if policy.networks.get(network, True) is None:
        return f"{network} is left dense (networks: {{{network}: null}})"
    return f"{network} is not attached"

"""Keys that rows and columns of a table can go by: what they are for a run, and which there are."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from rgplug.baselines.results import Scalar
from rgplug.errors import RgplugError
from rgplug.policy import Policy
from rgplug.report.comparison import DENSE, Comparison, Method, Run

OFF = "off"
EVERY = object()  # the value of a key that a run was not made for: it stands in all columns
NETWORKS = ("G", "D")
ALWAYS = ("method", "seed", "folder", *(f"{what}.{net}" for what in ("density", "sparsity") for net in NETWORKS))
FROM_HIGH_TO_LOW = ("sparsity.", "share")  # as the papers' columns go


def policy_defaults(cls: Any = Policy, path: str = "") -> dict[str, Any]:
    """Every key of a policy by its dotted name, with its default; those of groups that are off too."""
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name.startswith("_"):
            continue
        key = f"{path}.{field.name}" if path else field.name
        inner = [t for t in (hints[field.name], *typing.get_args(hints[field.name])) if dataclasses.is_dataclass(t)]
        if inner:
            found |= policy_defaults(inner[0], key)
        elif field.default is not dataclasses.MISSING:
            found[key] = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[key] = None
    return found


POLICY = policy_defaults()


def check_keys(c: Comparison, keys: Iterable[str]) -> None:
    """Raise RgplugError, with the nearest ones, for a key that no run has and no policy."""
    known = dict.fromkeys([*ALWAYS, *(k for run in c.runs for k in run.keys), *POLICY])
    for key in keys:
        if key in known or (key.rpartition(".")[0] in POLICY and key.rpartition(".")[2] in NETWORKS):
            continue
        near = difflib.get_close_matches(key, known, 3, 0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(list(known)[:12])}, ..."
        raise RgplugError(f"no run of this report has a key {key!r}; {hint}")


def value_of(c: Comparison, method: Method, run: Run, key: str) -> Any:
    """A key of a run. method: its row in the other tables.

    density.G is what was asked of the method, or what its seeds reached on average at their best values; sparsity.G is
    the same in per cent of zeros. A policy's key that a run of an earlier version lacks has its default; one of a group
    that is off is "off". EVERY where the key says nothing about the run: densities of a dense run, and a sweep's key
    that changes nothing about its method.
    """
    what, _, network = key.partition(".")
    if what == "sparsity" and network in NETWORKS and key not in run.keys:
        density = value_of(c, method, run, f"density.{network}")
        return density if density is EVERY or density is None else round(100 * (1 - density), 1)
    if key in run.keys:
        return run.keys[key]
    if (run.base == DENSE and what == "density") or _is_swept(c, run, key):
        return EVERY
    if what == "density" and network in NETWORKS:
        return reached(method, network)
    return _of_policy(run, key)


def reached(method: Method, network: str) -> float | None:
    """The mean density at the best values, to two digits."""
    found = [r.density[network] for r in method.valued or method.results if network in r.density]
    return round(sum(found) / len(found), 2) if found else None


def in_order(key: str, values: Iterable[Any]) -> list[Any]:
    """Values of a key as they stand in a table: numbers by size, before texts, which stay in order of appearance."""
    found = list(dict.fromkeys(values))
    numbers = [v for v in found if isinstance(v, int | float) and not isinstance(v, bool)]
    is_falling = key.startswith(FROM_HIGH_TO_LOW) or not (key.startswith("density.") or key in POLICY)
    is_falling = is_falling and key not in ("seed", "length")
    return [*sorted(numbers, reverse=is_falling), *(v for v in found if v not in numbers)]


def text_of(key: str, value: Scalar) -> str:
    """A value as a row is called by it."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:g}" if isinstance(value, int | float) and abs(value) < 1e6 else str(value)
    return f"{text} %" if key.startswith("sparsity.") else text


def heading_of(key: str, value: Scalar) -> str:
    """A value as a column is called by it: a number needs the key's name."""
    text = text_of(key, value)
    return text if isinstance(value, str) and value != OFF else f"{key} {text}"


def _is_swept(c: Comparison, run: Run, key: str) -> bool:
    """Whether other methods of the run's comparison were swept over a key, and its own was not."""
    swept = {o.base for o in c.runs if o.root == run.root and f"@{key}=" in o.method}
    return bool(swept) and run.base not in swept


def _of_policy(run: Run, key: str) -> Scalar:
    parts = {k.rpartition(".")[2]: v for k, v in run.keys.items() if k.rpartition(".")[0] == key}
    if parts:  # a value for each network
        same = len(set(parts.values())) == 1
        return next(iter(parts.values())) if same else ", ".join(f"{net} {v}" for net, v in parts.items())
    head = key
    while "." in head:  # a group that is off, or one value for both networks
        head = head.rpartition(".")[0]
        if head in run.keys:
            value = run.keys[head]
            return OFF if value is None or value is False else value
    found = POLICY.get(key, POLICY.get(key.rpartition(".")[0]))
    return found if isinstance(found, str | float | int | bool) else None


def differing(runs: Sequence[Run], settings: Sequence[dict[str, Any]]) -> list[str]:
    """Keys in which runs differ, those of policies last; `folder` where that is all."""
    keys = dict.fromkeys(k for s in settings for k in s)
    found = [k for k in keys if len({repr(s.get(k)) for s in settings}) > 1]
    found.sort(key=lambda k: (k in POLICY, k))
    if len({run.base for run in runs}) > 1:
        found = ["method", *(k for k in found if k != "method")]
    return found or ["folder"]

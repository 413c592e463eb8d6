"""Sweeps: a grid of keys, each cell of which is a comparison of its own, in one folder.

A method has one run for each combination of the keys that change something about it: under
`density.G=0.1,0.2` there are two runs of stu-gan@density.G=... and one of dense, which has no density.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rgplug import schema
from rgplug.baselines.command import text_of
from rgplug.baselines.methods import Baseline, Scale
from rgplug.baselines.names import FORBIDDEN
from rgplug.errors import RgplugError
from rgplug.policy import PRESETS

Values = Mapping[str, Any]
SCALE = ("density", "density.G", "density.D", "length")
RUN = {  # placeholders of a run -> what gives several of them
    "seed": "give --seeds N",
    "out": "give one --out for all runs",
    "round": "give --rounds N",
}


@dataclass(frozen=True)
class Cell:
    """One combination of the grid's values."""

    values: Values = field(default_factory=dict)

    def scale(self, scale: Scale) -> Scale:
        """What is asked of all methods alike, in this cell."""
        found = scale
        for key, value in self.values.items():
            if key == "length":
                found = replace(found, length=value)
            elif key == "density":
                found = replace(found, density=value)
            elif key in SCALE:
                held = found.density
                both = dict(held) if isinstance(held, Mapping) else {} if held is None else {"G": held, "D": held}
                found = replace(found, density={**both, key.removeprefix("density."): value})
        return found

    def policy(self, common: Mapping[str, Any], host: Sequence[str]) -> dict[str, Any]:
        """The keys common to all methods, in this cell. host: keys that the host's command takes."""
        own = {k: v for k, v in self.values.items() if k not in SCALE and k not in host}
        return schema.merge(common, schema.resolve(own, {}))

    def only(self, keys: Sequence[str]) -> Cell:
        return Cell({k: v for k, v in self.values.items() if k in keys})

    def name(self, method: str) -> str:
        """stu-gan@density.G=0.1@density.D=0.3"""
        keys = [f"@{k}={_text(v)}" for k, v in self.values.items()]
        return f"{method}{''.join(keys)}" if keys else method


def cells(grid: Mapping[str, Sequence[Any]]) -> list[Cell]:
    """All combinations, in the order of the keys. Raises RgplugError for a key without values, or a value twice."""
    for key, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise RgplugError(f"the grid's {key!r} is {values!r}; give a list of values, e.g. {key}=0.1,0.2")
        if len({_text(v) for v in values}) < len(values):
            raise RgplugError(f"the grid has a value of {key!r} twice ({', '.join(map(_text, values))}); leave one out")
    return [Cell(dict(zip(grid, chosen))) for chosen in itertools.product(*grid.values())]


def affecting(
    baseline: Baseline,
    grid: Mapping[str, Sequence[Any]],
    host: Sequence[str],
    settings: Callable[[Baseline, Cell], Any],
) -> list[str]:
    """The keys that change something about a method: those that the host's command takes change all methods; others
    those whose settings(method, cell) differ between the grid's values, whatever the other keys are."""
    found = []
    for key, values in grid.items():
        others = cells({k: v for k, v in grid.items() if k != key})
        if key in host or any(
            settings(baseline, Cell({**cell.values, key: value}))
            != settings(baseline, Cell({**cell.values, key: values[0]}))
            for cell in others
            for value in values[1:]
        ):
            found.append(key)
    return found


def check_keys(
    grid: Mapping[str, Sequence[Any]], host: Sequence[str], build: Callable[[Mapping[str, Any]], object]
) -> None:
    """Raise RgplugError for a key that neither the host's command nor a policy has. build: a policy from keys."""
    for key, values in grid.items():
        if key in RUN:
            raise RgplugError(
                f"the grid has {key!r}, which each run has its own of; {RUN[key]}, or give the placeholder another name"
            )
        if key in SCALE or key in host:
            continue
        try:
            for value in values:
                build(schema.resolve({key: value}, PRESETS))
        except RgplugError as error:
            raise RgplugError(
                f"the grid has {key!r}, which stands as {{{key}}} nowhere in the host's command, and is no key of a "
                f"policy: {error}"
            ) from None


def _text(value: Any) -> str:
    """A value in a folder's name: what no folder can be called is a hyphen (2:4, torch-pruning:taylor, a path)."""
    text = f"{value:g}" if isinstance(value, float) else text_of(value)
    return "".join("-" if letter in FORBIDDEN else letter for letter in text)

"""A metric over a key that runs differ in: the period of exploration, the density of G by that of D (STU-GAN, Figures 2
to 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rgplug.report.figure_curves import COLOURS, DASHES
from rgplug.report.figures import GREY, INK, blank_figure, legend_below, plain, save, wants_log
from rgplug.report.intervals import Interval, interval
from rgplug.report.panels import MARKERS

FEWEST = 3  # seeds of an interval that is drawn: that of two is 9 standard deviations wide on each side
Scalar = str | float | int | bool | None


@dataclass(frozen=True)
class Swept:
    """One run: its method, its keys, and its best value (None: it diverged)."""

    method: str
    keys: Mapping[str, Scalar]
    value: float | None


@dataclass(frozen=True)
class SweepLine:
    """One line: by value of the key, in order, the interval over seeds; and where runs diverged."""

    name: str
    at: tuple[Scalar, ...]
    intervals: tuple[Interval, ...]
    diverged: Mapping[Scalar, int]  # value of the key -> how many
    balanced: tuple[Scalar, ...]  # where G and D were asked for the same density


@dataclass(frozen=True)
class Sweep:
    key: str
    by: str | None
    lines: tuple[SweepLine, ...]
    level: Mapping[str, Interval]  # methods that do not have the key: dense

    @property
    def values(self) -> list[Scalar]:
        """All values of the key, in order."""
        return _ordered({x for line in self.lines for x in (*line.at, *line.diverged)})


def sweep(runs: Sequence[Swept], key: str, by: str | None = None) -> Sweep:
    """One line per method, and per value of `by`. Runs of a method that never has the key are a level."""
    methods = list(dict.fromkeys(run.method for run in runs))
    having = {m: [r for r in runs if r.method == m and r.keys.get(key) is not None] for m in methods}
    swept = [m for m in methods if having[m]]
    lines = []
    for method in swept:
        seconds: list[Scalar] = [None] if by in (None, "method") else _ordered({r.keys.get(by) for r in having[method]})
        for second in seconds:
            own = [r for r in having[method] if by in (None, "method") or r.keys.get(by) == second]
            parts = [method] if len(swept) > 1 or second is None else []
            parts += [] if second is None else [f"{by} = {value_text(second)}"]
            lines.append(_line(", ".join(parts), own, key))
    level = {}
    for method in methods:
        known = [r.value for r in runs if r.method == method and r.value is not None]
        if method not in swept and known:
            level[method] = interval(known)
    return Sweep(key, by, tuple(lines), level)


def sweep_figure(found: Sweep, path: Path, *, y_label: str) -> Path:
    """A point per seed, the mean as a line, its 95 % t-interval as a band where there are FEWEST seeds or more; a ring
    where G and D have equal density, and a cross at the upper edge where a run diverged."""
    values = found.values
    numeric = all(isinstance(v, float | int) and not isinstance(v, bool) for v in values)
    place = {v: float(v) if numeric and isinstance(v, float | int) else float(i) for i, v in enumerate(values)}
    with blank_figure(5.4, 3.4) as figure:
        axis = figure.subplots()
        if numeric and wants_log(np.array(list(place.values()))):
            axis.set_xscale("log")
        for number, line in enumerate(found.lines):
            _draw(axis, line, number, place)
        for number, (name, level) in enumerate(found.level.items()):
            dash = ((0, (4, 2)), (0, (1, 1.5)), "-.")[number % 3]
            axis.axhline(level.mean, color=INK, lw=1, ls=dash, zorder=2, label=plain(name))
        _limits(axis, found)
        if any(line.balanced for line in found.lines):
            axis.plot([], [], "o", ls="", mfc="none", mec=INK, ms=9, mew=1, label="equal density of G and D")
        if any(line.diverged for line in found.lines):
            axis.plot([], [], "x", ls="", color=INK, ms=5, label="diverged")
        if len(values) <= 10:
            axis.set_xticks(list(place.values()), [plain(value_text(v)) for v in values])
            axis.minorticks_off()
        axis.set_xlabel(plain(found.key))
        axis.set_ylabel(plain(y_label))
        axis.grid(color=GREY, lw=0.3, alpha=0.5)
        axis.set_axisbelow(True)
        axis.margins(x=0.08)
        legend_below(figure, axis, most=3)
        save(figure, path)
    return path


def _line(name: str, runs: Sequence[Swept], key: str) -> SweepLine:
    at = _ordered({r.keys[key] for r in runs if r.value is not None})
    seeds = [[r.value for r in runs if r.keys[key] == x and r.value is not None] for x in at]
    lost = [r.keys[key] for r in runs if r.value is None]
    balanced = _ordered({r.keys[key] for r in runs if is_balanced(r.keys) and r.value is not None})
    return SweepLine(
        name,
        tuple(at),
        tuple(interval(values) for values in seeds),
        {x: lost.count(x) for x in _ordered(set(lost))},
        tuple(balanced),
    )


def is_balanced(keys: Mapping[str, Scalar]) -> bool:
    """Whether G and D were asked for one density: as the grid of a comparison says it, or as the policy does."""
    for prefix in ("density", "masks.density", "target"):
        G, D = keys.get(f"{prefix}.G"), keys.get(f"{prefix}.D")
        if G is not None and D is not None:
            return G == D
    return False


def _draw(axis: Any, line: SweepLine, number: int, place: Mapping[Scalar, float]) -> None:
    colour = INK if line.name == "dense" else COLOURS[(number + 1) % len(COLOURS)]
    dash = DASHES[number // len(COLOURS) % len(DASHES)]
    marker = MARKERS[number % len(MARKERS)]
    xs = np.array([place[x] for x in line.at])
    means = np.array([i.mean for i in line.intervals])
    enough = [i for i in line.intervals if len(i.values) >= FEWEST]
    low = np.array([i.low if i in enough else np.nan for i in line.intervals], dtype=float)
    high = np.array([i.high if i in enough else np.nan for i in line.intervals], dtype=float)
    for x, found in zip(xs, line.intervals):
        axis.plot([x] * len(found.values), found.values, marker, ls="", color=colour, ms=3, alpha=0.5, mew=0, zorder=3)
    if len(xs) > 1:
        axis.fill_between(xs, low, high, color=colour, alpha=0.12, lw=0, zorder=1)
    elif len(xs) == 1 and not np.isnan(low[0]):
        axis.errorbar(xs, means, [means - low, high - means], color=colour, capsize=3, lw=1, zorder=2)
    axis.plot(
        xs, means, marker, ls=dash, color=colour, lw=1.5, ms=5, mec="white", mew=0.5, label=plain(line.name), zorder=4
    )
    rings = [(place[x], m) for x, m in zip(line.at, means) if x in line.balanced]
    if rings:
        axis.plot(*zip(*rings), "o", ls="", mfc="none", mec=colour, ms=10, mew=1.1, zorder=5)
    if line.diverged:
        crosses = [place[x] for x in line.diverged]
        axis.plot(
            crosses, [0.97] * len(crosses), "x", ls="", color=colour, ms=5, mew=1.3, zorder=5,
            transform=axis.get_xaxis_transform(), clip_on=False,
        )  # fmt: skip


def _limits(axis: Any, found: Sweep) -> None:
    """Of the values, not of the bands, which may be far wider."""
    values = [v for line in found.lines for i in line.intervals for v in i.values]
    values += [i.mean for i in found.level.values()]
    if not values:
        axis.text(0.5, 0.5, "every run diverged", transform=axis.transAxes, ha="center", va="center", color=GREY)
        axis.set_yticks([])
        return
    low, high = min(values), max(values)
    if wants_log(np.array(values)):
        axis.set_yscale("log")
        room = (high / low) ** 0.12
        axis.set_ylim(low / room, high * room)
    else:
        room = 0.15 * (high - low) or 0.1 * abs(high) or 1.0
        axis.set_ylim(low - room, high + room)


def _ordered(values: set[Scalar]) -> list[Scalar]:
    """Numbers by size, then texts; None first."""
    return sorted(
        values,
        key=lambda v: (v is not None, isinstance(v, str), float(v) if isinstance(v, float | int) else 0.0, str(v)),
    )


def value_text(value: Scalar) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)

"""A quantity over the course of training: over evaluations, real images, FLOPs or seconds (RG-GAN, Figure 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rgplug.history import Line
from rgplug.report.figures import BLUE, GREEN, INK, ORANGE, PURPLE, blank_figure, legend_below, plain, save, wants_log

COLOURS = (INK, BLUE, ORANGE, GREEN, PURPLE, "#56b4e9", "#e69f00", "#882255")  # Okabe & Ito 2008; Tol: wine
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)))  # one per turn through the colours
Curve = Mapping[float, tuple[float, float]]  # epoch -> (x, y)


@dataclass(frozen=True)
class Against:
    """What a curve is drawn over: how an axis says it, and its value at each line of a history (None: not known)."""

    key: str
    label: str
    values: Callable[[Sequence[Line]], list[float | None]]


def _field(name: str) -> Callable[[Sequence[Line]], list[float | None]]:
    return lambda lines: [line.get(name) for line in lines]


def _seconds(lines: Sequence[Line]) -> list[float | None]:
    """Those since the beginning; a line has those since the line before it."""
    own = [line.get("seconds") for line in lines]
    total, found = 0.0, []
    for value in own:
        total += np.nan if value is None else value
        found.append(None if np.isnan(total) else total)
    return found


EPOCHS = Against("epoch", "epoch", _field("epoch"))
IMAGES = Against("real_images", "real images shown to D", _field("real_images"))
FLOPS = Against("flops", "training FLOPs", _field("flops"))
SECONDS = Against("seconds", "seconds", _seconds)


def curve(
    lines: Sequence[Line],
    against: Against = EPOCHS,
    before: float = 0.0,  # what was spent before the run
    value: Callable[[Line], float | None] = lambda line: line.get("metric"),
) -> dict[float, tuple[float, float]]:
    """epoch -> (x, y) of the lines whose x and y are known and finite."""
    found = {}
    for line, x in zip(lines, against.values(lines)):
        y = value(line)
        if x is not None and y is not None and np.isfinite(x) and np.isfinite(y):
            found[float(line["epoch"])] = (float(x) + before, float(y))
    return found


def mean_curve(curves: Sequence[Curve]) -> dict[float, tuple[float, float]]:
    """Mean of x and of y over the curves, evaluation by evaluation, at those that all of them have.

    Nothing is interpolated: where costs differ from seed to seed, an evaluation lies at its mean cost.
    """
    if not curves:
        return {}
    common = set(curves[0]).intersection(*curves[1:])
    pairs = {epoch: np.mean([c[epoch] for c in curves], axis=0) for epoch in sorted(common)}
    return {epoch: (float(x), float(y)) for epoch, (x, y) in pairs.items()}


def curves_figure(
    methods: Mapping[str, Sequence[Curve]],  # per method, that of each seed; an empty one has no values
    path: Path,
    *,
    x_label: str,
    y_label: str,
    share: bool = False,  # whether y is a share, drawn from 0 to 1
    width: float = 7.2,  # inches
    order: Sequence[str] = (),  # all methods of the report: the place of a method decides its colour in every figure
) -> Path:
    """Draw every run, thin, and each method's mean, thick. Returns the path; ImportError without matplotlib."""
    with blank_figure(width, 3.6) as figure:
        axis = figure.subplots()
        draw_curves(axis, methods, order=order)
        axis.set_xlabel(x_label)
        axis.set_ylabel(plain(y_label))
        if not any(len(line.get_xdata()) for line in axis.lines):
            axis.text(0.5, 0.5, "no values", transform=axis.transAxes, ha="center", va="center", color=INK)
            axis.set_xticks([])
            axis.set_yticks([])
        if share:
            axis.set_ylim(-0.02, 1.05)
        elif wants_log(np.array([y for line in axis.lines for y in line.get_ydata()], dtype=float)):
            axis.set_yscale("log")
        if x_label == EPOCHS.label and len(axis.get_xticks()):
            axis.locator_params(axis="x", integer=True, min_n_ticks=1)
        legend_below(figure, axis)
        save(figure, path)
    return path


def draw_curves(
    axis: Any, methods: Mapping[str, Sequence[Curve]], label: bool = True, order: Sequence[str] = ()
) -> None:
    """All curves of a panel. label: whether the means get a name in the legend. order: as for `curves_figure`."""
    places = {name: number for number, name in enumerate(dict.fromkeys([*order, *methods]))}
    for name, all_curves in methods.items():
        number = places[name]
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
        curves = [c for c in all_curves if c]
        for c in curves:
            axis.plot(*zip(*c.values()), color=colour, ls=dash, lw=0.7, alpha=0.5, zorder=2, **_marker(c))
        common = mean_curve(curves)
        xs, ys = [x for x, _ in common.values()], [y for _, y in common.values()]
        text = plain(name) if curves else f"{plain(name)} (no values)"
        if 0 < len(curves) < len(all_curves):
            text += f" ({len(curves)} of {len(all_curves)} runs)"
        axis.plot(
            xs, ys, color=colour, ls=dash, lw=1.6, zorder=3, label=text if label else None, **_marker(common)
        )  # fmt: skip


def _marker(found: Curve) -> dict[str, Any]:
    """A line of one point is not seen."""
    return {"marker": "o", "ms": 3} if len(found) == 1 else {}

"""The metric of methods against what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rgplug.report.figure_curves import COLOURS
from rgplug.report.figures import GREY, blank_figure, few_labels, legend_below, plain, save, wants_log

MARKERS = "osD^vPXh"
MOST_BESIDE, LONGEST_BESIDE = 10, 18  # names, and their characters, that there is room for beside the points


@dataclass(frozen=True)
class Points:
    """One method in a scatter plot: a point per seed, and the method's name."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


def trade_off(
    points: Sequence[Points],
    path: Path,
    *,
    x_label: str,
    y_label: str,
    share: bool = False,  # whether x is a share, drawn from 0 to 1
    order: Sequence[str] = (),  # all methods of the report: the place of a method decides its colour in every figure
) -> Path:
    """Scatter plot: a small point per seed, a large one for the mean of a method, with its name beside it, or in a
    legend where names are many or long. Returns the path."""
    with blank_figure(4.8, 3.4) as figure:
        axis = figure.subplots()
        means = [(float(np.mean(p.x)), float(np.mean(p.y))) for p in points]
        places = {name: number for number, name in enumerate(dict.fromkeys([*order, *(p.name for p in points)]))}
        for p, (x, y) in zip(points, means):
            number = places[p.name]
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]
            axis.plot(p.x, p.y, marker, ls="", color=colour, ms=3, alpha=0.5, mew=0, zorder=2)
            axis.plot(x, y, marker, ls="", color=colour, ms=7, mec="white", mew=0.7, zorder=3, label=plain(p.name))
        axis.set_xlabel(x_label)
        axis.set_ylabel(plain(y_label))
        axis.grid(color=GREY, lw=0.3, alpha=0.5)
        axis.set_axisbelow(True)
        if share:
            axis.set_xlim(-0.03, 1.03)
        elif wants_log(np.array([x for p in points for x in p.x])):
            axis.set_xscale("log")
            few_labels(axis)
        if wants_log(np.array([y for p in points for y in p.y])):
            axis.set_yscale("log")
        axis.margins(x=None if share else 0.12, y=0.15)
        names = [p.name for p in points]
        if len(names) > MOST_BESIDE or max(map(len, names), default=0) > LONGEST_BESIDE:
            legend_below(figure, axis)
        else:
            _label(figure, axis, names, means)
        save(figure, path)
    return path


PLACES = (  # where a label may stand beside its point: offset in points, and the end of the text that is there
    ((7, 0), "left", "center"), ((-7, 0), "right", "center"), ((0, 7), "center", "bottom"),
    ((0, -7), "center", "top"), ((6, 6), "left", "bottom"), ((-6, 6), "right", "bottom"),
    ((6, -6), "left", "top"), ((-6, -6), "right", "top"),
    ((0, 17), "center", "bottom"), ((0, -17), "center", "top"),
    ((0, 27), "center", "bottom"), ((0, -27), "center", "top"),
)  # fmt: skip


def _label(figure: Any, axis: Any, names: Sequence[str], means: Sequence[tuple[float, float]]) -> None:
    """Names beside the points, each in the first place where it covers nothing and stays inside."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # the layout has to be known before texts can be measured
    renderer = figure.canvas.get_renderer()
    spots = axis.transData.transform(means)
    radius = 4.5 / 72 * figure.dpi
    taken = [Bbox([[x - radius, y - radius], [x + radius, y + radius]]) for x, y in spots]
    inside = axis.get_window_extent(renderer)

    def put(name: str, mean: tuple[float, float], place: tuple[Any, str, str]) -> Any:
        offset, horizontal, vertical = place
        text = axis.annotate(
            plain(name), mean, xytext=offset, textcoords="offset points", ha=horizontal, va=vertical, fontsize=7.5
        )
        text.set_in_layout(False)
        return text

    for name, mean in zip(names, means):
        for place in PLACES:
            text = put(name, mean, place)
            box = text.get_window_extent(renderer)
            within = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
            if within and not box.count_overlaps(taken):
                break
            text.remove()
        else:
            text = put(name, mean, PLACES[0])  # a covered label is better than none
        taken.append(text.get_window_extent(renderer))

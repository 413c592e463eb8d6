"""What figures hold, caught before they are written."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rgplug.report import figure_ablation, figure_curves, figure_layers, figure_sheets, figure_sweep, figures


@dataclass
class Axes:
    """One panel. lines: (x, y) of each line; bars: height by x of their middles."""

    lines: list[tuple[list[float], list[float]]]
    bars: dict[float, float]
    labels: list[str]
    texts: list[str]
    ticks: list[str]
    title: str
    x_label: str
    x_scale: str
    y_scale: str
    y_limits: tuple[float, float]
    raw: Any = field(repr=False, default=None)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """The panels of all figures that were written, in order; the files are written, too."""
    found: list[Axes] = []

    def save(figure: Any, path: Path) -> None:
        figures.save(figure, path)
        found.extend(map(_seen, figure.axes))

    for module in (figure_ablation, figure_curves, figure_layers, figure_sheets, figure_sweep):
        monkeypatch.setattr(module, "save", save)
    return found


def _seen(axis: Any) -> Axes:
    return Axes(
        [(list(map(float, line.get_xdata())), list(map(float, line.get_ydata()))) for line in axis.lines],
        {round(p.get_x() + p.get_width() / 2, 3): p.get_height() for p in axis.patches if hasattr(p, "get_height")},
        axis.get_legend_handles_labels()[1],
        [text.get_text() for text in axis.texts],
        [tick.get_text() for tick in axis.get_xticklabels()],
        axis.get_title(loc="left") or axis.get_title(),
        axis.get_xlabel(),
        axis.get_xscale(),
        axis.get_yscale(),
        axis.get_ylim(),
        axis,
    )

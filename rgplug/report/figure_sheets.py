"""Samples of several methods side by side, each with its value and its cost beneath (RG-GAN, Figure 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from rgplug.report.figures import blank_figure, plain, save

MOST_COLUMNS = 4


@dataclass(frozen=True)
class Sheet:
    """A grid of samples: what made it, and what stands beneath."""

    name: str
    picture: Image.Image
    beneath: str  # such as "FID 12.3, 1.2e15 FLOPs"


def sheets_figure(sheets: Sequence[Sheet], path: Path) -> Path:
    """The pictures in rows of at most four, the name above each and its value and cost beneath."""
    columns = min(MOST_COLUMNS, len(sheets))
    rows = math.ceil(len(sheets) / columns)
    width = 7.2 / MOST_COLUMNS
    above = max(_broken(s.name).count("\n") for s in sheets)
    tallest = max(s.picture.height / s.picture.width for s in sheets)
    with blank_figure(max(width * columns, 2.2), rows * (width * min(tallest, 2.0) + 0.75 + 0.13 * above)) as figure:
        figure.get_layout_engine().set(hspace=0.02)
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for axis, sheet in zip(axes, sheets):
            axis.imshow(sheet.picture, interpolation="nearest" if sheet.picture.width < 400 else "antialiased")
            axis.set_title(plain(_broken(sheet.name)), fontsize=8, fontweight="bold")
            axis.set_xlabel(plain(sheet.beneath), fontsize=7.5)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
        for axis in axes[len(sheets) :]:
            axis.set_visible(False)
        save(figure, path)
    return path


def _broken(name: str, most: int = 24) -> str:
    """A name over several lines, as wide as a picture: stu-gan@density.G=0.1 breaks at its keys."""
    lines = [line[i : i + most] for line in name.split("@") for i in range(0, max(len(line), 1), most)]
    return "\n".join(lines)

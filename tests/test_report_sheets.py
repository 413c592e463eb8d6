"""Samples side by side with value and cost beneath (RG-GAN, Figure 1): what is drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from figures_drawn import Axes, drawn  # noqa: F401
from PIL import Image

from rgplug.report.figure_sheets import Sheet, sheets_figure


def sheet(name: str, level: int) -> Sheet:
    return Sheet(name, Image.new("RGB", (8, 8), (level, level, level)), f"FID {level}\n1e9 FLOPs")


def test_pictures_in_rows_of_four_with_value_and_cost_beneath(drawn: list[Axes], tmp_path: Path) -> None:  # noqa: F811
    sheets_figure([sheet(f"m{i}", i) for i in range(5)], tmp_path / "a.png")
    shown = [axis for axis in drawn if axis.raw.get_visible()]
    assert [axis.title for axis in shown] == ["m0", "m1", "m2", "m3", "m4"]
    assert [axis.x_label for axis in shown] == [f"FID {i}\n1e9 FLOPs" for i in range(5)]
    assert [int(np.asarray(axis.raw.images[0].get_array())[0, 0, 0]) for axis in shown] == [0, 1, 2, 3, 4]
    assert len(drawn) == 8  # two rows, three places empty


def test_a_long_name_breaks_at_its_keys(drawn: list[Axes], tmp_path: Path) -> None:  # noqa: F811
    sheets_figure([sheet("stu-gan@density.G=0.1", 0)], tmp_path / "a.pdf")
    assert drawn[0].title == "stu-gan\ndensity.G=0.1"

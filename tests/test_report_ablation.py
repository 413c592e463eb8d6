"""Bars of the parts of RG-GAN (RG-GAN, Figure 5): what is drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
from figures_drawn import Axes, drawn  # noqa: F401

from rgplug.policy import PRESETS
from rgplug.report.figure_ablation import BARS, ablation, ablation_figure

VALUES = {"dense": [30.0, 32.0], "rg-gan-dp-g": [60.0], "rg-gan-rr": [50.0, 54.0], "rg-gan": [40.0, None, 44.0]}


def test_the_bars_are_presets_and_each_has_a_place_of_its_own() -> None:
    assert set(BARS) <= set(PRESETS)
    assert len(set(BARS.values())) == 9


def test_bars_are_means_over_the_seeds_with_a_value() -> None:
    found = ablation(VALUES)
    assert {place: i.mean for place, i in found.items()} == {
        ("G", "DP"): 60.0, ("both", "DP + RR"): 52.0, ("both", "DP + RR + AR"): 42.0
    }  # fmt: skip
    both = found["both", "DP + RR"]
    half = 12.7062 * 2.8284 / 2**0.5  # t of one degree of freedom, sd of two values 4 apart
    assert (both.low, both.high) == (pytest.approx(52 - half, rel=1e-4), pytest.approx(52 + half, rel=1e-4))
    assert found["G", "DP"].low is None


def test_what_is_drawn(drawn: list[Axes], tmp_path: Path) -> None:  # noqa: F811
    """Groups G and both (there is none on D); a point per seed; dense as a line; a diverged seed said."""
    ablation_figure(VALUES, tmp_path / "a.png", y_label="FID")
    (axis,) = drawn
    assert axis.ticks == ["on G", "on both"]
    assert axis.bars == {-0.27: 60.0, 1.0: 52.0, 1.27: 42.0}
    points = [y for x, ys in axis.lines for y in ys if len(ys) < 3]
    assert all(value in points for value in (60.0, 50.0, 54.0, 40.0, 44.0))
    assert axis.labels.count("dense (31)") == 1
    assert axis.texts == ["1 diverged"]
    assert axis.y_limits[0] == 0
    assert axis.y_limits[1] < 100  # an interval of two seeds does not flatten the bars


def test_values_below_0_are_within_the_panel(drawn: list[Axes], tmp_path: Path) -> None:  # noqa: F811
    ablation_figure({"rg-gan-dp": [-0.1], "rg-gan": [0.2]}, tmp_path / "a.png", y_label="kid")
    assert drawn[0].y_limits == (-0.125, 0.25)


def test_every_run_diverged(drawn: list[Axes], tmp_path: Path) -> None:  # noqa: F811
    ablation_figure({"rg-gan-dp": [None], "rg-gan": [None]}, tmp_path / "a.pdf", y_label="FID")
    assert drawn[0].texts == ["diverged", "diverged"]
    assert drawn[0].bars == {}

"""Curves over evaluations and costs, and intervals over seeds: what is drawn."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
from figures_drawn import Axes, drawn  # noqa: F401
from scipy import stats

from rgplug.report.figure_curves import EPOCHS, FLOPS, IMAGES, SECONDS, curve, curves_figure, draw_curves, mean_curve
from rgplug.report.intervals import interval, t_quantile


def lines(*metrics: float | None) -> list[dict[str, Any]]:
    return [
        {"epoch": e, "metric": m, "real_images": 100 * e, "flops": 1e9 * e, "seconds": 2.5}
        for e, m in enumerate(metrics, start=1)
    ]


def test_a_curve_over_each_cost_begins_after_what_was_spent_before() -> None:
    own = lines(5.0, None, float("nan"), 3.0)
    assert curve(own) == {1: (1, 5), 4: (4, 3)}
    assert curve(own, IMAGES, 1000) == {1: (1100, 5), 4: (1400, 3)}
    assert curve(own, FLOPS, 5e9) == {1: (6e9, 5), 4: (9e9, 3)}
    assert curve(own, SECONDS) == {1: (2.5, 5), 4: (10, 3)}  # a line has the seconds since the line before


def test_costs_that_are_not_known_give_no_point() -> None:
    own = lines(5.0, 4.0, 3.0)
    del own[1]["seconds"], own[1]["flops"]
    assert curve(own, SECONDS) == {1: (2.5, 5)}  # nor does anything after it
    assert curve(own, FLOPS) == {1: (1e9, 5), 3: (3e9, 3)}
    assert curve(own, EPOCHS) == {1: (1, 5), 2: (2, 4), 3: (3, 3)}


def test_the_mean_is_of_evaluations_that_all_runs_have_at_their_mean_cost() -> None:
    found = mean_curve([{1: (10.0, 4.0), 2: (20.0, 6.0)}, {2: (30.0, 8.0), 3: (50.0, 1.0)}])
    assert found == {2: (25.0, 7.0)}
    assert mean_curve([]) == {}


def test_runs_are_thin_and_their_mean_thick(drawn: list[Axes], tmp_path: Path) -> None:  # noqa: F811
    curves = {"a": [curve(lines(8.0, 4.0)), curve(lines(6.0, 2.0)), {}], "none": [{}]}
    curves_figure(curves, tmp_path / "a.png", x_label="epoch", y_label="FID")
    (axis,) = drawn
    assert axis.lines[:2] == [([1, 2], [8, 4]), ([1, 2], [6, 2])]
    assert axis.lines[2] == ([1, 2], [7, 3])
    assert axis.labels == ["a (2 of 3 runs)", "none (no values)"]


def test_a_first_value_far_above_the_rest_makes_the_axis_logarithmic(drawn: list[Axes], tmp_path: Path) -> None:  # noqa: F811
    curves_figure({"a": [curve(lines(400.0, 30.0, 20.0))]}, tmp_path / "a.png", x_label="epoch", y_label="FID")
    curves_figure({"a": [curve(lines(30.0, 20.0))]}, tmp_path / "b.png", x_label="epoch", y_label="FID")
    assert [axis.y_scale for axis in drawn] == ["log", "linear"]


def test_no_values_are_said(drawn: list[Axes], tmp_path: Path) -> None:  # noqa: F811
    curves_figure({"a": [{}]}, tmp_path / "a.png", x_label="epoch", y_label="FID")
    assert (drawn[0].texts, drawn[0].labels) == (["no values"], ["a (no values)"])


def test_a_share_is_drawn_from_nothing_to_all(drawn: list[Axes], tmp_path: Path) -> None:  # noqa: F811
    ever = [{"epoch": 1, "ever_active": {"G": 0.1}}, {"epoch": 2, "ever_active": {"G": 0.4}}]
    own = curve(ever, value=lambda line: line["ever_active"]["G"])
    curves_figure({"a": [own]}, tmp_path / "a.pdf", x_label="epoch", y_label="ever active", share=True)
    (axis,) = drawn
    assert axis.lines[0] == ([1, 2], [0.1, 0.4])
    assert axis.y_limits[0] <= 0
    assert axis.y_limits[1] >= 1


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 10, 29, 100])
def test_quantiles_of_students_distribution(freedom: int) -> None:
    assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-9)


def test_an_interval_is_that_of_the_mean() -> None:
    values = [4.0, 5.0, 9.0]
    found = interval(values)
    low, high = stats.t.interval(0.95, 2, statistics.fmean(values), stats.sem(values))
    assert (found.mean, found.low, found.high) == (6.0, pytest.approx(low), pytest.approx(high))
    assert interval([4.0]).low is None


def test_a_method_has_one_colour_in_every_figure() -> None:
    """A figure without some of the methods draws the others as the figures with all of them do."""
    from matplotlib.figure import Figure

    curves = {name: [{1.0: (1.0, 2.0), 2.0: (2.0, 1.0)}] for name in ("dense", "rg-gan", "tickets")}
    colours: dict[str, set[str]] = {}
    for shown in (curves, {"tickets": curves["tickets"]}):
        axis = Figure().subplots()
        draw_curves(axis, shown, order=list(curves))
        for line in axis.lines:
            colours.setdefault(str(line.get_label()), set()).add(str(line.get_color()))
    assert len(colours["tickets"]) == 1
    assert colours["tickets"] != colours["dense"]

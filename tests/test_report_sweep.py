"""A metric over a swept key (STU-GAN, Figures 2 to 6): what is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from figures_drawn import Axes, drawn  # noqa: F401

from rgplug.report.figure_sweep import Swept, is_balanced, sweep, sweep_figure


def runs(method: str, values: dict[Any, list[float | None]], key: str = "density.G", **keys: Any) -> list[Swept]:
    return [Swept(method, {key: x, **keys}, v) for x, own in values.items() for v in own]


TWO = [
    *runs("stu-gan", {0.3: [10.0, 12.0], 0.1: [20.0, 22.0], 0.5: [9.0, None]}, **{"density.D": 0.3}),
    *runs("stu-gan", {0.1: [30.0]}, **{"density.D": 0.5}),
    Swept("dense", {}, 8.0),
    Swept("dense", {}, 10.0),
]


def test_lines_by_a_second_key_in_order_of_the_first() -> None:
    found = sweep(TWO, "density.G", "density.D")
    assert [line.name for line in found.lines] == ["density.D = 0.3", "density.D = 0.5"]
    first, second = found.lines
    assert first.at == (0.1, 0.3, 0.5)
    assert [i.mean for i in first.intervals] == [21.0, 11.0, 9.0]
    assert [i.low is None for i in first.intervals] == [False, False, True]
    assert first.diverged == {0.5: 1}
    assert first.balanced == (0.3,)
    assert (second.at, second.balanced) == ((0.1,), ())
    assert found.level["dense"].mean == 9.0
    assert found.values == [0.1, 0.3, 0.5]


def test_one_line_per_method_where_there_is_no_second_key() -> None:
    found = sweep([*runs("set", {1: [3.0], 2: [4.0]}), *runs("rigl", {1: [5.0]})], "density.G")
    assert [(line.name, line.at) for line in found.lines] == [("set", (1, 2)), ("rigl", (1,))]
    assert sweep(runs("set", {1: [3.0]}), "density.G", "method").lines[0].name == "set"


def test_methods_and_a_second_key() -> None:
    own = [r for m in ("a", "b") for r in runs(m, {1: [3.0]}, **{"share": 0.1})]
    assert [line.name for line in sweep(own, "density.G", "share").lines] == ["a, share = 0.1", "b, share = 0.1"]


@pytest.mark.parametrize(
    ("keys", "balanced"),
    [
        ({"density.G": 0.1, "density.D": 0.1}, True),
        ({"density.G": 0.1, "density.D": 0.3, "masks.density.G": 0.1, "masks.density.D": 0.1}, False),
        ({"masks.density.G": 0.2, "masks.density.D": 0.2}, True),
        ({"density.G": 0.1}, False),
    ],
)
def test_the_balanced_point(keys: dict[str, float], balanced: bool) -> None:
    assert is_balanced(keys) == balanced


def test_what_is_drawn(drawn: list[Axes], tmp_path: Path) -> None:  # noqa: F811
    sweep_figure(sweep(TWO, "density.G", "density.D"), tmp_path / "a.png", y_label="FID")
    (axis,) = drawn
    assert ([0.1, 0.3, 0.5], [21.0, 11.0, 9.0]) in axis.lines  # the mean
    assert ([0.1, 0.1], [20.0, 22.0]) in axis.lines  # its seeds
    assert ([0.3], [11.0]) in axis.lines  # the ring
    assert ([0.5], [0.97]) in axis.lines  # the diverged seed, at the upper edge
    assert axis.labels == [
        "density.D = 0.3", "density.D = 0.5", "dense", "equal density of G and D", "diverged"
    ]  # fmt: skip
    assert axis.ticks == ["0.1", "0.3", "0.5"]
    assert axis.y_limits[1] < 40  # an interval of two seeds does not flatten the lines


def test_a_band_is_drawn_from_three_seeds_on(drawn: list[Axes], tmp_path: Path) -> None:  # noqa: F811
    for number, seeds in enumerate(([1.0, 3.0], [1.0, 2.0, 3.0])):
        sweep_figure(sweep(runs("a", {1: seeds, 2: seeds}), "density.G"), tmp_path / f"{number}.png", y_label="FID")
    two, three = ([path for c in axis.raw.collections for path in c.get_paths()] for axis in drawn)
    assert not any(len(path.vertices) for path in two)
    top = 2 + 4.30265 * 1 / 3**0.5  # t of two degrees of freedom, sd 1
    assert three[0].vertices[:, 1].max() == pytest.approx(top, rel=1e-4)


def test_a_wide_range_of_periods_is_logarithmic(drawn: list[Axes], tmp_path: Path) -> None:  # noqa: F811
    own = runs("stu-gan", {x: [10.0] for x in (100, 1000, 10000)}, "exploration.every")
    sweep_figure(sweep(own, "exploration.every"), tmp_path / "a.png", y_label="FID")
    assert drawn[0].x_scale == "log"
    assert drawn[0].ticks == ["100", "1000", "10000"]


def test_a_key_that_is_text_and_runs_that_all_diverged(drawn: list[Axes], tmp_path: Path) -> None:  # noqa: F811
    own = runs("stu-gan", {"gradient": [10.0], "random": [12.0]}, "exploration.grow")
    sweep_figure(sweep(own, "exploration.grow"), tmp_path / "a.png", y_label="FID")
    assert drawn[0].ticks == ["gradient", "random"]
    assert ([0.0, 1.0], [10.0, 12.0]) in drawn[0].lines
    sweep_figure(sweep(runs("a", {1: [None]}), "density.G"), tmp_path / "b.pdf", y_label="FID")
    assert drawn[1].texts == ["every run diverged"]

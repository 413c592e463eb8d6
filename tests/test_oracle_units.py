"""Units, their parts, scores and blocks, on arrays small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from oracle_units import Layout, Units, filter_index, make_units, unit_scores
from two_weights import bits, same

CONV, TRANSPOSED, MODULATED = Layout(), Layout(1, 0), Layout(1, 2)


def units_of(granularity: str, ties=None, **shapes: tuple[int, ...]) -> Units:
    return make_units(shapes, dict.fromkeys(shapes, CONV), granularity, ties)


def test_filters_by_layout():
    assert filter_index((2, 3), CONV).tolist() == [[0, 0, 0], [1, 1, 1]]
    assert filter_index((2, 3), TRANSPOSED).tolist() == [[0, 1, 2], [0, 1, 2]]
    assert filter_index((4, 2), Layout(1, 0, 2)).tolist() == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert filter_index((1, 2, 3), MODULATED).tolist() == [[[0, 0, 0], [1, 1, 1]]]
    assert filter_index((3,), CONV).tolist() == [0, 1, 2]


def test_kernels_by_layout():
    shapes = {"conv": (2, 2, 2), "transposed": (2, 3, 2), "grouped": (2, 2, 1), "modulated": (1, 2, 1, 2), "bias": (2,)}
    layouts = {"conv": CONV, "transposed": TRANSPOSED, "grouped": Layout(1, 0, 2), "modulated": MODULATED, "bias": CONV}
    units = make_units(shapes, layouts, "kernel")
    assert units.part["conv"].tolist() == [[[0, 0], [1, 1]], [[2, 2], [3, 3]]]
    assert units.filter["conv"].tolist() == [0, 0, 1, 1]
    assert units.part["transposed"].tolist() == [[[0, 0], [2, 2], [4, 4]], [[1, 1], [3, 3], [5, 5]]]
    assert units.filter["transposed"].tolist() == [0, 0, 1, 1, 2, 2]
    assert units.filter["grouped"].tolist() == [0, 2, 1, 3]  # parts go (column, row); rows are groups of one
    assert units.part["modulated"].tolist() == [[[[0, 0]], [[1, 1]]]]
    assert units.part["bias"].tolist() == [0, 1]
    assert units.count == 4 + 6 + 4 + 2 + 2
    assert units.members.tolist() == [1] * units.count
    assert sorted(units.sizes) == [1] * 6 + [2] * 12


def test_scores_of_kernels():
    units = units_of("kernel", a=(1, 2, 3), b=(2, 1))
    scores = unit_scores({"a": np.array([[[1, -3, 2], [0, 0, -6]]]), "b": np.array([[-4.0], [5.0]])}, units)
    assert scores.tolist() == [2, 2, 4, 5]
    assert units.blocks.tolist() == [0, 0, 2, 2]


# a0 and b1 make channel 7, a1 and b0 make channel 9. Filters of two entries and of four.
TIED = units_of("filter", {"a": np.array([7, 9]), "b": np.array([9, 7])}, a=(2, 2), b=(2, 4))
TIED_VALUES = {"a": np.array([[1.0, -3.0], [2.0, 0.0]]), "b": np.array([[4.0, -4, 4, 4], [1, 0, 0, -1]])}


def test_scores_of_tied_filters_are_means_of_means():
    assert unit_scores(TIED_VALUES, TIED).tolist() == [(2 + 0.5) / 2, (1 + 4) / 2]
    assert (TIED.sizes.tolist(), TIED.members.tolist(), TIED.blocks.tolist()) == ([6, 6], [2, 2], [0, 0])
    same(TIED.expand(np.array([True, False])), {"a": bits([1, 1], [0, 0]), "b": bits([0] * 4, [1] * 4)})


def test_rows_that_are_viewed_as_one_channel():
    units = units_of("filter", {"a": np.array([0, 0, 1, 1])}, a=(4, 1))
    assert unit_scores({"a": np.array([[1.0], [-3.0], [5.0], [0.0]])}, units).tolist() == [2, 2.5]
    same(units.expand(np.array([False, True])), {"a": bits([0], [0], [1], [1])})


def test_filters_without_ties_and_what_is_kept_in_part():
    units = units_of("filter", a=(2, 2), b=(1, 2))
    masks = {"a": bits([1, 1], [0, 0]), "b": bits([1, 1])}
    assert units.collapse(masks).tolist() == [True, False, True]
    with pytest.raises(ValueError, match=r"units \[1\] are kept in part"):
        units.collapse({**masks, "a": bits([1, 1], [0, 1])})


def test_blocks_connect_through_a_third_weight():
    ties = {"a": np.array([0, 1]), "b": np.array([2, 3]), "c": np.array([4]), "d": np.array([3, 5, 1])}
    units = units_of("filter", ties, a=(2, 1), b=(2, 1), c=(1, 1), d=(3, 1))
    assert units.blocks.tolist() == [0, 0, 0, 0, 4, 0]

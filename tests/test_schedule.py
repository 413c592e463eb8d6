"""Density schedules by hand."""

from __future__ import annotations

import pytest

from rgplug.policy import TargetPolicy
from rgplug.schedule import scheduled_density, steering_interval


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        # start 10, by 20, from 1 to 0.2: a loss of 0.8 times the share of the way
        ("linear", {0: 1, 10: 1, 11: 0.92, 15: 0.6, 19: 0.28, 20: 0.2, 99: 0.2}),
        # times 1 - (1 - u)^3: 0.271, 0.875, 0.999
        ("cubic", {0: 1, 10: 1, 11: 1 - 0.8 * 0.271, 15: 1 - 0.8 * 0.875, 19: 1 - 0.8 * 0.999, 20: 0.2, 99: 0.2}),
        ("constant", {0: 1, 9: 1, 10: 0.2, 15: 0.2, 20: 0.2, 99: 0.2}),
    ],
)
def test_shapes(shape: str, expected: dict[int, float]) -> None:
    target = TargetPolicy(D=0.2, start=10, by=20, shape=shape)  # type: ignore[arg-type]
    for iteration, density in expected.items():
        assert scheduled_density(target, "D", iteration) == pytest.approx(density)
        assert scheduled_density(target, "G", iteration) is None


def test_a_schedule_of_no_length() -> None:
    for shape in ("linear", "cubic", "constant"):
        target = TargetPolicy(G=0.2, start=5, by=5, shape=shape)  # type: ignore[arg-type]
        assert [scheduled_density(target, "G", i) for i in (0, 4, 5, 6)] == [1, 1, 0.2, 0.2]


@pytest.mark.parametrize(
    ("start", "by", "expected"), [(0, 10, 1), (0, 1999, 1), (0, 2000, 2), (500, 3500, 3), (0, 20000, 4)]
)
def test_steering_interval(start: int, by: int, expected: int) -> None:
    assert steering_interval(TargetPolicy(G=0.5, start=start, by=by)) == expected
    assert steering_interval(None) == 1

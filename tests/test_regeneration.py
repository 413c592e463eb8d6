"""The weighted-metric rule, on numbers worked out by hand."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from PIL import Image
from torch import nn

import rgplug
from rgplug.policy import AugmentedPolicy
from rgplug.regeneration import AugmentedRegeneration, weighted_average


def phases(metrics: list[float], **policy: object) -> str:
    rule = AugmentedRegeneration(AugmentedPolicy(**policy))  # type: ignore[arg-type]
    letters = ""
    for metric in metrics:
        rule.decide(metric)
        letters += "s" if rule.sparse else "d"
    return letters


def test_the_average_is_over_the_last_values_oldest_first() -> None:
    weights = (0.1, 0.1, 0.2, 0.2, 0.4)
    assert weighted_average([10, 20, 30, 40], weights) is None
    assert weighted_average([10, 20, 30, 40, 50], weights) == pytest.approx(1 + 2 + 6 + 8 + 20)
    assert weighted_average([99, 10, 20, 30, 40, 50], weights) == pytest.approx(37)


@pytest.mark.parametrize(
    ("metrics", "policy", "expected"),
    [
        ([9, 8, 7, 6, 5], {}, "sssss"),  # average 6.3: falling
        ([5, 6, 7, 8, 9], {}, "ssssd"),  # average 7.7: rising
        ([4, 4, 4, 4, 4], {}, "sssss"),  # equality stays sparse
        ([1, 2, 3, 4], {}, "ssss"),  # fewer values than the window
        ([5, 6, 7, 8, 9, 1], {}, "ssssds"),  # and back
        ([5, 6, 7, 8, 9, 9, 9, 9, 9], {}, "ssssdddds"),  # equality ends a dense phase: 9 <= (9+9+2*9+2*9)/6
        # the paper's words: the five before, so the sixth is the first that is decided
        ([5, 6, 7, 8, 9], {"include_current": False}, "sssss"),
        ([5, 6, 7, 8, 9, 8], {"include_current": False}, "sssssd"),  # average 7.7
        ([5, 6, 7, 8, 9, 7.7], {"include_current": False}, "ssssss"),
        # 10 % above the average: 8.47, and 9 is worse; 8.03, and 8 is not
        ([5, 6, 7, 8, 9], {"hysteresis": 0.1}, "ssssd"),
        ([5, 6, 7, 8, 8], {"hysteresis": 0.1}, "sssss"),
        ([5, 6, 7, 8, 8], {}, "ssssd"),
        # dense: average of 6 7 8 9 7.5 is 7.7; 7.5 is not 10 % below, 1 is
        ([5, 6, 7, 8, 9, 7.5, 1], {"hysteresis": 0.1}, "ssssdds"),
        # a phase lasts three evaluations at least: the first one has lasted five already
        ([5, 6, 7, 8, 9, 1, 1, 1], {"dwell": 3}, "ssssddds"),
        ([5, 5, 5, 5, 1], {"higher_is_better": True}, "ssssd"),
        ([5, 5, 5, 5, 9], {"higher_is_better": True}, "sssss"),
        ([1, 2, 1], {"window": 2, "weights": (0.5, 0.5)}, "sds"),
        ([3, 4, 3], {"window": 1, "weights": (1.0,)}, "sss"),  # compared with itself
        ([3, 4, 3], {"window": 1, "weights": (1.0,), "include_current": False}, "sds"),
        ([0, 0, 0, 0, 0], {}, "sssss"),
        ([-9, -8, -7, -6, -5], {}, "ssssd"),
    ],
)
def test_the_rule(metrics: list[float], policy: dict[str, object], expected: str) -> None:
    assert phases(metrics, **policy) == expected


def test_with_the_current_value_the_rule_is_a_mean_of_the_four_before() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        h = [rng.uniform(0, 100) for _ in range(5)]
        rule = AugmentedRegeneration(AugmentedPolicy())
        for value in h:
            rule.decide(value)
        assert rule.sparse == (h[4] <= (h[0] + h[1] + 2 * h[2] + 2 * h[3]) / 6)


def test_equal_values_of_any_size_stay_sparse() -> None:
    """0.1 * x + 0.1 * x + 0.2 * x + 0.2 * x + 0.4 * x may round below x."""
    rng = random.Random(0)
    for _ in range(2000):
        assert phases([rng.uniform(0, 1000)] * 5) == "sssss"


def test_state() -> None:
    rule = AugmentedRegeneration(AugmentedPolicy(dwell=2))
    for value in (5, 6, 7, 8, 9):
        rule.decide(value)
    assert not rule.sparse
    other = AugmentedRegeneration(AugmentedPolicy(dwell=2))
    other.load_state_dict(rule.state_dict())
    rule.history.append(1.0)  # the state is a copy
    assert other.history == [5, 6, 7, 8, 9]
    other.decide(1)
    assert not other.sparse  # dwell: the dense phase is one evaluation old
    other.decide(1)
    assert other.sparse


@pytest.mark.parametrize("include_current", [True, False])
def test_only_the_values_that_a_decision_needs_are_kept(include_current: bool) -> None:
    """The next decision is that of a rule which has kept everything: the oldest values have weights of their own."""
    rule = AugmentedRegeneration(AugmentedPolicy(include_current=include_current))
    rng, seen = random.Random(1), []
    for _ in range(200):
        seen.append(rng.uniform(0, 10))
        average = rule.decide(seen[-1])
        before = seen if include_current else seen[:-1]
        assert average == weighted_average(before, rule.policy.weights)
    assert rule.state_dict()["history"] == seen[-5:]
    rule.load_state_dict({"history": seen, "sparse": True, "evaluations": 1})  # a state from before kept all
    assert rule.history == seen[-5:]


@pytest.mark.parametrize(
    ("distance", "metrics"), [("is", (5.0, 4.0, 3.0, 2.0, 1.0)), ("kid", (1.0, 2.0, 3.0, 4.0, 5.0))]
)
def test_a_run_goes_dense_where_the_metric_of_its_policy_gets_worse(
    distance: str, metrics: tuple[float, ...], tmp_path: Path
) -> None:
    """The inception score is better where it is higher, without anybody saying so."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    metric = {"real": str(tmp_path), "features": "efficientnet_lite0", "distance": distance}
    for values, phase in ((metrics, "dense"), (metrics[::-1], "sparse")):
        with rgplug.attach(nn.Linear(2, 2), policy={"metric": metric}) as rg:
            for value in values:
                rg.end_epoch(value, metric_name=distance)
            assert rg.phase == phase

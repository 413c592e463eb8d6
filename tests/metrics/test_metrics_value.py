"""Names and how values print."""

import math

import pytest

from rgplug.metrics.value import MetricValue, metric_name


@pytest.mark.parametrize(
    ("distance", "features", "name"),
    [
        ("frechet", "inception", "fid"),
        ("kid", "inception", "kid"),
        ("is", "inception", "is"),
        ("frechet", "efficientnet_lite0", "fd_efficientnet_lite0"),
        ("kid", "efficientnet_lite0", "kid_efficientnet_lite0"),
        ("is", "efficientnet_lite0", "is_efficientnet_lite0"),
        ("frechet", "mine", "fd_mine"),
    ],
)
def test_only_inception_gives_the_plain_names(distance, features, name):
    assert metric_name(distance, features) == name


def test_printing():
    assert (
        str(MetricValue("fd_efficientnet_lite0", 43.2077, None, 5000, 1.0))
        == "fd_efficientnet_lite0 43.21 (5000 samples)"
    )
    assert str(MetricValue("kid", 0.012345, 0.00042, 1000, 1.0)) == "kid 0.01235 +- 0.00042 (1000 samples)"
    assert str(MetricValue("fid", math.nan, None, 10, 1.0)) == "fid nan (10 samples)"


def test_number_and_direction():
    assert float(MetricValue("fid", 3.5, None, 10, 1.0)) == 3.5
    assert MetricValue("fid", 3.5, None, 10, 1.0).lower_is_better
    assert not MetricValue("is", 3.5, None, 10, 1.0).lower_is_better
    assert not MetricValue("is_mine", 3.5, None, 10, 1.0).lower_is_better
    assert MetricValue("kid_is_mine", 3.5, None, 10, 1.0).lower_is_better

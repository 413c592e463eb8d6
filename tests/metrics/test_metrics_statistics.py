"""Streaming statistics against values worked out by hand and against torch.cov."""

import pytest
import torch

from rgplug.errors import RgplugError
from rgplug.metrics.statistics import Accumulator, Statistics


def test_two_points_by_hand():
    statistics = Statistics.from_features(torch.tensor([[0.0, 2.0], [2.0, 6.0]]))
    assert statistics.mean.tolist() == [1.0, 4.0]
    assert statistics.covariance.tolist() == [[2.0, 4.0], [4.0, 8.0]]
    assert statistics.trace == 10.0
    assert (statistics.count, statistics.dim) == (2, 2)


def test_factor_squares_to_the_covariance():
    statistics = Statistics.from_features(torch.randn(7, 5, generator=torch.Generator().manual_seed(0)))
    factor = statistics.factor()
    torch.testing.assert_close(factor.T @ factor, statistics.covariance)


@pytest.mark.parametrize("keep", [None, 1000, 50, 0])
def test_streaming_equals_batch_far_from_zero(keep):
    # mean 1000, spread 0.01: a one-pass sum of squares about zero would keep no correct digit in float32
    x = 1000 + 0.01 * torch.randn(200, 6, generator=torch.Generator().manual_seed(1))
    accumulator = Accumulator(keep)
    for part in x.split(33):
        accumulator.update(part)
    streamed = accumulator.finish()
    torch.testing.assert_close(streamed.mean, x.double().mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(streamed.covariance, torch.cov(x.double().T), rtol=1e-10, atol=1e-14)
    assert streamed.trace == pytest.approx(float(torch.cov(x.double().T).trace()), rel=1e-10)
    assert (streamed.features is not None) == (keep is None or keep >= 200)


def test_features_are_kept_up_to_the_limit_exactly():
    accumulator = Accumulator(keep=4)
    accumulator.update(torch.eye(4))
    kept = accumulator.finish()
    assert kept.features is not None
    accumulator.update(torch.ones(1, 4))
    assert accumulator.finish().features is None
    assert accumulator.finish().count == 5


def test_not_finite_is_seen():
    assert Statistics.from_features(torch.ones(3, 2)).finite()
    assert not Statistics.from_features(torch.tensor([[1.0], [float("nan")]])).finite()
    assert not Statistics.from_moments(torch.zeros(1), torch.tensor([[float("inf")]]), 5).finite()


@pytest.mark.parametrize("features", [torch.ones(1, 3), torch.ones(3), torch.ones(2, 3, 4)])
def test_too_little_or_the_wrong_shape_is_refused(features):
    with pytest.raises(RgplugError, match="at least two images"):
        Statistics.from_features(features)


def test_errors_of_the_other_ways_in():
    accumulator = Accumulator()
    accumulator.update(torch.ones(1, 3))
    with pytest.raises(RgplugError, match="at least two images, not 1"):
        accumulator.finish()
    with pytest.raises(RgplugError, match=r"covariance \[D, D\]"):
        Statistics.from_moments(torch.zeros(3), torch.zeros(2, 2), 10)
    with pytest.raises(RgplugError, match="not kept"):
        Statistics.from_moments(torch.zeros(2), torch.eye(2), 10).factor()

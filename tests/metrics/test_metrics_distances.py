"""Distances against values by hand, scipy's matrix square root, high precision, and a naive loop."""

import math

import mpmath
import pytest
import torch
from scipy.linalg import sqrtm

from rgplug.errors import RgplugError
from rgplug.metrics.distances import congruence, frechet_distance, inception_score, kernel_distance
from rgplug.metrics.statistics import Statistics


def features(count: int, dim: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    """Correlated features with a spectrum that falls over two decades."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator) * torch.logspace(0, -2, dim)[:, None]
    return scale * torch.randn(count, dim, generator=generator) @ mixing + 0.1 * seed


def moments(x: torch.Tensor) -> Statistics:
    """The same statistics without the features."""
    full = Statistics.from_features(x)
    return Statistics.from_moments(full.mean, full.covariance, full.count)


def with_sqrtm(a: Statistics, b: Statistics) -> float:
    root = sqrtm((a.covariance @ b.covariance).numpy())
    return float((a.mean - b.mean).square().sum()) + a.trace + b.trace - 2 * float(root.trace().real)


def exactly(a: Statistics, b: Statistics) -> float:
    """60 digits: the eigenvalues of C_a C_b, of which no more than the rank are not zero."""
    with mpmath.workdps(60):
        c_a, c_b = mpmath.matrix(a.covariance.tolist()), mpmath.matrix(b.covariance.tolist())
        found = mpmath.eig(c_a * c_b, left=False, right=False)
        rank = min(a.count - 1, b.count - 1, a.dim)
        eigenvalues = sorted((mpmath.re(e) for e in found), reverse=True)[:rank]
        shift = sum((mpmath.mpf(x) - y) ** 2 for x, y in zip(a.mean.tolist(), b.mean.tolist()))
        traces = sum(c_a[i, i] + c_b[i, i] for i in range(a.dim))
        return float(shift + traces - 2 * sum(mpmath.sqrt(e) for e in eigenvalues))


# --- Frechet ---------------------------------------------------------------------------------------------------


def test_frechet_in_one_dimension_by_hand():
    # N(0, 1) and N(3, 4): (0 - 3)^2 + 1 + 4 - 2 * 1 * 2 = 10
    a = Statistics.from_moments(torch.tensor([0.0]), torch.tensor([[1.0]]), 1000)
    b = Statistics.from_moments(torch.tensor([3.0]), torch.tensor([[4.0]]), 1000)
    assert frechet_distance(a, b) == pytest.approx(10.0, rel=1e-14)


def test_frechet_of_axis_aligned_gaussians_by_hand():
    # diag(1, 9) and diag(4, 16), equal means: (1 - 2)^2 + (3 - 4)^2 = 2
    a = Statistics.from_moments(torch.zeros(2), torch.diag(torch.tensor([1.0, 9.0])), 1000)
    b = Statistics.from_moments(torch.zeros(2), torch.diag(torch.tensor([4.0, 16.0])), 1000)
    assert frechet_distance(a, b) == pytest.approx(2.0, rel=1e-14)


@pytest.mark.parametrize("dim", [3, 64, 300])  # 300: more than one block of the congruence
@pytest.mark.parametrize("keep", [True, False])
def test_frechet_equals_scipy_at_full_rank(dim, keep):
    make = Statistics.from_features if keep else moments
    a, b = make(features(dim * 4, dim, 0)), make(features(dim * 5, dim, 1))
    assert frechet_distance(a, b) == pytest.approx(with_sqrtm(a, b), rel=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(5, 40), (40, 5), (5, 6), (12, 12), (13, 14), (2, 2)])
def test_frechet_with_fewer_images_than_dimensions_is_exact(n, m):
    dim = 12
    x, y = features(n, dim, 2), features(m, dim, 3)
    a, b = Statistics.from_features(x), Statistics.from_features(y)
    expected = exactly(a, b)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(a, moments(y)) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(moments(x), b) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(expected, rel=1e-7)  # roots of rounding errors


def test_frechet_of_100_images_in_2048_dimensions():
    # y = 2 x: the root of C_x C_y is 2 C_x, so d^2 = |m|^2 + tr C (1 + 4 - 4); scipy is some 1e-8 off at rank 99
    x = features(100, 2048, 4)
    a, b = Statistics.from_features(x), Statistics.from_features(2 * x)
    assert frechet_distance(a, b) == pytest.approx(float(a.mean.square().sum()) + a.trace, rel=1e-11)
    assert frechet_distance(a, a) <= 1e-11 * a.trace


def test_frechet_survives_features_that_are_constant_or_dependent():
    x, y = features(60, 8, 5), features(70, 8, 6)
    expected = frechet_distance(Statistics.from_features(x), Statistics.from_features(y))
    dead_x, dead_y = torch.cat([x, torch.zeros(60, 2)], 1), torch.cat([y, torch.zeros(70, 2)], 1)
    assert frechet_distance(*map(Statistics.from_features, (dead_x, dead_y))) == pytest.approx(expected, rel=1e-10)
    # a copy of every feature: both covariances singular, all squared lengths doubled
    double = [Statistics.from_features(torch.cat([v, v], 1)) for v in (x, y)]
    assert frechet_distance(*double) == pytest.approx(2 * expected, rel=1e-6)
    constant = Statistics.from_features(torch.ones(60, 8))
    assert frechet_distance(constant, constant) == 0.0


def test_frechet_of_what_is_not_finite_is_nan_and_of_different_features_an_error():
    good, bad = torch.randn(5, 3), torch.randn(5, 3)
    bad[2, 1] = math.inf
    assert math.isnan(frechet_distance(Statistics.from_features(good), Statistics.from_features(bad)))
    with pytest.raises(RgplugError, match="3 and of 4 dimensions"):
        frechet_distance(Statistics.from_features(good), Statistics.from_features(torch.randn(5, 4)))


@pytest.mark.parametrize("block", [1, 3, 7, 100])
def test_congruence_is_the_lower_triangle_of_the_product(block):
    lower, matrix = torch.randn(10, 10).tril().double(), torch.randn(10, 10).double()
    matrix = matrix + matrix.T
    torch.testing.assert_close(congruence(lower, matrix, block).tril(), (lower.T @ matrix @ lower).tril())


# --- kernel distance -------------------------------------------------------------------------------------------


def naive_mmd(x: torch.Tensor, y: torch.Tensor) -> float:
    def k(u: list[float], v: list[float]) -> float:
        return (sum(p * q for p, q in zip(u, v)) / len(u) + 1) ** 3

    xs, ys = x.tolist(), y.tolist()
    within_x = [k(u, v) for i, u in enumerate(xs) for j, v in enumerate(xs) if i != j]
    within_y = [k(u, v) for i, u in enumerate(ys) for j, v in enumerate(ys) if i != j]
    cross = [k(u, v) for u in xs for v in ys]
    return sum(within_x) / len(within_x) + sum(within_y) / len(within_y) - 2 * sum(cross) / len(cross)


def test_kernel_distance_by_hand():
    # x = {0, 0}, y = {1, 1}: within x (0 + 1)^3 = 1, within y (1 + 1)^3 = 8, across 1: 1 + 8 - 2 = 7
    assert kernel_distance(torch.zeros(2, 1), torch.ones(2, 1)).value == pytest.approx(7.0)
    assert kernel_distance(torch.zeros(2, 1), torch.ones(2, 1)).error == 0.0  # every draw would be the same


def test_kernel_distance_equals_a_naive_loop():
    x, y = torch.randn(9, 4).double(), torch.randn(7, 4).double() + 0.5
    assert kernel_distance(x, y).value == pytest.approx(naive_mmd(x, y), rel=1e-12)


def test_kernel_distance_over_subsets_is_the_mean_of_naive_ones():
    x, y = torch.randn(8, 3).double(), torch.randn(8, 3).double() + 1
    generator, expected = torch.Generator().manual_seed(5), []
    for _ in range(4):
        rows_x, rows_y = torch.randperm(8, generator=generator)[:6], torch.randperm(8, generator=generator)[:6]
        expected.append(naive_mmd(x[rows_x], y[rows_y]))
    assert kernel_distance(x, y, subsets=4, subset_size=6, seed=5).value == pytest.approx(sum(expected) / 4, rel=1e-12)


def test_kernel_distance_of_many_images_sees_the_larger_set_about_once(monkeypatch):
    x, y = torch.randn(2500, 3) + 1, torch.randn(30, 3)  # more rows than one block of the sums
    whole = kernel_distance(x, y)
    parts = kernel_distance(x, y, subset_size=1000)
    assert parts.value == pytest.approx(whole.value, abs=3 * whole.error)
    sizes = []
    monkeypatch.setattr("rgplug.metrics.distances._mmd", lambda x, y: sizes.append((len(x), len(y))) or torch.zeros(3))
    kernel_distance(x, y, subset_size=1000)
    assert sizes == [(1000, 30)] * 3


@pytest.mark.parametrize("shift", [0.0, 0.3])
@pytest.mark.parametrize("subset_size", [1000, 40])
def test_kernel_distance_is_unbiased_and_its_error_is_the_spread_of_new_draws(shift, subset_size):
    generator = torch.Generator().manual_seed(0)
    values, errors = [], []
    for _ in range(120):
        x = torch.randn(60, 4, generator=generator)
        y = torch.randn(80, 4, generator=generator) + shift
        found = kernel_distance(x, y, subsets=20, subset_size=subset_size)
        values.append(found.value)
        errors.append(found.error)
    spread = torch.tensor(values).std().item()
    typical = torch.tensor(errors).square().mean().sqrt().item()
    assert spread * 0.8 < typical < spread * 2.0
    if shift == 0:
        assert abs(sum(values) / 120) < 4 * spread / 120**0.5


def test_kernel_distance_refuses_what_it_cannot_use():
    with pytest.raises(RgplugError, match="N, M >= 2"):
        kernel_distance(torch.ones(1, 3), torch.ones(5, 3))
    with pytest.raises(RgplugError, match=r"\[5, 3\], \[5, 4\]"):
        kernel_distance(torch.ones(5, 3), torch.ones(5, 4))


# --- inception score -------------------------------------------------------------------------------------------


def test_inception_score_by_hand():
    sure = torch.eye(4).repeat(5, 1) * 1000  # every image surely one of four classes, all classes equally often
    assert inception_score(sure, splits=5).value == pytest.approx(4.0)
    assert inception_score(sure, splits=5).error == pytest.approx(0.0, abs=1e-12)
    assert inception_score(torch.zeros(20, 4)).value == pytest.approx(1.0)  # never sure
    one_sided = torch.tensor([[1000.0, 0.0]] * 4 + [[1000.0, 0.0], [0.0, 1000.0]] * 2)
    two = inception_score(one_sided, splits=2)  # first split scores 1, second 2
    assert (two.value, two.error) == (pytest.approx(1.5), pytest.approx(0.5))


def test_inception_score_equals_its_definition():
    logits = torch.randn(30, 7, generator=torch.Generator().manual_seed(3)).double()
    p = logits.softmax(1)
    expected = torch.exp((p * (p.log() - p.mean(0).log())).sum(1).mean()).item()
    assert inception_score(logits, splits=1).value == pytest.approx(expected, rel=1e-12)


def test_inception_score_of_fewer_images_than_splits_and_of_nothing():
    assert inception_score(torch.randn(3, 4)).value == pytest.approx(1.0)  # one image a split
    with pytest.raises(RgplugError, match="logits"):
        inception_score(torch.zeros(0, 4))

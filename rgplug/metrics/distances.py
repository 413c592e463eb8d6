"""Distances between two sets of features, and the inception score: pure functions on tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rgplug.errors import RgplugError
from rgplug.metrics.statistics import Statistics


@dataclass(frozen=True)
class Estimate:
    """A value and its error: a standard error (kernel distance) or the spread over splits (inception score)."""

    value: float
    error: float | None


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Frechet distance between the Gaussians fitted to two sets (Heusel et al. 2017, Eq. 6); on Inception: FID.

        d^2 = |m_a - m_b|^2 + tr C_a + tr C_b - 2 tr (C_a C_b)^(1/2)

    a, b: statistics with the same D. float64 throughout. NaN when the statistics are not finite; rounding below zero
    is cut off.
    """
    if a.dim != b.dim:
        raise RgplugError(f"features of {a.dim} and of {b.dim} dimensions: use the same features for both sets")
    if not (a.finite() and b.finite()):
        return math.nan
    shift = float((a.mean - b.mean).square().sum())
    return max(0.0, shift + a.trace + b.trace - 2.0 * trace_of_root(a, b))


def trace_of_root(a: Statistics, b: Statistics) -> float:
    """tr (C_a C_b)^(1/2), without forming a matrix square root.

    With C_a = A^T A and C_b = B^T B the eigenvalues of C_a C_b are the squared singular values of A B^T. Hence

    * fewer images than dimensions on one side: the nuclear norm of A B^T, where A (and B) are the centred features
      over sqrt(N - 1). Nothing is squared, so the zero eigenvalues of the rank-deficient covariance stay zero instead
      of becoming sqrt(rounding error);
    * otherwise: C_a = L L^T (Cholesky) and the eigenvalues of the symmetric L^T C_b L. Features that are constant in
      one of the sets (a dead unit) are left out, which changes nothing; when neither covariance has full rank even
      so, L is built from the eigenvectors of C_a.
    """
    few, many = (a, b) if a.count <= b.count else (b, a)
    if few.features is not None and few.count <= few.dim:
        factor = few.factor()
        if many.features is not None:
            return float(torch.linalg.svdvals(factor @ many.factor().T).sum())
        eigenvalues = torch.linalg.eigvalsh(factor @ many.covariance @ factor.T)
    else:
        live = (a.covariance.diagonal() > 0) & (b.covariance.diagonal() > 0)  # a constant feature adds nothing
        eigenvalues = _product_spectrum(a.covariance[live][:, live], b.covariance[live][:, live])
    rank = min(a.count - 1, b.count - 1, a.dim)  # what lies beyond the rank is rounding error, whose root is not small
    return float(eigenvalues[-rank:].clamp_min(0).sqrt().sum())


def _product_spectrum(a: Tensor, b: Tensor) -> Tensor:
    """Eigenvalues of A B, ascending, of two covariances [D, D]; fewer than D when both are singular."""
    for this, other in ((a, b), (b, a)):
        lower, failed = torch.linalg.cholesky_ex(this)
        if not failed:
            return torch.linalg.eigvalsh(congruence(lower, other))
    values, vectors = torch.linalg.eigh(a)
    held = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    root = vectors[:, held] * values[held].sqrt()
    return torch.linalg.eigvalsh(root.T @ b @ root)


def congruence(lower: Tensor, matrix: Tensor, block: int = 256) -> Tensor:
    """The lower triangle of L^T C L (the rest is not meant to be read), L lower triangular, C symmetric, [D, D].

    Block by block, leaving out what meets zeros of L or lies above the diagonal: a quarter of the arithmetic.
    """
    product = torch.zeros_like(matrix)
    for j in range(0, len(lower), block):
        half = matrix[j:, j:] @ lower[j:, j : j + block]  # rows from j on of C L, one block of columns
        for i in range(j, len(lower), block):
            product[i : i + block, j : j + block] = lower[i:, i : i + block].T @ half[i - j :]
    return product


def kernel_distance(
    x: Tensor, y: Tensor, subsets: int | None = None, subset_size: int = 5000, seed: int = 0
) -> Estimate:
    """Squared maximum mean discrepancy with the kernel (x.y / D + 1)^3 (Binkowski et al. 2018); on Inception: KID.

        MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

    x: [N, D], y: [M, D] features, N, M >= 2. Unbiased at any N and M, so it can be negative. The value is the mean
    over random subsets, without replacement, of min(subset_size, N) and min(subset_size, M) images; when both sets
    fit, there is one subset: everything. subsets: None means enough to see the larger set once. (The usual 100 subsets
    of 1000 have the same expectation, more noise, and cost more.)

    error: standard error of the value w.r.t. drawing both sets anew, from v_x / N + v_y / M + (variance over subsets)
    / subsets, where v is the variance of each image's own contribution (the first-order term of a U-statistic,
    estimated in the subsets; slightly on the large side). The spread over subsets alone, which is often quoted, says
    nothing about small sets.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y), subset_size) < 2:
        raise RgplugError(f"kernel distance needs features [N, D] and [M, D], N, M >= 2: {[*x.shape]}, {[*y.shape]}")
    n, m = min(subset_size, len(x)), min(subset_size, len(y))
    if (n, m) == (len(x), len(y)):
        subsets = 1
    elif subsets is None:
        subsets = math.ceil(max(len(x), len(y)) / subset_size)
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for _ in range(subsets):
        rows_x = torch.randperm(len(x), generator=generator)[:n]
        rows_y = torch.randperm(len(y), generator=generator)[:m]
        parts.append(_mmd(x[rows_x].detach().cpu().double(), y[rows_y].detach().cpu().double()))
    values, per_x, per_y = torch.stack(parts).unbind(1)
    variance = per_x.mean() / len(x) + per_y.mean() / len(y)
    if subsets > 1:
        variance = variance + values.var() / subsets
    return Estimate(float(values.mean()), float(variance.sqrt()))


def _mmd(x: Tensor, y: Tensor) -> Tensor:
    """[unbiased MMD^2, v_x, v_y] of float64 features [n, D] and [m, D]; v = 4 Var of the first-order projection."""
    n, m, d = len(x), len(y), x.shape[1]
    own_x, own_y = (x.square().sum(1) / d + 1) ** 3, (y.square().sum(1) / d + 1) ** 3  # k(x_i, x_i)
    within_x = (_kernel_sums(x, x)[0] - own_x) / (n - 1)  # [n]: mean over the other images
    within_y = (_kernel_sums(y, y)[0] - own_y) / (m - 1)  # [m]
    over_y, over_x = _kernel_sums(x, y)
    value = within_x.mean() + within_y.mean() - 2 * over_y.mean() / m
    return torch.stack([value, 4 * (within_x - over_y / m).var(), 4 * (within_y - over_x / n).var()])


def _kernel_sums(x: Tensor, y: Tensor, rows: int = 1024) -> tuple[Tensor, Tensor]:
    """([n] sums over y, [m] sums over x) of k(x_i, y_j), some rows at a time."""
    over_y, over_x = [], torch.zeros_like(y[:, 0])
    for part in x.split(rows):
        kernel = (part @ y.T / x.shape[1] + 1) ** 3
        over_y.append(kernel.sum(1))
        over_x += kernel.sum(0)
    return torch.cat(over_y), over_x


def inception_score(logits: Tensor, splits: int = 10) -> Estimate:
    """exp of the mean KL divergence of p(class | image) from p(class) (Salimans et al. 2016); larger is better.

    logits: [N, classes] before the softmax. The N images are cut into consecutive splits (fewer when N < splits);
    value and error are the mean and the standard deviation over the splits, as everybody reports them.
    """
    if logits.ndim != 2 or len(logits) < 1:
        raise RgplugError(f"the inception score needs logits [N, classes], not {tuple(logits.shape)}")
    logs = logits.detach().cpu().double().log_softmax(1)
    scores = []
    for part in logs.tensor_split(min(splits, len(logs))):
        marginal = torch.logsumexp(part, 0) - math.log(len(part))  # log of the mean probability, [classes]
        divergence = (part.exp() * (part - marginal)).nan_to_num(0.0).sum(1)  # p = 0 contributes 0
        scores.append(divergence.mean().exp())
    values = torch.stack(scores)
    return Estimate(float(values.mean()), float(values.std(correction=0)))

"""Confidence intervals of a mean over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """Mean of the values of some seeds, and its 95 % interval; one seed has none (low and high are None)."""

    values: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None


def interval(values: Sequence[float]) -> Interval:
    """mean -+ t(0.975, n - 1) * sd / sqrt(n), with the sample standard deviation (n - 1); at least one value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(tuple(values), mean, None, None)
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(tuple(values), mean, mean - half, mean + half)


def t_quantile(freedom: int, level: float = 0.95) -> float:
    """The t with P(-t < T < t) = level for Student's distribution of `freedom` degrees of freedom."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if _within(middle, freedom) < level:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan(low)


def _within(theta: float, freedom: int) -> float:
    """P(|T| < sqrt(freedom) tan theta); exact (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = freedom % 2 == 1
    term = cosine if odd else 1.0
    total = 0.0
    for power in range(3 if odd else 2, freedom + 1, 2):  # terms cos^(power - 2)
        total += term
        term *= cosine**2 * (power - 1) / power
    return 2 / math.pi * (theta + sine * total) if odd else sine * total

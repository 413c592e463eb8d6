"""Frechet distance of 2048-dimensional features: this package's trace of the root against scipy.linalg.sqrtm.

Both solve the same covariances in turn in one process, so that a busy machine is unfair to both. What is timed is the
solve from ready covariances (full rank), or from ready features (few images, where no covariance is needed).

    python benchmarks/frechet.py [--dim 2048] [--repeats 3] [--threads 1]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from scipy.linalg import sqrtm

from rgplug.metrics import Statistics, frechet_distance


def features(count: int, dim: int, seed: int) -> torch.Tensor:
    """Correlated, positive features [count, dim] with a falling spectrum, like pooled activations."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator) * torch.logspace(0, -2, dim)[:, None] / dim**0.5
    return (torch.randn(count, dim, generator=generator) @ mixing + 0.3 + 0.01 * seed).relu()


def with_sqrtm(a: Statistics, b: Statistics) -> float:
    """The usual route: the matrix square root of the product of the covariances."""
    root = sqrtm((a.covariance @ b.covariance).numpy())
    shift = float((a.mean - b.mean).square().sum())
    return shift + a.trace + b.trace - 2 * float(root.trace().real)


def timed(function: Callable[[Statistics, Statistics], float], a: Statistics, b: Statistics) -> tuple[float, float]:
    """(seconds, value)."""
    start = time.perf_counter()
    value = function(a, b)
    return time.perf_counter() - start, value


def compare(a: Statistics, b: Statistics, repeats: int) -> dict[str, float]:
    """Medians of alternating runs, their ratio, and how far the two values are apart."""
    _ = a.covariance, b.covariance, a.trace, b.trace
    ours, theirs = [], []
    for _ in range(repeats):
        ours.append(timed(frechet_distance, a, b))
        theirs.append(timed(with_sqrtm, a, b))
    fast, slow = median(t for t, _ in ours), median(t for t, _ in theirs)
    difference = abs(ours[0][1] - theirs[0][1]) / abs(theirs[0][1])
    return {"seconds": fast, "sqrtm_seconds": slow, "ratio": slow / fast, "relative_difference": difference}


def run(dim: int = 2048, repeats: int = 3, few: int = 200) -> dict[str, dict[str, float]]:
    """full_rank: 2.5 x dim against 3 x dim images; few_shot: `few` real images against 2.5 x dim."""
    many = Statistics.from_features(features(dim * 5 // 2, dim, 0))
    real = Statistics.from_features(features(dim * 3, dim, 1))
    shot = Statistics.from_features(features(few, dim, 2))
    return {"full_rank": compare(real, many, repeats), "few_shot": compare(shot, many, repeats)}


def main() -> None:
    """Print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=2048, help="feature dimensions (default: 2048)")
    parser.add_argument("--repeats", type=int, default=3, help="alternating runs (default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for case, found in run(arguments.dim, arguments.repeats).items():
        print(
            f"{case:<10} {found['seconds']:7.2f} s, sqrtm {found['sqrtm_seconds']:7.2f} s, ratio of medians "
            f"{found['ratio']:6.1f}, values differ by {found['relative_difference']:.1e}"
        )


if __name__ == "__main__":
    main()

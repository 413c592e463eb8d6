"""Why masks are applied as bit patterns: what operations with bool masks cost beside one float product.

python -m benchmarks.elementwise
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from rgplug import kernels


def run(rounds: int = 60) -> dict[str, float]:
    """Median time of each operation on a 128x1152 weight, in multiples of a float product's."""
    shape = (128, 1152)
    weight, other = torch.randn(shape), torch.randn(shape)
    mask = torch.rand(shape) > 0.5
    out, bits = torch.empty(shape), kernels.bits_of_mask(mask, torch.float32)
    operations: dict[str, Callable[[], object]] = {
        "weight * other": lambda: torch.mul(weight, other, out=out),
        "weight * mask": lambda: torch.mul(weight, mask, out=out),
        "torch.where(mask, weight, other)": lambda: torch.where(mask, weight, other, out=out),
        "masked_fill_(mask, 0)": lambda: out.masked_fill_(mask, 0.0),
        "kernels.bits_of_mask(mask)": lambda: kernels.bits_of_mask(mask, torch.float32),
        "kernels.keep_(weight, bits)": lambda: kernels.keep_(out, bits),
    }
    times: dict[str, list[float]] = {name: [] for name in operations}
    for _ in range(rounds):
        for name, operation in operations.items():
            start = time.perf_counter()
            operation()
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(t) for name, t in times.items()}
    base = medians.pop("weight * other")
    return {name: value / base for name, value in medians.items()}


if __name__ == "__main__":
    for name, multiple in run().items():
        print(f"{name:36s} {multiple:.1f}")

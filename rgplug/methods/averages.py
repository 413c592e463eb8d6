"""Sparse moving averages (SEMA, STU-GAN Eq. 5), on plain tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def sparse_average_(average: Tensor, weight: Tensor, mask: Tensor, beta: float) -> Tensor:
    """One update of the moving average of a masked weight, in place.

    0 where the weight is inactive; the weight itself at its first active step; beta average + (1 - beta) weight from
    then on (STU-GAN, Eq. 5). "First" is told by the average being 0: an active weight that was exactly 0 until now is
    new still. average, weight, mask (bool): of one shape.
    """
    new = average == 0
    moved = torch.lerp(weight.to(average.dtype), average, beta)
    return average.copy_(torch.where(mask, torch.where(new, weight.to(average.dtype), moved), 0))


def average_(average: Tensor, value: Tensor, beta: float) -> Tensor:
    """The ordinary moving average, in place; integers (counts of batches) are copied."""
    if not average.is_floating_point():
        return average.copy_(value)
    return average.lerp_(value.to(average.dtype), 1 - beta)

"""Elementwise work on a weight, its mask and its dormant values.

Two facts shape these functions. Nothing may ask the device for a value (no host-device sync), so every decision is
arithmetic. And on a CPU `torch.where`, `masked_fill` and products with bool tensors are not vectorized: they take ten
to twenty times as long as float arithmetic (`benchmarks/elementwise.py`). So masks are applied as bit patterns: all
ones where a weight is kept, all zeros where it is pruned. And-ing them gives exactly the value or exactly +0, NaN and
infinity included, which multiplying with 0 and 1 does not.

All functions work in place where their name ends in `_`, and allocate no more than a few tensors of one layer's size.
"""

from __future__ import annotations

import torch
from torch import Tensor

_INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def as_bits(x: Tensor) -> Tensor:
    """The same memory read as integers of the same size."""
    return x.view(_INTEGER[x.element_size()])


def bits_of_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Integer tensor of `dtype`'s size: all ones where `mask` (bool) is True, else 0."""
    # bool is read as int8: the conversion from bool itself is not vectorized
    return mask.view(torch.int8).to(_INTEGER[dtype.itemsize]).neg_()


def keep_(x: Tensor, bits: Tensor) -> Tensor:
    """`x` where the mask is True, exactly +0 elsewhere, whatever stood there (NaN too)."""
    as_bits(x).bitwise_and_(bits)
    return x


def merge_(weight: Tensor, dormant: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """(theta, count of zeros in `weight`): theta is the weight where kept, the dormant value where pruned.

    A host that wrote a non-zero value at a pruned position (a dense checkpoint) is believed: its value replaces the
    dormant one. `dormant` is updated in place; it is 0 wherever the mask is True, before and after.
    """
    theta = weight.clone().eq_(0)  # 1.0 where the host left the zero alone (in place: the result stays float)
    zeros = theta.sum(dtype=torch.float32)
    theta.mul_(dormant).add_(weight)
    torch.bitwise_and(as_bits(theta), torch.bitwise_not(bits), out=as_bits(dormant))
    return theta, zeros


def restore_(weight: Tensor, dormant: Tensor, bits: Tensor) -> Tensor:
    """After the optimizer's step: pruned entries of `weight` back to exactly 0; `dormant` becomes all of theta.

    Between this and `split_` the dormant tensor holds theta: the live weights as stepped, the others as they were.
    """
    keep_(weight, bits)
    return dormant.add_(weight)


def split_(theta: Tensor, weight: Tensor, pruned: Tensor, mask: Tensor) -> Tensor:
    """theta (held in the dormant tensor) is split by the new mask; returns the count of kept -> pruned entries.

    pruned: 1.0 where a weight is pruned, 0.0 where it is kept, in the weight's dtype. Afterwards `weight` holds theta
    where kept and exactly 0 elsewhere, `theta` (the dormant tensor) the reverse, `mask` is the new mask.
    """
    bits = pruned.to(_INTEGER[theta.element_size()]).sub_(1)
    out, dormant = as_bits(weight), as_bits(theta)
    torch.bitwise_and(dormant, bits, out=out)
    dormant.bitwise_xor_(out)
    pruned_now = torch.empty_like(mask).copy_(pruned)
    newly = torch.count_nonzero(mask.logical_and_(pruned_now))
    torch.logical_not(pruned_now, out=mask)
    return newly

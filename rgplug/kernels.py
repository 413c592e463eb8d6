"""Elementwise work on a weight, its mask and its dormant values.

Two facts shape these functions. Nothing may ask the device for a value (no host-device sync), so every decision is
arithmetic. And on a CPU `torch.where`, `masked_fill` and products with bool tensors are not vectorized: they take ten
to twenty times as long as float arithmetic (`benchmarks/elementwise.py`). So masks are applied as bit patterns: all
ones where a weight is kept, all zeros where it is pruned. And-ing them gives exactly the value or exactly +0, NaN and
infinity included, which multiplying with 0 and 1 does not.

The mask takes no memory of its own: an entry is kept iff all bits of its dormant value are 0, and a pruned value of
exactly 0 waits as -0. Integers are compared for that, so it holds where floats are flushed or fused by a compiler.

All functions work in place where their name ends in `_`, and allocate no more than a few tensors of one layer's size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rgplug.devices import counter

_INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Scratch:
    """Temporary tensors of one layer's size that the layers of a step share, one after the other.

    Fresh memory costs a page fault every 4 KiB and starts out of the cache; the same buffer for every layer does not.
    It lives as long as a step's before or after work.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def like(self, x: Tensor, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """An uninitialized tensor of x's shape and strides; the same memory for the same name."""
        if not x.is_contiguous():
            return torch.empty_like(x, dtype=dtype or x.dtype)  # channels_last: memory of its own, in the same order
        key = (name, dtype or x.dtype, x.device)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < x.numel():
            buffer = self._buffers[key] = torch.empty(x.numel(), dtype=key[1], device=x.device)
        return buffer[: x.numel()].view(x.shape)


def as_bits(x: Tensor) -> Tensor:
    """The same memory read as integers of the same size."""
    return x.view(_INTEGER[x.element_size()])


def bits_of_mask(mask: Tensor, dtype: torch.dtype, scratch: Scratch | None = None) -> Tensor:
    """Integer tensor of `dtype`'s size: all ones where `mask` (bool) is True, else 0."""
    out = (scratch or Scratch()).like(mask, "bits", _INTEGER[dtype.itemsize])
    # bool is read as int8: the conversion from bool itself is not vectorized
    return out.copy_(mask.view(torch.int8)).neg_()


def mask_of(dormant: Tensor) -> Tensor:
    """bool, True where kept: the mask that lies in the dormant values (a new tensor)."""
    return as_bits(dormant) == 0


def bits_of_dormant(dormant: Tensor, scratch: Scratch | None = None) -> Tensor:
    """`bits_of_mask` of the mask that lies in the dormant values."""
    out = (scratch or Scratch()).like(dormant, "bits", _INTEGER[dormant.element_size()])
    return out.copy_(as_bits(dormant)).eq_(0).neg_()


def wait_(theta: Tensor, pruned: Tensor, scratch: Scratch | None = None) -> Tensor:
    """`theta` becomes a dormant tensor: its value (0 as -0) where `pruned` (bits) are ones, +0 elsewhere."""
    held = as_bits(theta)
    sign = (scratch or Scratch()).like(held, "sign").copy_(held).eq_(0)
    sign.bitwise_left_shift_(8 * held.element_size() - 1)
    held.bitwise_or_(sign).bitwise_and_(pruned)
    return theta


def forget_(dormant: Tensor) -> Tensor:
    """What waits becomes 0; the mask stays."""
    held = as_bits(dormant)
    held.ne_(0).bitwise_left_shift_(8 * held.element_size() - 1)
    return dormant


def count_dtype(x: Tensor) -> torch.dtype:
    """A dtype in which as many ones as x has entries can be summed up exactly; float32, which is faster, if it can."""
    return torch.float32 if x.numel() <= 2**24 else counter(x.device)


def keep_(x: Tensor, bits: Tensor) -> Tensor:
    """`x` where the mask is True, exactly +0 elsewhere, whatever stood there (NaN too)."""
    as_bits(x).bitwise_and_(bits)
    return x


def merge_(weight: Tensor, dormant: Tensor, bits: Tensor, scratch: Scratch | None = None) -> tuple[Tensor, Tensor]:
    """(theta, count of zeros in `weight`): theta is the weight where kept, the dormant value where pruned.

    A host that wrote a non-zero value at a pruned position (a dense checkpoint) is believed: its value replaces the
    dormant one. `dormant` is updated in place; the mask that lies in it stays.
    """
    scratch = scratch or Scratch()
    theta = scratch.like(weight, "theta").copy_(weight)
    theta.eq_(0)  # 1.0 where the host left the zero alone (in place: the result stays float)
    zeros = theta.sum(dtype=count_dtype(theta))
    alone = scratch.like(bits, "alone").copy_(theta).neg_()  # the same as bits: a product would make NaN of 0 * inf
    torch.bitwise_and(as_bits(dormant), alone, out=as_bits(theta))
    as_bits(theta).bitwise_or_(torch.bitwise_and(as_bits(weight), alone.bitwise_not_(), out=alone))
    pruned = torch.bitwise_not(bits, out=scratch.like(bits, "pruned"))
    wait_(dormant.copy_(theta), pruned, scratch)
    return theta, zeros


def restore_(weight: Tensor, dormant: Tensor, bits: Tensor) -> Tensor:
    """After the optimizer's step: pruned entries of `weight` back to exactly 0; `dormant` becomes all of theta.

    Between this and `split_` the dormant tensor holds theta: the live weights as stepped, the others as they were.
    """
    keep_(weight, bits)
    return dormant.add_(weight)


def split_(theta: Tensor, weight: Tensor, pruned: Tensor, mask: Tensor, scratch: Scratch | None = None) -> Tensor:
    """theta (held in the dormant tensor) is split by the new mask; returns the count of kept -> pruned entries.

    pruned: 1.0 where a weight is pruned, 0.0 where it is kept, in the weight's dtype. Afterwards `weight` holds theta
    where kept and exactly 0 elsewhere, `theta` (the dormant tensor) the reverse (a 0 as -0), `mask` is the new mask.
    """
    scratch = scratch or Scratch()
    bits = scratch.like(theta, "bits", _INTEGER[theta.element_size()]).copy_(pruned).sub_(1)
    torch.bitwise_and(as_bits(theta), bits, out=as_bits(weight))
    wait_(theta, bits.bitwise_not_(), scratch)
    pruned_now = scratch.like(mask, "now").copy_(pruned)
    newly = torch.count_nonzero(mask.logical_and_(pruned_now))
    torch.logical_not(pruned_now, out=mask)
    return newly

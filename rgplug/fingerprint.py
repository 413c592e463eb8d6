"""Which weights a state belongs to: a number made of the bits of a network's live weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from rgplug.kernels import as_bits

_CHUNK = 2**20  # entries at a time, so that little memory is needed beside the weights
# odd numbers whose bits look drawn: 2^64 / golden ratio, and one of MurmurHash3
_FIRST, _SECOND = -7046029254386353131, -4417276706812531889


def fingerprint(weights: Iterable[Tensor]) -> int:
    """sum_i bits_i * m_i modulo 2^64, with i counted over all weights and m_i an odd number drawn from i.

    weights: floating tensors on any devices, in a fixed order. The same for the same bits on every device, in every
    memory format; one changed bit always changes it. Sums of integers are exact in any order. Reads the device once
    for each device.
    """
    sums: dict[torch.device, Tensor] = {}
    first = 0
    for weight in weights:
        flat = as_bits(weight.detach().contiguous()).reshape(-1)
        total = sums.get(weight.device)
        if total is None:
            total = sums[weight.device] = torch.zeros((), dtype=torch.int64, device=weight.device)
        for begin in range(0, flat.numel(), _CHUNK):
            bits = flat[begin : begin + _CHUNK].to(torch.int64)
            factors = torch.arange(first + begin, first + begin + bits.numel(), device=bits.device).mul_(_FIRST)
            factors.bitwise_xor_(factors >> 29).mul_(_SECOND).bitwise_or_(1)
            total += factors.mul_(bits).sum()  # `bits` may be the weight itself
        first += flat.numel()
    whole = sum(int(total) for total in sums.values()) % 2**64
    return whole - 2**64 if whole >= 2**63 else whole

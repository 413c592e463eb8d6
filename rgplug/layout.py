"""FilterLayout: which entries of a weight belong to which output filter."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FilterLayout:
    """Where the output filters of a weight are.

    `dim` is the output dim of the weight: 0 for convolutions and linear layers, 1 for transposed convolutions and for
    the [1, out, in, k, k] weights of modulated ones. A grouped transposed convolution keeps its weight as
    [in, out / groups, ...]; its output filter g * (out / groups) + o belongs to the g-th block of rows.
    """

    shape: tuple[int, ...]
    dim: int = 0
    groups: int = 1

    @property
    def filters(self) -> int:
        return self.shape[self.dim] * self.groups

    def view(self, x: Tensor) -> Tensor:
        """`x` (weight-shaped) with the groups as a dim of their own, where there are several."""
        return x if self.groups == 1 else x.unflatten(0, (self.groups, self.shape[0] // self.groups))

    def expand(self, per_filter: Tensor) -> Tensor:
        """`per_filter` [filters], shaped so that it broadcasts against `view(x)`."""
        if self.groups == 1:
            return per_filter.view([-1 if d == self.dim else 1 for d in range(len(self.shape))])
        return per_filter.view([self.groups, 1, self.shape[1]] + [1] * (len(self.shape) - 2))

    def filter(self, x: Tensor, index: int) -> Tensor:
        """The entries of one output filter: a view of `x` (weight-shaped)."""
        if self.groups == 1:
            return x.select(self.dim, index)
        return self.view(x)[index // self.shape[1], :, index % self.shape[1]]

    def filter_of(self, index: Tensor) -> Tensor:
        """Output filter of the entries at `index` (int64) of the flattened weight."""
        if self.groups == 1:
            inner = math.prod(self.shape[self.dim + 1 :])
            return index.div(inner, rounding_mode="floor").remainder_(self.shape[self.dim])
        row = index.div(math.prod(self.shape[2:]), rounding_mode="floor")
        group = row.div(self.shape[0] // self.groups * self.shape[1], rounding_mode="floor")
        return group.mul_(self.shape[1]).add_(row.remainder_(self.shape[1]))

    def sum(self, x: Tensor) -> Tensor:
        """Sum of `x` (weight-shaped) over each output filter: [filters], in at least float32."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        if x.dim() == 1:
            return x.to(dtype)  # a bias: each entry is a filter (and no dims to a sum would mean all of them)
        if self.groups == 1:
            return x.sum([d for d in range(x.dim()) if d != self.dim], dtype=dtype)
        return self.view(x).sum([d for d in range(x.dim() + 1) if d not in (0, 2)], dtype=dtype).reshape(-1)

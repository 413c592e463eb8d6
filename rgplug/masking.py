"""MaskedWeight: one host Parameter, its mask, its dormant values and its thresholds."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rgplug import kernels
from rgplug.errors import RgplugError
from rgplug.fused import Fused


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
        if self.groups == 1:
            return x.sum([d for d in range(x.dim()) if d != self.dim], dtype=dtype)
        return self.view(x).sum([d for d in range(x.dim() + 1) if d not in (0, 2)], dtype=dtype).reshape(-1)


class MaskedWeight:
    """A managed weight. The host's Parameter holds theta * mask; what is pruned waits in `dormant`.

    name: qualified name of the Parameter in its network, wrappers (DDP, compile) left out.
    mask: bool, the weight's shape, True where kept. dormant: the weight's shape and dtype, 0 where kept.
    threshold: [filters], at least float32, or None for methods without thresholds.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        param: nn.Parameter,
        layout: FilterLayout,
        norm_dims: tuple[int, ...] | None = None,
        stored: bool = True,  # False: for methods that never prune; mask and dormant values take no memory
    ):
        self.name = name
        self.module = module
        self.param = param
        self.layout = layout
        self.norm_dims = norm_dims  # weight norm divides by norms over these dims
        with torch.no_grad():
            if stored:
                self.mask = torch.ones_like(param, dtype=torch.bool)
                self.dormant = torch.zeros_like(param)
            else:
                self.mask = torch.ones((), dtype=torch.bool, device=param.device).expand(param.shape)
                self.dormant = torch.zeros((), dtype=param.dtype, device=param.device).expand(param.shape)
        self.loops: Fused | None = None  # compiled loops for this weight's dtype, where they may be used
        self.threshold: Tensor | None = None
        self.scale: Tensor | None = None  # what |theta| is divided by (0-dim); None: units absolute
        self.scale_vectors: Tensor | None = None  # left singular vector of the power iteration, units: spectral
        self.optimizer: Any = None  # weak reference to the optimizer that last stepped the weight
        self.steps = 0  # iterations in which the owning optimizer stepped
        self.fresh = True  # until its first step, or until a state is loaded
        self.merged = False  # between restore and split, where `dormant` holds all of theta
        self.prepared: Any = None  # weak reference to the gradient that the before-step work was done on
        self.threshold_grad: Tensor | None = None  # task gradient of the thresholds for the coming step, [filters]

    def __repr__(self) -> str:
        return f"MaskedWeight({self.name}, {tuple(self.param.shape)})"

    @property
    def numel(self) -> int:
        return self.param.numel()

    @property
    def data(self) -> Tensor:
        """The host's Parameter without its graph; writing to it counts as an in-place change of the Parameter."""
        return self.param.detach()

    def bits(self, scratch: kernels.Scratch | None = None) -> Tensor:
        return kernels.bits_of_mask(self.mask, self.param.dtype, scratch)

    @property
    def theta(self) -> Tensor:
        """The dense weight behind the mask: live values where kept, dormant ones where pruned (a new tensor)."""
        if self.merged:
            return self.dormant.clone()
        return torch.where(self.mask | (self.data != 0), self.data, self.dormant)

    @property
    def density(self) -> float:
        """Share of the weight that is kept. Reads the device."""
        return self.mask.float().mean().item() if self.numel < 2**24 else self.mask.double().mean().item()

    @property
    def is_prepared(self) -> bool:
        """Whether the before-step work was done on the gradient that is there now; a new one says that it was not."""
        return self.prepared is not None and self.prepared() is self.param.grad

    def set_prepared(self) -> None:
        grad = self.param.grad
        self.prepared = _nothing if grad is None else weakref.ref(grad)

    def follow(self) -> bool:
        """Move mask and dormant values to where the host has moved its Parameter (device, dtype); True if it had."""
        p = self.param
        if p.device == self.dormant.device and p.dtype == self.dormant.dtype:
            return False
        self.mask = self.mask.to(p.device)
        self.dormant = self.dormant.to(device=p.device, dtype=p.dtype)
        return True

    def fused(self, grad: Tensor | None = None) -> Fused | None:
        """The compiled loops, if they cover the weight, its mask and dormant values, and `grad`, as they are now."""
        loops = self.loops
        if loops is None or torch.compiler.is_compiling():  # a compiled optimizer.step fuses the tensor operations
            return None
        if (  # as nearly always; the long way round for the rest
            type(self.param) is nn.Parameter
            and self.param.is_cpu
            and self.layout.dim < 2
            and self.param.is_contiguous()
            and self.dormant.is_contiguous()
            and self.mask.is_contiguous()
            and (grad is None or (type(grad) is Tensor and grad.dtype is loops.dtype and grad.is_contiguous()))
        ):
            return loops
        tensors = (self.data, self.mask, self.dormant, *(() if grad is None else (grad,)))
        return loops if loops.covers(self.layout, *tensors) else None

    def merge(self, scratch: kernels.Scratch) -> tuple[Tensor, Tensor, Tensor]:
        """(theta, zeros in the weight, mask bits) before the step; host writes at pruned positions are adopted."""
        bits = self.bits(scratch)
        self.merged = False  # after an interrupt between restore and split, `dormant` is sorted out here
        return *kernels.merge_(self.data, self.dormant, bits, scratch), bits

    def restore(self, scratch: kernels.Scratch | None = None) -> None:
        """Undo what the optimizer's step did to pruned entries; `dormant` holds theta until `split`."""
        if self.merged:
            return
        loops = self.fused()
        if loops is None:
            kernels.restore_(self.data, self.dormant, self.bits(scratch))
        else:
            loops.restore(self.layout, self.data, self.dormant, self.mask)
        self.merged = True

    def gather(self) -> Tensor:
        """`merge` and `restore` outside of a step: `dormant` holds theta until `split`. Returns the zeros found."""
        scratch = kernels.Scratch()
        _, zeros, _ = self.merge(scratch)
        self.restore(scratch)
        return zeros

    def split(self, pruned: Tensor, scratch: kernels.Scratch | None = None) -> Tensor:
        """Install a new mask; `pruned` is 1.0 / 0.0, weight-shaped. Returns the number of kept -> pruned entries."""
        newly = kernels.split_(self.dormant, self.data, pruned, self.mask, scratch)
        self.merged = False
        return newly

    def set_mask(self, mask: Tensor) -> None:
        """Install a given bool mask outside of a step; newly kept entries take their dormant value."""
        self.gather()
        self.split(torch.logical_not(mask).to(self.param.dtype))

    def load(self, mask: Tensor, dormant: Tensor, threshold: Tensor | None) -> None:
        """Take over saved state. The host's values are the host's to load, before or after; what was pruned here since
        and is kept in the saved mask comes back first."""
        if tuple(mask.shape) != tuple(self.param.shape):
            raise RgplugError(
                f"the saved state of {self.name} has shape {list(mask.shape)}, this network's has "
                f"{list(self.param.shape)}; load a state of the same network"
            )
        theta = self.theta
        self.mask.copy_(mask)
        self.dormant.copy_(dormant)
        self.data.copy_(torch.where(self.mask, theta, self.data))
        self.merged = False
        if threshold is not None and self.threshold is not None:
            self.threshold.copy_(threshold)


def _nothing() -> None:
    """What a weak reference to no gradient answers."""

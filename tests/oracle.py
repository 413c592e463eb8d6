"""RG-GAN (Saxena et al., AAAI 2024, Eq. 1-3) with the mask inside the autograd graph.

An implementation to compare others with: written from the equations, plain and slow. It shares no code with rgplug,
and it is organised the other way round: here the network's own parameter is the dense theta, the masked weight W is
rebuilt in every forward pass, and autograd finds every gradient.

    W = theta * S(|theta| - t),     S(x) = 1 if x > 0 else 0,     loss + lambda * sum exp(-t)

One threshold t per output filter. Backward of S is the long-tailed estimator of Xu & Cheung (2020). Under spectral norm
the masked tensor stands in for the parameter that is divided by sigma, so sigma is that of the sparse matrix.

Weight decay has to be decoupled (AdamW). The L2 decay of Adam or SGD acts through the gradient, where theta and W
differ at pruned entries; what becomes of the moments there is not defined by the equations.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Optimizers = Callable[..., torch.optim.Optimizer]  # (params or param groups, **overrides) -> optimizer
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Step(torch.autograd.Function):
    """S(x): the mask forward, H'(x) = 2 - 4|x| on [0, .4], .4 on (.4, 1], 0 beyond backward.

    The forward value is handed in, because a mask is not always (x > 0): it is all ones before the first step and after
    the guard has reset a layer, exact zeros of theta included.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return mask.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        size = x.abs()
        slope = (2 - 4 * size).clamp(min=0.4)  # the two lines meet at |x| = .4
        return grad * slope * (size <= 1), None


@dataclass
class Layer:
    """One managed weight: theta (the network's parameter), t [filters], and the mask of the coming forward passes."""

    name: str
    theta: nn.Parameter
    transposed_groups: int = 0  # 0: filters are dim 0
    t: Tensor = field(init=False)
    mask: Tensor = field(init=False)

    def __post_init__(self) -> None:
        rows, columns = self.theta.shape[:2]
        filters = columns * self.transposed_groups if self.transposed_groups else rows
        self.t = self.theta.new_zeros(filters).requires_grad_()
        self.mask = torch.ones_like(self.theta, dtype=torch.bool)

    def spread(self, per_filter: Tensor) -> Tensor:
        """One number per filter, [filters], in the shape that meets the entries of theta.

        A transposed convolution has weight [in, out / groups, k, k]; output channel g * (out / groups) + o is made
        from the input rows of group g.
        """
        tail = [1] * (self.theta.dim() - 2)
        if not self.transposed_groups:
            return per_filter.view(-1, 1, *tail)
        rows, columns = self.theta.shape[:2]
        by_group = per_filter.view(self.transposed_groups, 1, columns)
        return by_group.expand(-1, rows // self.transposed_groups, -1).reshape(rows, columns, *tail)


def managed(net: nn.Module) -> Iterator[Layer]:
    """All weights of Conv, ConvTranspose and Linear layers, under spectral norm or not, and of layers like them."""
    for name, weight in net.named_parameters():
        path = re.sub(r"(^|\.)(weight|weight_orig|parametrizations\.weight\.original)$", "", name)
        if path != name and weight.dim() >= 2:
            module = net.get_submodule(path)
            yield Layer(name, weight, module.groups if isinstance(module, TRANSPOSED) else 0)


class Oracle:
    """One network under RG-GAN: call it, add `regularizer()` to its loss once per iteration, `zero_grad()`, `step()`.

    make_optimizer builds the host's optimizer over the network's parameters, and with weight_decay=0 a second one of
    the same class over the thresholds.
    """

    def __init__(
        self,
        net: nn.Module,
        make_optimizer: Optimizers,
        *,
        sparsity_weight: float,
        task_gradient: bool = True,
        weight_gradient: str = "masked",  # masked | full: whether the path through S reaches theta
    ) -> None:
        self.net = net
        self.sparsity_weight = sparsity_weight
        self.task_gradient = task_gradient
        self.full = weight_gradient == "full"
        self.layers = list(managed(net))
        self.optimizer = make_optimizer(net.parameters())
        self.threshold_optimizer = make_optimizer([layer.t for layer in self.layers], weight_decay=0.0)
        self.pruned = self.regrown = self.resets = 0  # entries 1 -> 0, entries 0 -> 1, layers that the guard reset

    def __call__(self, *args: Any) -> Tensor:
        masked = {layer.name: self.masked(layer) for layer in self.layers}
        return functional_call(self.net, masked, args, tie_weights=False)

    def masked(self, layer: Layer) -> Tensor:
        """W = theta * S(|theta| - t), in the graph."""
        if not torch.is_grad_enabled() or not (self.task_gradient or self.full):
            return layer.theta * layer.mask
        t = layer.t if self.task_gradient else layer.t.detach()
        theta = layer.theta if self.full else layer.theta.detach()
        return layer.theta * Step.apply(theta.abs() - layer.spread(t), layer.mask)

    def regularizer(self) -> Tensor:
        return self.sparsity_weight * sum(layer.t.neg().exp().sum() for layer in self.layers)

    def requires_grad(self, flag: bool) -> None:
        self.net.requires_grad_(flag)
        for layer in self.layers:
            layer.t.requires_grad_(flag)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)
        self.threshold_optimizer.zero_grad(set_to_none)

    def step(self, scaler: torch.amp.GradScaler | None = None, closure: Callable[[], Tensor] | None = None) -> None:
        """Step theta and t, put frozen entries back, recompute the masks. Nothing at all if the scaler skips."""
        if closure is not None:
            closure()
        if scaler is not None:
            scaler.unscale_(self.optimizer)
            scaler.unscale_(self.threshold_optimizer)
            if not self.gradients_are_finite():
                return
        for layer in self.layers:
            if self.full and layer.theta.grad is not None:
                layer.theta.grad *= layer.mask
        before = [layer.theta.detach().clone() for layer in self.layers]
        self.follow_host()
        for optimizer in (self.optimizer, self.threshold_optimizer):
            if scaler is not None:
                scaler.step(optimizer)
            else:
                optimizer.step()
        with torch.no_grad():
            for layer, old in zip(self.layers, before):
                layer.theta.copy_(torch.where(layer.mask, layer.theta, old))
                self.refresh(layer)

    def refresh(self, layer: Layer) -> None:
        """M = S(|theta| - t); a layer that keeps 1 % or less starts again from t = 0 with all of its weights."""
        mask = layer.theta.abs() > layer.spread(layer.t)
        if 100 * int(mask.sum()) <= mask.numel():
            layer.t.zero_()
            mask = torch.ones_like(mask)
            self.resets += 1
        if not torch.equal(mask, layer.mask):
            self.pruned += int((layer.mask & ~mask).sum())
            self.regrown += int((mask & ~layer.mask).sum())
            layer.mask = mask

    def gradients_are_finite(self) -> bool:
        groups = self.optimizer.param_groups + self.threshold_optimizer.param_groups
        return all(bool(p.grad.isfinite().all()) for group in groups for p in group["params"] if p.grad is not None)

    def follow_host(self) -> None:
        """The thresholds' options are the host's at every step (learning rate schedules), but for the weight decay."""
        host = {k: v for k, v in self.optimizer.param_groups[0].items() if k not in ("params", "weight_decay")}
        self.threshold_optimizer.param_groups[0].update(host)

    def density(self) -> float:
        """Share of the managed weights that the masks keep."""
        kept = sum(int(layer.mask.sum()) for layer in self.layers)
        return kept / sum(layer.mask.numel() for layer in self.layers)

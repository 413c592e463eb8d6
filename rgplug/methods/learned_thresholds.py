"""Learned thresholds: the rule of RG-GAN, in the paper's form (task gradients) and in the released one (a ramp)."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rgplug.kernels import Scratch
from rgplug.masking import MaskedWeight
from rgplug.methods import Method, Rule, Step, threshold
from rgplug.methods.threshold_optimizer import ThresholdOptimizer
from rgplug.policy import Policy


class LearnedThresholds(Method):
    """One threshold per output filter, moved by the task's gradient through the mask and by lambda * sum exp(-t)."""

    def __init__(self, policy: Policy, network: str):
        self.policy = policy.threshold
        self.units: str = policy.of(policy.threshold.units, network) or "absolute"
        self.sparsity_weight: float = policy.of(policy.sparsity_weight, network) or 0.0
        self.recurrent = policy.regeneration.recurs(network)
        self.guard = policy.threshold.guard
        self.optimizer = ThresholdOptimizer(policy.threshold.optimizer, network)

    def attach(self, weight: MaskedWeight) -> None:
        p = weight.param
        dtype = torch.promote_types(p.dtype, torch.float32)
        weight.threshold = torch.full((weight.layout.filters,), self.policy.init, dtype=dtype, device=p.device)
        self.start(weight)

    def start(self, weight: MaskedWeight) -> None:
        p, dtype, theta = weight.param, self._threshold(weight).dtype, weight.theta
        weight.scale = None
        if self.units == "spectral":
            # a fixed start of the power iteration, so that two runs and two ranks agree; 15 iterations warm it up
            generator = torch.Generator().manual_seed(weight.layout.filters)
            left = torch.randn(self._rows(weight, theta).shape[0], generator=generator, dtype=dtype)
            weight.scale_vectors = torch.nn.functional.normalize(left, dim=0).to(p.device)
            threshold.spectral_norm(self._rows(weight, theta).to(dtype), weight.scale_vectors, iterations=15)
        self._measure(weight, theta)

    def follow(self, weight: MaskedWeight) -> None:
        """The host moved its network: thresholds and units go to the weight's device, in its precision."""
        self.optimizer.dissolve()
        device, dtype = weight.param.device, torch.promote_types(weight.param.dtype, torch.float32)
        weight.threshold = self._threshold(weight).to(device, dtype)
        weight.scale = None if weight.scale is None else weight.scale.to(device, dtype)
        weight.scale_vectors = None if weight.scale_vectors is None else weight.scale_vectors.to(device, dtype)

    def gradient_rule(self, weight: MaskedWeight, step: int | None) -> Rule | None:
        return self.rule(weight, step)

    def rule(self, weight: MaskedWeight, step: int | None) -> Rule | None:
        full = self.policy.weight_gradient == "full"
        return Rule(self._threshold(weight), weight.scale, self.policy.task_gradient, full)

    def needs_theta(self, weight: MaskedWeight, step: int | None) -> bool:
        return self.units == "spectral" or (self.units == "layer_std" and weight.fused() is None)

    def on_gradient(self, weight: MaskedWeight, grad: Tensor, theta: Tensor, scratch: Scratch) -> None:
        full = self.policy.weight_gradient == "full"
        if not self.policy.task_gradient and not full:
            return
        t = self._threshold(weight)
        wide = theta if theta.dtype == t.dtype else theta.to(t.dtype)
        margin = scratch.like(wide, "margin")
        threshold.margin(weight.layout.view(wide), weight.layout.expand(t), weight.scale, weight.layout.view(margin))
        derivative = threshold.surrogate_derivative_(margin, scratch.like(wide, "inside"))
        term = threshold.surrogate_weight_term(wide, derivative, weight.scale) if full else None
        if self.policy.task_gradient:
            product = wide.mul_(grad) if term is None else wide * grad
            weight.threshold_grad = weight.layout.sum(threshold.threshold_gradient(product, derivative)).neg_()
        if term is not None:
            grad.mul_(term)

    def update(self, weights: list[MaskedWeight], step: Step) -> None:
        times = step.regularizer if self.sparsity_weight else None
        gradients: dict[str, Tensor] = {}
        for w in weights:
            gradient = w.threshold_grad
            if gradient is not None and step.groups.get(id(w.param), {}).get("maximize"):
                gradient = -gradient  # the host ascends; thresholds follow the same objective and descend on their own
            if gradient is None and times is not None:
                gradient = torch.zeros_like(self._threshold(w))
            if gradient is not None:
                gradients[w.name] = gradient
        if gradients:
            pull = None if times is None else partial(self._pull, times=times)
            self.optimizer.step(gradients, weights, step.optimizer, step.groups, step.found_inf, pull)
            if self.policy.min is not None:
                for w in weights:
                    self._threshold(w).clamp_min_(self.policy.min)
        for w in weights if self.units != "absolute" else ():
            before = (w.scale, None if w.scale_vectors is None else w.scale_vectors.clone())
            self._measure(w, w.dormant, w.variance() if self.units == "layer_std" else None)
            if step.found_inf is not None:
                _undo(w, before, step.found_inf)

    def _pull(self, thresholds: Tensor, times: float | Tensor) -> Tensor:
        """The regularizer's gradient, counted `times` times; any number of thresholds."""
        return threshold.regularizer_gradient(thresholds, self.sparsity_weight).mul_(times)

    def measure(self, weight: MaskedWeight) -> None:
        self._measure(weight, weight.dormant)

    def pruned(self, weight: MaskedWeight, scratch: Scratch) -> Tensor:
        theta = weight.dormant
        t = weight.layout.expand(self._threshold(weight))
        out = scratch.like(theta, "entries")
        threshold.pruned_entries(weight.layout.view(theta), t, weight.scale, weight.layout.view(out))
        return out

    def on_guard(self, weight: MaskedWeight, keep: Tensor) -> None:
        self._threshold(weight).mul_(keep)

    def regularizer(self, weights: list[MaskedWeight]) -> Tensor | None:
        device = weights[0].param.device
        parts = [threshold.regularizer(self._threshold(w)).to(device) for w in weights]
        return torch.stack(parts).sum().mul_(self.sparsity_weight)

    def shift(self, weights: list[MaskedWeight], keep: float, samples: int, iteration: int) -> None:
        """Shift all thresholds by a common amount, so that the share `keep` of the network's weights lies above.

        The shift is the quantile of |theta| / scale - t over at most `samples` entries, taken at a regular stride
        whose start moves with `iteration`. Differences between filters stay as they were learned. A layer that the
        common shift would empty is shifted only as far as leaves it its largest weights, and the others make up for it.
        """
        if keep >= 1:
            self._keep_all(weights)
            return
        stride = -(-sum(w.numel for w in weights) // (samples if self.recurrent else 16 * samples))
        parts, caps = [], []
        for w in weights:
            parts.append(self._margins(w, iteration % min(stride, w.numel), stride).to(weights[0].param.device))
            own = max(1, w.numel // 4096)
            caps.append(self._cap(w, self._margins(w, iteration % own, own)))
        rank = max(round((1 - keep) * sum(p.numel() for p in parts)), 1)
        device = weights[0].param.device
        slack = 1e-6 * torch.stack([self._threshold(w).abs().amax().to(device) for w in weights]).amax()
        amount = _quantile(torch.cat(parts), rank, slack)
        for _ in range(2):
            capped = [
                torch.where(c < amount, torch.where(p > c, torch.inf, -torch.inf).to(p.dtype), p)
                for p, c in zip(parts, (c.to(amount.device) for c in caps))
            ]
            amount = _quantile(torch.cat(capped), rank, slack)
        for w, cap in zip(weights, caps):
            shift = torch.minimum(amount.to(cap.device), cap)
            self._threshold(w).add_(torch.nan_to_num_(shift, nan=0.0, posinf=0.0, neginf=0.0))

    def _margins(self, w: MaskedWeight, start: int, step: int) -> Tensor:
        """|theta| / scale - t of every step-th entry from `start` on; -inf for those that may not come back."""
        index = torch.arange(start, w.numel, step, device=w.dormant.device)
        margin = threshold.margin(
            w.dormant.reshape(-1)[start::step], self._threshold(w)[w.layout.filter_of(index)], w.scale
        )
        return margin if self.recurrent else margin.masked_fill_(~w.mask.reshape(-1)[start::step], -torch.inf)

    def _keep_all(self, weights: list[MaskedWeight]) -> None:
        """Lower all thresholds by a common amount, if need be, until every weight lies above."""
        lowest = []
        for w in weights:
            t = self._threshold(w)
            least = threshold.margin(w.layout.view(w.dormant), w.layout.expand(t), w.scale).amin()
            lowest.append((least - 1e-6 * (least.abs() + t.abs().amax()) - 1e-12).to(weights[0].param.device))
        amount = torch.stack(lowest).amin().clamp_max_(0)
        for w in weights:
            self._threshold(w).add_(torch.nan_to_num(amount, nan=0.0, neginf=0.0).to(w.param.device))

    def _cap(self, weight: MaskedWeight, margin: Tensor) -> Tensor:
        """The largest shift that leaves a layer a little more than the guard's share of its weights."""
        if margin.numel() == 1:
            return margin[0] - margin[0].abs() - 1
        rest = max(1, math.ceil(1.5 * self.policy.guard * margin.numel()))
        slack = 1e-6 * self._threshold(weight).abs().amax()
        return _quantile(margin, max(margin.numel() - rest, 1), slack)

    def state_of(self, weight: MaskedWeight) -> dict[str, Any]:
        state: dict[str, Any] = {f"optimizer.{k}": v for k, v in self.optimizer.state_of(weight).items()}
        for key, value in (("scale", weight.scale), ("scale_vectors", weight.scale_vectors)):
            if value is not None:
                state[key] = value.clone()
        return state

    def load(self, weight: MaskedWeight, state: dict[str, Any]) -> None:
        self.optimizer.load(weight, {k[10:]: v for k, v in state.items() if k.startswith("optimizer.")})
        if weight.scale is not None and "scale" in state:
            weight.scale.copy_(state["scale"])
        if weight.scale_vectors is not None and "scale_vectors" in state:
            weight.scale_vectors.copy_(state["scale_vectors"])

    def _measure(self, weight: MaskedWeight, theta: Tensor, variance: Tensor | None = None) -> None:
        """The weight's unit anew, from theta or, for `layer_std`, from its variance where that is known."""
        if self.units == "absolute":
            return
        theta = theta.to(self._threshold(weight).dtype)
        if variance is not None:
            scale = variance.sqrt().to(theta.dtype).clamp_min_(torch.finfo(theta.dtype).tiny)
        elif self.units == "layer_std":
            scale = threshold.layer_std(theta)
        else:
            assert weight.scale_vectors is not None
            scale = threshold.spectral_norm(self._rows(weight, theta), weight.scale_vectors)
        # weights that are not finite have no unit: the last one stays
        weight.scale = scale if weight.scale is None else torch.where(torch.isfinite(scale), scale, weight.scale)

    @staticmethod
    def _rows(weight: MaskedWeight, theta: Tensor) -> Tensor:
        """theta as [filters, rest], the matrix whose norm spectral normalization takes."""
        return theta.movedim(weight.layout.dim, 0).reshape(theta.shape[weight.layout.dim], -1)

    @staticmethod
    def _threshold(weight: MaskedWeight) -> Tensor:
        assert weight.threshold is not None
        return weight.threshold


def _quantile(margins: Tensor, rank: int, slack: Tensor) -> Tensor:
    """The value up to which `rank` entries lie; where more than these are at -inf already, just below all others.

    slack: what rounding can do to a margin, absolute.
    """
    value = margins.kthvalue(rank).values
    least = torch.where(margins == -torch.inf, torch.inf, margins).amin()
    return torch.where(value == -torch.inf, least - 1e-6 * least.abs() - slack - 1e-12, value)


def _undo(weight: MaskedWeight, before: tuple[Tensor | None, Tensor | None], found_inf: Tensor) -> None:
    """A step that was skipped on the device leaves units as they were."""
    skipped = found_inf != 0
    scale, vectors = before
    if scale is not None and weight.scale is not None:
        weight.scale = torch.where(skipped, scale, weight.scale)
    if vectors is not None and weight.scale_vectors is not None:
        weight.scale_vectors.copy_(torch.where(skipped, vectors, weight.scale_vectors))

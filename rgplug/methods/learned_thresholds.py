"""Learned thresholds: the rule of RG-GAN, in the paper's form (task gradients) and in the released one (a ramp)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rgplug import expected
from rgplug.kernels import Scratch
from rgplug.masking import MaskedWeight
from rgplug.methods import Method, Rule, Step, threshold
from rgplug.methods.threshold_masks import MASKS, Masks
from rgplug.methods.threshold_optimizer import ThresholdOptimizer
from rgplug.methods.threshold_shift import threshold_of
from rgplug.policy import Policy
from rgplug.units import Units

WARM_UP = 15  # power iterations that find the spectral norm of a weight; one a step then follows it


class LearnedThresholds(Method):
    """One threshold per output filter, moved by the task's gradient through the mask and by lambda * sum exp(-t)."""

    def __init__(self, policy: Policy, network: str, units: Units):
        super().__init__(units)
        self.policy = policy.threshold
        self.measure_of: str = policy.of(policy.threshold.units, network) or "absolute"
        self.sparsity_weight: float = policy.of(policy.sparsity_weight, network) or 0.0
        if units.granularity == "2:4":
            self.measure_of, self.sparsity_weight = "absolute", 0.0
        self.masks: Masks = MASKS[units.granularity](policy.threshold, units, policy.regeneration.recurs(network))
        self.guard, self.recurrent = self.masks.guard, self.masks.recurrent
        self.optimizer = ThresholdOptimizer(policy.threshold.optimizer, network)

    def attach(self, weight: MaskedWeight) -> None:
        p = weight.param
        dtype = torch.promote_types(p.dtype, torch.float32)
        weight.threshold = torch.full((weight.layout.filters,), self.policy.init, dtype=dtype, device=p.device)
        self.start(weight)

    def start(self, weight: MaskedWeight) -> None:
        p, dtype, theta = weight.param, threshold_of(weight).dtype, weight.theta
        weight.scale = None
        if self.measure_of == "spectral":
            # a fixed start of the power iteration, so that two runs and two ranks agree
            generator = torch.Generator().manual_seed(weight.layout.filters)
            left = torch.randn(self._rows(weight, theta).shape[0], generator=generator, dtype=dtype)
            weight.scale_vectors = torch.nn.functional.normalize(left, dim=0).to(p.device)
            threshold.spectral_norm(self._rows(weight, theta).to(dtype), weight.scale_vectors, iterations=WARM_UP)
        self._measure(weight, theta)
        self.masks.start(weight)

    def wake(self, weight: MaskedWeight) -> None:
        """The power iteration stood still in the dense phase and is warmed up again, from where it stood."""
        if self.measure_of == "spectral":
            assert weight.scale_vectors is not None
            rows = self._rows(weight, weight.theta).to(threshold_of(weight).dtype)
            threshold.spectral_norm(rows, weight.scale_vectors, iterations=WARM_UP)

    def follow(self, weight: MaskedWeight) -> None:
        """The host moved its network: thresholds and units go to the weight's device, in its precision."""
        self.optimizer.dissolve()
        device, dtype = weight.param.device, torch.promote_types(weight.param.dtype, torch.float32)
        weight.threshold = threshold_of(weight).to(device, dtype)
        weight.scale = None if weight.scale is None else weight.scale.to(device, dtype)
        weight.scale_vectors = None if weight.scale_vectors is None else weight.scale_vectors.to(device, dtype)

    def gradient_rule(self, weight: MaskedWeight, step: int | None) -> Rule | None:
        return self.masks.gradient_rule(weight)

    def rule(self, weight: MaskedWeight, step: int | None) -> Rule | None:
        return self.masks.rule(weight)

    def needs_theta(self, weight: MaskedWeight, step: int | None) -> bool:
        if self.units.granularity != "weight" or self.measure_of == "spectral":
            return True
        return self.measure_of == "layer_std" and weight.fused() is None

    def on_gradient(self, weight: MaskedWeight, grad: Tensor, theta: Tensor, scratch: Scratch) -> None:
        self.masks.on_gradient(weight, grad, theta, scratch)

    def update(self, weights: list[MaskedWeight], step: Step) -> None:
        times = step.regularizer if self.sparsity_weight else None
        task: dict[str, Tensor] = {}
        for w in weights:
            if w.threshold_grad is not None:
                # a host that ascends: thresholds follow the same objective and descend on their own
                ascends = step.groups.get(id(w.param), {}).get("maximize")
                task[w.name] = -w.threshold_grad if ascends else w.threshold_grad
        gradients = self.masks.gradients(weights, task)
        if times is not None:
            gradients |= {w.name: torch.zeros_like(threshold_of(w)) for w in weights if w.name not in gradients}
        if gradients:
            pull = None if times is None else partial(self._pull, times=times)
            self.optimizer.step(gradients, weights, step.optimizer, step.groups, step.found_inf, pull)
            if self.policy.min is not None:
                for w in weights:
                    threshold_of(w).clamp_min_(self.policy.min)
        for w in weights if self.measure_of != "absolute" else ():
            before = (w.scale, None if w.scale_vectors is None else w.scale_vectors.clone())
            self._measure(w, w.dormant, w.variance() if self.measure_of == "layer_std" else None)
            if step.found_inf is not None:
                _undo(w, before, step.found_inf)

    def _pull(self, thresholds: Tensor, times: float | Tensor) -> Tensor:
        """The regularizer's gradient, counted `times` times; any number of thresholds."""
        return threshold.regularizer_gradient(thresholds, self.sparsity_weight).mul_(times)

    def measure(self, weight: MaskedWeight) -> None:
        self._measure(weight, weight.dormant)

    def decide(self, weights: list[MaskedWeight]) -> None:
        self.masks.decide(weights)

    def pruned(self, weight: MaskedWeight, scratch: Scratch) -> Tensor:
        return self.masks.pruned(weight, scratch)

    def on_guard(self, weight: MaskedWeight, keep: Tensor) -> None:
        threshold_of(weight).mul_(keep)

    def regularizer(self, weights: list[MaskedWeight]) -> Tensor | None:
        device = weights[0].param.device
        parts = [threshold.regularizer(threshold_of(w)).to(device) for w in weights]
        return torch.stack(parts).sum().mul_(self.sparsity_weight)

    def shift(self, weights: list[MaskedWeight], keep: float, samples: int, iteration: int) -> None:
        """Shift all thresholds by a common amount, so that the share `keep` of the network's weights is kept."""
        self.masks.shift(weights, keep, samples, iteration)

    def state_of(self, weight: MaskedWeight) -> dict[str, Any]:
        state: dict[str, Any] = {f"optimizer.{k}": v for k, v in self.optimizer.state_of(weight).items()}
        for key, value in (("scale", weight.scale), ("scale_vectors", weight.scale_vectors)):
            if value is not None:
                state[key] = value.clone()
        return state

    def misfit(self, weight: MaskedWeight, state: Mapping[str, Any]) -> str:
        own = {"scale": weight.scale, "scale_vectors": weight.scale_vectors}
        needed = {key: expected.tensor(value.shape) for key, value in own.items() if value is not None}
        moments = {k[10:]: v for k, v in state.items() if k.startswith("optimizer.")}
        rest = {k: v for k, v in state.items() if not k.startswith("optimizer.")}
        return expected.keys(rest, needed) or self.optimizer.misfit(weight, moments)

    def load(self, weight: MaskedWeight, state: dict[str, Any]) -> None:
        self.optimizer.load(weight, {k[10:]: v for k, v in state.items() if k.startswith("optimizer.")})
        if weight.scale is not None and "scale" in state:
            weight.scale.copy_(state["scale"])
        if weight.scale_vectors is not None and "scale_vectors" in state:
            weight.scale_vectors.copy_(state["scale_vectors"])

    def _measure(self, weight: MaskedWeight, theta: Tensor, variance: Tensor | None = None) -> None:
        """The weight's unit anew, from theta or, for `layer_std`, from its variance where that is known."""
        if self.measure_of == "absolute":
            return
        theta = theta.to(threshold_of(weight).dtype)
        if variance is not None:
            scale = variance.sqrt().to(theta.dtype).clamp_min_(torch.finfo(theta.dtype).tiny)
        elif self.measure_of == "layer_std":
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


def _undo(weight: MaskedWeight, before: tuple[Tensor | None, Tensor | None], found_inf: Tensor) -> None:
    """A step that was skipped on the device leaves units as they were."""
    skipped = found_inf != 0
    scale, vectors = before
    if scale is not None and weight.scale is not None:
        weight.scale = torch.where(skipped, scale, weight.scale)
    if vectors is not None and weight.scale_vectors is not None:
        weight.scale_vectors.copy_(torch.where(skipped, vectors, weight.scale_vectors))

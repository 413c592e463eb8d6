"""Re-GAN (Saxena et al., CVPR 2023): prune and grow in turns."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from rgplug import kernels
from rgplug.kernels import Scratch
from rgplug.masking import MaskedWeight
from rgplug.methods import FIXED, Method, Rule, Step
from rgplug.methods.two_of_four import two_of_four
from rgplug.policy import CyclePolicy
from rgplug.units import Block, Fours, Units, spared


def is_sparse(policy: CyclePolicy, step: int) -> bool:
    """Whether iteration `step` (from 1) is sparse: after `warm_up` dense ones, `period` sparse, `period` dense, ..."""
    after = step - policy.warm_up - 1
    return after >= 0 and after // policy.period % 2 == 0


def smallest(theta: Tensor, sparsity: float) -> Tensor:
    """bool, True at the weights whose magnitude lies below the layer's `sparsity` quantile (linear interpolation).

    theta: weights, or scores of a layer's units. Those are all below the ceil(sparsity (n - 1)) + 1 smallest of n, for
    any n (quantile functions stop at 2^24 entries): so many, less where magnitudes are equal there, as the gains of
    norms are at first.
    """
    size = theta.abs()
    count = math.ceil(sparsity * (theta.numel() - 1)) + 1
    return size < size.reshape(-1).topk(count, largest=False).values.amax()


class PruneGrow(Method):
    """Sparse phases prune the smallest weights of each layer; dense phases let them grow again from 0, slowly."""

    def __init__(self, policy: CyclePolicy, units: Units):
        super().__init__(units)
        self.policy = policy
        self._new: dict[str, Tensor] = {}  # masks of weights that have not started, or of the phase that begins

    def start(self, weight: MaskedWeight) -> None:
        """Without warm-up the first iteration is sparse; the host has its weights by now."""
        if is_sparse(self.policy, 1):
            if weight.name not in self._new:
                block = self.units.block_of(weight)
                self._new |= self._masks(block, {w.name: w.theta for w in self.units.weights_of(block)})
            weight.set_mask(self._new.pop(weight.name))

    def lr_factor(self, step: int) -> float:
        """Dense phases after the warm-up train with the lower learning rate."""
        return 1.0 if step <= self.policy.warm_up or is_sparse(self.policy, step) else self.policy.lr

    def rule(self, weight: MaskedWeight, step: int | None) -> Rule | None:
        return None if weight.name in self._new else FIXED

    def needs_theta(self, weight: MaskedWeight, step: int | None) -> bool:
        return self._turns(step)

    def update(self, weights: list[MaskedWeight], step: Step) -> None:
        if step.auxiliary or not any(self._turns(w.steps) for w in weights):
            return
        for block, iteration in self.units.arrived(weights):
            if not self._turns(iteration):
                continue
            members = self.units.weights_of(block)
            for w in members:
                if w.steps:  # one that was never stepped may turn out to be frozen, and then wants its values back
                    kernels.keep_(w.dormant, w.bits())  # what was pruned is 0, and grows from there
            if is_sparse(self.policy, iteration + 1):
                self._new |= self._masks(block, {w.name: w.dormant for w in members})
            else:
                self._new |= {w.name: torch.ones_like(w.dormant, dtype=torch.bool) for w in members}

    def pruned(self, weight: MaskedWeight, scratch: Scratch) -> Tensor:
        new = self._new.pop(weight.name, None)
        return super().pruned(weight, scratch) if new is None else torch.logical_not(new).to(weight.param.dtype)

    def _masks(self, block: Block, thetas: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Masks of a sparse phase."""
        sizes = block.scores({name: theta.abs() for name, theta in thetas.items()})
        kept = two_of_four(sizes) if isinstance(block, Fours) else ~smallest(sizes, self.policy.sparsity)
        return block.masks(spared(block, kept, sizes))

    def _turns(self, step: int | None) -> bool:
        """Whether the phase changes after iteration `step`."""
        return step is not None and step > 0 and is_sparse(self.policy, step) != is_sparse(self.policy, step + 1)

"""Re-GAN (Saxena et al., CVPR 2023): prune and grow in turns."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rgplug import kernels
from rgplug.kernels import Scratch
from rgplug.masking import MaskedWeight
from rgplug.methods import FIXED, Method, Rule, Step
from rgplug.policy import CyclePolicy


def is_sparse(policy: CyclePolicy, step: int) -> bool:
    """Whether iteration `step` (from 1) is sparse: after `warm_up` dense ones, `period` sparse, `period` dense, ..."""
    after = step - policy.warm_up - 1
    return after >= 0 and after // policy.period % 2 == 0


def smallest(theta: Tensor, sparsity: float) -> Tensor:
    """bool, True at the weights whose magnitude lies below the layer's `sparsity` quantile (linear interpolation).

    Those are all below the ceil(sparsity (n - 1)) + 1 smallest of n, for any n (quantile functions stop at 2^24
    entries): so many, less where magnitudes are equal there, as the gains of norms are at first.
    """
    size = theta.abs()
    count = math.ceil(sparsity * (theta.numel() - 1)) + 1
    return size < size.reshape(-1).topk(count, largest=False).values.amax()


class PruneGrow(Method):
    """Sparse phases prune the smallest weights of each layer; dense phases let them grow again from 0, slowly."""

    def __init__(self, policy: CyclePolicy):
        self.policy = policy

    def start(self, weight: MaskedWeight) -> None:
        """Without warm-up the first iteration is sparse; the host has its weights by now."""
        if is_sparse(self.policy, 1):
            weight.set_mask(~smallest(weight.theta, self.policy.sparsity))

    def lr_factor(self, step: int) -> float:
        """Dense phases after the warm-up train with the lower learning rate."""
        return 1.0 if step <= self.policy.warm_up or is_sparse(self.policy, step) else self.policy.lr

    def rule(self, weight: MaskedWeight, step: int | None) -> Rule | None:
        return None if self._turns(step) else FIXED

    def needs_theta(self, weight: MaskedWeight, step: int | None) -> bool:
        return self._turns(step)

    def update(self, weights: list[MaskedWeight], step: Step) -> None:
        for w in weights:
            if not step.auxiliary and self._turns(w.steps):
                kernels.keep_(w.dormant, w.bits())  # what was pruned is 0, and grows from there

    def pruned(self, weight: MaskedWeight, scratch: Scratch) -> Tensor:
        if not self._turns(weight.steps):
            return super().pruned(weight, scratch)
        if is_sparse(self.policy, weight.steps + 1):
            return smallest(weight.dormant, self.policy.sparsity).to(weight.param.dtype)
        return torch.zeros_like(weight.param)

    def _turns(self, step: int | None) -> bool:
        """Whether the phase changes after iteration `step`."""
        return step is not None and step > 0 and is_sparse(self.policy, step) != is_sparse(self.policy, step + 1)

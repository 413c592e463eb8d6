"""What thresholds decide at each granularity, and how the loss reaches them through the mask.

One class for each; `LearnedThresholds` holds the thresholds, steps them, and asks one of these for everything that
depends on what is kept or pruned as a whole. `guard` and `recurrent` are what is left of them to the engine: a mask of
larger units is decided here whole, what may not come back and layers that would empty included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from rgplug.kernels import Scratch
from rgplug.masking import MaskedWeight
from rgplug.methods import FIXED, Rule, threshold
from rgplug.methods.threshold_shift import UnitBlock, shift_entries, shift_units, threshold_of
from rgplug.methods.two_of_four import two_of_four
from rgplug.policy import ThresholdPolicy
from rgplug.units import Block, Filters, Fours, Kernels, Units, filter_sums, spared, spread


class EntryMasks:
    """granularity: weight. Kept iff |theta| / scale > t of its filter (RG-GAN, Eq. 1)."""

    def __init__(self, policy: ThresholdPolicy, units: Units, recurrent: bool):
        self.policy, self.units, self.regrows = policy, units, recurrent
        self.guard, self.recurrent = policy.guard, recurrent

    def start(self, weight: MaskedWeight) -> None:
        """Before the weight's first step, once its units of measure are known."""

    def gradient_rule(self, weight: MaskedWeight) -> Rule | None:
        return self.rule(weight)

    def rule(self, weight: MaskedWeight) -> Rule | None:
        full = self.policy.weight_gradient == "full"
        return Rule(threshold_of(weight), weight.scale, self.policy.task_gradient, full)

    def on_gradient(self, weight: MaskedWeight, grad: Tensor, theta: Tensor, scratch: Scratch) -> None:
        """The thresholds' task gradient, into weight.threshold_grad, linear in `grad`."""
        full = self.policy.weight_gradient == "full"
        if not self.policy.task_gradient and not full:
            return
        t = threshold_of(weight)
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

    def gradients(self, weights: list[MaskedWeight], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Task gradients of the thresholds of `weights`, from what `on_gradient` left of some of them: by name."""
        return dict(own)

    def decide(self, weights: list[MaskedWeight]) -> None:
        """Before masks are drawn, with theta in every weight's `dormant`."""

    def pruned(self, weight: MaskedWeight, scratch: Scratch) -> Tensor:
        theta = weight.dormant
        t = weight.layout.expand(threshold_of(weight))
        out = scratch.like(theta, "entries")
        threshold.pruned_entries(weight.layout.view(theta), t, weight.scale, weight.layout.view(out))
        return out

    def shift(self, weights: list[MaskedWeight], keep: float, samples: int, iteration: int) -> None:
        shift_entries(weights, keep, samples, iteration, self.policy.guard, self.regrows)


class KernelMasks:
    """granularity: kernel. Kept iff mean |theta| of the kernel / scale > t of its filter."""

    def __init__(self, policy: ThresholdPolicy, units: Units, recurrent: bool):
        self.policy, self.units, self.regrows = policy, units, recurrent
        self.guard, self.recurrent = policy.guard, True

    def start(self, weight: MaskedWeight) -> None: ...

    def gradient_rule(self, weight: MaskedWeight) -> Rule | None:
        return None

    def rule(self, weight: MaskedWeight) -> Rule | None:
        return None

    def on_gradient(self, weight: MaskedWeight, grad: Tensor, theta: Tensor, scratch: Scratch) -> None:
        """dL/dt_i = -sum_kernels H'(mean |theta| / scale - t_i) sum_{j in kernel} A_j theta_j

        and with weight_gradient: full, before the mask,

        dL/dtheta_j = A_j + (sum_{k in kernel} A_k theta_k) H' sign(theta_j) / (n_kernel scale)
        """
        full = self.policy.weight_gradient == "full"
        if not self.policy.task_gradient and not full:
            return
        block, wide = self._block(weight), theta.to(threshold_of(weight).dtype)
        derivative = threshold.surrogate_derivative_(self._margin(weight, block, wide))
        pull = block.sums(wide * grad).mul_(derivative.view(block.shape))
        if self.policy.task_gradient:
            weight.threshold_grad = filter_sums(block.grid, pull).neg()
        if full:
            pull.div_(block.size if weight.scale is None else block.size * weight.scale)
            grad.add_(pull * torch.sign(wide))

    def gradients(self, weights: list[MaskedWeight], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(own)

    def decide(self, weights: list[MaskedWeight]) -> None: ...

    def pruned(self, weight: MaskedWeight, scratch: Scratch) -> Tensor:
        block = self._block(weight)
        margin = self._margin(weight, block, weight.dormant)
        kept = (margin <= 0).logical_not_().view(block.shape)  # NaN is kept, and so stays visible
        if not self.regrows:
            kept &= block.kept({weight.name: weight.mask})
        pruned = spared(block, kept, margin.view(block.shape)).logical_not_()
        return block.masks(pruned.to(weight.param.dtype))[weight.name]

    def shift(self, weights: list[MaskedWeight], keep: float, samples: int, iteration: int) -> None:
        blocks = [self._block(w) for w in weights]
        wanted = samples if self.regrows else 16 * samples
        shift_units(self.units, blocks, self._margins, keep, wanted, iteration, self.policy.guard)

    def _margins(self, block: UnitBlock) -> Tensor:
        assert isinstance(block, Kernels)
        (weight,) = self.units.weights_of(block)
        margin = self._margin(weight, block, weight.dormant).view(block.shape)
        return margin if self.regrows else margin.masked_fill(~block.kept({weight.name: weight.mask}), -torch.inf)

    def _margin(self, weight: MaskedWeight, block: Kernels, theta: Tensor) -> Tensor:
        """mean |theta| / scale - t of each kernel, with the groups as a dim of their own."""
        means = block.grid.view(block.scores({weight.name: theta.abs()}))
        return threshold.margin(means, block.grid.expand(threshold_of(weight)), weight.scale)

    def _block(self, weight: MaskedWeight) -> Kernels:
        block = self.units.block_of(weight)
        assert isinstance(block, Kernels)
        return block


class FilterMasks:
    """granularity: filter. A channel is kept iff the mean of mean |theta_i| / scale - t_i over the filters i that make
    it is above 0; scale is that of each filter's layer. Biases and gains go with it."""

    def __init__(self, policy: ThresholdPolicy, units: Units, recurrent: bool):
        self.policy, self.units, self.regrows = policy, units, recurrent
        self.guard, self.recurrent = 0.0, True  # one layer's guard acts on what is tied to it too: see `decide`
        self._before: dict[str, Tensor] = {}  # filters' margins before the step
        self._kept: dict[str, Tensor] = {}  # weight -> bool [filters]

    def start(self, weight: MaskedWeight) -> None: ...

    def gradient_rule(self, weight: MaskedWeight) -> Rule | None:
        return None if self.policy.task_gradient else FIXED

    def rule(self, weight: MaskedWeight) -> Rule | None:
        return None

    def on_gradient(self, weight: MaskedWeight, grad: Tensor, theta: Tensor, scratch: Scratch) -> None:
        """-sum_j A_j theta_j of each filter; `gradients` puts those of tied filters together."""
        if self.policy.task_gradient:
            wide = theta.to(threshold_of(weight).dtype)
            self._before[weight.name] = self._part(weight, wide)
            weight.threshold_grad = filter_sums(weight.layout, wide * grad).neg()

    def gradients(self, weights: list[MaskedWeight], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """dL/dt_i = -H'(margin_u) / n_u sum over the unit's filters of sum_j A_j theta_j, n_u of which vote

        A is that of this step; a member without a gradient has A = 0. One that did not step has not moved.
        """
        found: dict[str, Tensor] = {}
        for block in self._blocks(weights):
            given = {name: own[name] for name in block.names if name in own}
            if not given:
                continue
            parts = {name: self._before.pop(name) for name in given}
            rest = (w for w in self.units.weights_of(block) if w.name not in given)
            margin = self._together(block, parts | {w.name: self._part(w, w.dormant) for w in rest})
            pull = block.combined(given) * threshold.surrogate_derivative_(margin) / block.voters
            own_pull = {name: pull[block.of[name]] * block.votes[name] for name in block.names}
            found |= {w.name: own_pull[w.name].to(w.param.device) for w in weights if w.name in block.names}
        return found

    def decide(self, weights: list[MaskedWeight]) -> None:
        """Channels that go, with the guard: where a layer would keep at most its share, all of its channels stay, in
        the layers that are tied to it too, and the thresholds of their filters are 0 again."""
        for block in self._blocks(weights):
            members = self.units.weights_of(block)
            kept = (self._margin(block) <= 0).logical_not_()
            if not self.regrows:
                kept &= block.kept({w.name: w.mask for w in members})
            rescued = torch.zeros_like(kept)
            for w in members:
                of = block.of[w.name]
                pruned = torch.count_nonzero(~kept[of]) * block.entries[w.name]
                rescued[of] |= pruned >= math.ceil((1 - self.policy.guard) * w.numel)  # integers: exact on every device
            kept |= rescued
            for w in members:
                device, of = w.param.device, block.of[w.name]
                self._kept[w.name] = kept[of].to(device)
                threshold_of(w).masked_fill_(rescued[of].to(device), 0)

    def pruned(self, weight: MaskedWeight, scratch: Scratch) -> Tensor:
        return spread(weight.layout, self._kept.pop(weight.name).logical_not().to(weight.param.dtype))

    def shift(self, weights: list[MaskedWeight], keep: float, samples: int, iteration: int) -> None:
        wanted = samples if self.regrows else 16 * samples
        shift_units(self.units, self._blocks(weights), self._margins, keep, wanted, iteration, self.policy.guard)

    def _margins(self, block: UnitBlock) -> Tensor:
        assert isinstance(block, Filters)
        margin = self._margin(block)
        if self.regrows:
            return margin
        return margin.masked_fill(~block.kept({w.name: w.mask for w in self.units.weights_of(block)}), -torch.inf)

    def _margin(self, block: Filters) -> Tensor:
        """[units], from theta in every weight's `dormant`."""
        return self._together(block, {w.name: self._part(w, w.dormant) for w in self.units.weights_of(block)})

    def _together(self, block: Filters, parts: Mapping[str, Tensor]) -> Tensor:
        return block.polled(parts)

    def _part(self, weight: MaskedWeight, theta: Tensor) -> Tensor:
        """[filters]: mean |theta_i| / scale - t_i."""
        block = self.units.block_of(weight)
        assert isinstance(block, Filters)
        return threshold.margin(block.means(weight.name, theta.abs()), threshold_of(weight), weight.scale)

    def _blocks(self, weights: list[MaskedWeight]) -> list[Filters]:
        return [b for b in self.units.blocks_of(weights) if isinstance(b, Filters)]


class FourMasks:
    """granularity: 2:4. The two largest |theta| of each four are kept; thresholds have no say, and rest."""

    def __init__(self, policy: ThresholdPolicy, units: Units, recurrent: bool):
        self.units, self.regrows = units, recurrent
        self.guard, self.recurrent = 0.0, True

    def start(self, weight: MaskedWeight) -> None:
        """2:4 holds from the first step on: drawn from the weights that the host has by now."""
        weight.set_mask(self._mask(weight, weight.theta))

    def gradient_rule(self, weight: MaskedWeight) -> Rule | None:
        return FIXED

    def rule(self, weight: MaskedWeight) -> Rule | None:
        return None

    def on_gradient(self, weight: MaskedWeight, grad: Tensor, theta: Tensor, scratch: Scratch) -> None: ...

    def gradients(self, weights: list[MaskedWeight], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {}

    def decide(self, weights: list[MaskedWeight]) -> None: ...

    def pruned(self, weight: MaskedWeight, scratch: Scratch) -> Tensor:
        new = self._mask(weight, weight.dormant)
        if not self.regrows:  # what is pruned stays so, and what is kept is all that may be; a dense phase is over
            new = torch.where(weight.mask.all(), new, weight.mask)
        return new.logical_not().to(weight.param.dtype)

    def shift(self, weights: list[MaskedWeight], keep: float, samples: int, iteration: int) -> None: ...

    def _mask(self, weight: MaskedWeight, theta: Tensor) -> Tensor:
        block: Block = self.units.block_of(weight)
        assert isinstance(block, Fours)
        return block.masks(two_of_four(block.scores({weight.name: theta.abs()})))[weight.name]


Masks = EntryMasks | KernelMasks | FilterMasks | FourMasks
MASKS: dict[str, type[EntryMasks] | type[KernelMasks] | type[FilterMasks] | type[FourMasks]] = {
    "weight": EntryMasks,
    "kernel": KernelMasks,
    "filter": FilterMasks,
    "2:4": FourMasks,
}

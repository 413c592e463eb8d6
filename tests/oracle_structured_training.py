"""Training under structured masks, in numpy: RG-GAN, fixed and exploring masks, Re-GAN, tickets.

The masks are those of oracle_structured.py, with its readings. Gradients come from autograd on a copy of the network,
evaluated at the oracle's own masked weights; Adam is oracle_training's. A `loss_fn` takes the network's forward and
returns a scalar.

Two readings of RG-GAN that matter here: nothing is pruned before the first step unless thresholds begin above 0, and
the scale of `layer_std` is the standard deviation (over n, not n - 1) of the present dense weight: that before the step
in the thresholds' gradient, that after it in the masks.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from oracle_structured import (
    explore,
    explore_fours,
    full_weight_gradient,
    keep_from_quantile,
    keep_global,
    keep_share,
    margins,
    prune_remaining,
    threshold_gradient,
    two_of_four,
)
from oracle_training import Adam, Arrays, read_parameters, to_numpy
from oracle_units import Layout, Units
from torch.func import functional_call

LossFn = Callable[[Callable[..., torch.Tensor]], torch.Tensor]


@dataclass(frozen=True)
class Structure:
    """The managed weights, and how their entries are decided: by units, or (None) two of four."""

    layouts: dict[str, Layout]
    units: Units | None

    def by_magnitude(self, theta: Arrays, density: float, scope: str) -> Arrays:
        """scope: uniform (per block) or global. 2:4 is half of everything, whatever the scope."""
        if self.units is None:
            return {name: two_of_four(theta[name], layout) for name, layout in self.layouts.items()}
        if scope == "global":
            return keep_global(self.managed(theta), density, self.units)
        return keep_share(self.managed(theta), dict.fromkeys(self.layouts, density), self.units)

    def by_quantile(self, theta: Arrays, sparsity: float) -> Arrays:
        if self.units is None:
            return self.by_magnitude(theta, 0.5, "uniform")
        return keep_from_quantile(self.managed(theta), sparsity, self.units)

    def explored(self, theta: Arrays, masks: Arrays, grads: Arrays, share: float) -> Arrays:
        if self.units is None:
            return {n: explore_fours(theta[n], masks[n], grads[n], share, lay) for n, lay in self.layouts.items()}
        return explore(self.managed(theta), masks, grads, share, self.units)

    def managed(self, values: Arrays) -> Arrays:
        return {name: values[name] for name in self.layouts}

    def ones(self, values: Arrays) -> Arrays:
        return {name: np.ones(values[name].shape, dtype=bool) for name in self.layouts}


class Training:
    """Parameters in numpy, and Adam. `values` holds every parameter by name, managed weights dense or masked."""

    def __init__(self, net: torch.nn.Module, lr: float, betas: tuple[float, float]) -> None:
        self.net = copy.deepcopy(net)  # its buffers follow; its parameters are never used
        self.values = read_parameters(net)
        self.adam = Adam(lr, betas)
        self.masks: Arrays = {}

    def effective(self) -> Arrays:
        """Every parameter as the network sees it: theta * M where managed."""
        return {n: np.where(self.masks[n], v, 0.0) if n in self.masks else v for n, v in self.values.items()}

    def gradients(self, loss_fn: LossFn) -> Arrays:
        """A of every parameter, at the masked weights."""
        tensors = {name: torch.tensor(v, requires_grad=True) for name, v in self.effective().items()}
        loss = loss_fn(lambda *args: functional_call(self.net, tensors, args))
        return {n: to_numpy(g) for n, g in zip(tensors, torch.autograd.grad(loss, list(tensors.values())))}

    def descend(self, grads: Arrays) -> None:
        """Adam on everything; pruned entries get gradient 0 and stay exactly as they were."""
        for name, value in self.values.items():
            mask = self.masks.get(name, np.array(True))
            self.values[name] = np.where(mask, self.adam.update(name, value, np.where(mask, grads[name], 0.0)), value)


class RgGan(Training):
    """RG-GAN (Saxena et al., AAAI 2024) over units. `values` holds theta: what is pruned rests there as it was.

    The thresholds' optimizer has the settings of the weights'. At 2:4 thresholds have no say and do not move.
    """

    def __init__(
        self,
        net: torch.nn.Module,
        structure: Structure,
        lr: float,
        betas: tuple[float, float] = (0.5, 0.999),
        *,
        filters: dict[str, int],  # of each managed weight
        sparsity_weight: float,
        init: float = 0.0,
        scale: str = "absolute",  # or layer_std
        weight_gradient: str = "masked",  # or full
        guard: float = 0.01,
    ) -> None:
        super().__init__(net, lr, betas)
        self.structure, self.sparsity_weight, self.guard = structure, sparsity_weight, guard
        self.scale, self.full = scale, weight_gradient == "full"
        self.thresholds = {name: np.full(n, init) for name, n in filters.items()}
        self.masks = structure.ones(self.values)
        self.resets = self.pruned = self.regrown = 0  # layers that the guard reset; entries 1 -> 0, 0 -> 1
        if init > 0:
            self.refresh()

    def scales(self) -> dict[str, float]:
        return {n: float(self.values[n].std()) if self.scale == "layer_std" else 1.0 for n in self.structure.layouts}

    def step(self, loss_fn: LossFn) -> None:
        grads, units = self.gradients(loss_fn), self.structure.units
        theta, pull = self.structure.managed(self.values), {}
        if units is not None:
            at = (theta, self.thresholds, self.scales(), units)
            pull = threshold_gradient(grads, *at)
            if self.full:
                grads |= full_weight_gradient(grads, self.masks, *at)
        self.descend(grads)
        for name, task in pull.items():
            t = self.thresholds[name]
            total = task - self.sparsity_weight * np.exp(-t)
            self.thresholds[name] = self.adam.update(f"{name} threshold", t, total)
        self.refresh()

    def refresh(self) -> None:
        """Masks from theta and t. Where a layer would keep at most `guard` of itself, all layers of its block keep all
        of themselves, with thresholds of 0."""
        units, theta = self.structure.units, self.structure.managed(self.values)
        if units is None:
            masks = self.structure.by_magnitude(theta, 0.5, "uniform")
        else:
            masks = units.expand(margins(theta, self.thresholds, self.scales(), units) > 0)
            block = {name: units.blocks[ids[0]] for name, ids in units.unit.items()}
            empty = {block[name] for name, mask in masks.items() if mask.mean() <= self.guard}
            for name in [n for n in masks if block[n] in empty]:
                masks[name] = np.ones_like(masks[name])
                self.thresholds[name] = np.zeros_like(self.thresholds[name])
                self.resets += 1
        self.pruned += sum(int((self.masks[n] & ~m).sum()) for n, m in masks.items())
        self.regrown += sum(int((m & ~self.masks[n]).sum()) for n, m in masks.items())
        self.masks = masks


class Sparse(Training):
    """Masks that stay (static sparse, prune and fine-tune, a round of tickets), or that explore every `every` steps.

    A pruned weight is 0, and 0 is what it grows from; Adam's moments stay as they are (optimizer_state: keep).
    """

    def __init__(
        self,
        net: torch.nn.Module,
        structure: Structure,
        masks: Arrays,
        lr: float,
        betas: tuple[float, float] = (0.5, 0.999),
        *,
        every: int = 0,  # 0: masks stay
        fraction: float = 0.5,
        final: float = 0.0,
        end: int = 0,  # from this step on masks stay
    ) -> None:
        super().__init__(net, lr, betas)
        self.structure, self.masks = structure, dict(masks)
        self.every, self.fraction, self.final, self.end = every, fraction, final, end
        self.steps = 0
        self.values = self.effective()

    def step(self, loss_fn: LossFn) -> None:
        grads = self.gradients(loss_fn)
        self.descend(grads)
        self.steps += 1
        if self.every and self.steps % self.every == 0 and self.steps < self.end:
            wave = (1 + math.cos(math.pi * self.steps / self.end)) / 2
            share = self.final + (self.fraction - self.final) * wave
            self.masks = self.structure.explored(self.values, self.masks, grads, share)
            self.values = self.effective()


class ReGan(Training):
    """Re-GAN (Saxena et al., CVPR 2023): dense, then sparse and dense phases of `period` steps in turns.

    The step before a sparse phase prunes, to 0. `lr_factor` of the learning rate: in dense phases after the warm-up.
    """

    def __init__(
        self,
        net: torch.nn.Module,
        structure: Structure,
        lr: float,
        betas: tuple[float, float] = (0.5, 0.999),
        *,
        sparsity: float,
        warm_up: int,
        period: int,
        lr_factor: float = 0.1,
    ) -> None:
        super().__init__(net, lr, betas)
        self.structure, self.sparsity, self.warm_up, self.period = structure, sparsity, warm_up, period
        self.lr, self.lr_factor, self.steps = lr, lr_factor, 0
        self.masks = structure.ones(self.values)
        if warm_up == 0:
            self.prune()

    def is_sparse(self, step: int) -> bool:
        """Steps are counted from 1."""
        return step > self.warm_up and (step - self.warm_up - 1) // self.period % 2 == 0

    def prune(self) -> None:
        self.masks = self.structure.by_quantile(self.values, self.sparsity)
        self.values = self.effective()

    def step(self, loss_fn: LossFn) -> None:
        self.steps += 1
        sparse, follows = self.is_sparse(self.steps), self.is_sparse(self.steps + 1)
        self.adam.lr = self.lr * (1.0 if sparse or self.steps <= self.warm_up else self.lr_factor)
        self.descend(self.gradients(loss_fn))
        if follows and not sparse:
            self.prune()
        elif not follows:
            self.masks = self.structure.ones(self.values)


def tickets(
    net: torch.nn.Module,
    structure: Structure,
    ratio: float,  # share of the remaining weights that a round prunes, in units
    rounds: int,
    loss_fns: Sequence[LossFn],  # one per step of a round
    lr: float,
    betas: tuple[float, float] = (0.5, 0.999),
) -> list[dict[str, Any]]:
    """Iterative magnitude pruning with rewinding to the first weights (Chen X. et al., ICLR 2021).

    One {masks, trained, next_masks} per round; each round trains m * theta_0 under its masks with a fresh Adam.
    """
    if structure.units is None:
        raise ValueError("2:4 keeps half of everything; there is no second round")
    masks, records = structure.ones(read_parameters(net)), []
    for _ in range(rounds):
        run = Sparse(net, structure, masks, lr, betas)
        for loss_fn in loss_fns:
            run.step(loss_fn)
        left = prune_remaining(structure.managed(run.values), masks, ratio, structure.units)
        records.append({"masks": masks, "trained": run.values, "next_masks": left})
        masks = left
    return records

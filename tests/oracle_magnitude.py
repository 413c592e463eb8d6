"""Independent oracles of pruning by magnitude, from the papers: prune and fine-tune, iterative tickets."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from oracle_training import (
    Adam,
    Arrays,
    LossFn,
    apply_masks,
    density_of,
    flatten,
    largest,
    managed_weights,
    masked_step,
    read_parameters,
    same_order,
    unflatten,
)

# --- 1. one-shot magnitude pruning with fine-tuning ----------------------------------------------------------------


def prune_masks(weights: Arrays, density: float, scope: str) -> Arrays:
    """Masks that keep the largest magnitudes (PF, the prune-and-fine-tune baseline of STU-GAN, Liu et al. 2022).

    uniform: round(density * n) in each weight of n entries. global: round(density * N) over all N entries together.
    """
    if scope == "uniform":
        return {name: unflatten(keep_largest(w.ravel(), density), {name: w})[name] for name, w in weights.items()}
    if scope == "global":
        return unflatten(keep_largest(flatten(weights), density), weights)
    raise ValueError(f"scope is {scope!r}; use 'uniform' or 'global'")


def keep_largest(flat: np.ndarray, density: float) -> np.ndarray:
    return largest(np.abs(flat), np.ones(flat.size, dtype=bool), round(density * flat.size))


class FineTune:
    """Prune a trained network once, then train on under the same masks (PF; STU-GAN, Liu et al. 2022).

    Weights and Adam's moments continue: pruning sets weights to 0 and leaves the moments as they are; those of pruned
    entries decay afterwards, as their gradient is 0. moments: {name: {exp_avg, exp_avg_sq, step}}.
    """

    def __init__(
        self,
        net: torch.nn.Module,
        moments: Mapping[str, Mapping[str, Any]],
        density: float,
        scope: str,  # 'uniform' or 'global'
        lr: float,
        betas: tuple[float, float],
    ):
        self.net = net
        self.adam = Adam(lr, betas, moments)
        self.masks = prune_masks(managed_weights(net), density, scope)
        apply_masks(net, self.masks)

    def step(self, loss_fn: LossFn) -> float:
        """One training step; returns the loss."""
        return masked_step(self.net, self.masks, self.adam, loss_fn)[0]


# --- 2. iterative magnitude pruning --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Round:
    """One round of the ticket search; `start` and `trained` hold every parameter, biases included."""

    masks: Arrays  # m_{r-1}, under which this round trained
    start: Arrays  # weights before its first step
    trained: Arrays  # weights after its last step
    density: float  # of `masks`
    next_masks: Arrays  # m_r, what its trained weights leave


def remove_smallest(masks: Arrays, weights: Arrays, ratio: float) -> Arrays:
    """Masks without the round(ratio * remaining) smallest remaining magnitudes of the whole network.

    Global magnitude pruning of GAN tickets (Chen X. et al., ICLR 2021). No layer is protected.
    """
    active = flatten(masks)
    remaining = int(active.sum())
    kept = largest(np.abs(flatten(same_order(weights, masks))), active, remaining - round(ratio * remaining))
    return unflatten(kept, masks)


class Tickets:
    """Iterative magnitude pruning with rewinding ("GANs Can Play Lottery Tickets Too", Chen X. et al., ICLR 2021).

    Round r = 1..R trains under m_{r-1} (m_0 all ones) with a fresh Adam and prunes its trained weights to m_r. The next
    round starts from m_r times: theta_0 ('init'), the weights after `early_at` steps of the first round ('early'), or
    the trained weights ('none'). All parameters and buffers rewind together; every round has the full number of steps.
    """

    def __init__(
        self,
        make_net: Callable[[], torch.nn.Module],  # called once per run
        ratio: float,  # share of the remaining weights that a round removes
        rewind: str,  # 'init', 'early' or 'none'
        early_at: int,  # step of the first round; used by 'early' only
        lr: float,
        betas: tuple[float, float],
    ):
        if rewind not in ("init", "early", "none"):
            raise ValueError(f"rewind is {rewind!r}; use 'init', 'early' or 'none'")
        self.make_net, self.ratio, self.rewind, self.early_at = make_net, ratio, rewind, early_at
        self.lr, self.betas = lr, betas

    def run(self, rounds: int, steps: int, loss_fns: Sequence[LossFn]) -> list[Round]:
        """Search for `rounds` rounds of `steps` steps.

        loss_fns: one per step, `steps` of them (every round uses the same) or `rounds * steps` (in order).
        """
        if len(loss_fns) not in (steps, rounds * steps):
            raise ValueError(f"{len(loss_fns)} loss_fns; give {steps} or {rounds * steps}")
        if self.rewind == "early" and not 0 <= self.early_at <= steps:
            raise ValueError(f"early_at is {self.early_at}; the first round has steps 0 to {steps}")
        net = self.make_net()
        masks = {name: np.ones(w.shape, dtype=bool) for name, w in managed_weights(net).items()}
        point = copy.deepcopy(net.state_dict())  # where the next round starts, before its masks
        records = []
        for r in range(rounds):
            net.load_state_dict(point)
            apply_masks(net, masks)
            start, adam = read_parameters(net), Adam(self.lr, self.betas)
            for i in range(steps + 1):
                if self.rewind == "early" and r == 0 and i == self.early_at:
                    point = copy.deepcopy(net.state_dict())
                if i < steps:
                    masked_step(net, masks, adam, loss_fns[(r * steps + i) % len(loss_fns)])
            if self.rewind == "none":
                point = copy.deepcopy(net.state_dict())
            trained = read_parameters(net)
            left = remove_smallest(masks, trained, self.ratio)
            records.append(Round(masks, start, trained, density_of(masks), left))
            masks = left
        return records

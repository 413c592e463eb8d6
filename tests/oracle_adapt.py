"""Independent oracle of ADAPT, from the paper: a density of D that follows the balance ratio."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from oracle_training import (
    TOLERANCE,
    Adam,
    Arrays,
    LossFn,
    apply_masks,
    density_of,
    flatten,
    largest,
    managed_weights,
    masked_step,
    same_order,
    to_numpy,
    unflatten,
)


def balance_ratio(d_real: Any, d_before: Any, d_after: Any) -> float:
    """(mean d_after - mean d_before) / (mean d_real - mean d_before)     (balance ratio, Wang et al., NeurIPS 2023)

    The discriminator's outputs, or their means, on real images, on images of the generator before its step, and after
    its step from the same z. Raises ZeroDivisionError when real and before have the same mean.
    """
    real, before, after = (float(to_numpy(d).mean()) for d in (d_real, d_before, d_after))
    return (after - before) / (real - before)


def measured_ratio(
    D: torch.nn.Module, G_before: torch.nn.Module, G_after: torch.nn.Module, x: torch.Tensor, z: torch.Tensor
) -> float:
    """Balance ratio of one generator step (Wang et al., NeurIPS 2023): forwards in training mode without gradient.

    Order: real, before, after. Buffers (batch norm, spectral norm) move as in any such forward; pass copies to keep
    them.
    """
    for net in (D, G_before, G_after):
        net.train()
    with torch.no_grad():
        return balance_ratio(D(x), D(G_before(z)), D(G_after(z)))


def decide(
    br: float,
    density: float,
    lower: float,
    upper: float,
    delta: float,
    lowest: float,
    highest: float,
    strict: bool = False,
) -> tuple[str, float]:
    """What to do at balance ratio `br`, and the density to reach (ADAPT and its strict variant, Wang et al. 2023).

    br >= upper: 'grow' by delta, at most to highest; strict: 'exchange' at the same density instead, if density + delta
    exceeds highest. br <= lower: 'shrink' by delta, at least to lowest. Otherwise, and at a bound: 'stay'.
    """
    if br >= upper:
        if strict and density + delta > highest + TOLERANCE:
            return "exchange", density
        target = min(density + delta, highest)
        return ("grow", target) if target > density else ("stay", density)
    if br <= lower:
        target = max(density - delta, lowest)
        return ("shrink", target) if target < density else ("stay", density)
    return "stay", density


def grow(masks: Arrays, dense_grads: Arrays, count: int) -> Arrays:
    """Masks with the `count` inactive entries of the largest |dense gradient| added, ranked over all layers (ADAPT)."""
    active = flatten(masks)
    return unflatten(active | largest(np.abs(flatten(same_order(dense_grads, masks))), ~active, count), masks)


def shrink(masks: Arrays, weights: Arrays, count: int) -> Arrays:
    """Masks without the `count` smallest active magnitudes, ranked over all layers (ADAPT).

    The largest active entry of each layer stays, and the next smallest elsewhere goes instead; when only those are
    left, fewer are removed.
    """
    size = flatten(same_order({name: np.abs(w) for name, w in weights.items()}, masks))
    protected = flatten({name: largest(np.abs(weights[name]).ravel(), m.ravel(), 1) for name, m in masks.items()})
    removable = flatten(masks) & ~protected
    return unflatten(protected | largest(size, removable, int(removable.sum()) - count), masks)


def exchange(masks: Arrays, weights: Arrays, dense_grads: Arrays, share: float) -> Arrays:
    """Masks after ceil(share * active) entries were dropped and as many grew (ADAPT strict, at the highest density).

    Ranked over all layers: dropped are the smallest active magnitudes (as `shrink` drops them), grown the largest
    |dense gradient| among the inactive, the just dropped included. Weights times the new masks are then right: what
    came back keeps its value, the others were 0.
    """
    active = int(flatten(masks).sum())
    fewer = shrink(masks, weights, math.ceil(share * active - TOLERANCE))
    return grow(fewer, dense_grads, active - int(flatten(fewer).sum()))


def exchange_share(step: int, fraction: float, final: float, end: int) -> float:
    """Share that an exchange after D's step `step` drops: half a cosine from `fraction` to `final` at step `end`."""
    return final + (fraction - final) * 0.5 * (1 + math.cos(math.pi * step / end))


class Adapt:
    """The discriminator's side of ADAPT ("Balanced Training for Sparse GANs", Wang et al., NeurIPS 2023).

    The balance ratio is the mean of the last `window` ratios fed to `measure`. After every `every`-th step of D, once
    the queue is full, `decide` acts on it; the density it acts on is the share that the masks keep at that moment.
    Adam's moments of grown entries stay as gradient 0 left them.
    """

    def __init__(
        self,
        D: torch.nn.Module,
        masks: Mapping[str, Any],  # bool, one for each managed weight
        *,
        window: int,  # measured ratios in the mean
        every: int,  # D steps between decisions
        lower: float,
        upper: float,
        delta: float,  # change of density per decision
        lowest: float,
        highest: float,
        lr: float,
        betas: tuple[float, float],
        strict: bool = False,
        fraction: float = 0.5,  # p of the strict variant, at the beginning
        final: float = 0.005,  # and at the end
        end: int = 500_000,  # D steps of the whole run
        moments: Mapping[str, Mapping[str, Any]] | None = None,
    ):
        if set(masks) != set(managed_weights(D)):
            raise ValueError(f"masks are for {sorted(masks)}; give one for each of {sorted(managed_weights(D))}")
        self.D = D
        self.masks: Arrays = {name: to_numpy(masks[name]).astype(bool) for name in managed_weights(D)}
        self.bounds = {"lower": lower, "upper": upper, "delta": delta, "lowest": lowest, "highest": highest}
        self.window, self.every, self.strict = window, every, strict
        self.cosine = {"fraction": fraction, "final": final, "end": end}
        self.adam = Adam(lr, betas, moments)
        self.ratios: deque[float] = deque(maxlen=window)
        self.steps = 0
        apply_masks(D, self.masks)

    def measure(self, ratio: float) -> None:
        """Append one measured ratio to the queue."""
        self.ratios.append(float(ratio))

    def d_step(self, loss_fn: LossFn) -> str | None:
        """One step of D. Returns the decision ('grow', 'shrink', 'exchange', 'stay'), or None when none was due."""
        _, dense = masked_step(self.D, self.masks, self.adam, loss_fn)
        self.steps += 1
        if self.steps % self.every or len(self.ratios) < self.window:
            return None
        density = density_of(self.masks)
        action, target = decide(float(np.mean(self.ratios)), density, **self.bounds, strict=self.strict)
        change = round(target * flatten(self.masks).size) - int(flatten(self.masks).sum())
        weights = managed_weights(self.D)
        if action == "grow":
            self.masks = grow(self.masks, dense, change)
        elif action == "shrink":
            self.masks = shrink(self.masks, weights, -change)
        elif action == "exchange":
            self.masks = exchange(self.masks, weights, dense, exchange_share(self.steps, **self.cosine))
        apply_masks(self.D, self.masks)
        return action

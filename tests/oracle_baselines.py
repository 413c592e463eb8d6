"""Independent oracles of three baselines, from their equations: PF, iterative tickets, ADAPT.

Arithmetic is numpy in float64; torch serves only to get gradients. Nothing of rgplug is imported, so that agreement
with it means something. Use networks in double precision: weights live in the network between steps, in its dtype.

Common to all three: a managed weight is a parameter of dim >= 2; biases and other vectors train as always. A pruned
weight is exactly 0 after every step, and its gradient is masked before Adam sees it. Counts use Python's `round`
(halves to even). Among equal scores the earlier entry (order of the parameters, then flat index) counts as the larger.
A `loss_fn` takes the network and returns a scalar loss.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Arrays = dict[str, np.ndarray]
LossFn = Callable[[torch.nn.Module], torch.Tensor]

TOLERANCE = 1e-9  # 0.1 + 0.2 does not exceed 0.3, and 0.07 of 100 is 7


# --- network and numpy ---------------------------------------------------------------------------------------------


def to_numpy(values: Any) -> np.ndarray:
    """A float64 copy of a tensor or an array."""
    values = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values
    return np.array(values, dtype=np.float64)


def read_parameters(net: torch.nn.Module) -> Arrays:
    """Every parameter by name."""
    return {name: to_numpy(param) for name, param in net.named_parameters()}


def managed_weights(net: torch.nn.Module) -> Arrays:
    """The prunable parameters by name: those of dim >= 2."""
    return {name: value for name, value in read_parameters(net).items() if value.ndim >= 2}


def write_parameters(net: torch.nn.Module, values: Arrays) -> None:
    params = dict(net.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            params[name].copy_(torch.from_numpy(np.asarray(value)))


def apply_masks(net: torch.nn.Module, masks: Arrays) -> None:
    """Set the pruned entries of the network to 0."""
    values = read_parameters(net)
    write_parameters(net, {name: np.where(mask, values[name], 0.0) for name, mask in masks.items()})


def density_of(masks: Arrays) -> float:
    """Share of entries kept over all masks together."""
    return sum(int(m.sum()) for m in masks.values()) / sum(m.size for m in masks.values())


def moments_of(net: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """Adam's {exp_avg, exp_avg_sq, step} of every parameter that has them, by the parameter's name."""
    states = {name: optimizer.state[param] for name, param in net.named_parameters() if param in optimizer.state}
    return {name: {key: to_numpy(s[key]) for key in ("exp_avg", "exp_avg_sq", "step")} for name, s in states.items()}


class Adam:
    """Adam with bias correction and one step count per parameter (Kingma & Ba 2015, Algorithm 1); eps 1e-8."""

    def __init__(self, lr: float, betas: tuple[float, float], moments: Mapping[str, Mapping[str, Any]] | None = None):
        self.lr, self.betas, self.eps = lr, betas, 1e-8
        self.m: Arrays = {name: to_numpy(s["exp_avg"]) for name, s in (moments or {}).items()}
        self.v: Arrays = {name: to_numpy(s["exp_avg_sq"]) for name, s in (moments or {}).items()}
        self.t: dict[str, int] = {name: int(s["step"]) for name, s in (moments or {}).items()}

    def update(self, name: str, value: np.ndarray, grad: np.ndarray) -> np.ndarray:
        """The new value of one parameter: value - lr * m_hat / (sqrt(v_hat) + eps)."""
        b1, b2 = self.betas
        self.m[name] = b1 * self.m.get(name, 0.0) + (1 - b1) * grad
        self.v[name] = b2 * self.v.get(name, 0.0) + (1 - b2) * grad**2
        self.t[name] = self.t.get(name, 0) + 1
        m_hat = self.m[name] / (1 - b1 ** self.t[name])
        v_hat = self.v[name] / (1 - b2 ** self.t[name])
        return value - self.lr * m_hat / (np.sqrt(v_hat) + self.eps)


def masked_step(net: torch.nn.Module, masks: Arrays, adam: Adam, loss_fn: LossFn) -> tuple[float, Arrays]:
    """One training step under fixed masks. Returns the loss and the dense gradients (before they are masked).

    A parameter that the loss does not reach is left alone, moments and step count included, as torch's Adam does.
    """
    net.zero_grad(set_to_none=True)
    loss = loss_fn(net)
    loss.backward()
    dense = {name: to_numpy(param.grad) for name, param in net.named_parameters() if param.grad is not None}
    net.zero_grad(set_to_none=True)
    values = read_parameters(net)
    for name, grad in dense.items():
        mask = masks.get(name, np.array(True))
        values[name] = np.where(mask, adam.update(name, values[name], grad * mask), 0.0)
    write_parameters(net, values)
    return float(loss.detach()), dense


# --- ranking, per array or over all arrays together ----------------------------------------------------------------


def flatten(arrays: Arrays) -> np.ndarray:
    return np.concatenate([a.ravel() for a in arrays.values()])


def unflatten(flat: np.ndarray, like: Arrays) -> Arrays:
    """Cut a flat array into the names and shapes of `like`."""
    ends = np.cumsum([a.size for a in like.values()])[:-1]
    return {name: part.reshape(like[name].shape) for name, part in zip(like, np.split(flat, ends))}


def same_order(arrays: Arrays, like: Arrays) -> Arrays:
    return {name: arrays[name] for name in like}


def largest(scores: np.ndarray, among: np.ndarray, count: int) -> np.ndarray:
    """True at the `count` largest of the flat `scores` where `among` is True (at all of them if there are fewer)."""
    candidates = np.flatnonzero(among)
    order = candidates[np.argsort(-scores[candidates], kind="stable")]
    chosen = np.zeros(scores.size, dtype=bool)
    chosen[order[: max(count, 0)]] = True
    return chosen


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


# --- 3. ADAPT: balanced dynamic sparse training of the discriminator -----------------------------------------------


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
    """Masks after each layer dropped and grew ceil(share * active) entries (ADAPT strict, at the highest density).

    Dropped: the smallest active magnitudes. Grown: the largest |dense gradient| among the inactive, the just dropped
    included. Weights times the new masks are then right: what came back keeps its value, the others were 0.
    """
    new = {}
    for name, mask in masks.items():
        active = mask.ravel()
        count = math.ceil(share * int(active.sum()) - TOLERANCE)
        kept = largest(np.abs(weights[name]).ravel(), active, int(active.sum()) - count)
        new[name] = (kept | largest(np.abs(dense_grads[name]).ravel(), ~kept, count)).reshape(mask.shape)
    return new


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
        exchange_share: float = 0.5,  # p of the strict variant
        moments: Mapping[str, Mapping[str, Any]] | None = None,
    ):
        if set(masks) != set(managed_weights(D)):
            raise ValueError(f"masks are for {sorted(masks)}; give one for each of {sorted(managed_weights(D))}")
        self.D = D
        self.masks: Arrays = {name: to_numpy(masks[name]).astype(bool) for name in managed_weights(D)}
        self.bounds = {"lower": lower, "upper": upper, "delta": delta, "lowest": lowest, "highest": highest}
        self.window, self.every, self.strict, self.exchange_share = window, every, strict, exchange_share
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
            self.masks = exchange(self.masks, weights, dense, self.exchange_share)
        apply_masks(self.D, self.masks)
        return action

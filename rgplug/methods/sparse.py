"""Sparse from the start: masks that stay (static sparse training, prune and fine-tune, tickets), and masks that explore
(SET, RigL, STU-GAN, ADAPT).

A pruned weight is gone: what grows starts at 0. Masks change only at exploration steps and by exchange, so a layer
keeps as many weights at the last step as at the first; the exception is a D whose density is adjusted (ADAPT).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rgplug import kernels
from rgplug.kernels import Scratch
from rgplug.masking import MaskedWeight
from rgplug.methods import FIXED, Method, Rule, Step
from rgplug.methods.allocation import exact_counts, layer_densities
from rgplug.methods.balance import BalanceRatio, adjusted_density
from rgplug.methods.magnitude import add_largest, drop_smallest, keep_largest
from rgplug.policy import BalancePolicy, ExplorationPolicy, MaskPolicy, Policy
from rgplug.snapshot import load_masks

MOMENTUM = 0.9  # of the dense gradient, for growth by momentum (Dettmers & Zettlemoyer 2019)


def drop_fraction(policy: ExplorationPolicy, step: int) -> float:
    """Share of a layer's active weights that an exploration at `step` drops: a cosine from `fraction` to `final`.

    p(t) = final + (fraction - final) (1 + cos(pi t / end)) / 2 (RigL, Sec. 3; STU-GAN, Sec. 3.2).
    """
    assert isinstance(policy.end, int)  # that of one network
    way = min(step / policy.end, 1.0)
    return policy.final + (policy.fraction - policy.final) * (1 + math.cos(math.pi * way)) / 2


def explore(theta: Tensor, mask: Tensor, score: Tensor, drop: int) -> Tensor:
    """New mask: of the active weights the `drop` smallest by magnitude go, and as many inactive ones come, by score.

    theta, mask (bool), score: of one shape. What was just dropped may come back, and then keeps its value. RigL,
    Algorithm 1; STU-GAN, Algorithm 1.
    """
    active = mask.reshape(-1)
    kept = active.clone()
    size = theta.abs().reshape(-1).masked_fill(~active, torch.inf)
    kept[size.topk(drop, largest=False).indices] = False
    kept[score.reshape(-1).masked_fill(kept, -torch.inf).topk(drop).indices] = True
    return kept.view(mask.shape)


class Sparse(Method):
    """Masks of a given density, drawn at random, by magnitude, or read from a file. With `exploration` for the network
    they are exchanged every so many of its steps; with `balance`, D's are adjusted."""

    def __init__(self, policy: Policy, network: str, ratio: BalanceRatio | None = None):
        self.network = network
        self.masks: MaskPolicy = policy.masks
        explores = policy.exploration is not None and network in policy.exploration.networks
        self.exploration: ExplorationPolicy | None = None
        if policy.exploration is not None and explores:
            own = {key: policy.of(getattr(policy.exploration, key), network) for key in ("every", "end")}
            self.exploration = replace(policy.exploration, **own)
        self.balance: BalancePolicy | None = policy.balance if network == "D" else None
        self.ratio = ratio  # measured around G's steps
        self.density: float = policy.of(policy.masks.density, network)
        self._weights: list[MaskedWeight] = []
        self._active: dict[str, int] = {}
        self._scores: dict[str, Tensor] = {}
        self._momentum: dict[str, Tensor] = {}
        self._new: dict[str, Tensor] = {}
        self._random: dict[str, torch.Generator] = {}

    def begin(self, weights: list[MaskedWeight]) -> None:
        """Random masks are the same for the same seed, network and weight, on whatever device."""
        self._weights = weights
        for w in weights:
            digest = hashlib.sha256(f"{self.masks.seed} {self.network}.{w.name}".encode()).digest()
            self._random[w.name] = torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))
        by_magnitude = self.masks.file is None and self.masks.criterion == "magnitude"
        for w, mask in zip(weights, self._masks()):
            w.set_mask(mask.to(w.param.device))
            self._active[w.name] = int(mask.sum())
            if not by_magnitude:
                w.forget()

    def start(self, weight: MaskedWeight) -> None:
        """By magnitude: masks of the weights that the host has loaded by now, the same ones if it loaded none."""
        if self.masks.file is None and self.masks.criterion == "magnitude":
            if weight.name not in self._new:
                self._new = {w.name: m for w, m in zip(self._weights, self._masks())}
            mask = self._new.pop(weight.name)
            weight.set_mask(mask)
            weight.forget()
            self._active[weight.name] = int(mask.sum())

    def _masks(self) -> list[Tensor]:
        """The masks to begin with, one per weight."""
        weights, p = self._weights, self.masks
        shapes = [tuple(w.param.shape) for w in weights]
        names = [f"{self.network}.{w.name}" for w in weights]
        if p.file is not None:
            return load_masks(p.file, self.network, dict(zip((w.name for w in weights), shapes)))
        if p.criterion == "magnitude":
            scores = [w.theta.abs() for w in weights]
        else:
            scores = [torch.rand(s, generator=self._random[w.name]) for w, s in zip(weights, shapes)]
        if p.distribution != "global":
            densities = layer_densities(shapes, self.density, p.distribution)
            if p.criterion == "random" and p.sampling == "bernoulli":
                return [score < d for score, d in zip(scores, densities)]
            counts = exact_counts(shapes, densities, names)
            return [keep_largest([score], n)[0] for score, n in zip(scores, counts)]
        return keep_largest(scores, round(self.density * sum(w.numel for w in weights)))

    def follow(self, weight: MaskedWeight) -> None:
        if weight.name in self._momentum:
            self._momentum[weight.name] = self._momentum[weight.name].to(weight.param)

    def gradient_rule(self, weight: MaskedWeight, step: int | None) -> Rule | None:
        grow = None if self.exploration is None else self.exploration.grow
        if grow == "momentum" or (grow == "gradient" and self._explores(step)) or self._adjusts(step):
            return None  # the dense gradient is looked at
        return FIXED

    def rule(self, weight: MaskedWeight, step: int | None) -> Rule | None:
        return None if self._explores(step) or self._adjusts(step) else FIXED

    def needs_theta(self, weight: MaskedWeight, step: int | None) -> bool:
        return self._explores(step) or self._adjusts(step)

    def on_gradient(self, weight: MaskedWeight, grad: Tensor, theta: Tensor, scratch: Scratch) -> None:
        p, coming = self.exploration, weight.steps + 1
        by_gradient = p is not None and p.grow == "gradient" and self._explores(coming)
        if by_gradient or self._adjusts(coming):
            self._scores[weight.name] = grad.abs()
        if p is None or p.grow != "momentum":
            return
        momentum = self._momentum.get(weight.name)
        if momentum is None:
            momentum = self._momentum[weight.name] = torch.zeros_like(grad)
        momentum.mul_(MOMENTUM).add_(grad, alpha=1 - MOMENTUM)

    def update(self, weights: list[MaskedWeight], step: Step) -> None:
        if step.auxiliary:
            return
        for w in weights:
            if self._explores(w.steps):
                kernels.keep_(w.dormant, w.bits())  # inactive weights are 0, whatever was there
                self._explore(w)
        if weights and self._adjusts(weights[0].steps):
            self._adjust(weights)

    def _adjust(self, weights: list[MaskedWeight]) -> None:
        """D's density one step up or down, by the balance ratio; ranked over its layers (ADAPT, Algorithm 1)."""
        p = self.balance
        assert p is not None
        assert self.ratio is not None
        scores = {w.name: self._scores.pop(w.name, None) for w in weights}
        found = [w for w in weights if scores[w.name] is not None]  # layers without a gradient at this step rest
        ratio = self.ratio.mean()
        if ratio is None or not found:
            return
        for w in found:
            kernels.keep_(w.dormant, w.bits())
        grads = [score for w in found if (score := scores[w.name]) is not None]
        thetas, masks = [w.dormant for w in found], [w.mask for w in found]
        size, active = sum(w.numel for w in weights), sum(self._active[w.name] for w in weights)
        wanted = adjusted_density(self.density, ratio, p)
        self.density, change = wanted, round(wanted * size) - active
        change = min(change, sum(w.numel - self._active[w.name] for w in found))  # what those layers can give
        if change > 0:
            new = add_largest(grads, masks, change)
        elif change < 0:
            new = drop_smallest(thetas, masks, -change)
        elif ratio >= p.upper and p.exchange:
            drops = [math.ceil(p.fraction * self._active[w.name]) for w in found]
            new = [explore(t, m, s, n) for t, m, s, n in zip(thetas, masks, grads, drops)]
        else:
            return
        for w, mask in zip(found, new):
            self._new[w.name] = mask
            self._active[w.name] = int(mask.sum())

    def _explore(self, w: MaskedWeight) -> None:
        p = self.exploration
        assert p is not None
        if p.grow == "random":
            score = torch.rand(w.param.shape, generator=self._random[w.name]).to(w.param.device)
            found = None if w.param.grad is None else score
        elif p.grow == "gradient":
            found = self._scores.pop(w.name, None)
        else:
            momentum = self._momentum.get(w.name)
            found = None if momentum is None else momentum.abs()
        if found is None:
            return  # the layer had no gradient at this step: it rests
        drop = math.ceil(drop_fraction(p, w.steps) * self._active[w.name])
        self._new[w.name] = explore(w.dormant, w.mask, found, drop)

    def pruned(self, weight: MaskedWeight, scratch: Scratch) -> Tensor:
        new = self._new.pop(weight.name, None)
        return super().pruned(weight, scratch) if new is None else torch.logical_not(new).to(weight.param.dtype)

    def state_of(self, weight: MaskedWeight) -> dict[str, Any]:
        state: dict[str, Any] = {"active": self._active[weight.name]}
        if self.balance is not None:
            state["density"] = self.density
        if self.exploration is not None and self.exploration.grow == "random":
            state["random"] = self._random[weight.name].get_state()
        if weight.name in self._momentum:
            state["momentum"] = self._momentum[weight.name].clone()
        return state

    def load(self, weight: MaskedWeight, state: dict[str, Any]) -> None:
        self._active[weight.name] = int(state["active"])
        self.density = float(state.get("density", self.density))
        if "random" in state:
            self._random[weight.name].set_state(state["random"].cpu())
        if "momentum" in state:
            self._momentum[weight.name] = state["momentum"].to(weight.param)

    def _explores(self, step: int | None) -> bool:
        p = self.exploration
        if p is None or step is None:
            return False
        assert isinstance(p.every, int)
        assert isinstance(p.end, int)
        return 0 < step < p.end and step % p.every == 0

    def _adjusts(self, step: int | None) -> bool:
        return self.balance is not None and step is not None and step > 0 and step % self.balance.every == 0

"""Sparse from the start: masks that stay (static sparse training), and masks that explore (SET, RigL, STU-GAN).

A pruned weight is gone: what grows starts at 0. Masks change only at exploration steps and by exchange, so a layer
keeps as many weights at the last step as at the first.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from torch import Tensor

from rgplug import kernels
from rgplug.kernels import Scratch
from rgplug.masking import MaskedWeight
from rgplug.methods import FIXED, Method, Rule, Step
from rgplug.methods.allocation import exact_counts, layer_densities, random_mask
from rgplug.policy import ExplorationPolicy, MaskPolicy, Policy

MOMENTUM = 0.9  # of the dense gradient, for growth by momentum (Dettmers & Zettlemoyer 2019)


def drop_fraction(policy: ExplorationPolicy, step: int) -> float:
    """Share of a layer's active weights that an exploration at `step` drops: a cosine from `fraction` to `final`.

    p(t) = final + (fraction - final) (1 + cos(pi t / end)) / 2 (RigL, Sec. 3; STU-GAN, Sec. 3.2).
    """
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
    """Random masks of a given density; with `exploration` for the network, exchanged every so many of its steps."""

    def __init__(self, policy: Policy, network: str):
        self.network = network
        self.masks: MaskPolicy = policy.masks
        explores = policy.exploration is not None and network in policy.exploration.networks
        self.exploration: ExplorationPolicy | None = policy.exploration if explores else None
        self.density: float = policy.of(policy.masks.density, network)
        self._active: dict[str, int] = {}
        self._scores: dict[str, Tensor] = {}
        self._momentum: dict[str, Tensor] = {}
        self._new: dict[str, Tensor] = {}
        self._random: dict[str, torch.Generator] = {}

    def begin(self, weights: list[MaskedWeight]) -> None:
        """Masks that are the same for the same seed, network and weight, on whatever device."""
        shapes, names = [tuple(w.param.shape) for w in weights], [f"{self.network}.{w.name}" for w in weights]
        densities = layer_densities(shapes, self.density, self.masks.distribution)
        counts = exact_counts(shapes, densities, names)
        for w, shape, name, density, count in zip(weights, shapes, names, densities, counts):
            digest = hashlib.sha256(f"{self.masks.seed} {name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))
            mask = random_mask(shape, density, count if self.masks.sampling == "exact" else None, generator)
            w.set_mask(mask.to(w.param.device))
            w.dormant.zero_()
            self._active[w.name] = int(mask.sum())
            self._random[w.name] = generator

    def follow(self, weight: MaskedWeight) -> None:
        if weight.name in self._momentum:
            self._momentum[weight.name] = self._momentum[weight.name].to(weight.param)

    def gradient_rule(self, weight: MaskedWeight, step: int | None) -> Rule | None:
        grow = None if self.exploration is None else self.exploration.grow
        if grow == "momentum" or (grow == "gradient" and self._explores(step)):
            return None  # the dense gradient is looked at
        return FIXED

    def rule(self, weight: MaskedWeight, step: int | None) -> Rule | None:
        return None if self._explores(step) else FIXED

    def on_gradient(self, weight: MaskedWeight, grad: Tensor, theta: Tensor, scratch: Scratch) -> None:
        p = self.exploration
        if p is None or p.grow == "random":
            return
        if p.grow == "gradient":
            self._scores[weight.name] = grad.abs()
            return
        momentum = self._momentum.get(weight.name)
        if momentum is None:
            momentum = self._momentum[weight.name] = torch.zeros_like(grad)
        momentum.mul_(MOMENTUM).add_(grad, alpha=1 - MOMENTUM)

    def update(self, weights: list[MaskedWeight], step: Step) -> None:
        for w in weights:
            if not step.auxiliary and self._explores(w.steps):
                self._explore(w)

    def _explore(self, w: MaskedWeight) -> None:
        p = self.exploration
        assert p is not None
        kernels.keep_(w.dormant, w.bits())  # inactive weights are 0, whatever was there
        if p.grow == "random":
            score = torch.rand(w.param.shape, generator=self._random[w.name]).to(w.param.device)
        elif p.grow == "gradient":
            found = self._scores.pop(w.name, None)
            if found is None:
                return  # the layer had no gradient at this step
            score = found
        else:
            score = self._momentum[w.name].abs()
        drop = math.ceil(drop_fraction(p, w.steps) * self._active[w.name])
        self._new[w.name] = explore(w.dormant, w.mask, score, drop)

    def pruned(self, weight: MaskedWeight, scratch: Scratch) -> Tensor:
        new = self._new.pop(weight.name, None)
        return super().pruned(weight, scratch) if new is None else torch.logical_not(new).to(weight.param.dtype)

    def state_of(self, weight: MaskedWeight) -> dict[str, Any]:
        state: dict[str, Any] = {"active": self._active[weight.name]}
        if self.exploration is not None and self.exploration.grow == "random":
            state["random"] = self._random[weight.name].get_state()
        if weight.name in self._momentum:
            state["momentum"] = self._momentum[weight.name].clone()
        return state

    def load(self, weight: MaskedWeight, state: dict[str, Any]) -> None:
        self._active[weight.name] = int(state["active"])
        if "random" in state:
            self._random[weight.name].set_state(state["random"].cpu())
        if "momentum" in state:
            self._momentum[weight.name] = state["momentum"].to(weight.param)

    def _explores(self, step: int | None) -> bool:
        p = self.exploration
        return p is not None and step is not None and step > 0 and step % p.every == 0 and step < p.end

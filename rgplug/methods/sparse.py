"""Sparse from the start: masks that stay (static sparse training, prune and fine-tune, tickets), and masks that explore
(SET, RigL, STU-GAN, ADAPT).

A pruned weight is gone: what grows starts at 0. Masks change only at exploration steps and by exchange, so a layer
keeps as many units (weights, kernels, filters) at the last step as at the first; the exception is a D whose density is
adjusted (ADAPT).
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rgplug import kernels
from rgplug.callers import level_of_host
from rgplug.kernels import Scratch
from rgplug.masking import MaskedWeight
from rgplug.methods import FIXED, Method, Rule, Step
from rgplug.methods.balance import BalanceRatio, adjusted_density
from rgplug.methods.initial_masks import initial_masks
from rgplug.methods.magnitude import add_largest, drop_smallest
from rgplug.methods.two_of_four import exchange
from rgplug.policy import END, BalancePolicy, ExplorationPolicy, MaskPolicy, Policy
from rgplug.units import Block, Fours, Units, spared

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

    theta, mask (bool), score: of one shape, of weights or of units. What was just dropped may come back, and then keeps
    its value. RigL, Algorithm 1; STU-GAN, Algorithm 1.
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

    def __init__(self, policy: Policy, network: str, units: Units, ratio: BalanceRatio | None = None):
        super().__init__(units)
        self.network = network
        self.masks: MaskPolicy = policy.masks
        explores = policy.exploration is not None and network in policy.exploration.networks
        self.exploration: ExplorationPolicy | None = None
        self._unsaid = False
        if policy.exploration is not None and explores:
            own = {key: policy.of(getattr(policy.exploration, key), network) for key in ("every", "end")}
            self._unsaid = own["end"] is None  # when exploration ends: said once when it does
            self.exploration = replace(policy.exploration, every=own["every"], end=own["end"] or END)
        self.balance: BalancePolicy | None = policy.balance if network == "D" else None
        self.ratio = ratio  # measured around G's steps
        self.density: float = policy.of(policy.masks.density, network)
        self._weights: list[MaskedWeight] = []
        self._active: dict[str, int] = {}  # units that the block of a weight keeps
        self._scores: dict[str, Tensor] = {}
        self._momentum: dict[str, Tensor] = {}
        self._first: dict[str, Tensor] = {}  # masks by magnitude of weights that have not started
        self._new: dict[str, Tensor] = {}
        self._random: dict[str, torch.Generator] = {}

    def begin(self, weights: list[MaskedWeight]) -> None:
        """Random masks are the same for the same seed, network and weight, on whatever device."""
        self._weights = weights
        for w in weights:
            digest = hashlib.sha256(f"{self.masks.seed} {self.network}.{w.name}".encode()).digest()
            self._random[w.name] = torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))
        masks = self._masks()
        for w in weights:
            w.set_mask(masks[w.name].to(w.param.device))
            if not self._by_magnitude:
                w.forget()
        self._count(self.units.blocks, masks)

    def start(self, weight: MaskedWeight) -> None:
        """By magnitude: masks of the weights that the host has loaded by now, the same ones if it loaded none."""
        if self._by_magnitude:
            if weight.name not in self._first:
                self._first = self._masks()
                self._count(self.units.blocks, self._first)
            weight.set_mask(self._first.pop(weight.name))
            weight.forget()

    @property
    def _by_magnitude(self) -> bool:
        return self.masks.file is None and self.masks.criterion == "magnitude"

    def _masks(self) -> dict[str, Tensor]:
        """The masks to begin with, by weight."""
        return initial_masks(self.masks, self.network, self.density, self._weights, self.units, self._random)

    def _count(self, blocks: Sequence[Block], masks: Mapping[str, Tensor]) -> None:
        for block in blocks:
            kept = block.kept({name: masks[name] for name in block.names})
            self._active |= dict.fromkeys(block.names, int(kept.sum()))

    def follow(self, weight: MaskedWeight) -> None:
        if weight.name in self._momentum:
            self._momentum[weight.name] = self._momentum[weight.name].to(weight.param)

    def gradient_rule(self, weight: MaskedWeight, step: int | None) -> Rule | None:
        grow = None if self.exploration is None else self.exploration.grow
        if grow == "momentum" or (grow == "gradient" and self._explores(step)) or self._adjusts(step):
            return None  # the dense gradient is looked at
        return FIXED

    def rule(self, weight: MaskedWeight, step: int | None) -> Rule | None:
        return None if weight.name in self._new else FIXED

    def needs_theta(self, weight: MaskedWeight, step: int | None) -> bool:
        return self._explores(step) or self._adjusts(step)

    def on_gradient(self, weight: MaskedWeight, grad: Tensor, theta: Tensor, scratch: Scratch) -> None:
        p, coming = self.exploration, weight.steps + 1
        by_gradient = p is not None and p.grow == "gradient" and self._explores(coming)
        if (by_gradient or self._adjusts(coming)) and self.units.is_ahead(weight, coming):
            self._scores[weight.name] = grad.abs()
        if p is None or p.grow != "momentum":
            return
        momentum = self._momentum.get(weight.name)
        if momentum is None:
            momentum = self._momentum[weight.name] = torch.zeros_like(grad)
        momentum.mul_(MOMENTUM).add_(grad, alpha=1 - MOMENTUM)

    def update(self, weights: list[MaskedWeight], step: Step) -> None:
        if self._unsaid and not step.auxiliary and any(w.steps > END for w in weights):
            self._unsaid = False
            warnings.warn(
                f"rgplug: {self.network}'s masks stay from here on, after {END:,} steps, and training goes on; set "
                "exploration.end to the steps that the run has",
                stacklevel=level_of_host(),
            )
        if step.auxiliary or not any(self._explores(w.steps) or self._adjusts(w.steps) for w in weights):
            return
        arrived = list(self.units.arrived(weights))
        for block, iteration in arrived:
            if self._explores(iteration):
                self._forget(block)
                self._explore(block, iteration)
        adjusting = [block for block, iteration in arrived if self._adjusts(iteration)]
        if adjusting:
            self._adjust(adjusting)
        self._scores.clear()

    def _forget(self, block: Block) -> None:
        """Inactive weights are 0, whatever was there."""
        for w in self.units.weights_of(block):
            kernels.keep_(w.dormant, w.bits())

    def _adjust(self, blocks: list[Block]) -> None:
        """D's density one step up or down, by the balance ratio; ranked over its layers (ADAPT, Algorithm 1)."""
        p = self.balance
        assert p is not None
        assert self.ratio is not None
        found = [b for b in blocks if any(n in self._scores for n in b.names)]  # the others had no gradient: they rest
        ratio = self.ratio.mean()
        if ratio is None or not found:
            return
        for block in found:
            self._forget(block)
        grads = [s for b in found if (s := self._score(b, self._scores)) is not None]
        thetas, masks = [self._sizes(b) for b in found], [self._kept(b) for b in found]
        sizes = [b.sizes(t.device) for b, t in zip(found, thetas)] if self.units.coarse else None
        wanted, before = adjusted_density(self.density, ratio, p), self.density
        self.density = wanted
        if self.units.coarse and wanted == before:
            change = 0  # what whole units fall short of the density is no reason for another step
        else:
            change = round(wanted * sum(b.numel for b in blocks)) - self._entries(blocks)
            change = min(change, sum(b.numel for b in found) - self._entries(found))  # what those layers can give
        if change > 0:
            new = add_largest(grads, masks, change, sizes)
        elif change < 0:
            new = drop_smallest(thetas, masks, -change, sizes)
        elif ratio >= p.upper and p.exchange:
            drops = [math.ceil(p.fraction * self._active[b.names[0]]) for b in found]
            new = [explore(t, m, s, n) for t, m, s, n in zip(thetas, masks, grads, drops)]
        else:
            return
        for block, kept, theta in zip(found, new, thetas):
            kept = spared(block, kept, theta)
            self._new |= block.masks(kept)
            self._active |= dict.fromkeys(block.names, int(kept.sum()))

    def _entries(self, blocks: Sequence[Block]) -> int:
        """Active weights."""
        if not self.units.coarse:
            return sum(self._active[b.names[0]] for b in blocks)
        return sum(int(torch.count_nonzero(w.mask)) for b in blocks for w in self.units.weights_of(b))

    def _explore(self, block: Block, iteration: int) -> None:
        p = self.exploration
        assert p is not None
        members = self.units.weights_of(block)
        if p.grow == "random":  # one number a unit
            score = torch.rand(block.shape, generator=self._random[block.names[0]]).to(members[0].param.device)
            found = None if all(w.param.grad is None for w in members) else score
        elif p.grow == "gradient":
            found = self._score(block, self._scores)
        else:
            found = self._score(block, {k: m.abs() for k, m in self._momentum.items() if k in block.names})
        if found is None:
            return  # the layer had no gradient at this step: it rests
        drop = math.ceil(drop_fraction(p, iteration) * self._active[block.names[0]])
        exchanged = exchange if isinstance(block, Fours) else explore
        sizes = self._sizes(block)
        self._new |= block.masks(spared(block, exchanged(sizes, self._kept(block), found, drop), sizes))

    def _score(self, block: Block, held: Mapping[str, Tensor]) -> Tensor | None:
        """Unit scores of what is held of the block's weights; None where it is nothing."""
        own = {name: held[name] for name in block.names if name in held}
        return block.scores(own) if own else None

    def _sizes(self, block: Block) -> Tensor:
        return block.scores({w.name: w.dormant.abs() for w in self.units.weights_of(block)})

    def _kept(self, block: Block) -> Tensor:
        return block.kept({w.name: w.mask for w in self.units.weights_of(block)})

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

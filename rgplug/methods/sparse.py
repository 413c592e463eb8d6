"""Sparse from the start: masks that stay (static sparse training, prune and fine-tune, tickets), and masks that explore
(SET, RigL, STU-GAN, ADAPT).

A pruned weight is gone: what grows starts at 0. Masks change only at exploration steps and by exchange, so a layer
keeps as many units (weights, kernels, filters) at the last step as at the first; the exception is a D whose density is
adjusted (ADAPT).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rgplug import expected, kernels
from rgplug.criteria import check_installed, criterion_of
from rgplug.kernels import Scratch
from rgplug.masking import MaskedWeight
from rgplug.methods import FIXED, Method, Rule, Step
from rgplug.methods.balance import BalanceRatio, adjusted_density
from rgplug.methods.ever_active import EverActive, misses
from rgplug.methods.initial_masks import initial_masks
from rgplug.methods.magnitude import add_largest, drop_smallest, kept_entries
from rgplug.methods.small_network import without_unread
from rgplug.methods.two_of_four import exchange
from rgplug.policy import END, BalancePolicy, ExplorationPolicy, MaskPolicy, Policy
from rgplug.units import Block, Filters, Fours, Units, spared
from rgplug.warn import warn

MOMENTUM = 0.9  # of the dense gradient, for growth by momentum (Dettmers & Zettlemoyer 2019)


def drop_fraction(policy: ExplorationPolicy | BalancePolicy, step: int) -> float:
    """Share of the active weights that an exchange at `step` drops: a cosine from `fraction` to `final`.

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
    they are exchanged every so many of its steps; with `balance`, D's are adjusted after every so many of G's."""

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
        criterion = None if policy.masks.file is not None or self.density == 1 else criterion_of(policy.masks.criterion)
        if criterion is not None:
            check_installed(criterion)
        self.needs_gradients = criterion is not None and criterion.needs == "gradients"
        self._weights: list[MaskedWeight] = []
        self._active: dict[str, int] = {}  # units that the block of a weight keeps
        self._scores: dict[str, Tensor] = {}
        self._momentum: dict[str, Tensor] = {}
        self._next_momentum: dict[str, Tensor] = {}  # momentum with the gradient of the coming step
        self._first: dict[str, Tensor] = {}  # masks by magnitude of weights that have not started
        self._new: dict[str, Tensor] = {}
        self.ever = EverActive()
        self._coming: int | None = None  # the iteration whose gradient is looked at next; None: an auxiliary step's
        self._adjusting: float | None = None  # the balance ratio, while masks are adjusted by it
        self._random: dict[str, torch.Generator] = {}

    def begin(self, weights: list[MaskedWeight]) -> None:
        """Random masks are the same for the same seed, network and weight, on whatever device."""
        self._weights, self._first = weights, {}
        self.ever.clear()
        for w in weights:
            self._seed(w)
        if self.needs_gradients and any(w.waits for w in weights):
            self._count(self.units.blocks, {w.name: w.mask for w in weights})  # all of them, until there are gradients
            return
        masks = self._masks()
        for w in weights:
            if not w.waits:
                w.set_mask(masks[w.name].to(w.param.device))
            elif not self._by_magnitude:
                self._first[w.name] = masks[w.name]
        self._count(self.units.blocks, masks)
        if self.balance is not None and self.masks.file is not None:
            self.density = sum(int(masks[w.name].sum()) for w in weights) / sum(w.numel for w in weights)

    def _seed(self, weight: MaskedWeight) -> None:
        digest = hashlib.sha256(f"{self.masks.seed} {self.network}.{weight.name}".encode()).digest()
        self._random[weight.name] = torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))

    def regrouped(self, weights: list[MaskedWeight]) -> None:
        self._weights = weights
        for w in weights:
            if w.name not in self._random:
                self._seed(w)
        if self._active:
            self._count(self.units.blocks, {w.name: self._first.get(w.name, w.mask) for w in weights})

    def join(self, weight: MaskedWeight) -> None:
        """One layer by itself, at the network's density or as the file has it; tied filters as those of the others."""
        self.ever.forget(weight.name)
        block = self.units.block_of(weight)
        members = [w for w in self.units.weights_of(block) if w.name != weight.name]
        if isinstance(block, Filters) and members:
            kept = block.kept({w.name: w.mask for w in members} | {weight.name: torch.zeros_like(weight.mask)})
            shared = block.kept({w.name: torch.ones_like(w.mask) for w in members} | {weight.name: weight.mask & False})
            self._first[weight.name] = block.masks(kept | ~shared)[weight.name]
        else:
            own, policy = self.units.only([weight.name]), replace(self.masks, distribution="uniform")
            masks = initial_masks(policy, self.network, self.density, [weight], own, self._random)
            self._first[weight.name] = masks[weight.name]
        if self.masks.channels and self.masks.file is None and self.units.granularity == "filter":
            every = {w.name: w.mask for b in self.units.blocks for w in self.units.weights_of(b)}
            self._first[weight.name] = without_unread(self.units, weight.name, {**every, **self._first})
        self.regrouped(self._weights)

    def start(self, weight: MaskedWeight) -> None:
        """The mask of a weight that waited for its first gradient; by magnitude: masks of the weights that the host has
        loaded by now, the same ones if it loaded none. Until here what is pruned can come back."""
        if self._by_magnitude and weight.name not in self._first:
            self._first = self._masks()
            self._count(self.units.blocks, self._first)
        if weight.name in self._first:
            weight.set_mask(self._first.pop(weight.name).to(weight.param.device))
        if weight.param.grad is not None:  # else it is here for the filters tied to it, and may not train at all
            weight.forget()

    @property
    def _by_magnitude(self) -> bool:
        """Whether masks are made of the weights alone, so of those that the host has loaded by the first step."""
        return self.masks.file is None and self.masks.criterion != "random" and not self.needs_gradients

    def _masks(self) -> dict[str, Tensor]:
        """The masks to begin with, by weight."""
        return initial_masks(self.masks, self.network, self.density, self._weights, self.units, self._random)

    def _count(self, blocks: Sequence[Block], masks: Mapping[str, Tensor]) -> None:
        for block in blocks:
            kept = block.kept({name: masks[name] for name in block.names})
            self._active |= dict.fromkeys(block.names, int(kept.sum()))

    def synchronized(self, weights: list[MaskedWeight]) -> None:
        """The first rank's masks may keep other numbers of units in each layer."""
        self._count(self.units.blocks, {w.name: w.mask for w in weights})
        self.ever.add(weights)

    def follow(self, weight: MaskedWeight) -> None:
        self.ever.follow(weight)
        for held in (self._momentum, self._scores):
            if weight.name in held:
                held[weight.name] = held[weight.name].to(weight.param)

    def gradient_rule(self, weight: MaskedWeight, step: int | None) -> Rule | None:
        self._coming = step
        grow = None if self.exploration is None else self.exploration.grow
        if grow == "momentum" or (grow == "gradient" and self._explores(step)) or self._is_kept(step):
            return None  # the dense gradient is looked at
        return FIXED

    def rule(self, weight: MaskedWeight, step: int | None) -> Rule | None:
        return None if weight.name in self._new else FIXED

    def needs_theta(self, weight: MaskedWeight, step: int | None) -> bool:
        return self._explores(step)

    def on_gradient(self, weight: MaskedWeight, grad: Tensor, theta: Tensor, scratch: Scratch) -> None:
        p, coming = self.exploration, self._coming
        by_gradient = p is not None and p.grow == "gradient" and self._explores(coming)
        ahead = by_gradient and coming is not None and self.units.is_ahead(weight, coming)
        if ahead or self._is_kept(coming):
            self._scores[weight.name] = grad.abs()
        if p is None or p.grow != "momentum":
            return
        momentum = self._momentum.get(weight.name)
        before = torch.zeros_like(grad) if momentum is None else momentum
        self._next_momentum[weight.name] = before.mul(MOMENTUM).add_(grad, alpha=1 - MOMENTUM)

    def update(self, weights: list[MaskedWeight], step: Step) -> None:
        for w in weights:  # once a step, however often its gradient was made
            if w.name in self._next_momentum:
                self._momentum[w.name] = self._next_momentum.pop(w.name)
        if self._unsaid and not step.auxiliary and any(w.steps > END for w in weights):
            self._unsaid = False
            warn(
                f"{self.network}'s masks stay from here on, after {END:,} steps, and training goes on; set "
                "exploration.end to the steps that the run has"
            )
        if step.auxiliary or not any(self._explores(w.steps) for w in weights):
            return
        for block, iteration in self.units.arrived(weights):
            if self._explores(iteration):
                self._forget(block)
                self._explore(block, iteration)
        self._scores.clear()

    def _forget(self, block: Block) -> None:
        """Inactive weights are 0, whatever was there."""
        for w in self.units.weights_of(block):
            if w.steps:  # one that was never stepped may turn out to be frozen, and then wants its values back
                kernels.keep_(w.dormant, w.bits())

    @property
    def has_gradients(self) -> bool:
        """Whether there are gradients that D can be adjusted by."""
        return bool(self._scores)

    def adjust_by(self, ratio: float) -> None:
        """D's masks, when they are drawn next (outside of a step), are adjusted by this mean balance ratio."""
        self._adjusting = ratio

    def forget_gradients(self) -> None:
        self._scores.clear()

    def decide(self, weights: list[MaskedWeight]) -> None:
        ratio, self._adjusting = self._adjusting, None
        if ratio is not None:
            self._adjust(ratio)

    def _adjust(self, ratio: float) -> None:
        """D's density one step up or down, by the balance ratio; ranked over its layers (ADAPT, Algorithm 1)."""
        p, blocks = self.balance, self.units.blocks
        assert p is not None
        assert self.ratio is not None
        if p.lower < ratio < p.upper:
            return
        found = [b for b in blocks if any(n in self._scores for n in b.names)]  # the others had no gradient: they rest
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
            new = self._exchanged(thetas, masks, grads, sizes, drop_fraction(p, self.ratio.iteration))
        else:
            return
        for block, kept, theta in zip(found, new, thetas):
            kept = spared(block, kept, theta, zeros_count=False)
            self._new |= block.masks(kept)
            self._active |= dict.fromkeys(block.names, int(kept.sum()))

    def _exchanged(
        self, thetas: list[Tensor], masks: list[Tensor], grads: list[Tensor], sizes: list[Tensor] | None, share: float
    ) -> list[Tensor]:
        """Masks in which the `share` smallest of the active weights have been exchanged for the inactive ones with the
        largest gradients, both ranked over all layers; so layers gain and lose weights (ADAPT-strict)."""
        active = kept_entries(masks, sizes)
        fewer = drop_smallest(thetas, masks, math.ceil(share * active), sizes)
        lost = active - kept_entries(fewer, sizes)
        # whole units do not come out even: never more than the density asks for, exchange after exchange
        above = self._entries(self.units.blocks) - round(self.density * sum(b.numel for b in self.units.blocks))
        return add_largest(grads, fewer, max(lost - max(above, 0), 0), sizes)

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
        kept = exchanged(sizes, self._kept(block), found, drop)
        self._new |= block.masks(spared(block, kept, sizes, zeros_count=False))

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
        if new is None:
            return super().pruned(weight, scratch)
        self.ever.changing(weight)
        return torch.logical_not(new).to(weight.param.dtype)

    def drawn(self, weight: MaskedWeight) -> None:
        self.ever.drawn(weight)

    def ever_active(self, weights: list[MaskedWeight]) -> float:
        return self.ever.share(weights)

    def state_of(self, weight: MaskedWeight) -> dict[str, Any]:
        state: dict[str, Any] = {"active": self._active[weight.name]}
        if self.balance is not None:
            state["density"] = self.density
            if weight.name in self._scores:  # between D's step and G's, after which D is adjusted by it
                state["gradient"] = self._scores[weight.name].clone()
        if self.exploration is not None and self.exploration.grow == "random":
            state["random"] = self._random[weight.name].get_state()
        if weight.name in self._momentum:
            state["momentum"] = self._momentum[weight.name].clone()
        if (ever := self.ever.state_of(weight)) is not None:
            state["ever"] = ever
        return state

    def misfit(self, weight: MaskedWeight, state: Mapping[str, Any]) -> str:
        grow = None if self.exploration is None else self.exploration.grow
        needed = {"active": expected.whole()}
        if self.balance is not None:
            needed["density"] = expected.number(0, 1)
        if grow == "random":
            needed["random"] = expected.generator
        # there is no momentum before the first step
        later = {"momentum": expected.tensor(weight.param.shape)} if grow == "momentum" else {}
        if self.balance is not None:  # of D's last step, until it is adjusted
            later["gradient"] = expected.tensor(weight.param.shape)
        if self.exploration is not None or self.balance is not None:
            later["ever"] = expected.tensor([-(-weight.numel // 8)], torch.uint8)  # none before the first change
        return expected.keys(state, needed, later)

    def misfit_together(self, states: Mapping[str, Mapping[str, Any]], masks: Mapping[str, Tensor]) -> str:
        """As many units are active as the masks keep, and what is active was so at some time."""
        for block in self.units.blocks:
            if any(states[name].get("waits") for name in block.names):
                continue  # their masks are drawn, and not on yet
            kept = int(block.kept({name: masks[name] for name in block.names}).sum())
            for name in block.names:
                if states[name]["method.active"] != kept:
                    return f"counts {states[name]['method.active']} active units of {name}, and its mask keeps {kept}"
        for name, mask in masks.items():
            ever = states[name].get("method.ever")
            if ever is not None and misses(ever, mask):
                return f"says of weights of {name} that they were never active, and its mask keeps them"
        return ""

    def load(self, weight: MaskedWeight, state: dict[str, Any]) -> None:
        if weight.fresh:
            weight.forget()  # old values of a mask drawn at attach: the state may keep exact zeros there
        drawn = not self._by_magnitude and not self.needs_gradients
        if weight.waits and weight.name not in self._first and drawn:
            for w in self._weights:  # it had its mask here, and waits for it anew
                self._seed(w)
            self._first[weight.name] = self._masks()[weight.name]
        self._active[weight.name] = int(state["active"])
        self.density = float(state.get("density", self.density))
        self._scores.pop(weight.name, None)
        if "gradient" in state:
            self._scores[weight.name] = state["gradient"].to(weight.param)
        if "random" in state:
            self._random[weight.name].set_state(state["random"].cpu())
        if "momentum" in state:
            self._momentum[weight.name] = state["momentum"].to(weight.param)
        self.ever.load(weight, state.get("ever"))

    def _explores(self, step: int | None) -> bool:
        p = self.exploration
        if p is None or step is None:
            return False
        assert isinstance(p.every, int)
        assert isinstance(p.end, int)
        return 0 < step < p.end and step % p.every == 0

    def _is_kept(self, step: int | None) -> bool:
        """Whether the gradient of this iteration of D may be the last one before D is adjusted."""
        return self.balance is not None and step is not None and self.ratio is not None and self.ratio.approaching

"""Rules that decide masks. A method sees tensors; it knows nothing of hooks, hosts or files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rgplug import expected
from rgplug.kernels import Scratch
from rgplug.masking import MaskedWeight
from rgplug.units import Units


@dataclass
class Step:
    """What a method may know of the optimizer step it is called around."""

    optimizer: torch.optim.Optimizer | None = None
    groups: Mapping[int, dict[str, Any]] = field(default_factory=dict)  # id(param) -> param group
    found_inf: Tensor | None = None  # fused optimizers under GradScaler: 1 where the kernel skips the step
    regularizer: float | Tensor | None = None  # how often the regularizer is added at this step; None: not at all
    iteration: int = 0  # iterations of this network so far
    auxiliary: bool = False  # a lazy regularization phase's step, no iteration of its own


@dataclass(frozen=True)
class Rule:
    """A method's formulas for one weight where they are those of thresholds; `fused` knows them.

    Pruned iff |theta| / scale <= threshold (of its filter), without a threshold iff pruned before. task_gradient: the
    thresholds' gradient is wanted; full_weight_gradient: A is multiplied with the surrogate's factor.
    """

    threshold: Tensor | None = None  # [filters]
    scale: Tensor | None = None  # 0-dim
    task_gradient: bool = False
    full_weight_gradient: bool = False


FIXED = Rule()  # gradients are masked, masks stay


class Method:
    """What the engine asks of a rule; the defaults prune nothing. Weight-shaped results are 1.0 / 0.0 in its dtype."""

    prunes = True  # False: nothing is ever masked, and no mask is stored
    recurrent = True  # False: what is pruned stays pruned
    needs_gradients = False  # True: `begin` draws masks from gradients, and waits for the first ones
    guard = 0.0  # a layer that would keep at most this share keeps all

    def __init__(self, units: Units):
        self.units = units  # what is kept or pruned as a whole, over all weights of the network

    def attach(self, weight: MaskedWeight) -> None:
        """Give a weight what the method keeps per weight (thresholds)."""

    def begin(self, weights: list[MaskedWeight]) -> None:
        """Once, when all weights of the network are there: masks to begin with, where the method has any."""

    def regrouped(self, weights: list[MaskedWeight]) -> None:
        """Other weights than before are managed: these. Blocks of tied filters may be others too."""

    def join(self, weight: MaskedWeight) -> None:
        """A weight that was left out of `begin` is managed from its coming step on; `start` follows."""

    def start(self, weight: MaskedWeight) -> None:
        """Before the weight's first step: units and the like anew, since hosts load and broadcast after attach."""

    def follow(self, weight: MaskedWeight) -> None:
        """The host has moved the weight to another device or dtype: bring along what the method keeps of it."""

    def gradient_rule(self, weight: MaskedWeight, step: int | None) -> Rule | None:
        """What `on_gradient` does, if a Rule says it all; None: it has to be called.

        step: the weight's iteration that is coming; None for an auxiliary step.
        """
        return FIXED

    def rule(self, weight: MaskedWeight, step: int | None) -> Rule | None:
        """What `pruned` does, if a Rule says it all; None: it has to be called. step: the iteration just made."""
        return FIXED

    def tied(self, weights: list[MaskedWeight]) -> list[MaskedWeight]:
        """Weights beside these whose masks change with theirs: filters of several layers can make one channel."""
        return self.units.tied(weights)

    def on_gradient(self, weight: MaskedWeight, grad: Tensor, theta: Tensor, scratch: Scratch) -> None:
        """Look at A = dL/d(theta * M) before it is masked; may scale it in place."""

    def update(self, weights: list[MaskedWeight], step: Step) -> None:
        """After the host's step, before masks are drawn: `dormant` of these weights, and of `tied`, holds theta, where
        the method needs it."""

    def needs_theta(self, weight: MaskedWeight, step: int | None) -> bool:
        """Whether `update` looks at theta; if no weight's is needed, masks are drawn in one pass over each weight.

        step: the iteration just made, as in `rule`.
        """
        return True

    def lr_factor(self, step: int) -> float:
        """What the host's learning rate is multiplied with for iteration `step` of the network."""
        return 1.0

    def wake(self, weight: MaskedWeight) -> None:
        """The network returns from a dense phase, in which the method did not see its steps; all of the weight is live.
        What follows the weight step by step has to catch up."""

    def synchronized(self, weights: list[MaskedWeight]) -> None:
        """Masks and thresholds of the network were copied from another rank."""

    def measure(self, weight: MaskedWeight) -> None:
        """Outside of a step: units and the like from theta (held in `weight.dormant`), before masks are drawn."""

    def decide(self, weights: list[MaskedWeight]) -> None:
        """Masks of these weights are about to be drawn, all of a block together: what has to be known of all before."""

    def pruned(self, weight: MaskedWeight, scratch: Scratch) -> Tensor:
        """The entries to prune, from theta (held in `weight.dormant`); here: those that are."""
        return torch.logical_not(weight.mask).to(weight.param.dtype)

    def drawn(self, weight: MaskedWeight) -> None:
        """`weight.mask` is the mask that was drawn from what `pruned` returned. Not called where a Rule says it all."""

    def on_guard(self, weight: MaskedWeight, keep: Tensor) -> None:
        """The layer was about to empty where `keep` (0-dim) is 0; all of it is kept."""

    def regularizer(self, weights: list[MaskedWeight]) -> Tensor | None:
        """Value of the regularizer, or None."""
        return None

    def shift(self, weights: list[MaskedWeight], keep: float, samples: int, iteration: int) -> None:
        """Move the network as a whole so that the share `keep` of its weights is kept."""

    def ever_active(self, weights: list[MaskedWeight]) -> float:
        """Share of these weights that was kept at least once since attach (in-time over-parametrization, Liu et al.
        2021, of masks that explore); here: all of them, as the network begins with all. Reads the device."""
        return 1.0

    def state_of(self, weight: MaskedWeight) -> dict[str, Any]:
        """Everything of one weight that a resume needs, as tensors and numbers."""
        return {}

    def misfit(self, weight: MaskedWeight, state: Mapping[str, Any]) -> str:
        """What `load` could not take, as half a sentence ("has no 'scale'"); "" if it can. Nothing is changed."""
        return expected.keys(state, {})

    def misfit_together(self, states: Mapping[str, Mapping[str, Any]], masks: Mapping[str, Tensor]) -> str:
        """The same of all the network's weights together, each of which `misfit` lets pass; by name, with `method.`
        before each of the names that `state_of` gave."""
        return ""

    def load(self, weight: MaskedWeight, state: dict[str, Any]) -> None:
        """The reverse of `state_of`."""

"""Augmented regeneration: when to go dense, from the metric and its weighted average."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rgplug import expected
from rgplug.policy import AugmentedPolicy


def weighted_average(history: Sequence[float], weights: Sequence[float]) -> float | None:
    """Weighted mean of the last len(weights) values, oldest first; None while there are fewer."""
    if len(history) < len(weights):
        return None
    return math.fsum(w * h for w, h in zip(weights, history[-len(weights) :]))


@dataclass
class AugmentedRegeneration:
    """The phase of a run, decided at each evaluation.

    As released, the current value is part of its own average: with weights .1 .1 .2 .2 .4 the network stays sparse iff
    the metric is at most (h[-5] + h[-4] + 2 h[-3] + 2 h[-2]) / 6. Equality stays sparse, and so does a run with fewer
    values than the window. RG-GAN, Algorithm 1. The policy's higher_is_better is what Policy.higher_is_better says.
    """

    policy: AugmentedPolicy
    history: list[float] = field(default_factory=list)  # as many values as there are weights, oldest first
    sparse: bool = True
    evaluations: int = 0  # in the present phase

    def decide(self, metric: float) -> float | None:
        """Take in a finite metric, set `sparse`, return the average it was compared with (None: too few values)."""
        before = list(self.history)
        self.history = [*before, metric][-len(self.policy.weights) :]
        self.evaluations += 1
        average = weighted_average(self.history if self.policy.include_current else before, self.policy.weights)
        if average is None:
            return None
        worse = average - metric if self.policy.higher_is_better else metric - average
        margin = self.policy.hysteresis * abs(average)
        wanted = self.sparse
        if self.sparse and worse > margin:
            wanted = False
        elif not self.sparse and worse <= -margin:
            wanted = True
        if wanted != self.sparse and self.evaluations >= self.policy.dwell:
            self.sparse, self.evaluations = wanted, 0
        return average

    def state_dict(self) -> dict[str, Any]:
        return {"history": list(self.history), "sparse": self.sparse, "evaluations": self.evaluations}

    def misfit(self, state: Any) -> str:
        """What is wrong with a state, as half a sentence; "" if nothing is."""
        checks = {"history": expected.list_of(expected.number()), "sparse": expected.flag}
        return expected.keys(state, {**checks, "evaluations": expected.whole()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = [float(v) for v in state["history"]][-len(self.policy.weights) :]
        self.sparse, self.evaluations = bool(state["sparse"]), int(state["evaluations"])

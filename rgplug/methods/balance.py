"""ADAPT, balanced dynamic sparse training (Wang et al., NeurIPS 2023): the balance ratio, and what D makes of it."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from rgplug import expected
from rgplug.policy import BalancePolicy
from rgplug.processes import from_first_rank


def balance_ratio(real: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """(mean D(G_after(z)) - mean D(G(z))) / (mean D(x) - mean D(G(z))), a scalar (Eq. 2).

    real, before, after: D's scores of real images, and of images from the same latents before and after G's step.
    Near 0, G cannot follow D; near 1, D is too weak to keep up with one step of G.
    """
    fake = before.mean()
    return (after.mean() - fake) / (real.mean() - fake)


def adjusted_density(density: float, ratio: float, policy: BalancePolicy) -> float:
    """D's next density: one delta more where the ratio is at or above `upper`, one less at or below `lower`."""
    if ratio >= policy.upper:
        return min(density + policy.delta, max(policy.highest, density))
    if ratio <= policy.lower:
        return max(density - policy.delta, min(policy.lowest, density))
    return density


class BalanceRatio:
    """The last `window` measured ratios, and when D is adjusted by their mean: after each `every`-th iteration of G.

    iteration: iterations that G has made. adjusted: how many multiples of `every` D has been adjusted for. Where D has
    no gradient between two steps of G, its adjustment is made up for after a later step of G.
    """

    def __init__(self, window: int, every: int):
        self.values: deque[Tensor] = deque(maxlen=window)
        self.every = every
        self.iteration = 0
        self.adjusted = 0

    @property
    def due(self) -> bool:
        """Whether D is to be adjusted now, after a step of G."""
        return self.iteration // self.every > self.adjusted

    @property
    def approaching(self) -> bool:
        """Whether D is to be adjusted after the coming step of G: the gradients that D has until then are kept."""
        return (self.iteration + 1) // self.every > self.adjusted

    def add(self, ratio: Tensor) -> None:
        self.values.append(ratio.detach())

    def mean(self) -> float | None:
        """Reads the device, and with several processes the first rank's; every rank has to call it."""
        if len(self.values) < (self.values.maxlen or 0):
            return None
        device = self.values[-1].device  # those of a resumed state are on the CPU
        mean = torch.stack([v.to(device) for v in self.values]).mean()
        return from_first_rank(mean.item(), mean.device)

    def state_dict(self) -> dict[str, Any]:
        values = torch.stack(list(self.values)).cpu() if self.values else torch.empty(0)
        return {"values": values, "adjusted": self.adjusted}

    def misfit(self, values: Any) -> str:
        """What is wrong with the measured ratios of a state, as half a sentence; "" if nothing is."""
        wrong = expected.tensor()(values)
        return wrong or ("" if values.dim() == 1 else f"has shape {list(values.shape)}, not one dim")

    def load_state_dict(self, state: dict[str, Any], iteration: int) -> None:
        """iteration: G's, of the same state."""
        self.values.clear()
        self.values.extend(state["values"].unbind())
        self.iteration = iteration
        self.adjusted = int(state.get("adjusted", iteration // self.every))

"""Dense: weights are counted and measured, and nothing is pruned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rgplug.kernels import Scratch
from rgplug.masking import MaskedWeight
from rgplug.methods import Rule, Step


class Dense:
    prunes = False
    recurrent = True
    guard = 0.0

    def attach(self, weight: MaskedWeight) -> None: ...

    def begin(self, weights: list[MaskedWeight]) -> None: ...

    def start(self, weight: MaskedWeight) -> None: ...

    def follow(self, weight: MaskedWeight) -> None: ...

    def gradient_rule(self, weight: MaskedWeight, step: int | None) -> Rule | None:
        return None

    def rule(self, weight: MaskedWeight, step: int | None) -> Rule | None:
        return None

    def on_gradient(self, weight: MaskedWeight, grad: Tensor, theta: Tensor, scratch: Scratch) -> None: ...

    def update(self, weights: list[MaskedWeight], step: Step) -> None: ...

    def lr_factor(self, step: int) -> float:
        return 1.0

    def measure(self, weight: MaskedWeight) -> None: ...

    def pruned(self, weight: MaskedWeight, scratch: Scratch) -> Tensor:
        return torch.zeros_like(weight.param)

    def on_guard(self, weight: MaskedWeight, keep: Tensor) -> None: ...

    def regularizer(self, weights: list[MaskedWeight]) -> Tensor | None:
        return None

    def shift(self, weights: list[MaskedWeight], keep: float, samples: int, iteration: int) -> None: ...

    def state_of(self, weight: MaskedWeight) -> dict[str, Any]:
        return {}

    def load(self, weight: MaskedWeight, state: dict[str, Any]) -> None: ...

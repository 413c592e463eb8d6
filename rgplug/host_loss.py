"""HostLoss: the regularizer as a term of the host's own loss (`regularization: loss`)."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from rgplug.masking import MaskedWeight


class HostLoss:
    """Counts how often, and with which loss scale, the host added a network's regularizer since the last step.

    The term's gradient is not kept anywhere but counted: what the host gets is `value + (knob - knob)`, and a backward
    through it gives the knob a gradient, which a hook adds up.
    """

    def __init__(self, weights: list[MaskedWeight]):
        self.weights = weights
        self._knob: Tensor | None = None
        self._added: Tensor | None = None  # sum of the knob's gradients
        self._window: Any = None  # weak reference to a live gradient at the last backward through the term
        self._taken: dict[str, Tensor] = {}  # weight -> what was added when its optimizer last stepped

    def counted(self, value: Tensor) -> Tensor:
        """`value` (0-dim), as a term whose backward is counted."""
        if self._knob is None or self._knob.device != value.device or self._knob.dtype != value.dtype:
            self._knob = torch.zeros((), device=value.device, dtype=value.dtype, requires_grad=True)
            self._knob.register_hook(self._on_knob)
        return value + (self._knob - self._knob.detach())

    def take(self, weights: list[MaskedWeight], scale: Tensor | None) -> Tensor | None:
        """How often the term counts at the step of these weights, loss scale divided out; None: not at all."""
        if self._added is None:
            return None
        count = self._added - self._taken.get(weights[0].name, 0)
        self._taken.update(dict.fromkeys((w.name for w in weights), self._added))
        if len(self._taken) == len(self.weights):
            self._forget()
        return count if scale is None else count / scale.to(count.device)

    def _on_knob(self, grad: Tensor) -> None:
        """Count one backward. Gradients that were made anew since the last one (the host zeroed them, after a step that
        a GradScaler skipped) say that what was counted before is void."""
        assert self._knob is not None
        self._knob.grad = None
        live = next((w.param.grad for w in self.weights if w.param.grad is not None), None)
        if live is None or (self._window is not None and self._window() is not live):
            self._forget()
        self._window = None if live is None else weakref.ref(live)
        self._added = grad.detach().clone() if self._added is None else self._added + grad.detach()

    def _forget(self) -> None:
        self._added = None
        self._window = None
        self._taken.clear()

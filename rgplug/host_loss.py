"""HostLoss: the regularizer as a term of the host's own loss (`regularization: loss`)."""

from __future__ import annotations

import torch
from torch import Tensor

from rgplug.gradients import GradientWatch
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
        self._watch: GradientWatch | None = None  # of a weight's gradient, since the last backward through the term
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
        if len(self._taken) >= len(self.weights):
            self._begin_anew()
        return count if scale is None else count / scale.to(count.device)

    @property
    def is_current(self) -> bool:
        """Whether what was counted belongs to the gradients that are there now."""
        return self._watch is not None and not self._watch.is_overwritten

    def keep(self) -> None:
        """rgplug itself has written to gradients for which `is_current` held."""
        assert self._watch is not None
        self._watch.mark(listen=True)

    def stop_listening(self) -> None:
        if self._watch is not None:
            self._watch.forget()

    def _on_knob(self, grad: Tensor) -> None:
        """Count one backward.

        Gradients that began anew since the last one, in new tensors or zeroed in place, say that what was counted
        before is void: it belonged to a step that a GradScaler skipped.
        """
        assert self._knob is not None
        self._knob.grad = None
        change = "new" if self._watch is None else self._watch.change()
        if change != "new" and self._watch is not None and self._watch.is_overwritten:
            self._keep_unless_zeroed()
        if change == "new":
            self._begin_anew()
            live = next((w for w in self.weights if w.param.grad is not None), None)
            if live is None:
                live = next((w for w in self.weights if w.param.requires_grad), None)
            self._watch = None if live is None else GradientWatch(live.param)
        if self._watch is not None:
            self._watch.mark(listen=True)
        self._added = grad.detach().clone() if self._added is None else self._added + grad.detach()

    def _keep_unless_zeroed(self) -> None:
        """Gradients were written to. Clipped: what was counted stays; zeroed: it is void. Without a sync."""
        live = next((w.param.grad for w in self.weights if w.param.grad is not None), None)
        if live is not None and self._added is not None:
            counts = (live != 0).any().to(self._added.device)
            self._added = torch.where(counts, self._added, 0)
            self._taken = {name: torch.where(counts, taken, 0) for name, taken in self._taken.items()}

    def _begin_anew(self) -> None:
        self._added = None
        self.stop_listening()
        self._watch = None
        self._taken.clear()

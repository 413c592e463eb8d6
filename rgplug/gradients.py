"""GradientWatch: what happened to a Parameter's gradient since it was last looked at."""

from __future__ import annotations

import weakref
from typing import Any, Literal

from torch import Tensor, nn

Change = Literal["none", "accumulated", "written", "new"]


class GradientWatch:
    """Tells whether `param.grad` is still what it was at `mark`, without reading the device.

    The tensor's identity alone does not say it: gradients are added to, zeroed and clipped in place. Its version
    counter says that something was written, and a hook on the Parameter, which lives from `mark(listen=True)` to
    `forget`, whether that was a backward.
    """

    def __init__(self, param: nn.Parameter):
        self._param = param
        self._marked = False
        self._grad: weakref.ref[Tensor] | None = None  # None: there was no gradient
        self._version = 0
        self._accumulated = self._renewed = False
        self._handle: Any = None
        self.listens = False

    def mark(self, *, listen: bool = False) -> None:
        """Take note of the gradient as it is now. listen: tell backwards from other writes from here on."""
        self._marked = True
        self._accumulated = self._renewed = False
        self._note(self._param.grad)
        self._listen(listen)

    def forget(self) -> None:
        """As before the first `mark`."""
        self._marked = False
        self._grad = None
        self._listen(False)

    def _listen(self, listen: bool) -> None:
        self.listens = listen
        if self._handle is not None and not listen:
            self._handle.remove()
            self._handle = None
        if self._handle is None and listen and self._param.requires_grad:  # else no backward can add to it
            self._handle = self._param.register_post_accumulate_grad_hook(_hook_of(weakref.ref(self)))

    def change(self) -> Change:
        """Since the last `mark`:

        "none"; "accumulated": backwards added to what was there; "written": changed in place by something else
        (clipped, unscaled); "new": another tensor, or values that began anew in the same one (zeroed, then added to).
        Without a listening hook everything but "none" is "new". "new" too before the first `mark`.
        """
        if not self._marked or self._renewed:
            return "new"
        grad = self._param.grad
        if not self._is(grad):
            return "new"
        if self._accumulated:
            return "accumulated"
        if grad is None or grad._version == self._version:
            return "none"
        return "written" if self.listens else "new"

    @property
    def is_overwritten(self) -> bool:
        """Whether anything but backwards has written to the gradient since the last `mark`."""
        grad = self._param.grad
        return self._renewed or not self._is(grad) or (grad is not None and grad._version != self._version)

    def _note(self, grad: Tensor | None) -> None:
        self._grad = None if grad is None else weakref.ref(grad)
        self._version = 0 if grad is None else grad._version

    def _is(self, grad: Tensor | None) -> bool:
        if grad is None or self._grad is None:
            return grad is None and self._grad is None
        return self._grad() is grad

    def _on_backward(self) -> None:
        """After a backward has added to the gradient, which it does in one write (or by a first gradient)."""
        grad = self._param.grad
        first = self._grad is None
        added = not first and grad is not None and self._is(grad) and grad._version == self._version + 1
        if first or added:
            self._accumulated = True
        else:
            self._renewed = True
        self._note(grad)


def _hook_of(watch: weakref.ref[GradientWatch]) -> Any:
    """The hook holds the watch weakly: it belongs to a Parameter that may outlive it."""

    def on_backward(_: Tensor) -> None:
        found = watch()
        if found is not None:
            found._on_backward()

    return on_backward

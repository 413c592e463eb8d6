"""Step hooks: which optimizer owns which managed weights, and the work before and after its step.

torch.optim's hooks fire once per real step: a step that GradScaler skips fires none, a closure is seen, a wrapper
around another optimizer is seen as one step. Without given optimizers the hooks are global, so that optimizers made
before and after attach are found alike.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from rgplug.errors import RgplugError
from rgplug.masking import MaskedWeight
from rgplug.methods import Step
from rgplug.observers import Observer

if TYPE_CHECKING:
    from rgplug.network import Network


_Row = tuple["Network", MaskedWeight, dict[str, Any]]  # network, weight, param group
_Owned = tuple[list[tuple[dict[str, Any], int]], list[_Row]]


class StepHooks:
    """Calls `before_step` and `after_step` of the networks around the step of the optimizer that owns their weights."""

    def __init__(self, networks: list[Network], optimizers: Iterable[Any] | None):
        self.networks = networks
        self.observers: list[Observer] = []
        self._by_param = {id(w.param): (net, w) for net in networks for w in net.weights}
        self._owned: weakref.WeakKeyDictionary[Any, _Owned] = weakref.WeakKeyDictionary()
        self._running: FrameType | None = None  # the frame of the step that is under way
        self._handles: list[Any] = []
        self._scaled: list[tuple[dict[str, Any], Any]] = []  # param group, its learning rate, while a method scales it
        if optimizers is None:
            self._handles = [
                register_optimizer_step_pre_hook(self._before),
                register_optimizer_step_post_hook(self._after),
            ]
            return
        for optimizer in optimizers:
            if not isinstance(optimizer, torch.optim.Optimizer):
                self.remove()
                raise RgplugError(
                    f"{type(optimizer).__name__} is no torch.optim.Optimizer; leave it out of `optimizers` and call "
                    "rg.before_step(...) and rg.after_step(...) around its step"
                )
            if not self.owned(optimizer):
                self.remove()
                raise RgplugError(
                    f"the {type(optimizer).__name__} in `optimizers` holds no managed weight of "
                    f"{' or '.join(n.label for n in networks)}; make it from the networks that are attached"
                )
            self._handles += [
                optimizer.register_step_pre_hook(self._before),
                optimizer.register_step_post_hook(self._after),
            ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def owned(self, optimizer: torch.optim.Optimizer) -> list[_Row]:
        """(network, weight, param group) for every managed weight that the optimizer steps."""
        # a group dict is a new object after optimizer.load_state_dict, and grows with its list of parameters
        groups = [(group, len(group["params"])) for group in optimizer.param_groups]
        cached = self._owned.get(optimizer)
        if cached is None or not _same(cached[0], groups):
            rows = []
            for group in optimizer.param_groups:
                for param in group["params"]:
                    if id(param) in self._by_param:
                        rows.append((*self._by_param[id(param)], group))
            cached = self._owned[optimizer] = (groups, rows)
        return cached[1]

    def _before(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        owned = self.owned(optimizer)
        if not owned:
            return None
        frame = sys._getframe(1)
        if self._running is not None and _on_stack(self._running, frame):
            return None  # an optimizer inside an optimizer: the outer step counts
        self._running = frame
        closure = kwargs.get("closure") if "closure" in kwargs else (args[1] if len(args) > 1 else None)
        if not callable(closure):
            self._prepare(optimizer, owned)
            return None

        def prepared_closure() -> Any:
            loss = closure()
            for _, w, _ in owned:
                w.prepared = None  # a closure may run several times in a step, each time with a new gradient
            self._prepare(optimizer, owned)
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": prepared_closure}
        return (args[0], prepared_closure, *args[2:]), kwargs

    def _prepare(self, optimizer: Any, owned: list[_Row]) -> None:
        self._restore_lr()  # of a step that was broken off
        for net, weights, groups in _by_network(owned):
            factor = net.method.lr_factor(max(w.steps for w in weights) + 1)
            if factor != 1:
                for group in {id(g): g for g in groups.values()}.values():
                    self._scaled.append((group, group["lr"]))
                    group["lr"] = group["lr"] * factor
            for observer in self.observers:
                observer.before_step(net.label, optimizer)
            net.before_step(weights, getattr(optimizer, "grad_scale", None))

    def _after(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._running is not sys._getframe(1):
            return
        self._running = None
        self._restore_lr()
        owned = self.owned(optimizer)
        for net, weights, groups in _by_network(owned):
            for observer in self.observers:
                observer.stepped(net.label)
            scale = None if net.host_loss is None else _loss_scale(optimizer)
            step = Step(
                optimizer=optimizer,
                groups=groups,
                found_inf=getattr(optimizer, "found_inf", None),
                regularizer=net.take_regularizer(weights, scale),
            )
            net.after_step(weights, step)
            for observer in self.observers:
                observer.after_step(net.label)

    def _restore_lr(self) -> None:
        """The host's own learning rates: a method's factor holds for one step, whatever schedulers do meanwhile."""
        while self._scaled:
            group, lr = self._scaled.pop()
            group["lr"] = lr


def _same(seen: list[tuple[dict[str, Any], int]], groups: list[tuple[dict[str, Any], int]]) -> bool:
    return len(seen) == len(groups) and all(a is b and m == n for (a, m), (b, n) in zip(seen, groups))


def _by_network(
    owned: list[_Row],
) -> list[tuple[Network, list[MaskedWeight], dict[int, dict[str, Any]]]]:
    rows: dict[int, tuple[Network, list[MaskedWeight], dict[int, dict[str, Any]]]] = {}
    for net, weight, group in owned:
        _, weights, groups = rows.setdefault(id(net), (net, [], {}))
        weights.append(weight)
        groups[id(weight.param)] = group
    return list(rows.values())


def _on_stack(frame: FrameType, top: FrameType | None) -> bool:
    while top is not None:
        if top is frame:
            return True
        top = top.f_back
    return False


def _loss_scale(optimizer: Any) -> Tensor | None:
    """The factor that a GradScaler put on the loss of this step, as it lies on the device.

    The scaler unscales the optimizer's gradients only; the gradient of the regularizer, which belongs to no optimizer
    of the host, still carries the factor. The scaler that steps is found among the callers of `optimizer.step`.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, torch.amp.GradScaler):
            return owner._scale
        if isinstance(owner, torch.nn.Module):
            break
        frame = frame.f_back
    scale = getattr(optimizer, "grad_scale", None)
    return scale if isinstance(scale, Tensor) else None

"""Step hooks: which optimizer owns which managed weights, and the work before and after its step.

torch.optim's hooks fire once per real step: a step that GradScaler skips fires none, a closure is seen, a wrapper
around another optimizer is seen as one step. The hooks are global, so that optimizers made before and after attach, and
those that take the place of others, are found alike. They hold their networks weakly: when these die, the hooks go.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from rgplug import learning_rates
from rgplug.errors import RgplugError
from rgplug.masking import MaskedWeight
from rgplug.methods import Step
from rgplug.observers import Observer
from rgplug.warn import warn

if TYPE_CHECKING:
    from rgplug.network import Network


_Row = tuple["Network", MaskedWeight, dict[str, Any]]  # network, weight, param group
_Owned = tuple[list[tuple[dict[str, Any], int]], list[_Row]]
_TAKES_OVER = 2  # steps in a row after which an optimizer that was not given to attach counts as the new one


@dataclass(eq=False)
class _Running:
    """A step that is under way, in one thread."""

    frame: int  # id of the frame that calls the optimizer's step; the frame itself would keep its tensors alive
    rows: list[_Row]
    groups: list[dict[str, Any]] = field(default_factory=list)  # whose learning rate is scaled


class _Guard:
    """Lies in the frame of a step and dies with it."""


class StepHooks:
    """Calls `before_step` and `after_step` of the networks around the step of the optimizer that owns their weights."""

    def __init__(self, networks: list[Network], optimizers: Iterable[Any] | None):
        self.networks = networks
        self.observers: list[Observer] = []
        self._by_param = {id(w.param): (net, w) for net in networks for w in net.all_weights}
        self._owned: weakref.WeakKeyDictionary[Any, _Owned] = weakref.WeakKeyDictionary()
        self._thread = threading.local()
        self._given: weakref.WeakSet[Any] | None = None
        self._strangers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()  # steps in a row
        if optimizers is not None:
            self._given = weakref.WeakSet(self._checked(optimizers))
        self._remove = weakref.finalize(self, _remove, _listen(self))

    def _checked(self, optimizers: Iterable[Any]) -> list[torch.optim.Optimizer]:
        """The optimizers given to attach. Raises RgplugError for one that holds no managed weight."""
        given = [_inner(optimizer) for optimizer in optimizers]
        for optimizer in given:
            if not isinstance(optimizer, torch.optim.Optimizer):
                raise RgplugError(
                    f"{type(optimizer).__name__} is no torch.optim.Optimizer; leave it out of `optimizers` and call "
                    "rg.before_step(...) and rg.after_step(...) around its step"
                )
            if not self.owned(optimizer):
                raise RgplugError(
                    f"the {type(optimizer).__name__} in `optimizers` holds no managed weight of "
                    f"{' or '.join(n.label for n in self.networks)}; make it from the networks that are attached"
                )
        return given

    def remove(self) -> None:
        self._remove()
        for net in self.networks:
            net.stop_listening()

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

    # ---- one step ----------------------------------------------------------------------------------------------------

    def before(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType) -> Any:
        self._end_broken_steps(frame)
        busy = {id(w) for running in self._under_way for _, w, _ in running.rows}
        # an optimizer inside another one that owns the same weights: the outer step counts
        rows = [row for row in self.owned(optimizer) if id(row[1]) not in busy]
        if not rows or not self._is_heard(optimizer, rows):
            return None
        running = _Running(id(frame), rows)
        self._under_way.append(running)
        guard = _Guard()
        frame.f_locals["_rgplug_guard"] = guard  # a step that raises runs no hook, but its frame goes
        weakref.finalize(guard, _broken_off, weakref.ref(self), running, self._under_way)
        closure = kwargs.get("closure") if "closure" in kwargs else (args[1] if len(args) > 1 else None)
        if not callable(closure):
            self._prepare(optimizer, running)
            return None

        def prepared_closure() -> Any:
            for _, w, _ in rows:
                if not w.gradient.listens:  # prepared by an earlier run of the closure in this step
                    w.gradient.forget()
            loss = closure()
            self._prepare(optimizer, running)
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": prepared_closure}
        return (args[0], prepared_closure, *args[2:]), kwargs

    def _prepare(self, optimizer: Any, running: _Running) -> None:
        self._restore_lr(running)  # of the closure's run before
        for net, weights, groups in _by_network(running.rows):
            for w in weights:
                w.owned_by(optimizer)
            factor = net.method.lr_factor(max(w.steps for w in weights) + 1)
            if factor != 1:
                for group in {id(g): g for g in groups.values()}.values():
                    running.groups.append(group)
                    learning_rates.scale(group, factor, running)
            for observer in self.observers:
                observer.before_step(net.label, optimizer)
            net.before_step(weights, getattr(optimizer, "grad_scale", None))

    def after(self, optimizer: Any, frame: FrameType) -> None:
        running = next((r for r in self._under_way if r.frame == id(frame)), None)
        if running is None:
            return
        self._under_way.remove(running)
        self._restore_lr(running)
        for net, weights, groups in _by_network(running.rows):
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

    @property
    def _under_way(self) -> list[_Running]:
        """Steps of this thread: one, or several where a closure steps other optimizers."""
        if not hasattr(self._thread, "running"):
            self._thread.running = []
        found: list[_Running] = self._thread.running
        return found

    def _end_broken_steps(self, frame: FrameType) -> None:
        """Steps that raised, and whose frame something keeps alive (a debugger's traceback)."""
        if not self._under_way:
            return
        alive, outer = set(), frame.f_back
        while outer is not None:
            alive.add(id(outer))
            outer = outer.f_back
        for running in [r for r in self._under_way if r.frame not in alive]:
            self.broken_off(running, self._under_way)

    def broken_off(self, running: _Running, under_way: list[_Running]) -> None:
        """A step that raised: learning rates are the training script's again, and what the optimizer wrote at pruned
        places by then is taken for the optimizer's, not for the training script's."""
        if running in under_way:
            under_way.remove(running)
            self._restore_lr(running)
            for _, w, _ in running.rows:
                w.broken_off = True

    def _restore_lr(self, running: _Running) -> None:
        while running.groups:
            learning_rates.restore(running.groups.pop(), running)

    def _is_heard(self, optimizer: Any, rows: list[_Row]) -> bool:
        """All optimizers are, unless some were given; then others are once these are gone, or rest."""
        if self._given is None:
            return True
        mine = {id(w) for _, w, _ in rows}
        if optimizer in self._given:  # it does not rest: whoever steps the same weights is no successor
            for stranger in [s for s in self._strangers if mine & {id(w) for _, w, _ in self.owned(s)}]:
                del self._strangers[stranger]
            return True
        steps = self._strangers[optimizer] = self._strangers.get(optimizer, 0) + 1
        rivals = any(id(w) in mine for given in list(self._given) for _, w, _ in self.owned(given))
        if rivals and steps < _TAKES_OVER:
            return False
        if rivals:
            net, w, _ = rows[0]
            warn(
                f"{net.label}.{w.name} is stepped by an optimizer ({type(optimizer).__name__}) that was not among the "
                "`optimizers` given to attach, while the given one rests; the new one is followed from here on"
            )
        self._given.add(optimizer)
        return True


def _inner(optimizer: Any) -> Any:
    """The optimizer whose step runs the hooks: Lightning Fabric and Accelerate hand out wrappers of it."""
    inner = getattr(optimizer, "optimizer", None)
    return _inner(inner) if isinstance(inner, torch.optim.Optimizer) and inner is not optimizer else optimizer


def _listen(hooks: StepHooks) -> list[Any]:
    """Global hooks that end in `hooks` for as long as somebody else holds it. Returns their handles."""
    held = weakref.ref(hooks)

    def before(optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        found = held()
        return None if found is None else found.before(optimizer, args, kwargs, sys._getframe(1))

    def after(optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found = held()
        if found is not None:
            found.after(optimizer, sys._getframe(1))

    return [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]


def _remove(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()


def _broken_off(hooks: weakref.ref[StepHooks], running: _Running, under_way: list[_Running]) -> None:
    found = hooks()
    if found is not None:
        found.broken_off(running, under_way)


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


_SCALER_CODE = (torch.amp.GradScaler.step.__code__, torch.amp.GradScaler._maybe_opt_step.__code__)


def _loss_scale(optimizer: Any) -> Tensor | None:
    """The factor that a GradScaler put on the loss of this step, as it lies on the device.

    The scaler unscales the optimizer's gradients only; the gradient of the regularizer, which belongs to no optimizer
    of the host, still carries the factor. The scaler that steps is found among the callers of `optimizer.step`, by its
    code: looking at the variables of other frames would keep them alive.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code in _SCALER_CODE:
            scale: Tensor | None = frame.f_locals["self"]._scale
            return scale
        frame = frame.f_back
    held = getattr(optimizer, "grad_scale", None)
    return held if isinstance(held, Tensor) else None

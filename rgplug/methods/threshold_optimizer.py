"""The optimizer of the thresholds: of the host's class, with the host's settings, one flat tensor for many layers.

Elementwise optimizers (Adam, SGD, RMSprop, ...) treat a concatenation of thresholds exactly as they treat the pieces.
So the thresholds of all weights in one param group share one flat tensor and one real `torch.optim` object. Only the
step count is shared by the elements; a weight that sits out a step (no gradient in a lazy phase) is therefore split
off into a flat tensor of its own, with its state, the first time that happens.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from rgplug import expected
from rgplug.devices import optimizer_value
from rgplug.errors import RgplugError
from rgplug.masking import MaskedWeight
from rgplug.moments import CLASS, misfit_moments
from rgplug.warn import warn

# settings of the host's group that mean nothing for a threshold, or are chosen here
_OWN = {"params", "param_names", "weight_decay", "maximize", "foreach", "fused", "capturable", "differentiable"}
NOT_ELEMENTWISE = {"LBFGS", "Adafactor", "Muon", "SparseAdam"}


class _Flat:
    """Thresholds that step together: one flat tensor, views of it in each weight, one torch optimizer."""

    def __init__(
        self,
        weights: list[MaskedWeight],
        host: torch.optim.Optimizer | None,
        optimizer_class: type,
        settings: dict[str, Any],
        state: dict[str, Any],
    ):
        self.weights = weights
        self._host = None if host is None else weakref.ref(host)
        sizes = [w.layout.filters for w in weights]
        self.flat = torch.cat([_threshold(w) for w in weights])
        for w, piece in zip(weights, self.flat.split(sizes)):
            w.threshold = piece
        self.slices = dict(zip((w.name for w in weights), self.flat.split(sizes)))
        self.sizes = sizes
        self.optimizer: torch.optim.Optimizer = optimizer_class([{"params": [self.flat], **settings}])
        if state:
            self.optimizer.state[self.flat] = state

    def follows(self, host: torch.optim.Optimizer | None) -> bool:
        """Whether it was made for this optimizer of the training script's."""
        return (None if self._host is None else self._host()) is host

    def is_one_group(self, groups: Mapping[int, dict[str, Any]]) -> bool:
        """Whether its weights are in one param group still."""
        first = groups.get(id(self.weights[0].param))
        return all(groups.get(id(w.param)) is first for w in self.weights)

    def state_of(self, weight: MaskedWeight) -> dict[str, Any]:
        """The optimizer's state for one weight: its piece of every flat tensor, and the shared step count."""
        start = sum(self.sizes[: self.weights.index(weight)])
        piece = slice(start, start + weight.layout.filters)
        state = self.optimizer.state.get(self.flat, {})
        own = {k: v[piece].clone() if _is_flat(v, self.flat) else _copy(v) for k, v in state.items()}
        return {**own, CLASS: type(self.optimizer).__name__} if own else {}


class ThresholdOptimizer:
    """Steps the thresholds of one network.

    settings: "inherit" (class, lr as scheduled, betas, eps ... of the host's param group; weight decay 0), or a mapping
    whose entries replace the inherited ones.
    """

    def __init__(self, settings: str | Mapping[str, Any], network: str):
        self.overrides = {} if isinstance(settings, str) else dict(settings)
        self.network = network
        self._flats: dict[str, _Flat] = {}
        self._loaded: dict[str, dict[str, Any]] = {}
        self._unproven: set[str] = set()  # weights whose loaded state no optimizer has been compared with

    def step(
        self,
        gradients: dict[str, Tensor],
        weights: list[MaskedWeight],
        host: torch.optim.Optimizer | None,
        groups: Mapping[int, dict[str, Any]],
        found_inf: Tensor | None = None,
        pull: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """One step for the weights that have a gradient. `gradients`: name -> [filters]; `groups`: id(param) -> group;
        `pull`: the regularizer's share of the gradient, from the thresholds (any number of them).

        A non-finite gradient counts as 0. `found_inf` (a fused optimizer under GradScaler): where it is 1 the step is
        undone on the device, as the host's kernel does.
        """
        active = [w for w in weights if w.name in gradients]
        for flat in self._flats_for(active, host, groups):
            gradient = torch.cat([gradients[w.name] for w in flat.weights])
            if pull is not None:
                gradient.add_(pull(flat.flat))
            flat.flat.grad = torch.nan_to_num_(gradient, nan=0.0, posinf=0.0, neginf=0.0)
            group = groups.get(id(flat.weights[0].param), {})
            flat.optimizer.param_groups[0].update(self._settings(type(flat.optimizer), group, flat.flat))
            if found_inf is None:
                flat.optimizer.step()
            else:
                _step_unless(flat, found_inf)
            flat.flat.grad = None

    def state_of(self, weight: MaskedWeight) -> dict[str, Any]:
        """Moments and step count; none where the weight has an optimizer of another class by now, with which the
        thresholds' own begins anew."""
        flat = self._flats.get(weight.name)
        state = flat.state_of(weight) if flat is not None else dict(self._loaded.get(weight.name, {}))
        now = _class_name(weight)
        return {} if now is not None and state.get(CLASS, now) != now else state

    def misfit(self, weight: MaskedWeight, state: Mapping[str, Any]) -> str:
        """What `load` could not take, as half a sentence; "" if it can. Moments of another optimizer class than that
        which steps the weight are no fit; where none has stepped it yet, that is found out at the first step."""
        shape = _threshold(weight).shape
        saved = state.get(CLASS)
        if saved is not None and not isinstance(saved, str):
            return f"has an 'optimizer.{CLASS}' that is {expected.short(saved)}, not a name"
        for key, value in state.items():
            if isinstance(value, Tensor) and value.dim():
                wrong = expected.tensor(shape)(value)
            elif key != CLASS:
                wrong = expected.number(0, expected.LARGEST)(value.item() if isinstance(value, Tensor) else value)
            else:
                continue
            if wrong:
                return f"has an 'optimizer.{key}' that {wrong}"
        now = _class_name(weight)
        if saved is not None and now is not None and saved != now:
            return f"has the thresholds' moments of {saved}, and {now} steps its weights here; use the same optimizer"
        return ""

    def load(self, weight: MaskedWeight, state: dict[str, Any]) -> None:
        """Take over the state of one weight; used when its flat tensor is next built."""
        flat = self._flats.pop(weight.name, None)
        if flat is not None:
            self._dissolve(flat)
        self._loaded[weight.name] = {k: _copy(v) for k, v in state.items()}
        self._unproven.add(weight.name)

    def dissolve(self) -> None:
        """Break all flat tensors up (the host moved its networks to another device, or a state is loaded)."""
        for flat in {id(f): f for f in self._flats.values()}.values():
            self._dissolve(flat)

    def _dissolve(self, flat: _Flat) -> None:
        for w in flat.weights:
            self._loaded[w.name] = flat.state_of(w)
            w.threshold = _threshold(w).clone()
            self._flats.pop(w.name, None)

    def _flats_for(
        self, active: list[MaskedWeight], host: torch.optim.Optimizer | None, groups: Mapping[int, dict[str, Any]]
    ) -> list[_Flat]:
        names = {w.name for w in active}
        for flat in {id(self._flats[w.name]): self._flats[w.name] for w in active if w.name in self._flats}.values():
            if any(w.name not in names for w in flat.weights) or not flat.is_one_group(groups):
                self._dissolve(flat)
            if not flat.follows(host):
                self._replace(flat, host)
        fresh: dict[Any, list[MaskedWeight]] = {}
        for w in active:
            if w.name not in self._flats:
                state = self._loaded.get(w.name, {})
                scalars = tuple(
                    sorted(
                        (k, v if k == CLASS else float(v)) for k, v in state.items() if not _is_flat(v, _threshold(w))
                    )
                )
                alike = (id(groups.get(id(w.param))), w.param.device, _threshold(w).dtype, scalars, frozenset(state))
                fresh.setdefault(alike, []).append(w)
        for weights in fresh.values():
            flat = self._build(weights, host, groups)
            self._flats.update(dict.fromkeys((w.name for w in weights), flat))
        return list({id(self._flats[w.name]): self._flats[w.name] for w in active}.values())

    def _replace(self, flat: _Flat, host: torch.optim.Optimizer | None) -> None:
        """The training script has a new optimizer: thresholds follow it, with moments of their own only if it brought
        its weights' moments along (its state was loaded)."""
        self._dissolve(flat)
        cls: type = torch.optim.Adam if host is None else class_of(host)
        for w in flat.weights:
            if type(flat.optimizer) is not cls or not w.continues:
                self._loaded.pop(w.name, None)

    def _build(
        self, weights: list[MaskedWeight], host: torch.optim.Optimizer | None, groups: Mapping[int, dict[str, Any]]
    ) -> _Flat:
        cls: type = torch.optim.Adam if host is None else class_of(host)
        if host is None and "lr" not in self.overrides:
            raise RgplugError(
                f"no torch optimizer steps {self.network}'s weights, so its thresholds cannot inherit one; "
                "give policy.threshold.optimizer: {lr: ...}"
            )
        states = [self._loaded.pop(w.name, {}) for w in weights]
        first = _threshold(weights[0])
        settings = self._settings(cls, groups.get(id(weights[0].param), {}), first)
        state: dict[str, Any] = {}
        own = {k: v for k, v in states[0].items() if k != CLASS}
        for key, value in own.items():
            if _is_flat(value, first):
                state[key] = torch.cat([s[key] for s in states]).to(first)
            else:  # read from a file it is on the CPU, where a fused or capturable optimizer does not take it
                state[key] = optimizer_value(key, value, first, settings)
        if cls.__name__ in NOT_ELEMENTWISE:
            raise RgplugError(
                f"{self.network}'s optimizer is {cls.__name__}, whose update is not elementwise, so thresholds cannot "
                "inherit it; give its weights a torch.optim.Adam or SGD"
            )
        try:
            names = {w.name for w in weights}
            like = torch.cat([_threshold(w) for w in weights])
            saved = states[0].get(CLASS, cls.__name__)
            wrong = f"they are {saved}'s" if saved != cls.__name__ else ""
            if not wrong and names & self._unproven:
                placed = {k: v if _is_flat(own[k], first) else own[k] for k, v in state.items()}
                wrong = misfit_moments(cls, settings, placed, like)
            self._unproven -= names
            if wrong:
                warn(
                    f"the loaded moments of {self.network}'s thresholds are no moments of {cls.__name__} "
                    f"({wrong}); the thresholds' optimizer begins anew. For an exact resume, use the optimizer that "
                    "the state was saved with"
                )
                state = {}
            return _Flat(weights, host, cls, settings, state)
        except (TypeError, ValueError) as error:
            raise RgplugError(
                f"the thresholds of {self.network} cannot inherit the optimizer {cls.__name__} ({error}); "
                "give its weights an optimizer that is made from params and the settings in its param group"
            ) from error

    def _settings(self, cls: type, group: Mapping[str, Any], flat: Tensor) -> dict[str, Any]:
        known = parameters_of(cls)
        settings = {k: v for k, v in group.items() if k in known and k not in _OWN}
        for key, value in self.overrides.items():
            if key not in known:
                raise RgplugError(f"policy.threshold.optimizer.{key} is no setting of {cls.__name__}")
            settings[key] = tuple(value) if isinstance(value, list) else value
        if "weight_decay" in known:
            settings["weight_decay"] = 0.0
        if "foreach" in known:
            settings["foreach"] = False
        if "capturable" in known:  # a step count on the device, where the host's lives there too
            settings["capturable"] = flat.is_cuda and bool(group.get("fused") or group.get("capturable"))
        return settings


def class_of(optimizer: torch.optim.Optimizer) -> type:
    """Class of an optimizer, or of the one that it wraps (Lookahead and the like)."""
    inner = next((v for v in vars(optimizer).values() if isinstance(v, torch.optim.Optimizer)), None)
    return type(optimizer) if inner is None else class_of(inner)


@functools.cache
def parameters_of(cls: type) -> frozenset[str]:
    """Names that the constructor takes; where it hands on **kwargs, those of the classes above too."""
    names: set[str] = set()
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters  # type: ignore[misc]
        names |= {n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    return frozenset(names - {"self"})


def _threshold(weight: MaskedWeight) -> Tensor:
    assert weight.threshold is not None
    return weight.threshold


def _class_name(weight: MaskedWeight) -> str | None:
    """Of the optimizer that steps the weight, if one has."""
    host = None if weight.optimizer is None else weight.optimizer()
    return None if host is None else class_of(host).__name__


def _is_flat(value: Any, flat: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == flat.shape and value.dim() == 1


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _step_unless(flat: _Flat, found_inf: Tensor) -> None:
    """Step, then put everything back where `found_inf` is not 0, without asking the device."""
    state = flat.optimizer.state[flat.flat]
    fresh = not state
    before = {"flat": flat.flat.clone(), **{k: _copy(v) for k, v in state.items() if isinstance(v, Tensor)}}
    flat.optimizer.step()
    skipped = found_inf != 0
    flat.flat.copy_(torch.where(skipped, before["flat"], flat.flat))
    for key, value in flat.optimizer.state[flat.flat].items():
        if isinstance(value, Tensor):
            old = torch.zeros_like(value) if fresh else before[key]
            value.copy_(torch.where(skipped.to(value.device), old, value))

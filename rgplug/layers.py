"""Masked classes: a managed module becomes an instance of a subclass of its own class that knows its mask.

Only the class is exchanged, nothing is stored in the module: state-dict keys, order of parameters, forward, and
`isinstance` stay as they were, and a copy or a pickle of the module is one of the original class, which loads where
rgplug is not installed. What belongs to a module is looked up from outside, by identity.
"""

from __future__ import annotations

import copy
import copyreg
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn

from rgplug.masking import MaskedWeight

_weights: weakref.WeakKeyDictionary[nn.Module, MaskedWeight] = weakref.WeakKeyDictionary()
_copies: weakref.WeakKeyDictionary[MaskedWeight, list[weakref.ref[Tensor]]] = weakref.WeakKeyDictionary()
_classes: dict[tuple[type, tuple[str, ...]], type] = {}
_MARK = "_rgplug_original_class"


def swap(module: nn.Module, weight: MaskedWeight) -> bool:
    """Make `module` an instance of the masked subclass of its class; False where Python does not allow it."""
    original = original_class(module)
    if original is not type(module):
        return False  # two managed weights in one module: the first one shows
    free = tuple(name for name in ("mask", "threshold", "density") if not hasattr(module, name))
    try:
        module.__class__ = _masked_class(original, free)
    except TypeError:
        return False
    _weights[module] = weight
    return True


def unswap(module: nn.Module) -> None:
    """Give the module its own class back."""
    module.__class__ = original_class(module)
    _weights.pop(module, None)


def original_class(module: nn.Module) -> type:
    return getattr(type(module), _MARK, type(module))


def masked_weight(module: nn.Module) -> MaskedWeight | None:
    """The managed weight of a module; None for one that is not managed, such as a copy."""
    return _weights.get(module)


def copies_of(weight: MaskedWeight) -> list[Tensor]:
    """What deep copies of the weight's module hold in its place, as long as they are there: an average, mostly."""
    return [copied for ref in _copies.get(weight, []) if (copied := ref()) is not None]


@contextmanager
def _as_original(module: nn.Module) -> Iterator[None]:
    masked = type(module)
    module.__class__ = getattr(masked, _MARK)
    try:
        yield
    finally:
        module.__class__ = masked


class _Look:
    """An attribute of a masked class that gives way to anything of that name the host has or sets in the module."""

    def __init__(self, name: str):
        self.name = name

    def __get__(self, module: nn.Module | None, owner: type | None = None) -> Any:
        if module is None:
            return self
        for own in (module._parameters, module._buffers, module._modules):
            if self.name in own:
                return own[self.name]
        weight = masked_weight(module)
        return None if weight is None else getattr(weight, self.name)


def _by_the_original(name: str) -> Any:
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _as_original(self):
            return getattr(self, name)(*args, **kwargs)

    return call


def _masked_class(original: type, free: tuple[str, ...]) -> type:
    """The masked subclass, built once per class (and set of names that the host's class leaves free)."""
    key = (original, free)
    if key not in _classes:

        def extra_repr(self: nn.Module) -> str:
            weight = masked_weight(self)
            text = original.extra_repr(self)  # type: ignore[attr-defined]
            note = "" if weight is None else f"density={weight.density:.3f}"
            return ", ".join(part for part in (text, note) if part)

        def __reduce_ex__(self: nn.Module, protocol: Any) -> Any:
            with _as_original(self):
                build, args, *rest = cast(tuple[Any, ...], self.__reduce_ex__(protocol))
            if build is copyreg.__newobj__:  # type: ignore[attr-defined]
                # pickle insists that __newobj__ builds the object's own class; its older sibling builds any class
                build, args = copyreg._reconstructor, (args[0], object, None)  # type: ignore[attr-defined]
            return (build, args, *rest)

        def __deepcopy__(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
            with _as_original(self):
                made = copy.deepcopy(self, memo)
            weight = masked_weight(self)
            if weight is not None and isinstance(copied := memo.get(id(weight.param)), Tensor):
                _copies[weight] = [weakref.ref(t) for t in (*copies_of(weight), copied)]
            return made

        namespace: dict[str, Any] = {
            _MARK: original,
            "__module__": original.__module__,  # tracers take layers of torch.nn as leaves
            "__doc__": original.__doc__,
            "extra_repr": extra_repr,
            "__reduce_ex__": __reduce_ex__,
            "__deepcopy__": __deepcopy__,
        }
        for name in free:
            namespace[name] = _Look(name)
        for name in ("register_buffer", "register_parameter", "add_module", "register_module"):
            namespace[name] = _by_the_original(name)  # they refuse names that the class has
        _classes[key] = type(f"Masked{original.__name__}", (original,), namespace)
    return _classes[key]

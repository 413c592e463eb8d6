"""A dispatch mode that works out, beside each result of a forward pass, which labels its elements carry.

The forward runs as it is, on real latents, in eval mode and without gradients. An operation that no rule knows loses
its inputs' labels: these channels have to stay, and the report names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from rgplug.channels import contractions, rules
from rgplug.channels.contractions import Read
from rgplug.channels.labels import Labels, joined, varying

RULES = {**rules.RULES, **contractions.RULES}


class LabelMode(TorchDispatchMode):
    """While it is active, every operation's result gets its slots."""

    def __init__(self, labels: Labels, names: Mapping[int, str]):
        super().__init__()
        self.labels = labels
        self.reads: list[Read] = []
        self._names = names  # id of a parameter or buffer -> its name
        self._slots: WeakIdKeyDictionary = WeakIdKeyDictionary()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nobody compiles under this mode, and asking dynamo takes the seconds of its import

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = self.slots(args[0]) if args and isinstance(args[0], Tensor) else []
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        inplace = name.endswith("_") and not name.endswith("__")
        found = self._apply(name.rstrip("_") if inplace else name, func, args, kwargs, out)
        if inplace and isinstance(args[0], Tensor):
            self._slots[args[0]] = found if found else (before if name in ("zero_", "fill_") else [])
        return out

    def slots(self, x: Any) -> list[Tensor]:
        """The slots of a tensor; none for anything else."""
        if not isinstance(x, Tensor):
            return []
        if x not in self._slots:
            name = self._names.get(id(x))
            self._slots[x] = [] if name is None else self.labels.slots(name)
        found: list[Tensor] = self._slots[x]
        return found

    def lose(self, x: Any, operation: str) -> None:
        """The labels of a tensor, or of all tensors in a list, have to stay."""
        for part in x if isinstance(x, (list, tuple)) else (x,):
            for slot in self.slots(part):
                self.labels.fix(slot, f"{operation} mixes it with other channels")

    def _apply(self, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> list[Tensor]:
        given = dict(zip((a.name for a in func._schema.arguments), args)) | kwargs
        tensors = [x for x in given.values() if isinstance(x, (Tensor, list, tuple)) and self._labelled(x)]
        if not tensors or name.endswith("_like") or name.startswith("new_"):
            return []
        if name in RULES:
            return self.remember(out, RULES[name](self, given, out))
        if name in rules.SHAPES:
            return rules.reshape(self, name, func, args, kwargs, out)
        if name in rules.SPATIAL:
            return self.remember(out, self.over_images(args[0], args[0].dim() - 3))
        if name in rules.BATCH_NORMS:
            return self.remember(out, rules.norm(self, given, 1))
        if name in rules.REDUCTIONS:
            return self.remember(out, rules.reduce(self, name, given, out))
        if name == "copy":
            return self.remember(out, self.slots(args[1]))
        if torch.Tag.pointwise in func.tags or torch.Tag.pointwise in _outofplace(name).tags:
            operands = [self.slots(x) for x in given.values()]
            return self.remember(out, joined(self.labels, operands, out.dim(), name))
        for x in tensors:
            self.lose(x, name)
        return []

    def _labelled(self, x: Any) -> bool:
        return any(self.slots(part) for part in (x if isinstance(x, (list, tuple)) else (x,)))

    def remember(self, out: Any, slots: list[Tensor]) -> list[Tensor]:
        """The slots of a result, or of the first of several."""
        first = out[0] if isinstance(out, (tuple, list)) else out
        self._slots[first] = slots
        return slots

    def is_plain(self, weight: Tensor) -> bool:
        """Whether it is a parameter as it is, or a view of one, not one that was multiplied with something."""
        base = weight if weight._base is None else weight._base
        return id(weight) in self._names or id(base) in self._names

    def along(self, slot: Tensor, dim: int, size: int) -> Tensor | None:
        """A slot that varies along `dim` alone, of that size: labels that share a place there are tied. None where it
        varies along other dims alone."""
        dims = varying(slot)
        if dims == [dim] or (size == 1 and not dims):
            return slot
        if dim not in dims and size > 1:
            self.labels.fix(slot, "its entries are no channels")
            return None
        rows = slot.movedim(dim, 0).flatten(1)
        first = rows[:, :1].expand_as(rows)
        self.labels.tie(first, rows)
        shape = [slot.shape[dim] if d == dim else 1 for d in range(slot.dim())]
        return rows[:, 0].reshape(shape)

    def each_along(self, x: Tensor, dim: int) -> list[Tensor]:
        """The slots of a tensor that can be had so."""
        found = (self.along(slot, dim, x.shape[dim]) for slot in self.slots(x))
        return [slot for slot in found if slot is not None]

    def over_images(self, x: Tensor, dim: int) -> list[Tensor]:
        """Slots for an operation over the last two dims: where they vary over these, they are brought to `dim`."""
        found = []
        for slot in self.slots(x):
            flat = all(d < slot.dim() - 2 for d in varying(slot))
            found.append(slot if flat else self.along(slot, dim, x.shape[dim]))
        return [slot for slot in found if slot is not None]


def _outofplace(name: str) -> Any:
    packet = getattr(torch.ops.aten, name, None)
    return _Untagged if packet is None else getattr(packet, packet.overloads()[0])


class _Untagged:
    tags: tuple[torch.Tag, ...] = ()

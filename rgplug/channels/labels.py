"""Labels: which entries of a network's parameters belong to one channel, a union-find over the entries of their axes.

Every axis of a parameter that may be a channel axis gets one label an entry. A *slot* is a label tensor that broadcasts
against an activation (or a weight) and says of each element which label it carries, -1 for none; an element of a weight
carries two, one by its output filter and one by its input channel, in two slots. Dims along which a slot does not vary
have size 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_SLOTS = 4  # of one tensor; more than that is no network of channels


@dataclass
class Axis:
    """One dim of a parameter or buffer. role: "out" where its entries make channels, "in" where they read them."""

    name: str
    dim: int
    base: int  # label of its first entry
    size: int
    role: str = ""


class Labels:
    """The axes, the ties between their entries, and why some entries have to stay."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.axes: list[Axis] = []
        self._first: dict[str, list[Axis]] = {}
        self._parent: list[int] = []
        self._fixed: list[tuple[Tensor, str]] = []
        self._shapes = {name: tuple(t.shape) for name, t in tensors.items()}

    def slots(self, name: str) -> list[Tensor]:
        """The slots of a parameter or buffer: its first two dims, of [1, out, in, k, k] the two after the first."""
        if name not in self._first:
            shape = self._shapes[name]
            dims = (1, 2) if len(shape) == 5 and shape[0] == 1 else range(min(2, len(shape)))
            self._first[name] = [self._axis(name, d, shape[d]) for d in dims if shape[d] > 1]
        rank = len(self._shapes[name])
        return [
            torch.arange(a.base, a.base + a.size, dtype=torch.float64).view(
                [-1 if d == a.dim else 1 for d in range(rank)]
            )
            for a in self._first[name]
        ]

    def _axis(self, name: str, dim: int, size: int) -> Axis:
        axis = Axis(name, dim, len(self._parent), size)
        self._parent.extend(range(axis.base, axis.base + size))
        self.axes.append(axis)
        return axis

    def tie(self, a: Tensor, b: Tensor) -> None:
        """The labels at the same place of two tensors of one shape belong to one channel."""
        both = (a >= 0) & (b >= 0)
        for x, y in set(zip(a[both].tolist(), b[both].tolist())):
            self._unite(int(x), int(y))

    def fix(self, slot: Tensor, reason: str) -> None:
        """What a slot's labels belong to has to stay."""
        labels = slot[slot >= 0].unique().long()
        if len(labels):
            self._fixed.append((labels, reason))

    def set_role(self, slot: Tensor, role: str) -> None:
        """Of the axes whose labels are in a slot, those that have no role yet get this one."""
        for axis in self.axes_in(slot):
            axis.role = axis.role or role

    def axes_in(self, slot: Tensor) -> list[Axis]:
        found = slot[slot >= 0]
        return [a for a in self.axes if bool(((found >= a.base) & (found < a.base + a.size)).any())]

    def roots(self) -> Tensor:
        """int64 [labels]: the representative of each label."""
        return torch.tensor([self._find(i) for i in range(len(self._parent))], dtype=torch.int64)

    def reasons(self) -> dict[int, str]:
        """representative -> why its channel has to stay."""
        found: dict[int, str] = {}
        for labels, reason in self._fixed:
            for label in labels.tolist():
                found.setdefault(self._find(label), reason)
        return found

    def _find(self, i: int) -> int:
        parent = self._parent
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def _unite(self, a: int, b: int) -> None:
        a, b = self._find(a), self._find(b)
        self._parent[max(a, b)] = min(a, b)


def compressed(slot: Tensor) -> Tensor:
    """Size 1 in every dim along which it does not vary."""
    for d in range(slot.dim()):
        first = slot.narrow(d, 0, 1)
        if slot.shape[d] > 1 and (slot.stride(d) == 0 or bool((slot == first).all())):
            slot = first
    return slot


def varying(slot: Tensor) -> list[int]:
    """The dims along which a compressed slot varies."""
    return [d for d, n in enumerate(slot.shape) if n > 1]


def joined(labels: Labels, operands: Sequence[list[Tensor]], rank: int, operation: str) -> list[Tensor]:
    """Slots of an elementwise result of `rank` dims: labels that meet one to one, or many to one, are tied."""
    found: list[Tensor] = []
    for slots in operands:
        for slot in slots:
            slot = slot.view([1] * (rank - slot.dim()) + list(slot.shape))
            for i, other in enumerate(found):
                relation = _relation(other, slot)
                if relation == "independent":
                    continue
                if relation == "mixed":
                    labels.fix(other, f"mixed with other channels by {operation}")
                    labels.fix(slot, f"mixed with other channels by {operation}")
                a, b = torch.broadcast_tensors(other, slot)
                labels.tie(a, b)
                found[i] = compressed(torch.where(a >= 0, a, b))
                break
            else:
                found.append(slot)
    for slot in found[MOST_SLOTS:]:
        labels.fix(slot, f"lost track of at {operation}")
    return found[:MOST_SLOTS]


def _relation(a: Tensor, b: Tensor) -> str:
    """How the labels of two slots meet: "tied" (each of one with one of the other), "independent" (each with each, as
    the filters and the inputs of a weight), "mixed"."""
    a, b = torch.broadcast_tensors(a, b)
    both = (a >= 0) & (b >= 0)
    if not bool(both.any()):
        return "tied"  # parts of a concatenation
    a, b = a[both], b[both]
    if torch.equal(a, b):
        return "tied"
    m, n = len(a.unique()), len(b.unique())
    pairs = len(torch.stack([a, b]).unique(dim=1).t())
    if min(m, n) == 1 or pairs == m * n:
        return "independent"
    return "tied" if pairs == max(m, n) else "mixed"

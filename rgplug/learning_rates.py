"""Factors on learning rates that hold for one optimizer step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Group = dict[str, Any]  # a param group of torch.optim


@dataclass
class _Scaled:
    group: Group
    lr: Any  # what the training script set
    factors: dict[int, float] = field(default_factory=dict)
    scaled: Any = None  # what stands in the group meanwhile; anything else was set by the training script, and stays


_scaled: dict[int, _Scaled] = {}  # id(group) -> while a step is under way: several controllers may share an optimizer


def scale(group: Group, factor: float, owner: object) -> None:
    """Multiply the group's learning rate with `factor` until `restore`.

    Several factors on one group (networks or controllers that share an optimizer): the smallest counts.
    """
    held = _scaled.setdefault(id(group), _Scaled(group, group["lr"]))
    held.factors[id(owner)] = min(factor, held.factors.get(id(owner), factor))
    group["lr"] = held.scaled = held.lr * min(held.factors.values())


def restore(group: Group, owner: object) -> None:
    """Take the owner's factor back; with the last one, the training script's own object stands in the group again."""
    held = _scaled.get(id(group))
    if held is None:
        return
    held.factors.pop(id(owner), None)
    if group["lr"] is not held.scaled:
        held.lr = group["lr"]
    if held.factors:
        group["lr"] = held.scaled = held.lr * min(held.factors.values())
    else:
        group["lr"] = held.lr
        del _scaled[id(group)]

"""Several processes: every rank decides from the first rank's numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
_alone = 0  # how many `alone` blocks are open


@contextmanager
def alone() -> Iterator[None]:
    """What is done inside concerns this process only, whatever process group it belongs to: a dry run on copies."""
    global _alone
    _alone += 1
    try:
        yield
    finally:
        _alone -= 1


def several() -> bool:
    """Whether the ranks of a process group of more than one train together."""
    return not _alone and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def from_first_rank(value: T, device: torch.device) -> T:
    """The first rank's value (anything that can be pickled) on every rank. Every rank has to call it."""
    if not several():
        return value
    held = [value]
    dist.broadcast_object_list(held, 0, device=device if "nccl" in dist.get_backend() else torch.device("cpu"))
    return held[0]


def broadcast_first(tensors: Iterable[Tensor]) -> None:
    """Every tensor gets the first rank's values, in place. Every rank has to call it, with tensors of the same kind."""
    if several():
        for x in tensors:
            shared = x.contiguous()
            dist.broadcast(shared.view(torch.uint8) if x.dtype is torch.bool else shared, 0)
            if shared is not x:
                x.copy_(shared)

"""What the metrics need of torch.distributed; every function is trivial in a single process."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rgplug.meetings import Meetings

T = TypeVar("T")
_meetings = Meetings()


def active() -> bool:
    """Whether a process group of more than one process is initialised."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def meet(call: str) -> None:
    """Wait until every rank has come to this call; RgplugError, before anything hangs, names those that do not."""
    _meetings.meet(call)


def rank() -> int:
    """This process's number, 0 when alone."""
    return dist.get_rank() if active() else 0


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if active() else 1


def broadcast(value: T) -> T:
    """Rank 0's value, on every rank (any object that can be pickled; the other ranks' values are ignored)."""
    if not active():
        return value
    held = [value if rank() == 0 else None]
    dist.broadcast_object_list(held, src=0, device=_device())
    return held[0]  # type: ignore[return-value]


def gather(value: T) -> list[T]:
    """Every rank's value, by rank, on every rank (any object that can be pickled)."""
    if not active():
        return [value]
    held: list[T | None] = [None] * world()
    dist.all_gather_object(held, value)
    return held  # type: ignore[return-value]


def gather_rows(rows: Tensor, counts: list[int]) -> list[Tensor]:
    """Every rank's rows [counts[rank], D] float32, by rank, on the CPU of every rank."""
    if not active():
        return [rows.cpu()]
    padded = torch.zeros(max(counts), rows.shape[1], dtype=torch.float32, device=_device())
    padded[: len(rows)] = rows.to(padded.device)
    held = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(held, padded)
    return [part[:count].cpu() for part, count in zip(held, counts)]


def _device() -> torch.device:
    """Where the backend wants its tensors."""
    on_gpu = "nccl" in dist.get_backend()
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")

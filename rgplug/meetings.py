"""Ranks meet before they communicate, so that a rank that does not come is named before anything hangs.

A collective waits for the last rank until the group's timeout, and then fails in the words of its backend. A meeting
goes through the process group's key-value store instead: each rank leaves a note there and looks for those of the
others. It works alike with gloo and NCCL, needs no device, and ends before the group's timeout.
"""

from __future__ import annotations

import itertools
import time
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist

from rgplug.errors import RgplugError
from rgplug.processes import several

SHARE = 0.9  # of the group's timeout: what a meeting waits at most
PATIENCE = 300.0  # seconds that ranks are waited for which have no reason to be late
_PAUSE = 0.25  # seconds between two looks at the store, after shorter ones

_numbers = itertools.count()


class Meetings:
    """The meetings of one controller, told apart from those of others by the order in which controllers first meet."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._held = 0

    def meet(self, call: str, patient: bool = True) -> None:
        """Wait until every rank has come to this call. RgplugError for ranks that do not come, or are at another call.

        patient: whether the first rank may take as long as the group's timeout allows, since it may be measuring.
        """
        if not several():
            return
        self._held += 1
        remedy = f"every rank has to call {call}" + (", also where only one of them measures" if patient else "")
        found = self.exchange(f"call {self._held}", call, call, remedy, patient)
        forget(f"rgplug/{self._number}/call {self._held - 1}")  # all have read it, or they would not have come here
        if len(set(found)) > 1:
            places = ", ".join(f"rank {r} at {c}" for r, c in enumerate(found))
            raise RgplugError(
                f"rgplug was called differently on the ranks: {places}; make the same calls, in the same order, on "
                "every rank"
            )

    def exchange(self, key: str, note: str, place: str, remedy: str, patient: bool = False) -> list[str]:
        """The notes of all ranks, by rank. key: the same on every rank, and new. place, remedy: for the error."""
        if self._number is None:
            self._number = next(_numbers)
        return exchange(f"rgplug/{self._number}/{key}", note, place, remedy, patient)


def exchange(key: str, note: str, place: str, remedy: str, patient: bool = False) -> list[str]:
    """Leave a note in the store, wait for those of the other ranks, return all of them by rank.

    Raises RgplugError in time for a rank that leaves none. A group without a store (MPI) has no meetings: the rank's
    own note comes back.
    """
    store = _store()
    if store is None:
        return [note]
    keys, over = [f"{key}/{r}" for r in range(dist.get_world_size())], f"{key}/over"
    begin, pause, first_came = time.monotonic(), 0.001, None
    longest = SHARE * _group_timeout()
    try:
        store.set(keys[dist.get_rank()], note)
        while not store.check(keys):
            now = time.monotonic()
            if first_came is None and (not patient or store.check(keys[:1])):
                first_came = now
            late = now > begin + longest or (first_came is not None and now > first_came + PATIENCE)
            if late or store.check([over]):
                missing = [r for r, k in enumerate(keys) if not store.check([k])]
                if not missing:
                    continue  # the last one has just come
                store.set(over, "")
                time.sleep(2 * _PAUSE if late else 0)  # the store lives in one of the ranks: all shall see it
                raise RgplugError(_missing(missing, place, remedy, now - begin))
            time.sleep(pause)
            pause = min(2 * pause, _PAUSE)
        if store.check([over]):
            here = dist.get_rank()
            raise RgplugError(f"rgplug came to {place} too late on rank {here}: the others have given up; {remedy}")
        found = [store.get(k).decode() for k in keys]
    except RuntimeError as error:
        raise RgplugError(
            f"rgplug waited for the other ranks at {place} and lost the connection to their store ({error}); a rank "
            "has ended, and its own message says why"
        ) from error
    if len(set(found)) > 1:
        _linger(store, key, keys)
    return found


def forget(key: str) -> None:
    """Take back this rank's note, where the store can."""
    store = _store()
    with suppress(RuntimeError, NotImplementedError):
        if store is not None:
            store.delete_key(f"{key}/{dist.get_rank()}")


def _missing(ranks: list[int], place: str, remedy: str, seconds: float) -> str:
    named = ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))
    return f"rgplug waited {seconds:.0f} s at {place} on rank {dist.get_rank()}, and {named} did not come; {remedy}"


def _linger(store: Any, key: str, keys: list[str]) -> None:
    """What differs becomes an error on every rank. The store lives in one of them: it waits until all have read."""
    with suppress(RuntimeError):
        store.set(f"{keys[dist.get_rank()]}/read", "")
        until = time.monotonic() + 5
        while not store.check([f"{k}/read" for k in keys]) and time.monotonic() < until:
            time.sleep(0.01)


def _store() -> Any:
    with suppress(AttributeError, RuntimeError, ValueError):
        return dist.distributed_c10d._get_default_store()
    return None


def _group_timeout() -> float:
    """Seconds after which the process group's collectives give up."""
    found = []
    for device in ("cpu", "cuda"):
        with suppress(AttributeError, RuntimeError):
            backend = dist.distributed_c10d._get_default_group()._get_backend(torch.device(device))
            found.append(backend.options._timeout.total_seconds())
    return float(min(found, default=dist.distributed_c10d.default_pg_timeout.total_seconds()))

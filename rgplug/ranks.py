"""Several processes: do all ranks begin with the same weights, masks, thresholds and units?

Ranks never exchange masks. They stay equal because gradients are reduced before each step, which takes an equal
beginning. At the first step of each network the ranks therefore compare digests; later steps cost nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rgplug.errors import RgplugError
from rgplug.kernels import as_bits
from rgplug.masking import MaskedWeight
from rgplug.meetings import Meetings
from rgplug.observers import Observer
from rgplug.processes import several

if TYPE_CHECKING:
    from rgplug.network import Network

_CHUNK = 2**22  # entries summed at a time: int64 copies of a whole layer could be large
Row = list[object]  # weight, what of it, two integers


class EqualRanks(Observer):
    """Compares a network over the ranks before its first step, and before the first one after a state was loaded."""

    def __init__(self, networks: Mapping[str, Network], meetings: Meetings):
        self._networks, self._meetings = networks, meetings
        self._compared: set[str] = set()
        self._round = 0

    def again(self) -> None:
        """A state was loaded, after steps that were compared: on every rank, and the same one?

        Before the first step nothing changes here, so one rank may load and `synchronize` hand it to the others.
        """
        if self._compared:
            self._compared.clear()
            self._round += 1

    def before_step(self, network: str, optimizer: torch.optim.Optimizer | None) -> None:
        """Raises RgplugError where ranks differ, on all of them."""
        if network in self._compared or not several():
            return
        net = self._networks[network]
        if net.method.prunes:
            self._compare(net)
        self._compared.add(network)

    def _compare(self, net: Network) -> None:
        rows = digests(net)
        text = json.dumps(rows)
        place, key = f"the first step of {net.label}", f"first step of {net.label} {self._round}"
        remedy = f"attach and step {net.label} on every rank"
        found = self._meetings.exchange(key, hashlib.sha256(text.encode()).hexdigest(), place, remedy)
        if len(set(found)) == 1:
            return
        other = next(r for r, digest in enumerate(found) if digest != found[0])
        details = self._meetings.exchange(f"{key} in detail", text, place, remedy)
        name, part = first_difference(json.loads(details[0]), json.loads(details[other]))
        raise RgplugError(
            f"rgplug found ranks 0 and {other} unequal at the first step of {net.label}: {part} of {net.label}.{name} "
            "differs, so their masks would drift apart; make the networks equal (DDP does at construction, equal seeds "
            "do), then call rg.synchronize() on every rank before the first step"
        )


def digests(net: Network) -> list[Row]:
    """Rows of [weight, what of it, sum, weighted sum] for the managed weights, in order. Reads the device once."""
    parts = [(w, what, digest(x)) for w in net.weights for what, x in _parts(w)]
    if not parts:
        return []
    device = parts[0][2].device
    numbers = torch.stack([d.to(device) for _, _, d in parts]).tolist()
    return [[w.name, what, *pair] for (w, what, _), pair in zip(parts, numbers)]


def _parts(w: MaskedWeight) -> Iterator[tuple[str, Tensor]]:
    yield "the weight", w.theta + 0.0  # -0 is 0
    yield "the mask", w.mask
    if w.threshold is not None:
        yield "the threshold", w.threshold
    if w.scale is not None and not w.fresh:  # measured anew at the first step, from equal weights then
        yield "the unit", w.scale
        if w.scale_vectors is not None:
            yield "the unit", w.scale_vectors


def digest(x: Tensor) -> Tensor:
    """int64 [2]: the sum of the entries' bits as integers, and their sum with odd weights by place; both mod 2^64.

    Integer sums are the same in whatever order a device takes them.
    """
    entries = x.detach().reshape(-1)
    sums = torch.zeros(2, dtype=torch.int64, device=x.device)
    for at in range(0, entries.numel(), _CHUNK):
        piece = entries[at : at + _CHUNK]
        bits = (piece if piece.dtype is torch.bool else as_bits(piece)).to(torch.int64)
        place = torch.arange(at, at + bits.numel(), device=x.device).mul_(2).add_(1)
        sums[0] += bits.sum()
        sums[1] += place.mul_(bits).sum()
    return sums


def first_difference(ours: list[Row], theirs: list[Row]) -> tuple[str, str]:
    """(weight, what of it) of the first row that differs."""
    for a, b in zip(ours, theirs):
        if a[:2] != b[:2]:
            return str(a[0]), "the choice of what is managed, from the row"
        if a != b:
            return str(a[0]), str(a[1])
    longer = max(ours, theirs, key=len)
    return str(longer[min(len(ours), len(theirs))][0]), "the choice of what is managed, from the row"

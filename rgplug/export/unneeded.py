"""Which channels of a network can go, and why others whose filters are all zero cannot."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rgplug.channels import Axis, Channels
from rgplug.channels.contractions import LAST
from rgplug.channels.rules import SUMS
from rgplug.channels.trace import named_once
from rgplug.export.surgery import Cut, owner_of, takes_constants

Steady = float | Tensor  # what is left of a channel: a number, or an image [height, width]
Place = tuple[str, int, int]  # parameter, dim, index


@dataclass
class _Reader:
    """One place where a channel is read."""

    place: Place
    unread: bool  # its column is zero
    left: Steady | None  # what is read there, the same for all latents; None for 0
    summed: bool  # by a sum, to which 0 adds nothing
    why: str  # the channel cannot go because of this


def unneeded(network: nn.Module, channels: Channels) -> tuple[list[Cut], Counter[str]]:
    """Channels that can go, those that share an axis in one cut; and why others without filters cannot.

    channels: of `trace(network, ...)` just made: what was read in that run decides.
    """
    tensors = dict(named_once(network))
    filters: dict[int, bool] = {}  # channel -> whether all its filters are zero
    for axis in channels.axes:
        if axis.role == "out" and tensors[axis.name].dim() > 1:
            zero = tensors[axis.name].movedim(axis.dim, 0).flatten(1).abs().amax(1) == 0
            for root, empty in zip(channels.of(axis).tolist(), zero.tolist()):
                filters[root] = filters.get(root, True) and empty
    readers = _readers(network, channels)
    going: dict[int, dict[Place, Steady]] = {}
    kept: Counter[str] = Counter()
    for root, empty in filters.items():
        found = readers.get(root, [])
        if not empty and not (_unread(found) and any(r.unread for r in found)):
            continue
        why = channels.reasons.get(root) or next((r.why for r in found if r.why), "")
        if not found:
            why = why or "nothing was seen to read them"
        if not why:
            going[root] = {r.place: r.left for r in found if r.left is not None and not r.unread}
        elif empty:
            kept[why] += 1
    before = len(going)
    cuts = _together(going, channels)
    if len(going) < before:
        kept[LAST] += before - len(going)
    return cuts, kept


def _unread(readers: list[_Reader]) -> bool:
    return all(r.unread or (r.summed and not r.why and r.left is None) for r in readers)


def _readers(network: nn.Module, channels: Channels) -> dict[int, list[_Reader]]:
    axes = sorted(channels.axes, key=lambda a: a.base)
    bases = torch.tensor([a.base for a in axes])
    found: dict[int, list[_Reader]] = {}
    several = Counter(label for read in channels.reads for label in read.labels.tolist())
    for read in channels.reads:
        at = torch.searchsorted(bases, read.labels, right=True) - 1
        varies = read.high - read.low > 1e-6 * torch.maximum(read.high.abs(), read.low.abs())
        rows = zip(at.tolist(), read.labels.tolist(), read.low.tolist(), varies.tolist(), read.factor.tolist())
        for i, label, low, apart, factor in rows:
            axis = axes[i]
            left: Steady | None = read.images.get(label) if apart else (low or None)
            why = ""
            if factor and apart and left is None:
                why = f"they are not the same for all latents where {axis.name} reads them"
            elif factor and left is not None:
                if read.by:
                    why = f"they are not 0, and {read.by} counts them"
                elif several[label] > 1 or not takes_constants(network.get_submodule(owner_of(axis.name))):
                    why = f"they are not 0, and {axis.name} cannot hand on what is left of them"
            summed = read.by in SUMS
            reader = _Reader((axis.name, axis.dim, label - axis.base), not factor, left, summed, why)
            found.setdefault(int(channels.roots[label]), []).append(reader)
    return found


def _together(going: dict[int, dict[Place, Steady]], channels: Channels) -> list[Cut]:
    """One cut for all channels that share an axis; an axis keeps at least one entry."""
    places: dict[int, list[tuple[Axis, int]]] = {}
    for axis in channels.axes:
        roots = channels.of(axis).tolist()
        if all(r in going for r in roots):
            del going[roots[0]]
        for i, root in enumerate(roots):
            places.setdefault(root, []).append((axis, i))
    cuts: dict[tuple[str, int], Cut] = {}
    for root, left in going.items():
        cut = Cut()
        for axis, i in places[root]:
            cut.drop.setdefault((axis.name, axis.dim), []).append(i)
        for (name, dim, i), value in left.items():
            cut.left.setdefault((name, dim), {})[i] = value
        for other in {id(c): c for key in list(cut.drop) if (c := cuts.get(key)) is not None}.values():
            cut.add(other)
        cuts.update(dict.fromkeys(cut.drop, cut))
    return list({id(c): c for c in cuts.values()}.values())

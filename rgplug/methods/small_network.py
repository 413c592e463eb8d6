"""Masks that leave a smaller dense network: of every layer the same share of filters, and nothing else of the channels
that go (STU-GAN, Table 4: small dense)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rgplug.channels.trace import plain_name
from rgplug.methods.allocation import unit_count
from rgplug.methods.magnitude import keep_largest
from rgplug.units import Filters, Units, spread

STEPS = 40  # of the bisection: finer than any number of filters


def small_network(units: Units, scores: Sequence[Tensor], density: float) -> dict[str, Tensor]:
    """weight -> bool mask. A channel that goes takes along its filters, its biases and gains (as far as they are
    managed), and the input columns of the weights that read it; layers that make the network's output keep their
    filters, and lose columns.

    Of each block of tied filters round(s units) are kept, at least one, those of the largest scores. The share s, one
    for all blocks, is that for which the kept weights come nearest to `density` of all of them: of a layer between two
    others about s * s stay. scores: [units] for each block.
    """
    total = sum(block.numel for block in units.blocks)

    def entries(share: float) -> int:
        rows, columns = _lines(units, _kept(units, scores, share))
        return sum(_entries(units, name, rows[name], columns.get(name)) for name in rows)

    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if entries(middle) <= density * total else (low, middle)
    off = {share: abs(entries(share) - density * total) for share in (low, high)}
    rows, columns = _lines(units, _kept(units, scores, low if off[low] <= off[high] else high))
    masks = {}
    for name, row in rows.items():
        masks[name] = _narrowed(spread(units.parts[name].layout, row), columns.get(name))
    return masks


def without_unread(units: Units, name: str, masks: Mapping[str, Tensor]) -> Tensor:
    """The mask of one weight without the input columns that read channels of which the masks keep nothing: for a layer
    that trains later than the others. masks: of all weights."""
    kept = [block.kept({n: masks[n].cpu() for n in block.names}) for block in units.blocks]
    return _narrowed(masks[name], _lines(units, kept)[1].get(name))


def _narrowed(mask: Tensor, column: tuple[int, Tensor] | None) -> Tensor:
    """A mask without the columns that go: (dim, [size] bool, those that stay)."""
    if column is None:
        return mask
    dim, keep = column
    return mask & keep.to(mask.device).view([-1 if d == dim else 1 for d in range(mask.dim())])


def _kept(units: Units, scores: Sequence[Tensor], share: float) -> list[Tensor]:
    """[units] bool for each block."""
    found = []
    for block, score in zip(units.blocks, scores):
        whole = any(name in units.stay for name in block.names) or bool(score.isposinf().all())
        count = block.shape[0] if whole else unit_count(block.shape[0], share)
        found.append(keep_largest([score], count)[0])
    return found


def _lines(units: Units, kept: Sequence[Tensor]) -> tuple[dict[str, Tensor], dict[str, tuple[int, Tensor]]]:
    """weight -> [filters] bool, the filters that stay; weight -> (dim, [size] bool), the input columns that stay."""
    rows: dict[str, Tensor] = {}
    gone: list[Tensor] = []
    for block, keep in zip(units.blocks, kept):
        assert isinstance(block, Filters)
        keep = keep.cpu()
        rows |= {name: keep[block.of[name].cpu()] for name in block.names}
        gone.append(units.channels_of(block).cpu()[~keep])
    removed = torch.cat(gone)
    assert units.coupling is not None
    names = {plain_name(name): name for name in rows}
    columns = {
        names[axis.name]: (axis.dim, ~torch.isin(axis.of, removed))
        for axis in units.coupling.axes
        if axis.role == "in" and axis.name in names
    }
    return rows, columns


def _entries(units: Units, name: str, row: Tensor, column: tuple[int, Tensor] | None) -> int:
    """Entries of a weight that these filters and columns leave."""
    layout = units.parts[name].layout
    each = math.prod(layout.shape) // layout.filters  # of one filter
    if column is None:
        return int(row.sum()) * each
    return int(row.sum()) * each // len(column[1]) * int(column[1].sum())

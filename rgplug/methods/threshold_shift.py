"""A common shift of all thresholds of a network, so that a wanted share of its weights lies above them.

The differences between filters stay as they were learned. A layer that the common shift would empty is shifted only as
far as leaves it its largest weights, and the others make up for it. Nothing here asks a device for a value, unless it
is the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rgplug.devices import widest
from rgplug.masking import MaskedWeight
from rgplug.methods import threshold
from rgplug.units import Filters, Kernels, Units

# ---- entries ---------------------------------------------------------------------------------------------------------


def shift_entries(
    weights: Sequence[MaskedWeight], keep: float, samples: int, iteration: int, guard: float, recurrent: bool
) -> None:
    """The shift is the quantile of |theta| / scale - t over at most `samples` entries, taken at a regular stride whose
    start moves with `iteration`. recurrent: False where what is pruned may not come back."""
    device = weights[0].param.device
    if keep >= 1:
        _lower(weights, [_below_all(_least(w), threshold_of(w).abs().amax()) for w in weights])
        return
    stride = -(-sum(w.numel for w in weights) // (samples if recurrent else 16 * samples))
    parts, caps = [], []
    for w in weights:
        parts.append(_margins(w, iteration % min(stride, w.numel), stride, recurrent).to(device))
        own = max(1, w.numel // 4096)
        caps.append(_cap(w, _margins(w, iteration % own, own, recurrent), guard))
    rank = max(round((1 - keep) * sum(p.numel() for p in parts)), 1)
    slack = _slack(weights)
    amount = _quantile(torch.cat(parts), rank, slack)
    for _ in range(2):
        if not _may_hold((torch.stack([c.to(device) for c in caps]) < amount).any()):
            break
        amount = _quantile(torch.cat(_capped(parts, caps, amount)), rank, slack)
    for w, cap in zip(weights, caps):
        _add(w, torch.minimum(amount.to(cap.device), cap))


def _margins(w: MaskedWeight, start: int, step: int, recurrent: bool) -> Tensor:
    """|theta| / scale - t of every step-th entry from `start` on; -inf for those that may not come back."""
    loops = w.fused()
    if loops is not None:
        at = range(start, w.numel, step)
        return loops.margins(w.rows, w.dormant, None if recurrent else w.mask, threshold_of(w), w.scale, at)
    index = torch.arange(start, w.numel, step, device=w.dormant.device)
    margin = threshold.margin(w.dormant.reshape(-1)[start::step], threshold_of(w)[w.layout.filter_of(index)], w.scale)
    return margin if recurrent else margin.masked_fill_(~w.mask.reshape(-1)[start::step], -torch.inf)


def _least(w: MaskedWeight) -> Tensor:
    return threshold.margin(w.layout.view(w.dormant), w.layout.expand(threshold_of(w)), w.scale).amin()


def _cap(w: MaskedWeight, margin: Tensor, guard: float) -> Tensor:
    """The largest shift that leaves a layer a little more than the guard's share of its weights."""
    if margin.numel() == 1:
        return margin[0] - margin[0].abs() - 1
    rest = max(1, math.ceil(1.5 * guard * margin.numel()))
    return _quantile(margin, max(margin.numel() - rest, 1), 1e-6 * threshold_of(w).abs().amax())


def _quantile(margins: Tensor, rank: int, slack: Tensor) -> Tensor:
    """The value up to which `rank` entries lie; where more than these are at -inf already, just below all others.

    slack: what rounding can do to a margin, absolute.
    """
    value = margins.kthvalue(rank).values
    if not _may_hold(value == -torch.inf):
        return value
    return torch.where(value == -torch.inf, _just_below(margins, slack), value)


# ---- larger units ----------------------------------------------------------------------------------------------------

UnitBlock = Kernels | Filters


def shift_units(
    units: Units,
    blocks: Sequence[UnitBlock],
    margins_of: Callable[[UnitBlock], Tensor],  # units' margins; -inf for those that may not come back
    keep: float,
    samples: int,
    iteration: int,
    guard: float,
) -> None:
    """The shift is the quantile of the margins weighted by the units' sizes, over at most about `samples` units.

    The weights of a block are shifted alike, as far as the one of them allows that is nearest to being empty.
    """
    device = units.weights_of(blocks[0])[0].param.device
    weights = [w for block in blocks for w in units.weights_of(block)]
    margins = [margins_of(block).reshape(-1).to(device) for block in blocks]
    if keep >= 1:
        highest = torch.stack([threshold_of(w).abs().amax().to(device) for w in weights]).amax()
        _lower(weights, [_below_all(m.amin(), highest) for m in margins])
        return
    slack = _slack(weights)
    stride = -(-sum(len(m) for m in margins) // samples)
    parts, sizes, caps = [], [], []
    for block, margin in zip(blocks, margins):
        own = min(stride, len(margin))
        parts.append(margin[iteration % own :: own])
        sizes.append(block.sizes(device).reshape(-1)[iteration % own :: own] * own)
        caps.append(_block_cap(block, margin, guard, slack))
    size = torch.cat(sizes)
    excess = size.sum() - torch.round(keep * size.sum().to(widest(device))).long()
    amount = weighted_quantile(torch.cat(parts), size, excess, slack)
    for _ in range(2):
        amount = weighted_quantile(torch.cat(_capped(parts, caps, amount)), size, excess, slack)
    for block, cap in zip(blocks, caps):
        for w in units.weights_of(block):
            _add(w, torch.minimum(amount, cap).to(w.param.device))


def _block_cap(block: UnitBlock, margin: Tensor, guard: float, slack: Tensor) -> Tensor:
    """The largest shift that leaves each weight of a block a little more than the guard's share, and one unit."""
    caps = []
    for own, sizes in block.layers(margin.device):
        numel = sizes.sum()
        excess = torch.minimum(numel - torch.ceil(1.5 * guard * numel.to(widest(numel.device))).long(), numel - 1)
        caps.append(weighted_quantile(margin[own], sizes, excess, slack))
    return torch.stack(caps).amin()


def weighted_quantile(margins: Tensor, sizes: Tensor, excess: Tensor, slack: Tensor) -> Tensor:
    """A value up to which as many units lie, smallest first, as come to no more than `excess` entries; 0-dim.

    margins, sizes (int64): [units]; excess: 0-dim int64. Halfway to the next margin, so that rounding decides nothing;
    just below all margins where nothing fits, or where more than that is at -inf already.
    """
    ordered, order = margins.sort()
    fitting = torch.searchsorted(sizes[order].cumsum(0), excess.view(1), right=True)
    edge = ordered.new_full((1,), torch.inf)
    padded = torch.cat([-edge, ordered, edge])
    lower, upper = padded[fitting][0], padded[fitting + 1][0]
    above = lower + 1e-6 * lower.abs() + slack + 1e-12
    value = torch.where(upper == torch.inf, above, (lower + upper) / 2)
    return torch.where(lower == -torch.inf, _just_below(margins, slack), value)


# ---- both ------------------------------------------------------------------------------------------------------------


def _capped(parts: Sequence[Tensor], caps: Sequence[Tensor], amount: Tensor) -> list[Tensor]:
    """Margins with those of capped layers moved out of the way: they are decided by the cap."""
    return [
        torch.where(c < amount, torch.where(p > c, torch.inf, -torch.inf).to(p.dtype), p)
        for p, c in zip(parts, (c.to(amount.device) for c in caps))
    ]


def _may_hold(condition: Tensor) -> bool:
    """Whether a condition (0-dim) can hold: what it says on a CPU, True where asking would wait for the device."""
    return bool(condition) if condition.is_cpu and not torch.compiler.is_compiling() else True


def _below_all(least: Tensor, highest: Tensor) -> Tensor:
    """A shift that leaves every margin above 0. least: of the margins; highest: of the thresholds' magnitudes."""
    return least - 1e-6 * (least.abs() + highest) - 1e-12


def _lower(weights: Sequence[MaskedWeight], amounts: Sequence[Tensor]) -> None:
    """Lower all thresholds by a common amount, if need be, until every weight lies above."""
    device = weights[0].param.device
    amount = torch.stack([a.to(device) for a in amounts]).amin().clamp_max_(0)
    for w in weights:
        threshold_of(w).add_(torch.nan_to_num(amount, nan=0.0, neginf=0.0).to(w.param.device))


def _just_below(margins: Tensor, slack: Tensor) -> Tensor:
    least = torch.where(margins == -torch.inf, torch.inf, margins).amin()
    return least - 1e-6 * least.abs() - slack - 1e-12


def _slack(weights: Sequence[MaskedWeight]) -> Tensor:
    """What rounding can do to a margin, absolute."""
    device = weights[0].param.device
    return 1e-6 * torch.stack([threshold_of(w).abs().amax().to(device) for w in weights]).amax()


def _add(weight: MaskedWeight, shift: Tensor) -> None:
    threshold_of(weight).add_(torch.nan_to_num(shift, nan=0.0, posinf=0.0, neginf=0.0))


def threshold_of(weight: MaskedWeight) -> Tensor:
    """[filters]. Every weight of this method has thresholds."""
    assert weight.threshold is not None
    return weight.threshold

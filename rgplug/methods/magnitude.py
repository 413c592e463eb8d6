"""Masks by magnitude: one-shot pruning, and the rounds of iterative magnitude pruning. Pure functions on tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def keep_largest(scores: Sequence[Tensor], count: int, sizes: Sequence[Tensor] | None = None) -> list[Tensor]:
    """bool masks that keep the `count` largest scores over all tensors together, of each tensor at least the largest.

    One-shot magnitude pruning with scores |theta|: `uniform` where it is called with one tensor, `global` with all of
    a network (STU-GAN, Sec. 4.1: PF-uniform, PF-global). No tensor is emptied: a layer without a weight has sigma 0
    under spectral norm. Of equal scores it is not said which are kept.

    sizes: entries of each unit, where scores are those of larger units; then units are kept, best first, until `count`
    entries are.
    """
    raised = [score.flatten().clone() for score in scores]
    for flat in raised:
        flat[flat.argmax()] = torch.inf
    if sizes is None:
        return [mask.view(s.shape) for mask, s in zip(_largest(raised, max(count, len(raised))), scores)]
    found = _largest(raised, count, sizes)
    return [(mask | flat.isposinf()).view(s.shape) for mask, flat, s in zip(found, raised, scores)]


def _largest(scores: Sequence[Tensor], count: int, sizes: Sequence[Tensor] | None = None) -> list[Tensor]:
    flat = torch.cat([s.reshape(-1) for s in scores])
    mask = torch.zeros(flat.numel(), dtype=torch.bool, device=flat.device)
    if sizes is None:
        mask[flat.topk(count).indices] = True
    else:
        order = flat.argsort(descending=True, stable=True)
        own = torch.cat([n.reshape(-1) for n in sizes])[order]
        mask[order] = own.cumsum(0) - own < count
    return [part.view(s.shape) for part, s in zip(mask.split([s.numel() for s in scores]), scores)]


def prune_remaining(
    scores: Sequence[Tensor], masks: Sequence[Tensor], ratio: float, sizes: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """bool masks after one round of iterative magnitude pruning: of the n weights that `masks` keep, round(ratio n),
    those of the smallest magnitude over all tensors together, go (GAN tickets: X. Chen et al. 2021, Algorithm 1).

    scores: theta, or scores of units; sizes: as in `keep_largest`.
    """
    remaining = kept_entries(masks, sizes)
    ranked = [score.abs().masked_fill(~mask.to(score.device), -1) for score, mask in zip(scores, masks)]
    return keep_largest(ranked, remaining - round(ratio * remaining), sizes)


def add_largest(
    scores: Sequence[Tensor], masks: Sequence[Tensor], count: int, sizes: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """`masks` and the `count` entries outside of them with the largest scores (>= 0), over all tensors together."""
    free = [s.masked_fill(m, -1) for s, m in zip(scores, masks)]
    return [m | new for m, new in zip(masks, _largest(free, count, sizes))]


def drop_smallest(
    scores: Sequence[Tensor], masks: Sequence[Tensor], count: int, sizes: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """`masks` without their `count` smallest magnitudes over all tensors together; each keeps its largest weight."""
    ranked = [score.abs().masked_fill(~m, -1) for score, m in zip(scores, masks)]
    return keep_largest(ranked, kept_entries(masks, sizes) - count, sizes)


def kept_entries(masks: Sequence[Tensor], sizes: Sequence[Tensor] | None) -> int:
    """Entries that the masks keep."""
    if sizes is None:
        return sum(int(torch.count_nonzero(m)) for m in masks)
    return sum(int((n * m).sum()) for n, m in zip(sizes, masks))

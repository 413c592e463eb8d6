"""Masks by magnitude: one-shot pruning, and the rounds of iterative magnitude pruning. Pure functions on tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def keep_largest(scores: Sequence[Tensor], count: int) -> list[Tensor]:
    """bool masks that keep the `count` largest scores over all tensors together, of each tensor at least the largest.

    One-shot magnitude pruning with scores |theta|: `uniform` where it is called with one tensor, `global` with all of
    a network (STU-GAN, Sec. 4.1: PF-uniform, PF-global). No tensor is emptied: a layer without a weight has sigma 0
    under spectral norm. Of equal scores it is not said which are kept.
    """
    raised = [score.flatten().clone() for score in scores]
    for flat in raised:
        flat[flat.argmax()] = torch.inf
    return [mask.view(s.shape) for mask, s in zip(_largest(raised, max(count, len(raised))), scores)]


def _largest(scores: Sequence[Tensor], count: int) -> list[Tensor]:
    flat = torch.cat([s.reshape(-1) for s in scores])
    mask = torch.zeros(flat.numel(), dtype=torch.bool, device=flat.device)
    mask[flat.topk(count).indices] = True
    return [part.view(s.shape) for part, s in zip(mask.split([s.numel() for s in scores]), scores)]


def prune_remaining(thetas: Sequence[Tensor], masks: Sequence[Tensor], ratio: float) -> list[Tensor]:
    """bool masks after one round of iterative magnitude pruning: of the n weights that `masks` keep, round(ratio n),
    those of the smallest magnitude over all tensors together, go (GAN tickets: X. Chen et al. 2021, Algorithm 1)."""
    remaining = sum(int(torch.count_nonzero(m)) for m in masks)
    sizes = [theta.abs().masked_fill(~mask.to(theta.device), -1) for theta, mask in zip(thetas, masks)]
    return keep_largest(sizes, remaining - round(ratio * remaining))


def add_largest(scores: Sequence[Tensor], masks: Sequence[Tensor], count: int) -> list[Tensor]:
    """`masks` and the `count` entries outside of them with the largest scores (>= 0), over all tensors together."""
    free = [s.masked_fill(m, -1) for s, m in zip(scores, masks)]
    return [m | new for m, new in zip(masks, _largest(free, count))]


def drop_smallest(thetas: Sequence[Tensor], masks: Sequence[Tensor], count: int) -> list[Tensor]:
    """`masks` without their `count` smallest magnitudes over all tensors together; each keeps its largest weight."""
    active = sum(int(torch.count_nonzero(m)) for m in masks)
    return keep_largest([t.abs().masked_fill(~m, -1) for t, m in zip(thetas, masks)], active - count)

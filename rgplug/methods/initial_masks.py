"""Masks that training begins with: at random, by magnitude, from a file; shared out to layers, or ranked over all."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from rgplug.errors import RgplugError
from rgplug.masking import MaskedWeight
from rgplug.methods.allocation import block_density, exact_counts, layer_densities, unit_count
from rgplug.methods.magnitude import keep_largest
from rgplug.methods.two_of_four import two_of_four
from rgplug.policy import MaskPolicy
from rgplug.snapshot import load_masks
from rgplug.units import Filters, Fours, Units, spared


def initial_masks(
    policy: MaskPolicy,
    network: str,
    density: float,
    weights: list[MaskedWeight],
    units: Units,
    random: Mapping[str, torch.Generator],
) -> dict[str, Tensor]:
    """weight name -> bool mask. random: a generator for each weight; a block of several uses its first one's.

    Raises RgplugError for a density that leaves a layer nothing, and for a file of other weights or units.
    """
    if policy.file is not None:
        return _from_file(policy.file, network, weights, units)
    if policy.criterion == "magnitude":
        scores = [b.scores({w.name: w.theta.abs() for w in units.weights_of(b)}) for b in units.blocks]
    else:
        scores = [torch.rand(b.shape, generator=random[b.names[0]]) for b in units.blocks]
    found: dict[str, Tensor] = {}
    for block, kept, score in zip(units.blocks, _chosen(policy, network, density, weights, units, scores), scores):
        found |= block.masks(spared(block, kept, score))
    return found


def _chosen(
    policy: MaskPolicy, network: str, density: float, weights: list[MaskedWeight], units: Units, scores: list[Tensor]
) -> list[Tensor]:
    """The units that are kept, block by block."""
    if units.granularity == "2:4":
        return [two_of_four(score) for score in scores]
    if policy.distribution == "global":
        sizes = [b.sizes(s.device) for b, s in zip(units.blocks, scores)] if units.coarse else None
        return keep_largest(scores, round(density * sum(w.numel for w in weights)), sizes)
    names, shapes = [w.name for w in weights], [tuple(w.param.shape) for w in weights]
    shares = dict(zip(names, layer_densities(shapes, density, policy.distribution)))
    sizes_of = {w.name: w.numel for w in weights}
    densities = [block_density([shares[n] for n in b.names], [sizes_of[n] for n in b.names]) for b in units.blocks]
    if policy.criterion == "random" and policy.sampling == "bernoulli":
        drawn = [score < d for score, d in zip(scores, densities)]
        return [_never_empty(kept, score) for kept, score in zip(drawn, scores)] if units.coarse else drawn
    if units.coarse:
        counts = [unit_count(math.prod(b.shape), d) for b, d in zip(units.blocks, densities)]
    else:
        counts = exact_counts(shapes, densities, [f"{network}.{name}" for name in names])
    return [keep_largest([score], n)[0] for score, n in zip(scores, counts)]


def _never_empty(kept: Tensor, score: Tensor) -> Tensor:
    """A block of few units, each drawn by itself, keeps at least the one that came nearest."""
    return kept | ((score == score.amin()) & ~kept.any())


def _from_file(path: str, network: str, weights: list[MaskedWeight], units: Units) -> dict[str, Tensor]:
    shapes = {w.name: tuple(w.param.shape) for w in weights}
    undecided = {w.name for w in weights if w.waits or (w.fresh and w.steps == 0 and len(weights) == 1)}
    found = dict(zip(shapes, load_masks(path, network, shapes, units.known, undecided)))
    dense = all(bool(mask.all()) for mask in found.values())  # a file without this network
    wrong = "" if dense or units.granularity == "weight" else units.hold(found)
    if wrong:
        raise RgplugError(
            f"{path}: the mask of {network}.{wrong} is not one of granularity {units.granularity}; make the masks "
            "under the same granularity, or set the one that they were made with"
        )
    theta = {w.name: w.theta.abs() for w in weights}
    for block in units.blocks:
        if not isinstance(block, Filters | Fours) and block.norm_dims is not None:
            found |= block.masks(spared(block, block.kept(found), block.scores(theta)))
    return found

"""Masks that training begins with: at random, by magnitude, by a criterion of torch-pruning, from a file; shared out to
layers, or ranked over all."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from rgplug.channels.trace import plain_name
from rgplug.criteria import Criterion, criterion_of
from rgplug.errors import RgplugError
from rgplug.importance import Values, filter_scores, ranked
from rgplug.masking import MaskedWeight
from rgplug.methods.allocation import block_density, exact_counts, layer_densities, unit_count
from rgplug.methods.magnitude import keep_largest
from rgplug.methods.small_network import small_network
from rgplug.methods.two_of_four import two_of_four
from rgplug.policy import MaskPolicy
from rgplug.snapshot import load_masks
from rgplug.units import Filters, Fours, Units, spared
from rgplug.warn import warn


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
    criterion = criterion_of(policy.criterion)
    if criterion is not None and density < 1:
        scores = _by_torch_pruning(criterion, network, weights, units, policy.seed)
    elif policy.criterion == "magnitude":
        scores = [b.scores({w.name: w.theta.abs() for w in units.weights_of(b)}) for b in units.blocks]
    else:
        scores = [torch.rand(b.shape, generator=random[b.names[0]]) for b in units.blocks]
    if policy.channels and units.granularity == "filter":
        return small_network(units, scores, density)
    found: dict[str, Tensor] = {}
    for block, kept, score in zip(units.blocks, _chosen(policy, network, density, weights, units, scores), scores):
        found |= block.masks(spared(block, kept, score))
    return found


def _by_torch_pruning(
    criterion: Criterion, network: str, weights: list[MaskedWeight], units: Units, seed: int
) -> list[Tensor]:
    """Scores of the filters from the dense weights, and from the gradients that the training script has put there."""
    assert units.coupling is not None
    theta = {plain_name(w.name): w.theta for w in weights}
    params = units.coupling.params
    values = {name: Values(theta.get(name, param.detach()), param.grad) for name, param in params.items()}
    scores = filter_scores(criterion, units, values, network, seed)
    without = [name for block, score in zip(units.blocks, scores) if score is None for name in block.names]
    if without:
        warn(
            f"the criterion {criterion} has no score for {network}.{without[0]} and {len(without) - 1} more weights of "
            f"{network}: their filters are all kept"
        )
    return ranked(scores, units, weights[0].param.device)


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
        # what a criterion has no score for is kept
        counts = [s.numel() if bool(s.isposinf().all()) else n for n, s in zip(counts, scores)]
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

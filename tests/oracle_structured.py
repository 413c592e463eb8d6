"""Masks that keep or prune units instead of single weights: an oracle in numpy, from the formulas.

Units, parts and blocks are those of oracle_units.py. Readings where the formulas leave a choice:

- what holds "per layer" without ties (counts, quantiles, exchanges) holds per block, in units, with ties;
- "kept until n entries are kept": the unit that reaches or passes n is kept too;
- the best unit of each block is kept first, and counts towards n;
- at 2:4, as many groups exchange as active *weights* are to be dropped (at most all groups);
- equal scores: the earlier unit (order of the weights, then flat index) counts as the larger.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from oracle_training import TOLERANCE, Arrays, largest
from oracle_units import Layout, Units, fours, from_fours, part_means, unit_scores

# --- learned thresholds, one per output filter ---------------------------------------------------------------------


def surrogate(x: np.ndarray) -> np.ndarray:
    """H'(x) = 2 - 4|x| up to 0.4, 0.4 up to 1, 0 beyond (Xu & Cheung 2020)."""
    size = np.abs(x)
    return np.where(size <= 0.4, 2 - 4 * size, np.where(size <= 1, 0.4, 0.0))


def margins(theta: Arrays, thresholds: Arrays, scales: Mapping[str, float], units: Units) -> np.ndarray:
    """[units] mean over the parts of (mean |theta| / scale of the layer - t of the filter); kept where it is > 0."""
    parts = {}
    for name, part in units.part.items():
        parts[name] = part_means(theta[name], part) / scales[name] - thresholds[name][units.filter[name]]
    return units.gather(parts) / units.members


def part_products(grads: Arrays, theta: Arrays, units: Units) -> Arrays:
    """name -> [parts] sum_j A_j theta_j, with A = dL / d(theta * M)."""
    return {n: np.bincount(part.ravel(), (grads[n] * theta[n]).ravel()) for n, part in units.part.items()}


def threshold_gradient(
    grads: Arrays, theta: Arrays, thresholds: Arrays, scales: Mapping[str, float], units: Units
) -> Arrays:
    """name -> [filters] gradient of the loss, without the regularizer.

    dL/dt_i = - sum over the units u that have a part in filter i of H'(margin_u) / n_u * sum_{j in u} A_j theta_j,
    with n_u the number of parts of u. Kernels: n_u = 1. Filters: one unit, and the sum is over all member filters.
    """
    by_unit = units.gather(part_products(grads, theta, units))
    slope = surrogate(margins(theta, thresholds, scales, units)) / units.members
    found = {}
    for name, ids in units.unit.items():
        found[name] = -np.bincount(units.filter[name], (slope * by_unit)[ids], minlength=len(thresholds[name]))
    return found


def full_weight_gradient(
    grads: Arrays, masks: Arrays, theta: Arrays, thresholds: Arrays, scales: Mapping[str, float], units: Units
) -> Arrays:
    """(A_j M + (sum_{k in kernel} A_k theta_k) H' sign(theta_j) / (n_kernel scale)) * M, units of one part each."""
    if (units.members != 1).any():
        raise ValueError("the full weight gradient is defined for units of one part")
    products, slope = part_products(grads, theta, units), surrogate(margins(theta, thresholds, scales, units))
    found = {}
    for name, part in units.part.items():
        per_part = products[name] * slope[units.unit[name]] / (np.bincount(part.ravel()) * scales[name])
        found[name] = (grads[name] * masks[name] + per_part[part] * np.sign(theta[name])) * masks[name]
    return found


# --- methods that rank units ---------------------------------------------------------------------------------------


def keep_from_quantile(theta: Arrays, sparsity: float, units: Units) -> Arrays:
    """Re-GAN: in each block, units of a score below the `sparsity` quantile (strictly; linear) are pruned."""
    scores, blocks = unit_scores(theta, units), units.blocks
    levels = {b: np.quantile(scores[blocks == b], sparsity) for b in np.unique(blocks)}
    return units.expand(scores >= np.array([levels[b] for b in blocks]))


def keep_share(theta: Arrays, densities: Mapping[str, float], units: Units) -> Arrays:
    """In each block the round(d * units) best units, at least one; d: mean of the layers' densities, by their size."""
    scores, blocks = unit_scores(theta, units), units.blocks
    keep = np.zeros(units.count, dtype=bool)
    for b in np.unique(blocks):
        layers = [name for name, ids in units.unit.items() if blocks[ids[0]] == b]
        density = np.average([densities[n] for n in layers], weights=[theta[n].size for n in layers])
        keep |= largest(scores, blocks == b, max(1, round(density * int((blocks == b).sum()))))
    return units.expand(keep)


def keep_entries(scores: np.ndarray, among: np.ndarray, entries: int, units: Units) -> np.ndarray:
    """[units] the best units of `among` over the whole network, until `entries` entries are kept."""
    blocks, sizes, keep = units.blocks, units.sizes, np.zeros(units.count, dtype=bool)
    for b in np.unique(blocks):
        keep |= largest(scores, among & (blocks == b), 1)
    kept = sizes[keep].sum()
    for u in np.argsort(-scores, kind="stable"):
        if among[u] and not keep[u] and kept < entries:
            keep[u] = True
            kept += sizes[u]
    return keep


def keep_global(theta: Arrays, density: float, units: Units) -> Arrays:
    """Units of the largest scores over the network, until round(density * entries) entries are kept."""
    everything = np.ones(units.count, dtype=bool)
    entries = round(density * int(units.sizes.sum()))
    return units.expand(keep_entries(unit_scores(theta, units), everything, entries, units))


def prune_remaining(theta: Arrays, masks: Arrays, ratio: float, units: Units) -> Arrays:
    """A round of tickets: of the n entries that remain, all but round(ratio * n) are kept, in units."""
    active = units.collapse(masks)
    n = int(units.sizes[active].sum())
    return units.expand(keep_entries(unit_scores(theta, units), active, n - round(ratio * n), units))


def explore(theta: Arrays, masks: Arrays, grads: Arrays, share: float, units: Units) -> Arrays:
    """SET, RigL, STU-GAN: each block drops its ceil(share * active) smallest active units, and grows as many of the
    then inactive ones (the dropped may come back) of the largest gradients."""
    scores, growth = unit_scores(theta, units), unit_scores(grads, units)
    active, blocks = units.collapse(masks), units.blocks
    keep = np.zeros(units.count, dtype=bool)
    for b in np.unique(blocks):
        here = active & (blocks == b)
        drop = math.ceil(share * int(here.sum()) - TOLERANCE)
        kept = largest(scores, here, int(here.sum()) - drop)
        keep |= kept | largest(growth, (blocks == b) & ~kept, drop)
    return units.expand(keep)


# --- 2:4 -----------------------------------------------------------------------------------------------------------


def two_of_four(values: np.ndarray, layout: Layout) -> np.ndarray:
    """Mask of the two largest |values| of each four; of equal ones the lower index."""
    order = np.argsort(-np.abs(fours(values, layout)), axis=-1, kind="stable")
    return from_fours(np.argsort(order, axis=-1) < 2, layout)


def explore_fours(theta: np.ndarray, mask: np.ndarray, grads: np.ndarray, share: float, layout: Layout) -> np.ndarray:
    """In the ceil(share * active) groups whose weaker active weight is smallest, that weight makes room for the one of
    the largest |gradient| among the three that are then not kept (itself included)."""
    size, growth = np.abs(fours(theta, layout)), np.abs(fours(grads, layout))
    kept = fours(mask, layout).copy()
    shape = kept.shape
    size, growth, kept = size.reshape(-1, 4), growth.reshape(-1, 4), kept.reshape(-1, 4)
    weaker = np.array([max(np.flatnonzero(k), key=lambda i, s=s: (-s[i], i)) for s, k in zip(size, kept)])
    drop = math.ceil(share * int(kept.sum()) - TOLERANCE)
    for g in np.argsort(size[np.arange(len(size)), weaker], kind="stable")[:drop]:
        kept[g, weaker[g]] = False
        free = np.flatnonzero(~kept[g])
        kept[g, free[np.argmax(growth[g, free])]] = True
    return from_fours(kept.reshape(shape), layout)

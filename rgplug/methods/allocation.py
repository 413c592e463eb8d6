"""How a network's density is shared out to its layers, before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from rgplug.errors import RgplugError

Distribution = Literal["uniform", "er", "erk", "global"]
Shape = tuple[int, ...]


def layer_densities(shapes: Sequence[Shape], density: float, distribution: Distribution) -> list[float]:
    """Density of each layer, so that all together keep the share `density` of their entries.

    uniform: the same for all. er: proportional to (n_in + n_out) / (n_in n_out) (Erdos-Renyi; SET, Mocanu et al. 2018).
    erk: proportional to sum(shape) / prod(shape) (Erdos-Renyi-Kernel; RigL, Evci et al. 2020). Where that asks for more
    than 1, the layers that ask for most are made dense and the rest is shared out anew, until none does. global: the
    average; what each layer gets is decided over all of them.
    """
    if not 0 < density <= 1:
        raise RgplugError(f"density {density} has to lie between 0 (exclusive) and 1")
    if distribution in ("uniform", "global") or density == 1:
        return [density] * len(shapes)
    sizes = [math.prod(shape) for shape in shapes]
    raw = [_weight(shape, distribution) for shape in shapes]
    dense: set[int] = set()
    while len(dense) < len(shapes):
        rest = [i for i in range(len(shapes)) if i not in dense]
        wanted = density * sum(sizes[i] for i in rest) - (1 - density) * sum(sizes[i] for i in dense)
        factor = wanted / sum(raw[i] * sizes[i] for i in rest)
        largest = max(raw[i] for i in rest)
        if largest * factor <= 1:
            return [1.0 if i in dense else factor * raw[i] for i in range(len(shapes))]
        dense |= {i for i in rest if raw[i] == largest}
    return [1.0] * len(shapes)


def _weight(shape: Shape, distribution: Distribution) -> float:
    of = shape if distribution == "erk" else shape[:2]
    return sum(of) / math.prod(of)


def exact_counts(shapes: Sequence[Shape], densities: Sequence[float], names: Sequence[str]) -> list[int]:
    """Entries that each layer keeps: rounded, and in all as many as the densities ask for, to the last one.

    What rounding loses or gains goes to the layers whose rounding was furthest off. Raises RgplugError where a layer
    would keep none.
    """
    sizes = [math.prod(shape) for shape in shapes]
    exact = [d * n for d, n in zip(densities, sizes)]
    counts = [min(math.floor(x + 1e-9), n) for x, n in zip(exact, sizes)]
    missing = round(sum(exact)) - sum(counts)
    for i in sorted(range(len(shapes)), key=lambda i: counts[i] - exact[i])[: max(missing, 0)]:
        counts[i] = min(counts[i] + 1, sizes[i])
    for name, count, size, d in zip(names, counts, sizes, densities):
        if count < 1:
            raise RgplugError(
                f"a density of {d:.2g} leaves {name} none of its {size} weights; ask for a higher density, exclude "
                "small layers, or share it out uniformly (masks: {distribution: uniform})"
            )
    return counts


def block_density(densities: Sequence[float], sizes: Sequence[int]) -> float:
    """Density of layers that are decided together: the mean of theirs, weighted by their sizes in entries."""
    return densities[0] if len(densities) == 1 else sum(d * n for d, n in zip(densities, sizes)) / sum(sizes)


def unit_count(units: int, density: float) -> int:
    """Units larger than an entry that a layer (or block of layers) of so many keeps: rounded, and at least one."""
    return max(round(density * units), 1)

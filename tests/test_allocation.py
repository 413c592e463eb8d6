"""Densities by layer, against published values and by hand."""

from __future__ import annotations

import math

import pytest

from rgplug.errors import RgplugError
from rgplug.methods.allocation import exact_counts, layer_densities

# the convolutions of SNGAN's 32x32 generator: three up-blocks with a shortcut each, and the last one
G = [(256, 256, 3, 3), (256, 256, 3, 3), (256, 256, 1, 1)] * 3 + [(3, 256, 3, 3)]


def share(shapes: list[tuple[int, ...]], densities: list[float]) -> float:
    sizes = [math.prod(s) for s in shapes]
    return sum(d * n for d, n in zip(densities, sizes)) / sum(sizes)


@pytest.mark.parametrize(
    ("density", "kernel3", "shortcut"), [(0.05, 0.034, 0.305), (0.10, 0.070, 0.617), (0.20, 0.154, 1.0)]
)
def test_erk_of_sngans_generator(density: float, kernel3: float, shortcut: float) -> None:
    """The densities that STU-GAN's own code drew (each weight by itself: within the error of such a sample)."""
    found = layer_densities(G, density, "erk")
    assert found[0] == pytest.approx(kernel3, abs=4e-3)
    assert found[2] == pytest.approx(shortcut, abs=4e-3)
    assert found[-1] == 1
    assert share(G, found) == pytest.approx(density, rel=1e-12)


def test_er_and_erk_by_hand() -> None:
    shapes = [(4, 6), (10, 20, 3, 3)]
    # er: 10/24 and 30/200; erk: 10/24 and 36/1800
    er, erk = layer_densities(shapes, 0.1, "er"), layer_densities(shapes, 0.1, "erk")
    factor = 0.1 * 1824 / (10 + 0.15 * 1800)
    assert er == pytest.approx([factor * 10 / 24, factor * 0.15])
    # erk's factor would be 182.4 / 46 = 3.97 and ask 1.65 of the first layer: it is dense, the second has the rest
    assert erk == pytest.approx([1.0, (182.4 - 24) / 1800])
    assert layer_densities(shapes, 0.1, "uniform") == [0.1, 0.1]
    assert layer_densities(shapes, 1.0, "erk") == [1.0, 1.0]


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1])
def test_densities_that_are_none(density: float) -> None:
    with pytest.raises(RgplugError, match="has to lie between 0"):
        layer_densities([(3, 3)], density, "erk")


def test_counts_add_up_to_the_last_weight() -> None:
    names = [str(i) for i in range(len(G))]
    for density in (0.05, 0.1, 0.2, 0.3333):
        densities = layer_densities(G, density, "erk")
        counts = exact_counts(G, densities, names)
        assert sum(counts) == round(density * sum(math.prod(s) for s in G))
        assert all(abs(c - d * math.prod(s)) <= 1 for c, d, s in zip(counts, densities, G))


def test_a_layer_that_would_be_empty() -> None:
    shapes = [(3, 4), (100, 100)]
    with pytest.raises(RgplugError, match=r"leaves small none of its 12 weights.*uniform"):
        exact_counts(shapes, [0.01, 0.01], ["small", "large"])

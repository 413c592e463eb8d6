"""The oracles of structured masks, on arrays small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle import Step
from oracle_structured import (
    explore,
    explore_fours,
    full_weight_gradient,
    keep_from_quantile,
    keep_global,
    keep_share,
    margins,
    prune_remaining,
    surrogate,
    threshold_gradient,
    two_of_four,
)
from oracle_units import Layout, fours, from_fours, make_units
from test_oracle_units import CONV, MODULATED, TIED, TIED_VALUES, TRANSPOSED, units_of
from two_weights import bits, same

# --- learned thresholds --------------------------------------------------------------------------------------------


def test_surrogate():
    x = np.array([-1.2, -1.0, -0.7, -0.3, 0.0, 0.1, 0.4, 0.5, 1.1])
    np.testing.assert_allclose(surrogate(x), [0, 0.4, 0.4, 0.8, 2, 1.6, 0.4, 0.4, 0])


KERNEL = {"a": np.array([[[0.5, -0.3], [0.1, 0.1]]])}  # one filter, kernels of mean .4 and .1
KERNEL_A = {"a": np.array([[[1.0, 2.0], [3.0, -1.0]]])}  # sums of A theta: -.1 and .2


@pytest.mark.parametrize(
    ("scale", "margin", "moved", "full"),
    [
        (1.0, [0.2, -0.1], 1.2 * 0.1 - 1.6 * 0.2, [0.94, 2.06]),  # H' 1.2 and 1.6; -.1 * 1.2 / 2 = -.06
        (0.5, [0.6, 0.0], 0.4 * 0.1 - 2 * 0.2, [0.96, 2.04]),  # a margin of 0 is pruned; -.1 * .4 / (2 * .5) = -.04
        (2.0, [0.0, -0.15], 2 * 0.1 - 1.4 * 0.2, [0, 0]),
    ],
)
def test_kernels_by_hand(scale, margin, moved, full):
    units = units_of("kernel", a=(1, 2, 2))
    at = (KERNEL, {"a": np.array([0.2])}, {"a": scale}, units)
    np.testing.assert_allclose(margins(*at), margin, atol=1e-15)
    np.testing.assert_allclose(threshold_gradient(KERNEL_A, *at)["a"], [moved])
    masks = units.expand(np.array(margin) > 0)
    np.testing.assert_allclose(full_weight_gradient(KERNEL_A, masks, *at)["a"], [[full, [0, 0]]])


def test_ties_across_two_layers_by_hand():
    """Units (a0, b1) and (a1, b0). Means: a .4 and .1; b, in units of 3, .1 and .3.

    margins ((.4 - .1) + (.3 - .2)) / 2 = .2 and ((.1 - .2) + (.1 - .6)) / 2 = -.3, so H' = 1.2 and .8
    sums of A theta: a0 .2, a1 .7, b0 1.5, b1 .9; of the units 1.1 and 2.2
    """
    units = units_of("filter", {"a": np.array([5, 6]), "b": np.array([6, 5])}, a=(2, 2), b=(2, 1))
    theta = {"a": np.array([[0.6, -0.2], [0.1, 0.1]]), "b": np.array([[0.3], [-0.9]])}
    thresholds = {"a": np.array([0.1, 0.2]), "b": np.array([0.6, 0.2])}
    at = (theta, thresholds, {"a": 1.0, "b": 3.0}, units)
    np.testing.assert_allclose(margins(*at), [0.2, -0.3])
    found = threshold_gradient({"a": np.array([[1.0, 2.0], [3.0, 4.0]]), "b": np.array([[5.0], [-1.0]])}, *at)
    np.testing.assert_allclose(found["a"], [-1.2 / 2 * 1.1, -0.8 / 2 * 2.2])
    np.testing.assert_allclose(found["b"], [-0.8 / 2 * 2.2, -1.2 / 2 * 1.1])
    with pytest.raises(ValueError, match="units of one part"):
        full_weight_gradient(theta, units.expand(margins(*at) > 0), *at)


def test_one_filter_alone_is_the_plain_form():
    """H'(margin) / 1 * sum A theta: means .25 and .35 against .1 and .4, H' 1.4 and 1.8."""
    units = units_of("filter", a=(2, 2))
    theta, grads = {"a": np.array([[0.2, 0.3], [-0.5, 0.2]])}, {"a": np.array([[1.0, 1.0], [2.0, 5.0]])}
    found = threshold_gradient(grads, theta, {"a": np.array([0.1, 0.4])}, {"a": 1.0}, units)
    np.testing.assert_allclose(found["a"], [-1.4 * 0.5, 0.0], atol=1e-12)


@pytest.mark.parametrize("granularity", ["weight", "kernel", "filter"])
def test_the_formulas_are_what_autograd_finds(granularity):
    """The mask in the graph, as a step of the unit's margin with the surrogate's slope."""
    rng = np.random.default_rng(0)
    shapes, layouts = {"a": (4, 2, 3), "b": (4, 3)}, {"a": Layout(1, 0, 2), "b": CONV}
    ties = {"a": np.array([0, 1, 2, 2]), "b": np.array([3, 1, 2, 3])} if granularity == "filter" else None
    units = make_units(shapes, layouts, granularity, ties)
    theta, scales = {n: rng.normal(size=s) for n, s in shapes.items()}, {"a": 2.0, "b": 0.7}
    grads, t = {n: rng.normal(size=s) for n, s in shapes.items()}, {n: rng.normal(size=4) for n in shapes}
    leaves = {n: torch.tensor(v, requires_grad=True) for n, v in theta.items()}
    thresholds = {n: torch.tensor(v, requires_grad=True) for n, v in t.items()}
    margin = torch.zeros(units.count, dtype=torch.float64)
    for n, part in units.part.items():
        for p, u in enumerate(units.unit[n]):
            mean = leaves[n][torch.tensor(part == p)].abs().mean() / scales[n]
            margin = margin.index_add(0, torch.tensor([u]), (mean - thresholds[n][units.filter[n][p]])[None])
    margin = margin / torch.tensor(units.members)
    np.testing.assert_allclose(margins(theta, t, scales, units), margin.detach(), atol=1e-14)
    keep = Step.apply(margin, margin > 0)
    loss = sum((torch.tensor(grads[n]) * leaves[n] * keep[torch.tensor(units.unit[n][units.part[n]])]).sum() for n in t)
    loss.backward()
    for n, found in threshold_gradient(grads, theta, t, scales, units).items():
        np.testing.assert_allclose(found, thresholds[n].grad, atol=1e-12)
    if granularity != "filter":
        masks = units.expand(margin.detach().numpy() > 0)
        for n, found in full_weight_gradient(grads, masks, theta, t, scales, units).items():
            np.testing.assert_allclose(found, leaves[n].grad.numpy() * masks[n], atol=1e-12)


# --- ranking -------------------------------------------------------------------------------------------------------


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)[:, None]


def test_quantile_is_strict_and_per_block():
    units = units_of("filter", a=(3, 1), b=(4, 1))
    theta = {"a": column(1, -2, 3), "b": column(0.1, 0.1, 0.1, 0.4)}
    # a: the median is 2 and stays. b: the median is .1, and three lie on it
    same(keep_from_quantile(theta, 0.5, units), {"a": bits([0], [1], [1]), "b": bits([1], [1], [1], [1])})
    same(keep_from_quantile(theta, 0.9, units), {"a": bits([0], [0], [1]), "b": bits([0], [0], [0], [1])})


def test_quantile_of_tied_filters():
    """Units 1.25 and 2.5 whatever the layers alone would say: a0 is the larger one in a."""
    same(keep_from_quantile(TIED_VALUES, 0.5, TIED), {"a": bits([0, 0], [1, 1]), "b": bits([1] * 4, [0] * 4)})


def test_share_per_layer_keeps_one_at_least():
    units = units_of("filter", a=(4, 1), b=(3, 1))
    theta = {"a": column(4, 1, -3, 2), "b": column(0.1, 0.3, 0.2)}
    kept = keep_share(theta, {"a": 0.5, "b": 0.1}, units)
    same(kept, {"a": bits([1], [0], [1], [0]), "b": bits([0], [1], [0])})


def test_share_of_a_block_is_the_mean_of_its_layers_by_size():
    """(4 * .3 + 8 * 1) / 12 = .77, so both of the two; (.3 + 1) / 2 would be one. (4 * 1 + 8 * .3) / 12 = .53: one."""
    same(keep_share(TIED_VALUES, {"a": 0.3, "b": 1.0}, TIED), TIED.expand(np.array([True, True])))
    kept = keep_share(TIED_VALUES, {"a": 1.0, "b": 0.3}, TIED)
    same(kept, {"a": bits([0, 0], [1, 1]), "b": bits([1] * 4, [0] * 4)})


def test_share_counts_kernels():
    units = units_of("kernel", a=(2, 2, 2))
    theta = {"a": np.array([[[1.0, 1.0], [9.0, -1.0]], [[0.0, 3.0], [2.0, -2.0]]])}  # 1, 5, 1.5, 2
    same(keep_share(theta, {"a": 0.5}, units), {"a": np.array([[[0, 0], [1, 1]], [[0, 0], [1, 1]]], dtype=bool)})


def test_global_keeps_until_enough_entries_are_kept():
    units = units_of("filter", a=(3, 1), b=(2, 4))
    theta = {"a": column(0.1, 0.9, 0.8), "b": np.array([[0.5] * 4, [0.4] * 4])}  # 11 entries
    # the best of a (1) and of b (4) first; 6 of 11: .8 makes it 6
    same(keep_global(theta, 6 / 11, units), {"a": bits([0], [1], [1]), "b": bits([1] * 4, [0] * 4)})
    # 7 of 11: 6 are too few, so the unit of four that passes 7 is kept: 10
    same(keep_global(theta, 7 / 11, units), {"a": bits([0], [1], [1]), "b": bits([1] * 4, [1] * 4)})
    # 1 of 11: each block keeps its best all the same
    same(keep_global(theta, 1 / 11, units), {"a": bits([0], [1], [0]), "b": bits([1] * 4, [0] * 4)})
    same(keep_global(theta, 1.0, units), {"a": bits([1], [1], [1]), "b": bits([1] * 4, [1] * 4)})


def test_global_gives_a_tied_block_one_best_unit():
    kept = keep_global(TIED_VALUES, 0.1, TIED)
    same(kept, {"a": bits([0, 0], [1, 1]), "b": bits([1] * 4, [0] * 4)})


def test_a_round_of_tickets_prunes_of_what_remains():
    units = units_of("kernel", a=(1, 4, 2), b=(1, 2))
    theta = {"a": np.array([[[9.0, 9], [0, 1], [0, 4], [3, 3]]]), "b": np.array([[0.2, 0.1]])}
    masks = {"a": np.array([[[0, 0], [1, 1], [1, 1], [1, 1]]], dtype=bool), "b": bits([1, 1])}
    # 8 remain, 2 go: b's best (1), 3 (3), 2 (5), and .5 passes 6; the largest .1 that is left is not needed
    left = prune_remaining(theta, masks, 0.25, units)
    same(left, {"a": np.array([[[0, 0], [1, 1], [1, 1], [1, 1]]], dtype=bool), "b": bits([1, 0])})
    # 4 go: 1 + 2 are too few, 5 are kept
    left = prune_remaining(theta, masks, 0.5, units)
    same(left, {"a": np.array([[[0, 0], [0, 0], [1, 1], [1, 1]]], dtype=bool), "b": bits([1, 0])})


def test_exchange_of_kernels():
    units = units_of("kernel", a=(1, 5, 2), b=(1, 2))
    kept = np.repeat([[1, 1, 1, 0, 0]], 2, axis=0).T[None].astype(bool)
    theta = {"a": np.array([[[5.0, 5], [0, 0.2], [1, 0], [0, 0], [0, 0]]]), "b": np.array([[9.0, 0]])}
    grads = {"a": np.array([[[99.0, 99], [0, 12], [1, 1], [2, 2], [-7, 7]]]), "b": np.array([[1.0, -2]])}
    # a: ceil(1.5) = 2 dropped, means .1 and .5; of gradients 6, 1, 2, 7 the first comes back and the last is new
    new = explore(theta, {"a": kept, "b": bits([1, 0])}, grads, 0.5, units)
    assert new["a"][0, :, 0].tolist() == new["a"][0, :, 1].tolist() == [True, True, False, False, True]
    assert new["b"].tolist() == [[False, True]]
    same(explore(theta, {"a": kept, "b": bits([1, 0])}, grads, 0.0, units), {"a": kept, "b": bits([1, 0])})


def test_exchange_of_tied_filters():
    """One of two units is active. By a's gradient alone it would come back, by both the other one grows."""
    grads = {"a": np.array([[3.0, 3.0], [1.0, 1.0]]), "b": np.array([[6.0] * 4, [2.0] * 4])}  # 2.5 and 3.5
    new = explore(TIED_VALUES, TIED.expand(np.array([True, False])), grads, 0.5, TIED)
    same(new, TIED.expand(np.array([False, True])))


# --- 2:4 -----------------------------------------------------------------------------------------------------------


def test_two_of_four_by_hand():
    values = np.array([[1.0, -4, 3, 2, 5, 5, 5, 5], [0, 0, 0, -1, 2, -2, 1, 2]])
    found = two_of_four(values, CONV)
    same({"a": found}, {"a": bits([0, 1, 1, 0, 1, 1, 0, 0], [1, 0, 0, 1, 1, 1, 0, 0])})


def test_two_of_four_goes_along_the_inputs_of_every_layout():
    rng = np.random.default_rng(0)
    shapes = [
        ((3, 8, 2), CONV, 1),
        ((8, 3, 2), TRANSPOSED, 0),
        ((8, 3), Layout(1, 0, 2), 0),
        ((1, 3, 4, 2), MODULATED, 2),
    ]
    for shape, layout, dim in shapes:
        values = rng.normal(size=shape)
        assert np.array_equal(from_fours(fours(values, layout), layout), values)
        rows = np.moveaxis(values, dim, -1).reshape(-1, 4)  # four consecutive inputs each
        kept = np.moveaxis(two_of_four(values, layout), dim, -1).reshape(-1, 4)
        for row, keep in zip(np.abs(rows), kept):
            assert keep.sum() == 2
            assert row[keep].min() > row[~keep].max()


@pytest.mark.parametrize(("shape", "layout"), [((4, 6), CONV), ((8, 4), Layout(1, 0, 4))])
def test_inputs_that_are_no_multiple_of_four(shape, layout):
    with pytest.raises(ValueError, match="no multiple of four"):
        two_of_four(np.ones(shape), layout)


def test_exchange_at_two_of_four():
    """Three groups with weaker active weights .3, .1 and .2; six active weights, of which ceil(p 6) make room."""
    theta = np.array([[3.0, 0.3, 0, 0, 0, 0.1, 0, -1, 0, 0, 5, -0.2]])
    mask = theta != 0
    grads = np.array([[0.0, 1, 3, 2, 8, 9, -7, 50, 6, 7, 70, 1]])
    # one: group 1 drops its .1, whose gradient 9 is the largest of 8, 9, 7: it comes back
    assert explore_fours(theta, mask, grads, 1 / 6, CONV).tolist() == mask.tolist()
    # two: group 2 drops -.2 (gradient 1); of 6, 7, 1 the second grows, and 70 is active already
    two = bits([1, 1, 0, 0, 0, 1, 0, 1, 0, 1, 1, 0])
    assert explore_fours(theta, mask, grads, 2 / 6, CONV).tolist() == two.tolist()
    # all three groups, and no more than these: group 0 drops .3 (gradient 1) for the 3
    three = bits([1, 0, 1, 0, 0, 1, 0, 1, 0, 1, 1, 0])
    for share in (0.5, 0.9):
        assert explore_fours(theta, mask, grads, share, CONV).tolist() == three.tolist()
    assert explore_fours(theta, mask, grads, 0.0, CONV).tolist() == mask.tolist()
    turned = explore_fours(theta.T, mask.T, grads.T, 0.5, TRANSPOSED)
    assert turned.tolist() == three.T.tolist()


def test_exchange_at_two_of_four_with_equal_weights():
    """Of two equal active weights the one of the higher index makes room."""
    theta, mask = np.array([[2.0, 2.0, 0, 0]]), bits([1, 1, 0, 0])
    new = explore_fours(theta, mask, np.array([[0.0, 0, 0, 1]]), 0.5, CONV)
    assert new.tolist() == [[True, False, False, True]]

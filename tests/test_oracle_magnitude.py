"""The oracles of PF and tickets, on arrays small enough to work out by hand."""

import numpy as np
import pytest
import torch
from oracle_magnitude import FineTune, Tickets, prune_masks, remove_smallest
from two_weights import Weights, bits, linear, same

# --- 1. one-shot pruning with fine-tuning --------------------------------------------------------------------------

TWO = {"a": np.array([[1.0, -5.0, 2.0, 0.5]]), "b": np.array([[-9.0, 8.0], [7.0, 0.1]])}


def test_uniform_masks():
    same(prune_masks(TWO, 0.5, "uniform"), {"a": bits([0, 1, 1, 0]), "b": bits([1, 1], [0, 0])})


def test_global_masks():
    same(prune_masks(TWO, 0.5, "global"), {"a": bits([0, 1, 0, 0]), "b": bits([1, 1], [1, 0])})


def test_uniform_rounds_per_weight_and_global_once():
    weights = {"a": np.array([[3.0, 2.0, 1.0]]), "b": np.array([[6.0, 5.0, 4.0]])}
    assert sum(m.sum() for m in prune_masks(weights, 0.4, "uniform").values()) == 2  # 1.2 and 1.2
    same(prune_masks(weights, 0.45, "global"), {"a": bits([0, 0, 0]), "b": bits([1, 1, 1])})  # 2.7


def test_unknown_scope():
    with pytest.raises(ValueError, match="layer"):
        prune_masks(TWO, 0.5, "layer")


def test_fine_tune_continues_the_moments_and_keeps_pruned_entries_at_zero():
    net = Weights([[1.0, -5.0]], [[0.2, 3.0]], [4.0])
    moments = {
        name: {"exp_avg": torch.full(p.shape, 0.8), "exp_avg_sq": torch.full(p.shape, 4.0), "step": torch.tensor(3.0)}
        for name, p in net.named_parameters()
    }
    tune = FineTune(net, moments, density=0.5, scope="global", lr=0.1, betas=(0.5, 0.75))
    same(tune.masks, {"a": bits([0, 1]), "b": bits([0, 1])})
    assert net.a.tolist() == [[0.0, -5.0]]
    np.testing.assert_allclose(tune.adam.m["a"], [[0.8, 0.8]])  # pruning leaves the moments alone
    tune.step(linear([[2.0, 2.0]], [[2.0, 2.0]], [2.0]))
    # pruned: 0.5 * 0.8 and 0.75 * 4; kept: 0.5 * 0.8 + 0.5 * 2 and 0.75 * 4 + 0.25 * 4
    np.testing.assert_allclose(tune.adam.m["a"], [[0.4, 1.4]])
    np.testing.assert_allclose(tune.adam.v["a"], [[3.0, 4.0]])
    # fourth step: 1.4 / (1 - 1/16) = 1.493333, 4 / (1 - 81/256) = 5.851429, root 2.418973; 0.1 * ratio = 0.0617342
    assert net.a[0, 0].item() == 0.0
    np.testing.assert_allclose(net.a[0, 1].item(), -5.0617342, atol=1e-7)
    np.testing.assert_allclose(net.bias.item(), 4 - 0.0617342, atol=1e-7)


# --- 2. tickets ----------------------------------------------------------------------------------------------------


def test_remove_smallest_is_global_and_counts_the_remaining():
    masks = {"a": bits([1, 1, 1, 0]), "b": bits([1, 1], [0, 1])}
    # six remain: 1, 5, 2 and 9, 8, 0.1; a third of them goes
    same(remove_smallest(masks, TWO, 1 / 3), {"a": bits([0, 1, 1, 0]), "b": bits([1, 1], [0, 0])})


# Two steps of +1 or -1 per round. Trained in round 1: a 3, 1, b -5, 2.5 -> the 1 goes.
DESCENT = linear([[-1.0, 1.0]], [[1.0, -1.0]], [-1.0])


def tickets(rewind, early_at=1):
    return Tickets(lambda: Weights([[1.0, 3.0]], [[-3.0, 0.5]]), 0.25, rewind, early_at, lr=1.0, betas=(0.5, 0.9))


@pytest.mark.parametrize(
    ("rewind", "a", "b", "bias"),
    [
        ("init", [[1.0, 0.0]], [[-3.0, 0.5]], [0.0]),
        ("early", [[2.0, 0.0]], [[-4.0, 1.5]], [1.0]),
        ("none", [[3.0, 0.0]], [[-5.0, 2.5]], [2.0]),
    ],
)
def test_second_round_starts_from_the_rewind_point_under_the_new_masks(rewind, a, b, bias):
    first, second = tickets(rewind).run(2, 2, [DESCENT] * 2)
    assert (first.density, second.density) == (1.0, 0.75)
    np.testing.assert_allclose(first.trained["a"], [[3.0, 1.0]], atol=1e-6)
    np.testing.assert_allclose(first.trained["b"], [[-5.0, 2.5]], atol=1e-6)
    same(first.next_masks, {"a": bits([1, 0]), "b": bits([1, 1])})
    same(second.masks, first.next_masks)
    for name, value in {"a": a, "b": b, "bias": bias}.items():
        np.testing.assert_allclose(second.start[name], value, atol=1e-6)
    assert second.trained["a"][0, 1] == 0.0
    np.testing.assert_allclose(second.trained["a"][0, 0], a[0][0] + 2, atol=1e-6)
    # 0.25 of the three that remain rounds to 1: b's second is the smallest under every rewind
    same(second.next_masks, {"a": bits([1, 0]), "b": bits([1, 0])})


def test_early_rewind_is_the_first_round_s_also_later():
    third = tickets("early").run(3, 2, [DESCENT] * 2)[2]
    np.testing.assert_allclose(third.start["a"], [[2.0, 0.0]], atol=1e-6)
    np.testing.assert_allclose(third.start["b"], [[-4.0, 0.0]], atol=1e-6)


def test_loss_fns_of_the_whole_run_are_used_in_order_and_adam_is_fresh():
    still = linear([[0.0, 0.0]], [[0.0, 0.0]])
    records = tickets("init").run(2, 2, [DESCENT, DESCENT, still, still])
    # moments of the first round would move the weights here
    np.testing.assert_array_equal(records[1].trained["b"], records[1].start["b"])
    with pytest.raises(ValueError, match="3 loss_fns"):
        tickets("init").run(2, 2, [still] * 3)


@pytest.mark.parametrize(("rewind", "early_at"), [("late", 1), ("early", 3)])
def test_impossible_rewind(rewind, early_at):
    with pytest.raises(ValueError, match=r"rewind|early_at"):
        tickets(rewind, early_at).run(1, 2, [DESCENT] * 2)

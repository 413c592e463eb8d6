"""Training of the oracles of structured masks, by hand: under constant gradients Adam moves by lr * sign."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle_structured_training import ReGan, RgGan, Sparse, Structure, tickets
from oracle_units import Layout, make_units
from torch import nn
from two_weights import bits, same


class Two(nn.Module):
    """Two weights and a bias; the output is linear in them, with the inputs as gradients."""

    def __init__(self, a, b):
        super().__init__()
        self.a, self.b, self.bias = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (a, b, [0.0]))

    def forward(self, a, b):
        return (self.a * torch.tensor(a)).sum() + (self.b * torch.tensor(b)).sum() + self.bias.sum()


def pull(a, b):
    """A loss of these gradients."""
    return lambda forward: forward(a, b)


def structure_of(net, granularity, ties=None):
    layouts = {"a": Layout(), "b": Layout()}
    if granularity == "2:4":
        return Structure(layouts, None)
    return Structure(
        layouts, make_units({n: tuple(getattr(net, n).shape) for n in layouts}, layouts, granularity, ties)
    )


A, B = [[[0.5, -0.3], [0.1, 0.1]]], [[0.9]]  # one filter each; kernels of mean .4 and .1, and .9
GRAD_A, GRAD_B = [[[1.0, 2.0], [3.0, -1.0]]], [[0.0]]
RG = {"lr": 0.1, "filters": {"a": 1, "b": 1}, "sparsity_weight": 0.1, "init": 0.2}


@pytest.mark.parametrize("weight_gradient", ["masked", "full"])
def test_a_step_of_rg_gan_over_kernels(weight_gradient):
    """dL/dt = .12 - .32 - .1 exp(-.2) < 0, so t = .3; in b, 0 - .1 exp(-.2), too."""
    net = Two(A, B)
    run = RgGan(net, structure_of(net, "kernel"), **RG, weight_gradient=weight_gradient)
    same(run.masks, {"a": np.array([[[1, 1], [0, 0]]], dtype=bool), "b": bits([1])})
    run.step(pull(GRAD_A, GRAD_B))
    np.testing.assert_allclose(run.values["a"], [[[0.4, -0.4], [0.1, 0.1]]], atol=1e-7)
    assert run.values["a"][0, 1].tolist() == [0.1, 0.1]
    np.testing.assert_allclose(run.values["bias"], [-0.1], atol=1e-7)
    np.testing.assert_allclose([run.thresholds["a"][0], run.thresholds["b"][0]], [0.3, 0.3], atol=1e-6)
    # the first moments tell the gradients' sizes: (1 - .5) of them
    expected = [1, 2] if weight_gradient == "masked" else [0.94, 2.06]
    np.testing.assert_allclose(run.adam.m["a"], [[np.array(expected) / 2, [0, 0]]])
    np.testing.assert_allclose(run.adam.m["a threshold"], [(-0.2 - 0.1 * np.exp(-0.2)) / 2])
    np.testing.assert_allclose(run.effective()["a"], [[[0.4, -0.4], [0, 0]]], atol=1e-7)


def test_pruned_kernels_rest_and_come_back_with_their_old_values():
    net = Two(A, B)
    run = RgGan(net, structure_of(net, "kernel"), **RG)
    for _ in range(3):
        run.step(pull(GRAD_A, GRAD_B))
    assert run.effective()["a"][0, 1].tolist() == [0.0, 0.0]
    run.thresholds["a"][:] = 0.05
    run.refresh()
    assert run.effective()["a"][0, 1].tolist() == [0.1, 0.1]
    # the kernel of mean .4 moves away from 0: by 3 * .1 it is [.2, -.6], and nothing else was ever pruned
    assert (run.pruned, run.regrown, run.resets) == (2, 2, 0)


def test_layer_std_is_that_of_the_present_dense_weight():
    """a: [3, -3], [1, -1] has std sqrt(5), means 1.34 and .45; b: [1, -1] has std 1 and means 1 (a Linear)."""
    net = Two([[[3.0, -3.0], [1.0, -1.0]]], [[1.0, -1.0]])
    settings = {**RG, "lr": 1.0, "init": 0.8, "sparsity_weight": 0.0, "scale": "layer_std"}
    run = RgGan(net, structure_of(net, "kernel"), **settings)
    assert run.scales() == {"a": pytest.approx(5**0.5), "b": 1.0}
    assert run.masks["a"][0, :, 0].tolist() == [True, False]
    run.step(pull([[[-1.0, 1.0], [0.0, 0.0]]], [[0.0, 0.0]]))
    # dL/dt_a = .4 * 6, as 3 / sqrt(5) - .8 = .54
    np.testing.assert_allclose(run.adam.m["a threshold"], [0.5 * 0.4 * 6])
    np.testing.assert_allclose(run.thresholds["a"], [-0.2], atol=1e-6)
    # theta_a is [4, -4], [1, -1] now, its std sqrt(8.5): the second mean, .343, was .447 before
    assert run.scales()["a"] == pytest.approx(8.5**0.5)
    run.thresholds["a"][:] = 0.4
    run.refresh()
    assert run.masks["a"][0, :, 0].tolist() == [True, False]


def test_the_guard_resets_a_block_and_no_other():
    net = Two([[0.5], [0.1]], [[0.2], [0.3]])
    run = RgGan(net, structure_of(net, "kernel"), **{**RG, "filters": {"a": 2, "b": 2}})
    run.thresholds = {"a": np.array([0.6, 0.6]), "b": np.array([0.25, 0.25])}
    run.refresh()
    same(run.masks, {"a": bits([1], [1]), "b": bits([0], [1])})
    assert (run.thresholds["a"].tolist(), run.thresholds["b"].tolist()) == ([0, 0], [0.25, 0.25])
    assert run.resets == 1
    # tied: units (a0, b1) and (a1, b0), mean .4 and .15 with mean thresholds .425: neither is left
    ties = {"a": np.array([0, 1]), "b": np.array([1, 0])}
    run = RgGan(net, structure_of(net, "filter", ties), **{**RG, "filters": {"a": 2, "b": 2}})
    same(run.masks, {"a": bits([1], [0]), "b": bits([0], [1])})
    run.thresholds = {"a": np.array([0.6, 0.6]), "b": np.array([0.25, 0.25])}
    run.refresh()
    same(run.masks, {"a": bits([1], [1]), "b": bits([1], [1])})
    assert run.thresholds["b"].tolist() == [0, 0]
    assert run.resets == 2


def test_nothing_is_pruned_before_the_first_step_at_threshold_0():
    net = Two([[0.5, 0.0]], [[0.0, 0.4]])
    run = RgGan(net, structure_of(net, "kernel"), **{**RG, "init": 0.0, "sparsity_weight": 0.0})
    same(run.masks, {"a": bits([1, 1]), "b": bits([1, 1])})
    run.step(pull([[0.0, 0.0]], [[0.0, 0.0]]))
    same(run.masks, {"a": bits([1, 0]), "b": bits([0, 1])})


def test_at_two_of_four_thresholds_rest_and_old_values_come_back():
    net = Two([[0.5, -0.25, 0.3, 0.1]], [[1.0, 2.0, 3.0, 4.0]])
    run = RgGan(net, structure_of(net, "2:4"), **RG)
    same(run.masks, {"a": bits([1, 0, 1, 0]), "b": bits([0, 0, 1, 1])})
    run.step(pull([[1.0, 1.0, 1.0, 1.0]], [[0.0] * 4]))
    np.testing.assert_allclose(run.values["a"], [[0.4, -0.25, 0.2, 0.1]], atol=1e-7)
    same(run.masks, {"a": bits([1, 1, 0, 0]), "b": bits([0, 0, 1, 1])})
    np.testing.assert_allclose(run.effective()["a"], [[0.4, -0.25, 0, 0]], atol=1e-7)
    assert (run.thresholds["a"].tolist(), run.thresholds["b"].tolist()) == ([0.2], [0.2])


def test_what_grows_starts_at_0_and_what_comes_back_keeps_its_value():
    net = Two([[[5.0, 5], [1, 1], [7, 7]]], [[1.0]])
    masks = {"a": np.array([[[1, 1], [1, 1], [0, 0]]], dtype=bool), "b": bits([1])}
    run = Sparse(net, structure_of(net, "kernel"), masks, 0.25, every=2, fraction=0.5, final=0.5, end=4)
    assert run.values["a"].tolist() == [[[5, 5], [1, 1], [0, 0]]]
    new = pull([[[1.0, 1.0], [1.0, 1.0], [-2.0, 2.0]]], [[0.0]])
    run.step(new)
    same(run.masks, masks)
    run.step(new)  # 4.5 and .5: the second is dropped, the third has the larger gradient
    assert run.masks["a"][0, :, 0].tolist() == [True, False, True]
    np.testing.assert_allclose(run.values["a"], [[[4.5, 4.5], [0, 0], [0, 0]]], atol=1e-6)
    assert run.adam.m["a"][0, 1, 0] == pytest.approx(0.75)  # kept
    run.step(new)
    # third step, first gradient -2: m_hat 1 / .875, v_hat .004 / .002997001, root 1.155278: .25 * .989248
    np.testing.assert_allclose(run.values["a"][0, 2], [0.2473121, -0.2473121], atol=1e-6)
    run.step(pull([[[1.0, 1.0], [99.0, 99.0], [-2.0, 2.0]]], [[0.0]]))  # step 4 is the end: the second does not grow
    assert run.masks["a"][0, :, 0].tolist() == [True, False, True]

    back = Sparse(net, structure_of(net, "kernel"), masks, 0.25, every=1, fraction=0.5, final=0.5, end=4)
    back.step(pull([[[1.0, 1.0], [9.0, 9.0], [-2.0, 2.0]]], [[0.0]]))
    same(back.masks, masks)
    np.testing.assert_allclose(back.values["a"], [[[4.75, 4.75], [0.75, 0.75], [0, 0]]], atol=1e-6)


def test_the_share_that_is_exchanged_falls_on_a_cosine():
    """Eight active of ten, .5 at step 0 and .1 at 8: at step 2 it is .1 + .4 (1 + cos(pi / 4)) / 2 = .44, so 4."""
    values = [[8.0, 7, 6, 5, 4, 3, 2, 1, 0, 0]]
    net = Two([[*values[0], 0, 0]], [[1.0]])
    masks = {"a": bits([1] * 8 + [0] * 4), "b": bits([1])}
    run = Sparse(net, structure_of(net, "kernel"), masks, 0.0, every=2, fraction=0.5, final=0.1, end=8)
    gradient = pull([[0.0] * 8 + [1.0, 2, 3, 4]], [[0.0]])
    run.step(gradient)
    run.step(gradient)
    same(run.masks, {"a": bits([1] * 4 + [0] * 4 + [1] * 4), "b": bits([1])})


def test_phases_of_re_gan():
    """Warm-up 1, period 1: step 1 prunes for step 2; step 3, at a tenth of the learning rate, is dense."""
    net = Two([[[1.0, 1.0], [3.0, 3.0]]], [[5.0]])
    run = ReGan(net, structure_of(net, "kernel"), 0.5, sparsity=0.5, warm_up=1, period=1)
    assert [run.is_sparse(i) for i in range(1, 6)] == [False, True, False, True, False]
    still = pull([[[-1.0, -1.0], [-1.0, -1.0]]], [[-1.0]])
    run.step(still)
    assert run.masks["a"].tolist() == [[[False, False], [True, True]]]
    np.testing.assert_allclose(run.values["a"], [[[0, 0], [3.5, 3.5]]], atol=1e-6)
    run.step(still)
    np.testing.assert_allclose(run.values["a"], [[[0, 0], [4, 4]]], atol=1e-6)
    assert run.masks["a"].all()
    run.step(still)
    np.testing.assert_allclose(run.values["a"][0, 1], [4.05, 4.05], atol=1e-6)
    assert not run.masks["a"][0, 0].any()
    assert run.values["b"][0, 0] == pytest.approx(6.05)


def test_re_gan_without_a_warm_up_and_at_two_of_four():
    net = Two([[1.0, -3, 2, 0]], [[1.0, 1.0, 1.0, 1.0]])
    run = ReGan(net, structure_of(net, "2:4"), 0.5, sparsity=0.5, warm_up=0, period=5)
    same(run.masks, {"a": bits([0, 1, 1, 0]), "b": bits([1, 1, 0, 0])})
    assert run.values["a"].tolist() == [[0, -3, 2, 0]]


def test_rounds_of_tickets_start_from_the_first_weights():
    """Kernels of mean 1, 3, 5 in a and 2 in b; each of two steps adds .5 to a, which changes no rank."""
    net = Two([[[1.0, 1], [3, 3], [5, 5]]], [[2.0]])
    up = pull([[[-1.0, -1.0]] * 3], [[0.0]])
    first, second = tickets(net, structure_of(net, "kernel"), 0.3, 2, [up, up], 0.5)
    assert all(mask.all() for mask in first["masks"].values())
    np.testing.assert_allclose(first["trained"]["a"], [[[2, 2], [4, 4], [6, 6]]], atol=1e-6)
    # 7 entries remain and round(2.1) = 2 go: 1 (b) + 2 + 2
    assert first["next_masks"]["a"][0, :, 0].tolist() == [False, True, True]
    same(second["masks"], first["next_masks"])
    np.testing.assert_allclose(second["trained"]["a"], [[[0, 0], [4, 4], [6, 6]]], atol=1e-6)
    # 5 remain and round(1.5) = 2 go: 1 + 2
    assert second["next_masks"]["a"][0, :, 0].tolist() == [False, False, True]
    with pytest.raises(ValueError, match="no second round"):
        tickets(net, structure_of(net, "2:4"), 0.3, 2, [up], 0.5)

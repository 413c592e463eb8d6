"""The oracle of ADAPT, on arrays small enough to work out by hand."""

import numpy as np
import pytest
import torch
from oracle_adapt import Adapt, balance_ratio, decide, exchange, exchange_share, grow, measured_ratio, shrink
from oracle_training import density_of
from torch import nn
from two_weights import Weights, bits, linear, same


def test_balance_ratio():
    assert balance_ratio(np.array([0.0, 2.0]), np.array([-1.5, -0.5]), -0.5) == 0.25  # (-0.5 + 1) / (1 + 1)
    assert balance_ratio(1.0, -1.0, -2.0) == -0.5
    with pytest.raises(ZeroDivisionError):
        balance_ratio(1.0, 1.0, 2.0)


def test_measured_ratio_runs_in_training_mode_without_gradient():
    class Modes(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(scale))
            self.seen = []

        def forward(self, x):
            self.seen.append((self.training, torch.is_grad_enabled()))
            return self.scale * x

    D, before, after = Modes(2.0).eval(), Modes(0.0).eval(), Modes(1.0).eval()
    # D: real 2 * 4 = 8, before 0, after 2 * 1 = 2
    assert measured_ratio(D, before, after, torch.tensor([3.0, 5.0]), torch.tensor([1.0])) == 0.25
    assert D.seen == [(True, False)] * 3
    assert before.seen == after.seen == [(True, False)]


@pytest.mark.parametrize(
    ("br", "density", "strict", "expected"),
    [
        (0.5, 0.3, False, ("grow", 0.35)),  # the upper bound counts
        (0.9, 0.48, False, ("grow", 0.5)),
        (0.9, 0.5, False, ("stay", 0.5)),
        (0.9, 0.45, True, ("grow", 0.5)),  # reaches the highest without exceeding it
        (0.9, 0.48, True, ("exchange", 0.48)),
        (0.9, 0.5, True, ("exchange", 0.5)),
        (0.4, 0.3, True, ("stay", 0.3)),
        (0.3, 0.3, False, ("shrink", 0.25)),  # the lower bound counts
        (-1.0, 0.12, True, ("shrink", 0.1)),
        (0.0, 0.1, False, ("stay", 0.1)),
    ],
)
def test_decide(br, density, strict, expected):
    action, target = decide(br, density, lower=0.3, upper=0.5, delta=0.05, lowest=0.1, highest=0.5, strict=strict)
    assert action == expected[0]
    assert target == pytest.approx(expected[1])


def test_decide_exchange_is_not_due_to_the_error_of_a_sum():
    assert decide(1.0, 0.1, 0.3, 0.5, delta=0.2, lowest=0.1, highest=0.3, strict=True)[0] == "grow"


def test_grow_ranks_the_inactive_over_all_layers():
    masks = {"a": bits([1, 0, 0]), "b": bits([0, 1], [0, 0])}
    grads = {"b": np.array([[0.5, 8.0], [-4.0, 0.3]]), "a": np.array([[-9.0, 2.0, -3.0]])}
    same(grow(masks, grads, 3), {"a": bits([1, 1, 1]), "b": bits([0, 1], [1, 0])})
    same(grow(masks, grads, 0), masks)
    assert density_of(grow(masks, grads, 99)) == 1.0


def test_shrink_ranks_the_active_over_all_layers_and_empties_none():
    masks = {"a": bits([1, 1, 0]), "b": bits([1, 1], [1, 1])}
    weights = {"a": np.array([[0.2, -0.1, 0.0]]), "b": np.array([[3.0, -0.3], [4.0, 0.05]])}
    same(shrink(masks, weights, 1), {"a": bits([1, 1, 0]), "b": bits([1, 1], [1, 0])})
    same(shrink(masks, weights, 2), {"a": bits([1, 0, 0]), "b": bits([1, 1], [1, 0])})
    same(shrink(masks, weights, 3), {"a": bits([1, 0, 0]), "b": bits([1, 0], [1, 0])})  # 0.2 stays, 0.3 goes
    same(shrink(masks, weights, 99), {"a": bits([1, 0, 0]), "b": bits([0, 0], [1, 0])})


def test_exchange_drops_and_grows_over_all_layers():
    masks = {"a": bits([1, 1, 1, 0, 0]), "b": bits([1, 0])}
    weights = {"a": np.array([[5.0, 0.1, 0.2, 0.0, 0.0]]), "b": np.array([[9.0, 0.0]])}
    grads = {"a": np.array([[99.0, 6.0, 1.0, 2.0, 7.0]]), "b": np.array([[1.0, 8.0]])}
    # of 4 active entries 2 go, both of a: 0.1 and 0.2; of the inactive ones' gradients 6, 1, 2, 7 and 8 two come
    same(exchange(masks, weights, grads, 0.5), {"a": bits([1, 0, 0, 0, 1]), "b": bits([1, 1])})


def test_exchange_empties_no_layer_and_counts_up():
    masks = {"a": bits([1, 0]), "b": bits([1, 1])}
    weights = {"a": np.array([[0.1, 0.0]]), "b": np.array([[9.0, 2.0]])}
    grads = {"a": np.array([[0.0, 3.0]]), "b": np.array([[0.0, 4.0]])}
    # ceil(0.3) = 1: a's only entry stays, b's smaller one goes, and comes back by its gradient
    same(exchange(masks, weights, grads, 0.1), masks)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.5), (50, 0.2525), (100, 0.005), (25, 0.4275089)])
def test_exchange_share(step, expected):
    assert exchange_share(step, 0.5, 0.005, 100) == pytest.approx(expected, abs=1e-6)


def test_exchange_counts_seven_percent_of_a_hundred_as_seven():
    mask, weights = {"a": np.ones((1, 200), dtype=bool)}, {"a": np.arange(200.0)[None]}
    mask["a"][0, 100:] = False
    grads = {"a": np.where(mask["a"], 0.0, 1.0)}
    assert (exchange(mask, weights, grads, 0.07)["a"] & mask["a"]).sum() == 93


def adapt(masks, **changed):
    settings = {"window": 2, "every": 2, "lower": 0.3, "upper": 0.5, "delta": 0.25, "lowest": 0.25, "highest": 0.75}
    net = Weights([[1.0, 2.0, 3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]])
    return Adapt(net, masks, **settings | {"lr": 0.5, "betas": (0.5, 0.9)} | changed)


HALF = {"a": bits([1, 1, 0, 0]), "b": bits([1, 1], [0, 0])}
# Gradients as large as these rank the inactive: b's 40, a's 30 (then 3 and 4).
DENSE = linear([[-1.0, -1.0, 30.0, 3.0]], [[-1.0, -1.0], [4.0, 40.0]])


def test_adapt_applies_the_masks_it_is_given():
    assert adapt(HALF).D.b.tolist() == [[5.0, 6.0], [0.0, 0.0]]


def test_adapt_waits_for_the_step_and_the_queue():
    run = adapt(HALF)
    run.measure(0.9)
    assert [run.d_step(DENSE) for _ in range(2)] == [None, None]  # one ratio of two
    run.measure(0.9)
    assert [run.d_step(DENSE) for _ in range(4)] == [None, "grow", None, "stay"]  # the queue stays full


def test_adapt_grows_at_value_zero_with_the_moments_of_gradient_zero():
    run = adapt(HALF)
    run.measure(0.4)
    run.measure(0.7)
    run.d_step(DENSE)
    assert run.D.a.tolist()[0][2:] == [0.0, 0.0]
    assert run.d_step(DENSE) == "grow"  # mean 0.55; 4 of 8 entries become 6
    same(run.masks, {"a": bits([1, 1, 1, 0]), "b": bits([1, 1], [0, 1])})
    assert run.D.a[0, 2].item() == run.D.b[1, 1].item() == 0.0
    assert run.adam.m["a"][0, 2] == run.adam.v["a"][0, 2] == 0.0
    run.d_step(DENSE)
    # third step, first gradient: m_hat = 15 / 0.875, v_hat = 90 / 0.271; 0.5 * 17.142857 / 18.223703
    np.testing.assert_allclose(run.D.a[0, 2].item(), -0.4703450, atol=1e-7)


def test_adapt_regrown_entries_keep_their_decayed_moments():
    run = adapt(HALF, every=1, window=1, delta=0.125)
    loss = linear([[-4.0, -1.0, 1.0, 1.0]], [[-1.0, -1.0], [1.0, 1.0]])
    run.measure(0.0)
    assert run.d_step(loss) == "shrink"
    assert not run.masks["a"][0, 0]
    run.measure(1.0)
    assert run.d_step(loss) == "grow"
    assert run.masks["a"][0, 0]
    assert run.D.a[0, 0].item() == 0.0
    np.testing.assert_allclose([run.adam.m["a"][0, 0], run.adam.v["a"][0, 0]], [-1.0, 1.44])  # -4/2/2, 1.6 * 0.9
    run.d_step(loss)
    # m -0.5 - 2 = -2.5 over 0.875, v 1.296 + 1.6 = 2.896 over 0.271, root 3.268998; 0.5 * 2.857143 / 3.268998
    np.testing.assert_allclose(run.D.a[0, 0].item(), 0.4370059, atol=1e-7)


def test_adapt_uses_the_last_ratios_only():
    run = adapt(HALF)
    for ratio in (100.0, 0.4, 0.4):
        run.measure(ratio)
    assert [run.d_step(DENSE) for _ in range(2)] == [None, "stay"]
    same(run.masks, HALF)


def test_adapt_shrinks_the_trained_weights_and_leaves_no_layer_empty():
    run = adapt({"a": bits([1, 0, 0, 0]), "b": bits([1, 1], [1, 0])}, every=1, window=1, lr=2.0, delta=0.125)
    run.measure(0.3)
    # after the step: a 3 (the last of its layer), b 7, 4, 9; before it 5 was b's smallest
    assert run.d_step(linear([[-1.0, 1.0, 1.0, 1.0]], [[-1.0, 1.0], [-1.0, 1.0]])) == "shrink"
    same(run.masks, {"a": bits([1, 0, 0, 0]), "b": bits([1, 0], [1, 0])})
    np.testing.assert_allclose(run.D.b.tolist(), [[7.0, 0.0], [9.0, 0.0]], atol=1e-6)


def test_adapt_strict_exchanges_instead_of_exceeding():
    masks = {"a": bits([1, 1, 1, 0]), "b": bits([1, 1], [1, 0])}
    run = adapt(masks, every=1, window=1, strict=True, end=2)
    run.measure(0.9)
    # half-way down the cosine 0.2525 of 6 is 2. After the step a is 1.5, 2.5, 3.5, b 5.5, 6.5, 7.5: 1.5 and 2.5 go; of
    # the gradients 1, 0.5 and 3 in a and 2 in b, 3 and 2 come
    assert run.d_step(linear([[-1.0, -0.5, -30.0, 3.0]], [[-40.0, -1.0], [-4.0, 2.0]])) == "exchange"
    same(run.masks, {"a": bits([0, 0, 1, 1]), "b": bits([1, 1], [1, 1])})
    np.testing.assert_allclose(run.D.a.tolist(), [[0.0, 0.0, 3.5, 0.0]], atol=1e-6)
    np.testing.assert_allclose(run.D.b.tolist(), [[5.5, 6.5], [7.5, 0.0]], atol=1e-6)


def test_adapt_wants_a_mask_for_each_managed_weight():
    with pytest.raises(ValueError, match="'a'"):
        adapt({"a": HALF["a"]})

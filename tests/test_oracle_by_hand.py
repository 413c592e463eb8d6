"""The oracle itself, against values worked out by hand: who checks the engine has to be right."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import tiny
import torch
from oracle import Layer, Oracle, Step, managed
from sides import (
    OPTIMIZERS,
    OracleSide,
    one_layer,
    train,
)
from torch import nn

double = partial(torch.tensor, dtype=torch.float64)


def test_surrogate_slope() -> None:
    x = double([-1.2, -1.0, -0.7, -0.3, 0.0, 0.1, 0.4, 0.5, 1.1]).requires_grad_()
    mask = x > 0
    y = Step.apply(x, mask)
    y.sum().backward()
    assert torch.equal(y, mask.double())
    expected = double([0, 0.4, 0.4, 0.8, 2, 1.6, 0.4, 0.4, 0])
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize(
    ("weight_gradient", "theta_gradient"), [("masked", [[1.0, 0], [0, 4]]), ("full", [[1.6, 0], [0, 6.88]])]
)
def test_gradients_by_hand(weight_gradient: str, theta_gradient: list[list[float]]) -> None:
    """theta [[.5, -.2], [.1, -.9]], t [.3, .6], A [[1, 2], [3, 4]], lambda 0.1.

    |theta| - t = [[.2, -.1], [-.5, .3]], so H' = [[1.2, 1.6], [.4, .8]] and M = [[1, 0], [0, 1]].
    dL/dt     = -[1 * .5 * 1.2 - 2 * .2 * 1.6, 3 * .1 * .4 - 4 * .9 * .8] - .1 exp(-t) = [.04, 2.76] - .1 exp(-t)
    dL/dtheta = A * M, in full A * (M + |theta| * H') * M
    """
    net = nn.Linear(2, 2, bias=False).double()
    oracle = Oracle(net, partial(torch.optim.SGD, lr=1.0), sparsity_weight=0.1, weight_gradient=weight_gradient)
    (layer,) = oracle.layers
    theta, t = double([[0.5, -0.2], [0.1, -0.9]]), double([0.3, 0.6])
    with torch.no_grad():
        net.weight.copy_(theta)
        layer.t.copy_(t)
    oracle.refresh(layer)
    assert layer.mask.tolist() == [[True, False], [False, True]]
    slope = double([[1.0, 2], [3, 4]])
    loss = (oracle(torch.eye(2).double()).T * slope).sum() + oracle.regularizer()
    loss.backward()
    torch.testing.assert_close(layer.t.grad, double([0.04, 2.76]) - 0.1 * torch.exp(-t))
    oracle.step()
    torch.testing.assert_close(net.weight.detach(), theta - double(theta_gradient))


def test_no_task_gradient() -> None:
    """Only the regularizer moves thresholds; in a step without it they rest."""
    G, _ = tiny.build("plain")
    oracle = Oracle(G, OPTIMIZERS["sgd"], sparsity_weight=0.5, task_gradient=False)
    (oracle(torch.randn(2, tiny.Z).double()).sum() + oracle.regularizer()).backward()
    for layer in oracle.layers:
        torch.testing.assert_close(layer.t.grad, torch.full_like(layer.t, -0.5))
    oracle.step()
    before = [layer.t.detach().clone() for layer in oracle.layers]
    oracle.zero_grad()
    oracle(torch.randn(2, tiny.Z).double()).sum().backward()
    oracle.step()
    assert all(torch.equal(layer.t, t) for layer, t in zip(oracle.layers, before))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_one_filter_is_one_output_channel(transposed: bool, groups: int) -> None:
    """A threshold that prunes its whole filter leaves only the bias in that output channel, and the others alone."""
    net = (nn.ConvTranspose2d if transposed else nn.Conv2d)(8, 12, 3, groups=groups).double()
    (layer,) = managed(net)
    assert len(layer.t) == 12
    x = torch.randn(2, 8, 5, 5).double()
    dense = net(x)
    for channel in range(12):
        cut = copy.deepcopy(net)
        t = torch.zeros(12).double()
        t[channel] = 100.0
        with torch.no_grad():
            cut.weight[layer.theta.abs() <= layer.spread(t)] = 0
        others = [c for c in range(12) if c != channel]
        assert torch.equal(cut(x)[:, others], dense[:, others])
        assert torch.equal(cut(x)[:, channel], torch.full_like(dense[:, channel], net.bias[channel].item()))


@pytest.mark.parametrize("kind", ["old_sn", "new_sn"])
def test_sigma_is_that_of_the_sparse_matrix(kind: str) -> None:
    _, D = tiny.build(kind)
    oracle = Oracle(D, OPTIMIZERS["sgd"], sparsity_weight=0.0)
    for layer in oracle.layers:
        layer.mask = layer.theta.abs() > 0.5 * layer.theta.abs().max()
    for _ in range(300):  # power iterations
        oracle(torch.zeros(1, *tiny.IMAGE).double())
    for layer in oracle.layers:
        sparse = (layer.theta * layer.mask).flatten(1)
        owner, _, _ = layer.name.rpartition(".")
        u = D.get_submodule(owner).state_dict()["weight_u" if kind == "old_sn" else "0._u"]
        sigma = torch.linalg.matrix_norm(sparse.detach(), 2)
        torch.testing.assert_close((sparse.detach().T @ u).norm(), sigma, rtol=1e-4, atol=0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_pruned_entries_are_frozen_exactly(optimizer: str) -> None:
    """Whatever momentum or decay does, and although the optimizer does move them."""
    side = OracleSide(*tiny.build("plain"), OPTIMIZERS[optimizer], sparsity_weight=1e-2)
    train(side, iterations=60)
    momentum = 0
    for _ in range(10):
        before = side.snapshot()
        train(side, iterations=1)
        for key, theta in side.snapshot().theta.items():
            pruned = ~before.mask[key]
            assert torch.equal(theta[pruned], before.theta[key][pruned])
            assert not torch.equal(theta, before.theta[key])
    for name, net in side.nets.items():
        for layer in net.layers:
            state = net.optimizer.state[layer.theta]
            pruned = ~before.mask[f"{name}.{layer.name}"]
            momentum += int(state.get("exp_avg", state.get("momentum_buffer"))[pruned].count_nonzero())
    assert (momentum > 0) == (optimizer != "adam_b0")


def test_skipped_step_changes_nothing() -> None:
    side = OracleSide(*tiny.build("plain"), OPTIMIZERS["adam_b5"], sparsity_weight=1e-2)
    train(side, iterations=30)
    net = side.nets["G"]
    before = copy.deepcopy((side.snapshot(), net.optimizer.state_dict(), net.threshold_optimizer.state_dict()))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    net.zero_grad()
    scaler.scale((net(torch.ones(2, tiny.Z).double()).sum() + net.regularizer()) * float("inf")).backward()
    net.step(scaler=scaler)
    scaler.update()
    assert scaler.get_scale() == 2.0**9
    after = (side.snapshot(), net.optimizer.state_dict(), net.threshold_optimizer.state_dict())
    for quantity in ("theta", "mask", "threshold"):
        for key, value in getattr(before[0], quantity).items():
            assert torch.equal(value, getattr(after[0], quantity)[key])
    for old, new in zip(before[1:], after[1:]):
        for index, state in old["state"].items():
            assert all(torch.equal(value, new["state"][index][key]) for key, value in state.items())


def test_guard_keeps_exact_zeros_and_the_optimizer_state() -> None:
    net = one_layer(2)
    with torch.no_grad():
        net[0].weight[5] = 0.0
    oracle = Oracle(net, partial(torch.optim.Adam, lr=0.5), sparsity_weight=1.0)
    oracle.regularizer().backward()
    oracle.step()
    (layer,) = oracle.layers
    assert oracle.resets == 1
    assert layer.mask.all()
    assert not layer.t.any()
    assert oracle.threshold_optimizer.state[layer.t]["exp_avg"].all()


def test_layers_that_are_managed() -> None:
    def names(net: nn.Module) -> list[str]:
        return [layer.name for layer in managed(net)]

    assert names(tiny.build("plain")[0]) == ["0.weight", "5.weight", "7.weight"]
    assert names(tiny.build("equalized")[1]) == ["0.weight", "2.weight", "5.weight"]
    assert names(tiny.build("old_sn")[1]) == ["0.weight_orig", "2.weight_orig", "5.weight_orig"]
    assert names(tiny.build("new_sn")[1]) == [f"{i}.parametrizations.weight.original" for i in (0, 2, 5)]
    assert isinstance(next(managed(nn.Linear(2, 3))), Layer)

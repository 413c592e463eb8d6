"""Thresholds and their units on one layer, one step or a few, with values worked out by hand."""

from __future__ import annotations

import pytest
import torch
from common import adam, linear, set_grad, sgd
from torch import nn

import rgplug


def test_one_step_by_hand() -> None:
    """SGD, lr 1, lambda 0.5. theta = [1, .25, -.5], t = .3, A = [.1, .2, -.4].

    H'(|theta| - t): |1 - .3| = .7 -> .4; |-.05| -> 1.8; |.2| -> 1.2
    dL/dt = -(.1 * 1 * .4 + .2 * .25 * 1.8 + .4 * .5 * 1.2) - .5 exp(-.3) = -.37 - .3704 = -.7404
    """
    G = linear([[1.0, 0.25, -0.5]], torch.float64)
    opt = sgd(G)
    rg = rgplug.attach(G, policy={"sparsity_weight": 0.5, "threshold": {"init": 0.3}})
    assert G.weight.tolist() == [[1, 0, -0.5]]
    set_grad(G, [[0.1, 0.2, -0.4]])
    opt.step()
    (w,) = rg.weights("G")
    torch.testing.assert_close(w.theta, torch.tensor([[0.9, 0.25, -0.1]], dtype=torch.float64))
    expected = 0.3 + 0.37 + 0.5 * torch.exp(torch.tensor(-0.3, dtype=torch.float64)).item()
    assert expected > 0.9  # prunes everything: the guard
    assert w.threshold.tolist() == [0]
    assert w.mask.all()


def test_the_threshold_of_a_step_by_hand() -> None:
    """The same with a fourth, large weight that H' does not see: the layer is not empty."""
    G = linear([[1.0, 0.25, -0.5, 9.0]], torch.float64)
    opt = sgd(G)
    rg = rgplug.attach(G, policy={"sparsity_weight": 0.5, "threshold": {"init": 0.3}})
    set_grad(G, [[0.1, 0.2, -0.4, 5.0]])
    opt.step()
    (w,) = rg.weights("G")
    assert w.threshold.item() == pytest.approx(0.3 + 0.37 + 0.5 * 2.718281828459045**-0.3)
    assert w.mask.tolist() == [[False, False, False, True]]
    torch.testing.assert_close(w.theta, torch.tensor([[0.9, 0.25, -0.1, 4.0]], dtype=torch.float64))


def test_weight_gradient_full_by_hand() -> None:
    """A (1 + |theta| H'): .1 (1 + .4), masked, -.4 (1 + .5 * 1.2), 5 (1 + 0)."""
    G = linear([[1.0, 0.25, -0.5, 9.0]], torch.float64)
    opt = sgd(G)
    rg = rgplug.attach(G, policy={"sparsity_weight": 0.0, "threshold": {"init": 0.3, "weight_gradient": "full"}})
    set_grad(G, [[0.1, 0.2, -0.4, 5.0]])
    opt.step()
    expected = torch.tensor([[1 - 0.14, 0.25, -0.5 + 0.64, 4.0]], dtype=torch.float64)
    torch.testing.assert_close(rg.weights("G")[0].theta, expected)


def test_units_layer_std_by_hand() -> None:
    """std of [3, -3, 1, -1] is sqrt(5); kept above 1 std: |3| yes, |1| no."""
    G = linear([[3.0, -3.0, 1.0, -1.0]])
    rg = rgplug.attach(G, policy={"threshold": {"units": "layer_std", "init": 1.0}})
    (w,) = rg.weights("G")
    assert w.scale.item() == pytest.approx(5**0.5)
    assert w.mask.tolist() == [[True, True, False, False]]
    # dL/dt = -sum A theta H'(|theta| / s - 1): with A = [1, 0, 1, 0]: 3/2.236 - 1 = .3416, 1/2.236 - 1 = -.5528
    policy = {"sparsity_weight": 0.0, "threshold": {"units": "layer_std", "init": 1.0}}
    other = linear([[3.0, -3.0, 1.0, -1.0]])
    opt = sgd(other, lr=0.01)
    rg = rgplug.attach(other, policy=policy)
    set_grad(other, [[1.0, 0.0, 1.0, 0.0]])
    opt.step()
    moved = 0.01 * (3 * (2 - 4 * (3 / 5**0.5 - 1)) + 1 * 0.4)
    assert rg.weights("G")[0].threshold.item() == pytest.approx(1 + moved, abs=1e-5)


def test_units_spectral_is_the_largest_singular_value() -> None:
    torch.manual_seed(0)
    G = nn.Sequential(nn.Linear(7, 5), nn.ConvTranspose2d(4, 6, 3), nn.Conv2d(4, 6, 3, groups=2))
    rg = rgplug.attach(G, policy={"sparsity_weight": 0.0, "threshold": {"units": "spectral", "init": 0.05}})
    opt = sgd(G, 0.0)
    for _ in range(60):
        for m in G:
            set_grad(m, 0.0)
        opt.step()
    theta = [w.theta for w in rg.weights("G")]
    matrices = [theta[0], theta[1].transpose(0, 1).flatten(1), theta[2].flatten(1)]
    for w, matrix in zip(rg.weights("G"), matrices):
        sigma = torch.linalg.matrix_norm(matrix, 2)
        assert w.scale.item() == pytest.approx(sigma.item(), rel=1e-3)
        torch.testing.assert_close(w.mask, w.theta.abs() / w.scale > 0.05)


def test_units_are_those_of_the_present_weight_when_a_dense_phase_ends() -> None:
    G = linear([[3.0, -3.0, 1.0, -1.0]])
    opt = sgd(G)
    rg = rgplug.attach(G, policy={"sparsity_weight": 0.0, "threshold": {"units": "layer_std", "init": 1.0}})
    net = rg.networks["G"]
    net.go_dense()
    set_grad(G, [[0.0, 0.0, -19.0, 19.0]])  # the dense phase makes [3, -3, 20, -20] of it
    opt.step()
    assert G.weight.tolist() == [[3, -3, 20, -20]]
    net.go_sparse()
    assert rg.weights("G")[0].mask.tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("units", ["layer_std", "spectral"])
def test_a_zero_initialised_layer_learns_and_gets_units(units: str) -> None:
    G = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8))
    nn.init.zeros_(G[2].weight)
    opt = adam(G)
    rg = rgplug.attach(G, policy={"sparsity_weight": 0.0, "threshold": {"units": units, "task_gradient": False}})
    torch.manual_seed(0)
    for _ in range(40):
        opt.zero_grad()
        (G(torch.randn(16, 4)) - torch.randn(16, 8)).square().mean().backward()
        opt.step()
    w = rg.weights("G")[1]
    assert w.param.abs().max() > 0.01
    sigma = w.theta.std(correction=0) if units == "layer_std" else torch.linalg.matrix_norm(w.theta, 2)
    assert w.scale.item() == pytest.approx(sigma.item(), rel=0.1)


def test_a_zero_initialised_layer_learns_under_absolute_thresholds() -> None:
    G = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8))
    nn.init.zeros_(G[1].weight)
    opt = adam(G)
    rgplug.attach(G)
    for _ in range(3):
        opt.zero_grad()
        (G(torch.ones(2, 4)) - 1).square().sum().backward()
        opt.step()
    assert G[1].weight.abs().max() > 0.01


def test_the_minimum_of_thresholds() -> None:
    G = linear([[100.0, 0.5, 0.5]])
    opt = sgd(G)
    rg = rgplug.attach(G, policy={"sparsity_weight": 0.0, "threshold": {"min": -0.25}})
    set_grad(G, [[0.0, -1.0, -1.0]])  # pushes t down by 2 * 0.5 * 0.4
    opt.step()
    assert rg.weights("G")[0].threshold.item() == -0.25
    free = linear([[100.0, 0.5, 0.5]])
    opt = sgd(free)
    rg = rgplug.attach(free, policy={"sparsity_weight": 0.0})
    set_grad(free, [[0.0, -1.0, -1.0]])
    opt.step()
    assert rg.weights("G")[0].threshold.item() == pytest.approx(-0.4)


@pytest.mark.parametrize("kernels", ["auto", "eager"])
def test_thresholds_of_biases_have_gradients_of_their_own(kernels: str) -> None:
    """One threshold an entry: each gets -A theta H' of its own entry, whichever way it is computed."""
    torch.manual_seed(0)
    G = nn.Linear(3, 4)
    policy = {"base": "rg-gan", "threshold.init": 0.05, "networks": {"G": {"vectors": True}}, "kernels": kernels}
    rg = rgplug.attach(G, None, {**policy, "regeneration.augmented": False})
    G(torch.randn(5, 3)).square().mean().backward()
    bias = next(w for w in rg.weights("G") if w.name == "bias")
    theta, grad = bias.theta.clone(), G.bias.grad.clone()
    rg.mask_gradients("G")
    x = (theta.abs() - bias.threshold).abs()
    slope = torch.where(x <= 0.4, 2 - 4 * x, torch.where(x <= 1, 0.4, 0.0))
    assert torch.allclose(bias.threshold_grad, -grad * theta * slope)


@pytest.mark.parametrize("dense_steps", [1, 20, 200])
def test_spectral_units_catch_up_with_the_weight_after_a_dense_phase(dense_steps: int) -> None:
    """The running vector stands still while the network trains dense; one power iteration from there is far off."""
    torch.manual_seed(0)
    G = nn.Linear(64, 64, bias=False)
    augmented = {"window": 2, "weights": [0.5, 0.5], "include_current": True}
    rg = rgplug.attach(
        G,
        policy={
            "sparsity_weight": 1e-8,
            "threshold.units": "spectral",
            "regeneration": {"augmented": augmented},
        },
    )
    (w,) = rg.weights("G")
    optimizer = torch.optim.Adam(G.parameters(), 1e-2, (0.0, 0.9))

    def step() -> None:
        optimizer.zero_grad()
        (G(torch.randn(32, 64)).square().mean() * torch.randn(())).backward()
        optimizer.step()

    step()
    rg.end_epoch(1.0)
    assert rg.end_epoch(5.0).phase == "dense"
    with torch.no_grad():  # another matrix, as different as many steps make it
        G.weight.copy_(torch.randn(64, 64).mul_(0.05) + torch.outer(torch.randn(64), torch.randn(64)).mul_(0.05))
    for _ in range(dense_steps):
        step()
    assert rg.end_epoch(0.5).phase == "sparse"
    exact = torch.linalg.matrix_norm(w.theta.double(), 2).item()
    assert w.scale is not None
    assert w.scale.item() == pytest.approx(exact, rel=1e-3)
    rg.detach()

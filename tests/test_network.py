"""One network over its steps: dormant values, moments, regeneration, NaN, moving, targets, counts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from common import ADAM, FIXED, RAMP, Host, adam, linear, pruned_at, set_grad, sgd
from torch import nn

import rgplug

# ---- dormant values ----------------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "adam": adam,
    "amsgrad": lambda m: adam(m, amsgrad=True),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, weight_decay=0.5),
    "sgd": lambda m: sgd(m, 1e-2, momentum=0.9, weight_decay=0.5),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("optimizer_state", ["keep", "reset"])
def test_pruned_weights_are_exactly_0_and_their_dormant_values_do_not_move(name: str, optimizer_state: str) -> None:
    torch.manual_seed(0)
    G = nn.Linear(16, 16)
    opt = OPTIMIZERS[name](G)
    policy = {"sparsity_weight": 0.0, "threshold": {"task_gradient": False}, "optimizer_state": optimizer_state}
    rg = rgplug.attach(G, policy=policy)
    (w,) = rg.weights("G")
    for _ in range(5):  # momentum before anything is pruned
        set_grad(G, torch.randn(16, 16))
        opt.step()
    w.threshold.copy_(torch.linspace(0, 0.3, 16))
    rg.networks["G"].refresh_all()
    assert 0.1 < w.density < 0.9
    waited = torch.zeros_like(w.mask)
    for _ in range(20):
        mask, dormant = w.mask.clone(), w.dormant.clone()
        set_grad(G, torch.randn(16, 16))
        opt.step()
        assert not G.weight[~w.mask].any()
        still = ~mask & ~w.mask
        assert torch.equal(w.dormant[still], dormant[still])
        assert torch.equal(G.weight[~mask & w.mask], dormant[~mask & w.mask])
        waited |= still
    assert waited.any()


MOMENTS = {
    "adam": ("exp_avg", "exp_avg_sq"),
    "amsgrad": ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    "sgd": ("momentum_buffer",),
}


@pytest.mark.parametrize("name", MOMENTS)
@pytest.mark.parametrize("optimizer_state", ["keep", "reset"])
@pytest.mark.parametrize("change", ["pruned", "regrown", "dense phase"])
def test_moments_of_what_was_pruned_or_regrown(name: str, optimizer_state: str, change: str) -> None:
    G = linear([[1.0, 0.5, 2.0]])
    make = {**OPTIMIZERS, "sgd": lambda m: sgd(m, 1e-4, momentum=0.9), "adam": lambda m: adam(m, lr=1e-4)}[name]
    opt = make(G)
    rg = rgplug.attach(
        G, policy={"sparsity_weight": 0.0, "threshold": {"task_gradient": False}, "optimizer_state": optimizer_state}
    )
    (w,) = rg.weights("G")
    set_grad(G, 1.0)
    opt.step()
    if change != "pruned":
        w.threshold.fill_(0.7)
        rg.networks["G"].refresh_all()  # 0.5 falls
        for key in MOMENTS[name]:
            opt.state[G.weight][key].fill_(1.0)
    before = {key: opt.state[G.weight][key].clone() for key in MOMENTS[name]}
    if change == "pruned":
        w.threshold.fill_(0.7)
        rg.networks["G"].refresh_all()
    elif change == "regrown":
        w.threshold.fill_(0.1)
        rg.networks["G"].refresh_all()
    else:
        rg.networks["G"].go_dense()
    for key in MOMENTS[name]:
        moment = opt.state[G.weight][key]
        assert torch.equal(moment[:, [0, 2]], before[key][:, [0, 2]])
        assert before[key][0, 1] != 0
        assert moment[0, 1] == (0 if optimizer_state == "reset" else before[key][0, 1])


# ---- recurrent regeneration, phases ------------------------------------------------------------------------------


def regrowth(policy: dict[str, Any], steps: int = 12) -> dict[str, int]:
    """Entries that came back, per network."""
    host = Host()
    with rgplug.attach(host.G, host.D, policy) as rg:
        back = {"G": 0, "D": 0}
        before = {n: [w.mask.clone() for w in rg.weights(n)] for n in back}
        for _ in range(steps):
            host.run(1)
            for n in back:
                masks = [w.mask.clone() for w in rg.weights(n)]
                back[n] += sum(int((new & ~old).sum()) for new, old in zip(masks, before[n]))
                before[n] = masks
        counted = {n: int(net.counts.regrown.sum()) for n, net in rg.networks.items()}
        assert counted == back
        for n, net in rg.networks.items():
            assert [int(w.mask.sum()) for w in net.weights] == net.counts.kept.long().tolist()
            assert int(net.counts.pruned.sum()) - counted[n] == sum(int((~w.mask).sum()) for w in net.weights)
        assert min(rg.density().values()) < 1
        return back


def test_recurrent_regeneration_per_network() -> None:
    policy = {"sparsity_weight": 1e-2, "threshold": {"init": 0.03}}
    both = regrowth(policy)
    assert min(both.values()) > 0
    assert regrowth({**policy, "regeneration": {"recurrent": False}}) == {"G": 0, "D": 0}
    only_g = regrowth({**policy, "regeneration": {"recurrent": ["G"]}})
    assert only_g["G"] > 0
    assert only_g["D"] == 0


def test_regrown_weights_come_back_with_their_old_values() -> None:
    G = linear([[1.0, 0.5]])
    rg = rgplug.attach(G)
    pruned_at(rg, "G", 0.7)
    assert G.weight.tolist() == [[1, 0]]
    pruned_at(rg, "G", 0.1)
    assert G.weight.tolist() == [[1, 0.5]]


def test_in_a_dense_phase_thresholds_stand_still_and_gradients_are_not_masked() -> None:
    G = linear([[1.0, 0.5]])
    opt = sgd(G, 0.125)
    rg = rgplug.attach(G, policy={"sparsity_weight": 1.0, "threshold": {"init": 0.7}})
    net = rg.networks["G"]
    assert G.weight.tolist() == [[1, 0]]
    net.go_dense()
    assert G.weight.tolist() == [[1, 0.5]]
    set_grad(G, [[1.0, 1.0]])
    opt.step()
    assert G.weight.grad.tolist() == [[1, 1]]
    assert G.weight.tolist() == [[0.875, 0.375]]
    assert rg.weights("G")[0].threshold.item() == pytest.approx(0.7)
    assert net.density() == 1
    assert net.iteration == 1
    net.go_sparse()
    assert G.weight.tolist() == [[0.875, 0]]
    assert rg.weights("G")[0].theta.tolist() == [[0.875, 0.375]]
    # 0.5 came back with the phase, not because its threshold let it go
    assert (int(net.counts.restored.sum()), int(net.counts.regrown.sum()), int(net.counts.pruned.sum())) == (1, 0, 2)


# ---- NaN ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("units", ["absolute", "layer_std", "spectral"])
@pytest.mark.parametrize("target", [None, {"G": 0.5, "by": 0, "shape": "constant"}, {"G": 0.5, "start": 50, "by": 60}])
@pytest.mark.parametrize("kept_in", ["one entry", "all"])
def test_nan_gradients_reach_live_weights_as_they_would_and_nothing_else(units: str, target: Any, kept_in: str) -> None:
    torch.manual_seed(0)
    G = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    opt = adam(G)
    policy = {"sparsity_weight": 1e-2, "threshold": {"units": units, "init": 0.1}, "target": target}
    rg = rgplug.attach(G, policy=policy)
    for _ in range(2):
        for m in G:
            set_grad(m, torch.randn(8, 8))
        opt.step()
    good = copy.deepcopy(G.state_dict())
    masks = [w.mask.clone() for w in rg.weights("G")]
    for m in G:
        set_grad(m, 1.0)
    if kept_in == "all":
        G[0].weight.grad.fill_(float("nan"))
    else:
        row, column = masks[0].nonzero()[0].tolist()
        G[0].weight.grad[row, column] = float("nan")
    opt.step()
    w = rg.weights("G")[0]
    assert G[0].weight.isnan()[masks[0]].all() if kept_in == "all" else G[0].weight[row, column].isnan()
    assert torch.isfinite(w.dormant).all()
    assert torch.isfinite(w.threshold).all()
    # the host goes back to its last good weights
    G.load_state_dict(good)
    for _ in range(3):
        opt.state.clear()
        for m in G:
            set_grad(m, 0.01)
        opt.step()
    for w in rg.weights("G"):
        assert torch.isfinite(w.theta).all()
        assert torch.isfinite(w.threshold).all()
        assert w.scale is None or torch.isfinite(w.scale)
        assert torch.equal(w.mask, (w.theta.abs() / (1 if w.scale is None else w.scale)) > w.threshold[:, None])


# ---- moving ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("then", ["step", "end_epoch", "go_dense", "state", "apply_masks", "detach"])
def test_networks_that_move_after_attach(dtype: torch.dtype, then: str) -> None:
    G = linear([[1.0, 0.0625, 2.0, 0.03125]])
    opt = sgd(G)
    policy = {**FIXED, "target": {"G": 0.5, "by": 0, "shape": "constant"}} if then == "end_epoch" else FIXED
    rg = rgplug.attach(G, policy={**policy, "sparsity_weight": 1e-6})
    set_grad(G, 0.0)
    opt.step()
    G.to(dtype)
    (w,) = rg.weights("G")
    if then == "end_epoch":
        rg.end_epoch(1.0)
    elif then == "go_dense":
        rg.networks["G"].go_dense()
        assert G.weight.tolist() == [[1.0, 0.0625, 2.0, 0.03125]]
        rg.networks["G"].go_sparse()
    elif then == "state":
        rg.load_state_dict(rg.state_dict())
    elif then == "apply_masks":
        rg.apply_masks(copy.deepcopy(G))
    elif then == "detach":
        rg.detach("dense")
        assert G.weight.tolist() == [[1.0, 0.0625, 2.0, 0.03125]]
        return
    opt = adam(G, lr=0.0, eps=1e-3)
    set_grad(G, 0.0)
    opt.step()
    assert G.weight.tolist() == [[1, 0, 2, 0]]
    assert G.weight.dtype == dtype
    assert w.theta.tolist() == [[1.0, 0.0625, 2.0, 0.03125]]


def test_thresholds_keep_their_moments_when_the_network_moves() -> None:
    """A host that moves its network and its optimizer's state to float64 in the middle of a run."""
    G = linear([[100.0, 0.5]])
    opt = adam(G)
    rg = rgplug.attach(G, policy=RAMP)
    set_grad(G, 1.0)
    opt.step()
    G.double()
    for state in opt.state.values():
        for key in ("exp_avg", "exp_avg_sq"):
            state[key] = state[key].double()
    set_grad(G, 1.0)
    opt.step()
    assert rg.weights("G")[0].threshold.dtype == torch.float64
    assert rg.weights("G")[0].threshold.item() == pytest.approx(2 * ADAM["lr"], rel=1e-3)


@pytest.mark.parametrize("units", ["layer_std", "spectral"])
def test_units_are_those_of_the_weights_that_train(units: str) -> None:
    """A host loads its weights after attach: the first step measures them, not what was there before."""
    first, second = nn.Linear(6, 4), nn.Linear(6, 4)
    with torch.no_grad():
        first.weight.mul_(100)
    late = rgplug.attach(first, None, {"threshold.units": units})
    first.load_state_dict(second.state_dict())
    early = rgplug.attach(second, None, {"threshold.units": units})
    for net in (first, second):
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(2):
            optimizer.zero_grad()
            net(torch.ones(3, 6)).square().sum().backward()
            optimizer.step()
    (a,), (b,) = late.weights("G"), early.weights("G")
    assert torch.equal(a.threshold, b.threshold)
    assert torch.equal(a.scale, b.scale)
    assert torch.equal(first.weight, second.weight)


def test_a_target_that_is_met_stays_met_until_the_next_step() -> None:
    net = nn.Linear(40, 30)
    rg = rgplug.attach(net, None, {"target": {"G": 0.5, "by": 1}})
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    net(torch.ones(2, 40)).sum().backward()
    optimizer.step()
    (network,) = rg.networks.values()
    network.meet_target()
    mask, threshold = network.weights[0].mask.clone(), network.weights[0].threshold.clone()
    drawn = net.weight.detach().clone()
    rg.end_epoch(1.0)
    assert torch.equal(network.weights[0].mask, mask)
    assert torch.equal(network.weights[0].threshold, threshold)
    assert torch.equal(net.weight, drawn)
    optimizer.step()
    network.go_dense()
    network.go_sparse()
    assert rg.density("G") == pytest.approx(0.5, abs=0.005)


def test_an_optimizer_that_lists_weights_in_another_order() -> None:
    """Counts go to the layers that they are of."""
    torch.manual_seed(0)
    G = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 16), nn.Linear(16, 2))
    rg = rgplug.attach(G, None, {"base": "rg-gan", "threshold.init": 0.1, "regeneration.augmented": False})
    optimizer = torch.optim.Adam(list(G.parameters())[::-1], 1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        G(torch.randn(5, 4)).square().mean().backward()
        optimizer.step()
    net = rg.networks["G"]
    assert net.layer_density() == pytest.approx({w.name: float(w.mask.float().mean()) for w in net.weights})

"""What a host writes into its weights, at live positions and at pruned ones."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from common import FIXED, Host, linear, set_grad, sgd
from torch import Tensor, nn

import rgplug


def test_values_the_host_writes_at_live_positions_are_adopted() -> None:
    G = linear([[1.0, 0.05]])
    opt = sgd(G)
    rg = rgplug.attach(G, policy=FIXED)
    G.weight.data.copy_(torch.tensor([[3.0, 0.0]]))
    set_grad(G, [[0.5, 0.5]])
    opt.step()
    assert G.weight.tolist() == [[2.5, 0]]
    assert rg.weights("G")[0].theta.tolist() == [[2.5, pytest.approx(0.05)]]


WRITES: dict[str, Callable[[nn.Linear, Tensor], Any]] = {
    "load_state_dict": lambda G, x: G.load_state_dict({"weight": x}),
    "data.copy_": lambda G, x: G.weight.data.copy_(x),
    "data =": lambda G, x: setattr(G.weight, "data", x.clone()),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(
    "then",
    ["step", "end_epoch", "end_epoch with a target", "go_dense", "refresh", "detach dense", "detach sparse", "state"],
)
def test_a_dense_checkpoint_after_attach_loses_nothing(write: str, then: str) -> None:
    """[1, .05 | dormant] becomes [3, .07, 4 ...]: live values are taken, the others wait as dormant ones."""
    G = linear([[1.0, 0.05, 2.0, 0.02]])
    opt = sgd(G)
    policy: dict[str, Any] = dict(FIXED)
    if then == "end_epoch with a target":
        policy["target"] = {"G": 0.5, "by": 0, "shape": "constant"}
    rg = rgplug.attach(G, policy=policy)
    (w,) = rg.weights("G")
    WRITES[write](G, torch.tensor([[3.0, 0.0625, 4.0, 0.03125]]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if then == "step":
            set_grad(G, 0.0)
            opt.step()
        elif then == "end_epoch":
            rg.end_epoch(1.0)
            set_grad(G, 0.0)
            opt.step()
        elif then == "end_epoch with a target":
            rg.end_epoch(1.0)
        elif then == "go_dense":
            rg.networks["G"].go_dense()
        elif then == "refresh":
            rg.networks["G"].refresh_all()
        elif then == "state":
            state = copy.deepcopy(rg.state_dict())
            rg.load_state_dict(state)
            set_grad(G, 0.0)
            opt.step()
        else:
            rg.detach(finish="dense" if then == "detach dense" else "sparse")
    assert w.theta.tolist() == [[3.0, 0.0625, 4.0, 0.03125]]
    dense = then in ("go_dense", "detach dense")
    assert G.weight.tolist() == ([[3.0, 0.0625, 4.0, 0.03125]] if dense else [[3, 0, 4, 0]])


def test_a_dense_checkpoint_is_noticed_and_said_at_the_end_of_the_epoch() -> None:
    G = linear([[1.0, 0.05, 2.0, 0.02]])
    opt = sgd(G)
    rg = rgplug.attach(G, policy=FIXED)
    G.load_state_dict({"weight": torch.tensor([[3.0, 0.0625, 4.0, 0.0]])})
    set_grad(G, 0.0)
    opt.step()
    with pytest.warns(UserWarning, match="wrote 1 non-zero value.* of G"):
        record = rg.end_epoch(1.0)
    assert record.written == {"G": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rg.end_epoch(1.0).written == {}


def test_a_dense_checkpoint_is_noticed_at_the_end_of_the_epoch_without_a_step() -> None:
    G = linear([[1.0, 0.05, 2.0, 0.02]])
    opt = sgd(G)
    rg = rgplug.attach(G, policy={**FIXED, "target": {"G": 0.5, "by": 0, "shape": "constant"}})
    set_grad(G, 0.0)
    opt.step()
    G.load_state_dict({"weight": torch.tensor([[3.0, 0.0625, 4.0, 0.03125]])})
    with pytest.warns(UserWarning, match="wrote 2 non-zero value.* of G"):
        rg.end_epoch(1.0)


def test_weights_that_the_host_clamps_after_each_step() -> None:
    """WGAN: live values are clamped, dormant ones are not touched, nobody is warned."""
    G = linear([[1.0, 0.05, -2.0]])
    opt = sgd(G)
    rg = rgplug.attach(G, policy=FIXED)
    for _ in range(3):
        set_grad(G, [[-0.5, 1.0, 0.5]])
        opt.step()
        for p in G.parameters():
            p.data.clamp_(-0.75, 0.75)
    assert G.weight.tolist() == [[0.75, 0, -0.75]]
    assert rg.weights("G")[0].theta.tolist() == [[0.75, pytest.approx(0.05), -0.75]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rg.end_epoch(1.0)


def test_an_average_swapped_in_and_out_around_an_evaluation() -> None:
    """FastGAN: load_params(G, average), draw, load_params(G, backup). Nothing of it may stay."""
    host = Host()
    rg = rgplug.attach(host.G, host.D, {"sparsity_weight": 1e-2, "threshold": {"init": 0.05}})
    host.run(3)
    thetas = [w.theta for w in rg.weights("G")]
    backup = [p.detach().clone() for p in host.G.parameters()]
    for p in host.G.parameters():
        p.data.copy_(torch.randn_like(p))
    for p, b in zip(host.G.parameters(), backup):
        p.data.copy_(b)
    assert all(torch.equal(w.theta, t) for w, t in zip(rg.weights("G"), thetas))


def test_zeros_of_live_weights_are_no_host_writes() -> None:
    """Live zeros hide as many writes in the count, but never make one up."""
    G = linear([[1.0, 0.05, 0.0]])
    opt = sgd(G)
    rg = rgplug.attach(G, policy={"sparsity_weight": 0.0, "threshold": {"init": -0.1, "task_gradient": False}})
    set_grad(G, 0.0)
    opt.step()
    assert G.mask.all()
    assert int(rg.networks["G"].counts.written.sum()) == 0

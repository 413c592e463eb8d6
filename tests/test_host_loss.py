"""The regularizer as a term of the host's loss: its value, and that either place gives the same trajectory."""

from __future__ import annotations

import pytest
import torch
from common import Host, linear, set_grad, sgd, snapshot
from torch import Tensor

import rgplug
from rgplug.errors import RgplugError

POLICY = {"sparsity_weight": 1e-2, "threshold": {"init": 0.05}}
pytestmark = pytest.mark.filterwarnings("ignore:rgplug. densities have drifted apart")


def test_the_loss_is_lambda_times_the_sum_of_exp_minus_t() -> None:
    G = linear([[1.0, 0.5], [2.0, 0.5]])
    rg = rgplug.attach(G, policy={"sparsity_weight": 0.5, "regularization": "loss"})
    rg.weights("G")[0].threshold.copy_(torch.tensor([0.0, 0.25]))
    loss = rg.regularization_loss("G")
    assert loss.item() == pytest.approx(0.5 * (1 + 2.718281828**-0.25))
    assert loss.requires_grad
    rg.networks["G"].go_dense()
    assert rg.regularization_loss("G").item() == 0


def test_the_loss_is_refused_where_the_hook_adds_it() -> None:
    host = Host()
    rg = rgplug.attach(host.G, host.D, POLICY)
    with pytest.raises(RgplugError, match="regularization"):
        rg.regularization_loss("G")


def regularized(mode: str, loop: str, set_to_none: bool, order: str) -> dict[str, Tensor]:
    """The same training with the regularizer added by the hook or by the host."""
    host = Host()
    rg = rgplug.attach(host.G, host.D, {"sparsity_weight": 1e-2, "regularization": mode})
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8) if loop == "amp" else None

    def added(name: str) -> Tensor | float:
        return rg.regularization_loss(name) if mode == "loss" else 0.0

    for i in range(8):
        for name, loss in host.losses().items():
            opt = host.opt[name]
            if order == "zero first":
                opt.zero_grad(set_to_none=set_to_none)
            if loop in ("accumulated", "clipped between"):
                values = [loss() / 2, loss() / 2 + added(name)]
            elif loop == "logged":
                torch.as_tensor(added(name)).detach()  # looked at, and not added
                values = [loss() + added(name)]
            else:
                values = [loss() + added(name)]
            if order == "zero last":
                opt.zero_grad(set_to_none=set_to_none)
            for value in values:
                if scaler is None:
                    value.backward()
                    if loop == "clipped between":
                        torch.nn.utils.clip_grad_value_(host.nets[name].parameters(), 1e9)
                else:
                    scaler.scale(value * (float("inf") if i in (2, 5) and name == "G" else 1.0)).backward()
            if scaler is None:
                opt.step()
            else:
                scaler.step(opt)
        if scaler is not None:
            scaler.update()
        host.iteration += 1
    seen = snapshot(rg)
    rg.detach()
    return seen


@pytest.mark.parametrize("loop", ["plain", "accumulated", "clipped between", "logged", "amp"])
@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("order", ["zero first", "zero last"])
def test_hook_and_loss_give_the_same_trajectory(loop: str, set_to_none: bool, order: str) -> None:
    hook, loss = (regularized(mode, loop, set_to_none, order) for mode in ("hook", "loss"))
    for key, value in hook.items():
        if key.endswith("threshold"):
            torch.testing.assert_close(loss[key], value, rtol=1e-5, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")


def test_a_weighted_loss_counts_as_much() -> None:
    G = linear([[100.0]])
    opt = sgd(G)
    rg = rgplug.attach(G, policy={"sparsity_weight": 0.25, "regularization": "loss"})
    (3 * rg.regularization_loss("G")).backward()
    set_grad(G, 0.0)
    opt.step()
    assert rg.weights("G")[0].threshold.item() == pytest.approx(0.75)


def test_a_step_without_the_loss_adds_no_regularizer() -> None:
    G = linear([[100.0]])
    opt = sgd(G)
    rg = rgplug.attach(G, policy={"sparsity_weight": 0.25, "regularization": "loss"})
    set_grad(G, 0.0)
    opt.step()
    assert rg.weights("G")[0].threshold.item() == 0

"""An average that is swapped into a network while masks change: what comes back then survives the swap back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from common import adam, set_grad
from torch import Tensor, nn

import rgplug

AUGMENTED = {"window": 2, "weights": [0.5, 0.5], "include_current": True}
PRUNED = {"sparsity_weight": 0.0, "threshold": {"init": 0.1, "task_gradient": False}}


def swapped(G: nn.Module) -> list[Tensor]:
    """The training script's backup of its weights, while an average stands in their place."""
    backup = [p.detach().clone() for p in G.parameters()]
    with torch.no_grad():
        for p in G.parameters():
            p.mul_(0.9).add_(0.01)  # some average, dense
    return backup


def swap_back(G: nn.Module, backup: list[Tensor]) -> None:
    with torch.no_grad():
        for p, b in zip(G.parameters(), backup, strict=True):
            p.copy_(b)


@pytest.mark.parametrize("kernels", ["auto", "eager"])
def test_going_dense_inside_a_swap_loses_no_old_value(kernels: str) -> None:
    torch.manual_seed(0)
    G = nn.Linear(16, 16, bias=False)
    opt = adam(G, lr=0.0)
    rg = rgplug.attach(G, policy={**PRUNED, "regeneration": {"augmented": AUGMENTED}, "kernels": kernels})
    set_grad(G, 0.0)
    opt.step()
    (w,) = rg.weights("G")
    dense, mask = w.theta, w.mask
    assert 0.2 < w.density < 0.8
    rg.end_epoch(1.0)
    backup = swapped(G)
    rg.end_epoch(9.0)  # worse than its average: dense
    swap_back(G, backup)
    assert rg.phase == "dense"
    assert not G.weight[~mask].any()  # what the training script wrote
    set_grad(G, 0.0)
    opt.step()
    assert torch.equal(G.weight, dense)


def test_zeros_that_are_written_later_are_the_hosts() -> None:
    G = nn.Linear(16, 16, bias=False)
    opt = adam(G, lr=0.0)
    rg = rgplug.attach(G, policy={**PRUNED, "regeneration": {"augmented": AUGMENTED}})
    set_grad(G, 0.0)
    opt.step()
    rg.end_epoch(1.0), rg.end_epoch(9.0)
    set_grad(G, 0.0)
    opt.step()
    with torch.no_grad():
        G.weight.zero_()
    set_grad(G, 0.0)
    opt.step()
    assert not G.weight.any()


def pruned_run() -> tuple[nn.Linear, torch.optim.Optimizer, Any, Tensor]:
    """After a step and a first evaluation: the next one, if it is worse, goes dense. With all values, pruned or not."""
    torch.manual_seed(0)
    G = nn.Linear(16, 16, bias=False)
    opt = adam(G, lr=0.0)
    rg = rgplug.attach(G, policy={**PRUNED, "regeneration": {"augmented": AUGMENTED}})
    set_grad(G, 0.0)
    opt.step()
    dense = rg.weights("G")[0].theta
    rg.end_epoch(1.0)
    return G, opt, rg, dense


def went_dense_inside_a_swap() -> tuple[nn.Linear, torch.optim.Optimizer, Any, Tensor]:
    G, opt, rg, dense = pruned_run()
    backup = swapped(G)
    rg.end_epoch(9.0)
    swap_back(G, backup)
    return G, opt, rg, dense


@pytest.mark.parametrize("finish", ["dense", "as-is"])
def test_a_run_that_ends_after_a_swap(finish: Any) -> None:
    G, _, rg, dense = went_dense_inside_a_swap()
    rg.detach(finish)
    assert torch.equal(G.weight, dense)


def test_a_state_and_an_evaluation_after_a_swap() -> None:
    G, _, rg, dense = went_dense_inside_a_swap()
    rg.state_dict()
    assert torch.equal(G.weight, dense)
    G, _, rg, dense = went_dense_inside_a_swap()
    rg.end_epoch(0.1)
    assert rg.phase == "sparse"
    assert torch.equal(rg.weights("G")[0].theta, dense)


def test_gradients_masked_before_the_swap() -> None:
    G, opt, rg, dense = pruned_run()
    set_grad(G, 0.0)
    rg.mask_gradients()
    backup = swapped(G)
    rg.end_epoch(9.0)
    swap_back(G, backup)
    opt.step()
    assert torch.equal(G.weight, dense)


def test_a_weight_that_is_zeroed_whole_stays_so() -> None:
    G, opt, rg, _ = went_dense_inside_a_swap()
    assert rg.phase == "dense"
    with torch.no_grad():
        G.weight.zero_()
    set_grad(G, 0.0)
    opt.step()
    assert not G.weight.any()


def test_a_target_that_is_met_inside_a_swap(monkeypatch: Any) -> None:
    """What regrows at an evaluation, to meet the target, has its old value at the next step."""
    torch.manual_seed(0)
    G = nn.Linear(64, 64, bias=False)
    opt = adam(G, lr=0.0)
    policy = {
        "target": {"G": 0.5, "by": 0, "shape": "constant"},
        "threshold.units": "layer_std",
        "sparsity_weight": 0.0,
    }
    rg = rgplug.attach(G, policy=policy)
    set_grad(G, 0.0)
    opt.step()
    (w,) = rg.weights("G")
    theta, net = w.theta, rg.networks["G"]
    backup = [p.detach().clone() for p in G.parameters()]
    net._met = False
    monkeypatch.setattr(net, "scheduled", lambda: 0.75)  # the schedule goes up, say
    rg.end_epoch(1.0)
    assert w.density == pytest.approx(0.75, abs=0.01)
    swap_back(G, backup)
    set_grad(G, 0.0)
    opt.step()
    assert torch.equal(w.theta, theta)

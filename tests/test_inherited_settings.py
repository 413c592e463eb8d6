"""What thresholds take from the host's optimizer, and hosts that toggle, skip and schedule."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from common import ADAM, RAMP, TASK, Host, adam, different, linear, set_grad, sgd, snapshot, trajectory
from torch import Tensor, nn

import rgplug
from rgplug.errors import RgplugError


def test_the_threshold_follows_the_scheduled_lr() -> None:
    G = linear([[100.0]])
    opt = sgd(G, lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(opt, 1, gamma=0.5)
    rg = rgplug.attach(G, policy={"sparsity_weight": 0.25, "threshold": {"task_gradient": False}})
    expected = 0.0
    for lr in (1.0, 0.5, 0.25):
        set_grad(G, 0.0)
        opt.step()
        scheduler.step()
        expected += lr * 0.25 * float(torch.exp(-torch.tensor(expected)))
        assert rg.weights("G")[0].threshold.item() == pytest.approx(expected)


def test_the_threshold_follows_the_lr_of_an_optimizer_whose_state_was_loaded() -> None:
    """torch puts new group dicts in the place of the old ones."""
    G = linear([[100.0]])
    opt = sgd(G, lr=1.0)
    rg = rgplug.attach(G, policy={"sparsity_weight": 1e-3, "threshold": {"task_gradient": False}})
    set_grad(G, 0.0)
    opt.step()
    opt.load_state_dict(opt.state_dict())
    before = rg.weights("G")[0].threshold.item()
    for group in opt.param_groups:
        group["lr"] = 0.0
    opt.step()
    assert rg.weights("G")[0].threshold.item() == before


def test_settings_of_its_own_replace_the_inherited_ones() -> None:
    G = linear([[100.0]])
    opt = sgd(G, lr=1.0, weight_decay=0.5)
    policy = {"sparsity_weight": 0.25, "threshold": {"task_gradient": False, "optimizer": {"lr": 0.5}}}
    rg = rgplug.attach(G, policy=policy)
    set_grad(G, 0.0)
    opt.step()
    assert rg.weights("G")[0].threshold.item() == 0.125
    opt.step()  # thresholds do not decay with the weights
    assert rg.weights("G")[0].threshold.item() == pytest.approx(0.125 + 0.5 * 0.25 * 2.718281828**-0.125)


def test_a_misspelt_setting_is_named() -> None:
    G = linear([[100.0]])
    policy = {"threshold": {"optimizer": {"learning_rate": 0.5}}}
    with pytest.raises(RgplugError, match=r"policy\.threshold\.optimizer\.learning_rate is no setting of any"):
        rgplug.attach(G, policy=policy)
    with pytest.raises(RgplugError, match=r"policy\.threshold\.optimizer\.learning_rate.*SGD"):
        rgplug.attach(G, policy=policy, optimizers=sgd(G))


def test_a_setting_of_another_optimizer_is_named_at_the_first_step() -> None:
    """Which class steps the weights is known then, where attach was not given it."""
    G = linear([[100.0]])
    opt = sgd(G)
    rgplug.attach(G, policy={"threshold": {"optimizer": {"betas": [0.5, 0.9]}}})
    set_grad(G, 1.0)
    with pytest.raises(RgplugError, match=r"policy\.threshold\.optimizer\.betas.*SGD"):
        opt.step()


def test_maximize() -> None:
    """A host that ascends -L trains as one that descends L; the regularizer pulls the same way in both."""

    class Ascends(Host):
        def losses(self) -> dict[str, Callable[[], Tensor]]:
            return {name: (lambda loss=loss: -loss()) for name, loss in super().losses().items()}

    seen = []
    for cls, maximize in ((Host, False), (Ascends, True)):
        host = cls(optimizer=lambda m, up=maximize: adam(m, maximize=up))
        with rgplug.attach(host.G, host.D, TASK) as rg:
            host.run(6)
            seen.append(snapshot(rg))
    for key, value in seen[0].items():
        torch.testing.assert_close(seen[1][key], value, rtol=1e-5, atol=1e-6)


def test_requires_grad_is_off_while_the_optimizer_steps() -> None:
    def loop(host: Host, rg: rgplug.Controller) -> None:
        for net in host.nets.values():
            net.requires_grad_(False)
        for _ in range(6):
            for name, loss in host.losses().items():
                host.opt[name].zero_grad(set_to_none=True)
                host.nets[name].requires_grad_(True)
                loss().backward()
                host.nets[name].requires_grad_(False)
                host.opt[name].step()
            host.iteration += 1

    assert not different(trajectory(loop=loop), trajectory())


def test_attach_to_networks_that_require_no_gradient_yet() -> None:
    G = nn.Linear(3, 3).requires_grad_(False)
    rg = rgplug.attach(G, policy=RAMP)
    G.requires_grad_(True)
    opt = adam(G)
    G(torch.ones(2, 3)).sum().backward()
    opt.step()
    assert rg.weights("G")[0].threshold.tolist() == [pytest.approx(0.01)] * 3


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_both_ways(set_to_none: bool) -> None:
    def loop(host: Host, rg: rgplug.Controller) -> None:
        for _ in range(6):
            for name, loss in host.losses().items():
                host.opt[name].zero_grad(set_to_none=set_to_none)
                loss().backward()
                host.opt[name].step()
            host.iteration += 1

    assert not different(trajectory(loop=loop), trajectory())


def test_parameters_without_a_gradient_keep_weight_mask_and_threshold() -> None:
    G = nn.Sequential(linear([[1.0, 0.02]]), linear([[1.0], [0.05]]))
    opt = adam(G)
    rg = rgplug.attach(G, policy={"sparsity_weight": 0.0, "threshold": {"init": 0.03}})
    set_grad(G[0], 1.0)
    opt.step()
    assert G[1].weight.tolist() == [[1], [pytest.approx(0.05)]]
    assert rg.weights("G")[1].threshold.tolist() == [pytest.approx(0.03)] * 2
    assert G[0].weight.tolist() == [[pytest.approx(0.99), 0]]


def test_a_layer_that_sits_out_steps_has_an_adam_of_its_own() -> None:
    """Each threshold's Adam counts the steps in which its own weight had a gradient, as torch's does for the weight.

    Every other step is an auxiliary one (the regularizer, which reaches all layers, is left out) and misses a layer.
    """
    G = nn.Sequential(linear([[100.0]]), linear([[0.5, 100.0]]))  # H' is 0 for the 100
    opt = adam(G, lr=0.1)
    rg = rgplug.attach(G, policy={"sparsity_weight": 0.0})
    alone = torch.zeros(1, requires_grad=True)
    reference = torch.optim.Adam([alone], **{**ADAM, "lr": 0.1})
    for i in range(6):
        opt.zero_grad()
        set_grad(G[0], 1.0 + i)
        if i % 2:
            w = rg.weights("G")[1]
            w.param.data[0, 0] = 0.5
            set_grad(G[1], [[1.0 + i, 0.0]])
            x = 0.5 - alone.item()
            slope = 2 - 4 * abs(x) if abs(x) <= 0.4 else (0.4 if abs(x) <= 1 else 0)
            alone.grad = torch.tensor([-(1.0 + i) * 0.5 * slope])
            reference.step()
            opt.step()
        else:
            with rg.auxiliary_step("G"):
                opt.step()
    assert alone.abs().item() > 0
    assert rg.weights("G")[1].threshold.item() == pytest.approx(alone.item(), abs=1e-6)

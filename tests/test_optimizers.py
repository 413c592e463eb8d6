"""Which optimizers are heard, and that each trains, resumes and wraps as it does without rgplug."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
from common import ADAM, RAMP, TASK, Host, adam, different, linear, set_grad, sgd, snapshot, trajectory
from torch import Tensor, nn

import rgplug
from rgplug.errors import RgplugError

# ---- which optimizers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after", "given", "given as dict"])
def test_optimizers_made_before_or_after_attach_or_given_are_all_seen(when: str) -> None:
    G = linear([[1.0, 0.5], [1.0, 0.02]])
    opt = None if when == "after" else sgd(G)
    given: Any = {"given": opt, "given as dict": {"G": opt}}.get(when)
    rg = rgplug.attach(G, policy={**RAMP, "sparsity_weight": 0.25}, optimizers=given)
    opt = opt or sgd(G)
    set_grad(G, 0.0)
    opt.step()  # t = 0 + 1 * 0.25 * exp(0)
    (w,) = rg.weights("G")
    assert w.threshold.tolist() == [0.25, 0.25]
    assert G.weight.tolist() == [[1, 0.5], [1, 0]]
    assert w.steps == 1


def test_a_given_optimizer_is_the_only_one_that_is_heard() -> None:
    G = linear([[1.0, 0.5]])
    given, other = sgd(G), sgd(G)
    rg = rgplug.attach(G, policy=RAMP, optimizers=[given])
    set_grad(G, 0.0)
    other.step()
    assert rg.weights("G")[0].steps == 0
    given.step()
    assert rg.weights("G")[0].steps == 1


def test_optimizers_of_other_networks_are_left_alone() -> None:
    G, other = linear([[1.0, 0.5]]), linear([[1.0, 0.02]])
    rg = rgplug.attach(G, policy=RAMP)
    set_grad(other, 0.0)
    sgd(other).step()
    assert other.weight.tolist() == [[1.0, pytest.approx(0.02)]]
    assert rg.weights("G")[0].steps == 0


def test_a_step_after_detach_is_not_seen() -> None:
    G = linear([[1.0, 0.5]])
    opt = sgd(G)
    rg = rgplug.attach(G, policy=RAMP)
    (w,) = rg.weights("G")
    rg.detach()
    set_grad(G, 0.0)
    opt.step()
    assert w.steps == 0
    assert w.threshold.tolist() == [0]


class Wrapper(torch.optim.Optimizer):
    """Lookahead and the like: an Optimizer that holds another one and calls its step."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner
        super().__init__(inner.param_groups, inner.defaults)
        self.param_groups = inner.param_groups

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


class Anonymous(torch.optim.Optimizer):
    """The same without a word to its base class, as Accelerate's."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.param_groups, self.state = inner, inner.param_groups, defaultdict(dict)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


class CallsSuper(torch.optim.Adam):
    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class TakesAnything(torch.optim.Adam):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


@pytest.mark.parametrize("make", [CallsSuper, TakesAnything])
def test_a_subclass_steps_once_and_like_its_base_class(make: type) -> None:
    expected = trajectory()
    assert not different(trajectory(optimizer=lambda m: make(m.parameters(), **ADAM)), expected)


@pytest.mark.parametrize("wrapper", [Wrapper, Anonymous])
def test_a_wrapper_around_an_optimizer_steps_once_and_like_it(wrapper: type) -> None:
    expected = trajectory()
    assert not different(trajectory(optimizer=lambda m: wrapper(adam(m))), expected)


@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (torch.optim.Adam, {"amsgrad": True}),
        (torch.optim.AdamW, {"weight_decay": 0.1}),
        (torch.optim.NAdam, {}),
        (torch.optim.RAdam, {}),
        (torch.optim.Adamax, {}),
        (torch.optim.Adagrad, {}),
        (torch.optim.Adadelta, {}),
        (torch.optim.RMSprop, {"momentum": 0.5, "centered": True}),
        (torch.optim.Rprop, {}),
        (torch.optim.ASGD, {}),
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        (torch.optim.SGD, {}),
    ],
)
def test_every_elementwise_optimizer_trains_and_resumes(cls: type, settings: dict[str, Any]) -> None:
    def make(module: nn.Module) -> torch.optim.Optimizer:
        return cls(module.parameters(), lr=1e-2, **settings)

    def run(interrupted: bool) -> dict[str, Tensor]:
        host = Host(optimizer=make)
        rg = rgplug.attach(host.G, host.D, TASK)
        host.run(3)
        if interrupted:
            saved, state = host.state_dict(), rg.state_dict()
            rg.detach()
            host = Host(optimizer=make, seed=1)
            rg = rgplug.attach(host.G, host.D, TASK)
            host.load_state_dict(saved)
            rg.load_state_dict(state)
        host.run(3)
        assert any(w.threshold.std() > 0 for w in rg.weights("G"))
        seen = snapshot(rg)
        rg.detach()
        return seen

    assert not different(run(True), run(False))


@pytest.mark.parametrize("cls", [torch.optim.LBFGS, torch.optim.Adafactor])
def test_an_optimizer_whose_update_is_not_elementwise_is_refused_clearly(cls: type) -> None:
    G = nn.Linear(3, 3)
    opt = cls(G.parameters())
    rgplug.attach(G, policy=TASK)

    def closure() -> Tensor:
        opt.zero_grad()
        loss = G(torch.ones(2, 3)).square().mean()
        loss.backward()
        return loss

    with pytest.raises(RgplugError, match=rf"G's optimizer is {cls.__name__}.*Adam or SGD"):
        opt.step(closure)


def test_lbfgs_steps_under_a_policy_that_prunes_nothing() -> None:
    G = nn.Linear(3, 3)
    opt = torch.optim.LBFGS(G.parameters(), max_iter=3)
    rg = rgplug.attach(G, policy="dense")

    def closure() -> Tensor:
        opt.zero_grad()
        loss = G(torch.ones(2, 3)).square().mean()
        loss.backward()
        return loss

    opt.step(closure)
    assert rg.networks["G"].iteration == 1

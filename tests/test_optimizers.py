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


def test_a_given_optimizer_that_is_gone_is_replaced() -> None:
    G = nn.Linear(8, 64)
    opt = adam(G)
    rg = rgplug.attach(G, policy={"method": "sparse", "masks": {"density": 0.5}}, optimizers=opt)
    set_grad(G, 1.0)
    opt.step()
    opt = adam(G)  # a new stage
    for _ in range(5):
        set_grad(G, 1.0)
        opt.step()
    (w,) = rg.weights("G")
    assert w.steps == 6
    assert not G.weight[~w.mask].any()


def test_a_given_optimizer_that_rests_while_another_steps_is_replaced_with_a_word() -> None:
    """A scheduler, say, keeps the old one alive."""
    G = nn.Linear(8, 64)
    old, new = adam(G), adam(G)
    rg = rgplug.attach(G, policy={"method": "sparse", "masks": {"density": 0.5}}, optimizers=[old])
    set_grad(G, 1.0)
    new.step()
    with pytest.warns(UserWarning, match="was not among the `optimizers` given to attach"):
        new.step()
    (w,) = rg.weights("G")
    assert w.steps == 1
    assert not G.weight[~w.mask].any()


def test_a_successor_is_followed_while_the_other_given_optimizer_goes_on() -> None:
    G, D = nn.Linear(8, 64), nn.Linear(64, 1)
    opt_G, old = adam(G), adam(D)
    rg = rgplug.attach(G, D, {"method": "sparse", "masks": {"density": 0.5}}, optimizers=[opt_G, old])
    new = adam(D)

    def iterations() -> None:
        for _ in range(6):
            set_grad(D, 1.0), set_grad(G, 1.0)
            new.step()
            opt_G.step()

    with pytest.warns(UserWarning, match="was not among the `optimizers` given to attach"):
        iterations()
    assert rg.weights("D")[0].steps == 5
    assert not D.weight[~rg.weights("D")[0].mask].any()


def test_given_wrappers_of_optimizers_are_the_optimizers_inside(recwarn: pytest.WarningsRecorder) -> None:
    from lightning_fabric import Fabric

    G = nn.Sequential(nn.Linear(8, 64))
    wrapped, opt = Fabric(accelerator="cpu", devices=1).setup(G, adam(G))
    rg = rgplug.attach(wrapped, None, "rg-gan", optimizers=[opt])
    for _ in range(4):
        opt.zero_grad()
        wrapped(torch.ones(2, 8)).square().mean().backward()
        opt.step()
    assert rg.networks["G"].iteration == 4
    assert not [w for w in recwarn if str(w.message).startswith("rgplug")]


# ---- thresholds follow the optimizer of their weights ------------------------------------------------------------


def test_thresholds_follow_a_new_optimizer_in_class_and_rate() -> None:
    G = linear([[8.0, 8.0]] * 2)
    rg = rgplug.attach(G, policy=RAMP)
    first = adam(G, lr=1e-3)
    for _ in range(3):
        set_grad(G, 0.0)
        first.step()
    (w,) = rg.weights("G")
    before = w.threshold.clone()
    set_grad(G, 0.0)
    sgd(G, 0.25).step()
    # SGD: t + lr lambda exp(-t), without anything of Adam's
    torch.testing.assert_close(w.threshold, before + 0.25 * torch.exp(-before))


def test_thresholds_follow_their_weights_into_other_groups() -> None:
    G = nn.Sequential(linear([[8.0, 8.0]] * 2), linear([[8.0, 8.0]] * 2))
    rg = rgplug.attach(G, policy=RAMP)
    opt = sgd(G, 0.5)
    for layer in G:
        set_grad(layer, 0.0)
    opt.step()
    opt = torch.optim.SGD([{"params": G[0].parameters(), "lr": 0.25}, {"params": G[1].parameters(), "lr": 0.0}], lr=1.0)
    before = [w.threshold.clone() for w in rg.weights("G")]
    opt.step()
    moved = [(w.threshold - t) for w, t in zip(rg.weights("G"), before, strict=True)]
    torch.testing.assert_close(moved[0], 0.25 * torch.exp(-before[0]))
    assert not moved[1].any()


@pytest.mark.parametrize("brings_state", [True, False])
def test_moments_of_thresholds_go_on_if_the_new_optimizer_brings_its_own(brings_state: bool) -> None:
    G = linear([[8.0, 8.0]] * 2)
    rg = rgplug.attach(G, policy=RAMP)
    first = adam(G)
    for _ in range(3):
        set_grad(G, 1.0)
        first.step()
    second = adam(G)
    if brings_state:
        second.load_state_dict(first.state_dict())
    set_grad(G, 1.0)
    second.step()
    (w,) = rg.weights("G")
    state = rg.networks["G"].method.state_of(w)  # type: ignore[attr-defined]
    assert float(state["optimizer.step"]) == float(second.state[G.weight]["step"]) == (4 if brings_state else 1)


# ---- optimizer_state: reset --------------------------------------------------------------------------------------

MOMENTS = {
    torch.optim.Adam: {"exp_avg", "exp_avg_sq"},
    torch.optim.RMSprop: {"square_avg"},
    torch.optim.Adamax: {"exp_avg", "exp_inf"},
    torch.optim.Adagrad: {"sum"},
    torch.optim.Adadelta: {"square_avg", "acc_delta"},
    torch.optim.NAdam: {"exp_avg", "exp_avg_sq"},
    torch.optim.Rprop: {"prev"},
}


@pytest.mark.parametrize("cls", MOMENTS)
def test_moments_of_every_optimizer_are_reset(cls: type[torch.optim.Optimizer]) -> None:
    torch.manual_seed(0)
    G = nn.Linear(32, 32, bias=False)
    rg = rgplug.attach(G, None, {"base": "rigl", "masks": {"density": 0.5}, "exploration": {"every": 4, "end": 1000}})
    opt = cls(G.parameters(), lr=1e-3)  # type: ignore[call-arg]
    (w,) = rg.weights("G")
    for _ in range(4):
        before = w.mask.clone()
        set_grad(G, torch.randn(32, 32))
        opt.step()
    new, gone = w.mask & ~before, before & ~w.mask
    assert new.any()
    for key in MOMENTS[cls]:
        moment = opt.state[G.weight][key]
        assert not moment[new].any()
        assert not moment[gone].any()
        assert moment[before & w.mask].any()
    if cls is torch.optim.Rprop:  # a step size of 0 would never grow again
        assert opt.state[G.weight]["step_size"].all()


def test_moments_of_another_shape_are_named() -> None:
    torch.manual_seed(0)
    G = nn.Linear(32, 32, bias=False)
    rgplug.attach(G, None, {"base": "rigl", "masks": {"density": 0.5}, "exploration": {"every": 2, "end": 1000}})
    opt = torch.optim.Adafactor(G.parameters(), lr=1e-3)
    set_grad(G, torch.randn(32, 32))
    with pytest.warns(UserWarning, match=r"cannot reset 'row_var' of Adafactor"):
        opt.step()


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

"""What is known of a gradient without a look at its values; masking early, and what may come after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from common import adam, sgd
from torch import Tensor, nn

import rgplug
from rgplug.gradients import GradientWatch

X = torch.arange(6.0).view(2, 3)


def backward(layer: nn.Linear) -> None:
    layer(X).sum().backward()


def clip(layer: nn.Linear) -> None:
    layer.weight.grad.mul_(0.5)


def zero_in_place(layer: nn.Linear) -> None:
    layer.weight.grad.zero_()


def set_to_none(layer: nn.Linear) -> None:
    layer.weight.grad = None


@pytest.mark.parametrize(
    ("then", "listening", "deaf"),
    [
        ([], "none", "none"),
        ([backward], "accumulated", "new"),
        ([backward, backward], "accumulated", "new"),
        ([clip], "written", "new"),
        ([backward, clip], "accumulated", "new"),
        ([zero_in_place, backward], "new", "new"),
        ([clip, backward], "new", "new"),
        ([set_to_none], "new", "new"),
        ([set_to_none, backward], "new", "new"),
    ],
)
def test_what_happened_since_it_was_marked(then: list[Callable[[nn.Linear], None]], listening: str, deaf: str) -> None:
    for listen in (True, False):
        layer = nn.Linear(3, 2)
        watch = GradientWatch(layer.weight)
        assert watch.change() == "new"
        backward(layer)
        watch.mark(listen=listen)
        for action in then:
            action(layer)
        assert watch.change() == (listening if listen else deaf)
        watch.forget()
        assert watch.change() == "new"
        assert not layer.weight._post_accumulate_grad_hooks


def test_a_first_gradient_is_an_accumulation() -> None:
    layer = nn.Linear(3, 2)
    watch = GradientWatch(layer.weight)
    watch.mark(listen=True)
    assert watch.change() == "none"
    backward(layer)
    backward(layer)
    assert watch.change() == "accumulated"


# ---- masking early -----------------------------------------------------------------------------------------------

POLICY: dict[str, Any] = {
    "thresholds": {"threshold": {"init": 0.3}, "sparsity_weight": 1e-3},
    "full gradient": {"threshold": {"init": 0.3, "weight_gradient": "full"}, "sparsity_weight": 1e-3},
    "kernel": {"threshold": {"init": 0.3}, "sparsity_weight": 1e-3, "granularity": "kernel"},
    "growth by gradient": {"base": "rigl", "masks.density": 0.5, "exploration": {"every": 2, "end": 100}},
    "growth by momentum": {
        "method": "sparse",
        "masks": {"density": 0.5},
        "exploration": {"every": 2, "grow": "momentum", "networks": ["G"], "end": 100},
    },
}


def trained(policy: Any, loop: Callable[..., None], kernels: str = "auto") -> list[Tensor]:
    torch.manual_seed(0)
    G = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 8)).double()
    opt = adam(G, lr=1e-2)
    with rgplug.attach(G, None, {**policy, "kernels": kernels}) as rg:
        for i in range(6):
            loop(rg, G, opt, i)
            opt.step()
        assert rg.density("G") < 1
        seen = [x for w in rg.weights("G") for x in (w.theta, w.mask, opt.state[w.param]["exp_avg_sq"].clone())]
        return seen + [w.threshold.clone() for w in rg.weights("G") if w.threshold is not None]


def loss(G: nn.Module, i: int) -> Tensor:
    x = torch.linspace(-1, 1, 32, dtype=torch.float64).view(4, 8) * (i + 1)
    return (G(x) - x).square().mean()


def two_micro_batches(mask_between: bool) -> Any:
    def loop(rg: Any, G: nn.Module, opt: torch.optim.Optimizer, i: int) -> None:
        opt.zero_grad()
        loss(G, i).backward()
        if mask_between:
            rg.mask_gradients()
        loss(G, 10 + i).backward()
        if mask_between:
            rg.mask_gradients()
            nn.utils.clip_grad_norm_(G.parameters(), 1e9)

    return loop


@pytest.mark.parametrize("policy", POLICY)
@pytest.mark.parametrize("kernels", ["auto", "eager"])
def test_a_backward_after_masking_counts_whole(policy: str, kernels: str) -> None:
    """The pruned part of the first gradient is taken back before the second one is looked at."""
    expected = trained(POLICY[policy], two_micro_batches(False), kernels)
    for a, b in zip(trained(POLICY[policy], two_micro_batches(True), kernels), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def skipping(skip: bool) -> Any:
    """A GradScaler's skipped step, in a training script that zeroes gradients in place."""

    def loop(rg: Any, G: nn.Module, opt: torch.optim.Optimizer, i: int) -> None:
        if skip and i == 3:
            opt.zero_grad(set_to_none=False)
            (loss(G, i) * float("inf")).backward()
            rg.mask_gradients()
        opt.zero_grad(set_to_none=False)
        loss(G, i).backward()
        rg.mask_gradients()
        for w in rg.weights("G"):
            assert not w.param.grad[~w.mask].any()

    return loop


@pytest.mark.parametrize("policy", POLICY)
def test_a_step_that_is_skipped_leaves_nothing(policy: str) -> None:
    for a, b in zip(trained(POLICY[policy], skipping(True)), trained(POLICY[policy], skipping(False)), strict=True):
        assert torch.equal(a, b)


def masking_in_a_closure(mask: bool) -> Any:
    def loop(rg: Any, G: nn.Module, opt: torch.optim.Optimizer, i: int) -> None:
        def closure() -> Tensor:
            opt.zero_grad()
            found = loss(G, i)
            found.backward()
            if mask:
                rg.mask_gradients()
            return found

        opt.step(closure)
        for p in G.parameters():  # the step of the loop around it: nothing
            p.grad = torch.zeros_like(p)

    return loop


def masking_without_requires_grad(mask: bool) -> Any:
    """StyleGAN's order: gradients are off again before they are looked at."""

    def loop(rg: Any, G: nn.Module, opt: torch.optim.Optimizer, i: int) -> None:
        G.requires_grad_(True)
        opt.zero_grad()
        loss(G, i).backward()
        G.requires_grad_(False)
        if mask:
            rg.mask_gradients()
            for p in G.parameters():
                torch.nan_to_num(p.grad, out=p.grad)

    return loop


@pytest.mark.parametrize("policy", POLICY)
@pytest.mark.parametrize("order", [masking_in_a_closure, masking_without_requires_grad])
def test_masking_changes_nothing(policy: str, order: Any) -> None:
    for a, b in zip(trained(POLICY[policy], order(True)), trained(POLICY[policy], order(False)), strict=True):
        assert torch.equal(a, b)


def test_the_regularizer_in_the_loss_counts_once_where_masking_comes_between() -> None:
    G = nn.Linear(3, 2)
    opt = sgd(G, 0.0)
    policy = {"sparsity_weight": 1.0, "regularization": "loss", "threshold": {"optimizer": {"lr": 1.0}}}
    rg = rgplug.attach(G, policy=policy)
    seen = []
    take = rg.networks["G"].take_regularizer
    rg.networks["G"].take_regularizer = lambda *a: seen.append(take(*a)) or seen[-1]  # type: ignore[method-assign]
    for _ in range(3):
        opt.zero_grad()
        (G(X).mean() + rg.regularization_loss("G")).backward()
        rg.mask_gradients()
        (G(X).mean() + rg.regularization_loss("G")).backward()
        opt.step()
    assert [float(x) for x in seen] == [2, 2, 2]

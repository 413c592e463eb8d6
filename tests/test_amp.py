"""GradScaler: the hook sees unscaled gradients and a skipped step is no step, for plain and for fused optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from common import ADAM, Host, adam, linear, pruned_at, set_grad, snapshot
from torch import Tensor, nn

import rgplug

POLICY = {"sparsity_weight": 1e-2, "threshold": {"init": 0.05}}


def fused(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), **ADAM, fused=True)


def train(
    optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    scale: float | None,
    skip: tuple[int, ...] = (),
    unscale: bool = False,
    policy: dict[str, Any] = POLICY,
) -> tuple[dict[str, Tensor], list[int]]:
    """Steps in `skip` have an infinite loss; without a scaler they are left out."""
    host = Host("equalized", optimizer=optimizer)
    with rgplug.attach(host.G, host.D, policy) as rg:
        scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale, backoff_factor=1.0 - 1e-12)
        for i in range(8):
            for name, loss in host.losses().items():
                opt = host.opt[name]
                opt.zero_grad()
                value = loss()
                if scaler is None:
                    if i in skip:
                        continue
                    value.backward()
                    opt.step()
                    continue
                scaler.scale(value * (float("inf") if i in skip else 1)).backward()
                if unscale:
                    scaler.unscale_(opt)
                    rg.mask_gradients(name)
                    nn.utils.clip_grad_norm_(host.nets[name].parameters(), 1e9, error_if_nonfinite=False)
                scaler.step(opt)
            if scaler is not None:
                scaler.update()
            host.iteration += 1
        for w in [w for n in "GD" for w in rg.weights(n)]:
            assert torch.isfinite(w.theta).all()
            assert not w.param[~w.mask].any()
        return snapshot(rg), [net.iteration for net in rg.networks.values()]


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for key, value in b.items():
        if value.dtype == torch.bool:
            assert (a[key] ^ value).float().mean() < 0.01, key
        elif not key.endswith("weight"):
            torch.testing.assert_close(a[key], value, rtol=1e-3, atol=1e-4, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("optimizer", [adam, fused])
@pytest.mark.parametrize("skip", [(), (0,), (3, 4)])
@pytest.mark.parametrize("unscale", [False, True])
def test_a_scaled_loss_trains_like_an_unscaled_one(optimizer: Any, skip: tuple[int, ...], unscale: bool) -> None:
    expected, _ = train(adam, None, skip)
    seen, iterations = train(optimizer, 2.0**10, skip, unscale)
    close(seen, expected)
    if optimizer is adam:
        assert iterations == [8 - len(skip)] * 2


def test_a_skipped_step_changes_nothing_at_all() -> None:
    for make in (adam, fused):
        G = linear([[1.0, 0.5, 0.02]])
        opt = make(G)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        rg = rgplug.attach(G, policy={"sparsity_weight": 1.0, "threshold": {"init": 0.1}})
        (w,) = rg.weights("G")
        set_grad(G, 4.0)
        scaler.scale(torch.zeros(1))  # the scaler makes its scale at the first use
        scaler.step(opt)
        scaler.update()
        before = {k: v.clone() for k, v in snapshot(rg).items()}
        moments = {k: v.clone() for k, v in opt.state[G.weight].items()}
        set_grad(G, float("inf"))
        scaler.step(opt)
        scaler.update()
        assert all(torch.equal(v, before[k]) for k, v in snapshot(rg).items())
        assert all(torch.equal(v, moments[k]) for k, v in opt.state[G.weight].items())
        assert w.mask.tolist() == [[True, True, False]]
        # and the next good step counts once
        set_grad(G, 4.0)
        scaler.step(opt)
        assert torch.isfinite(w.threshold).all()
        rg.detach()


def test_iterations_of_a_fused_optimizer_count_steps_that_its_kernel_skips() -> None:
    """Whether they were skipped is known on the device alone; nothing else may depend on it (the tests around this)."""
    _, iterations = train(fused, 2.0**10, skip=(3, 4))
    assert iterations == [8, 8]
    _, iterations = train(adam, 2.0**10, skip=(3, 4))
    assert iterations == [6, 6]


@pytest.mark.parametrize("units", ["layer_std", "spectral"])
def test_fused_with_units(units: str) -> None:
    policy = {**POLICY, "threshold": {"units": units, "init": 0.05}}
    expected, _ = train(adam, None, (3,), policy=policy)
    seen, _ = train(fused, 2.0**10, (3,), policy=policy)
    close(seen, expected)


def test_autocast_in_bfloat16() -> None:
    host = Host("old_sn")
    rg = rgplug.attach(host.G, host.D, POLICY)
    for _ in range(4):
        for name, loss in host.losses().items():
            host.opt[name].zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                value = loss()
            value.backward()
            host.opt[name].step()
    assert 0 < rg.density("D") < 1
    assert all(torch.isfinite(w.theta).all() for w in rg.weights("D"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_kept_in_half_precision(dtype: torch.dtype) -> None:
    G = nn.Linear(8, 8, dtype=dtype)
    opt = torch.optim.SGD(G.parameters(), lr=0.1, momentum=0.9)
    rg = rgplug.attach(
        G, policy={"sparsity_weight": 1e-2, "threshold": {"weight_gradient": "full", "units": "layer_std"}}
    )
    pruned_at(rg, "G", 0.5)
    for _ in range(3):
        set_grad(G, 0.01)
        opt.step()
    (w,) = rg.weights("G")
    assert w.threshold.dtype == torch.float32
    assert w.dormant.dtype == dtype
    assert 0 < w.density < 1

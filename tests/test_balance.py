"""ADAPT: D's density follows the balance ratio, against an oracle in numpy; and how the ratio is measured."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import oracle_adapt as oracle
import pytest
import torch
from common import Host, different, snapshot
from test_sparse import batches, loss_of, network
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import rgplug
from rgplug import Policy, RgplugError
from rgplug.methods.balance import adjusted_density, balance_ratio
from rgplug.policy import BalancePolicy

BETAS = (0.5, 0.999)
ADAPT = {"base": "adapt", "masks.density": {"G": 0.5, "D": 0.3}, "exploration.every": 7, "exploration.end": 70}
SHORT = {"balance.every": 10, "balance.window": 3, "balance.delta": 0.1, "balance.lowest": 0.1}
RATIOS = [0.5] + 7 * [0.9] + 2 * [0.3] + 8 * [0.0] + 3 * [0.9]


def even(net: nn.Module) -> int:
    """Managed entries: a tenth of them is a whole number, so that densities in tenths are exact."""
    return sum(p.numel() for p in net.parameters() if p.dim() > 1)


def ten_layers(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 10, 3), nn.Softplus(), nn.Flatten(), nn.Linear(360, 1)).double()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kernels", ["auto", "eager"])
def test_adapt_equals_the_oracle(strict: bool, kernels: str) -> None:
    G, D, theirs = network(), ten_layers(), ten_layers()
    assert even(D) % 10 == 0
    own: dict[str, Any] = {
        "masks.distribution": "uniform"
    }  # a filter without weights would give its inputs equal gradients
    own |= {"balance.highest": 0.5 if strict else 1.0, "balance.exchange": strict, "balance.fraction": 0.2}
    rg = rgplug.attach(G, D, {**ADAPT, **SHORT, **own, "kernels": kernels})
    ratio = rg.networks["D"].method.ratio
    masks = {w.name: w.mask.numpy().copy() for w in rg.weights("D")}
    reference = oracle.Adapt(
        theirs, masks, window=3, every=10, lower=0.45, upper=0.55, delta=0.1, lowest=0.1,
        highest=0.5 if strict else 1.0, lr=1e-2, betas=BETAS, strict=strict, exchange_share=0.2,
    )  # fmt: skip
    optimizer = torch.optim.Adam(D.parameters(), 1e-2, betas=BETAS)
    densities, actions = [], []
    for i, x in enumerate(batches(100)):
        if i % 5 == 0:
            ratio.add(torch.tensor(RATIOS[i // 5], dtype=torch.float64))
            reference.measure(RATIOS[i // 5])
        optimizer.zero_grad()
        loss_of(D, x).backward()
        optimizer.step()
        actions.append(reference.d_step(lambda net, x=x: loss_of(net, x)))
        for w in rg.weights("D"):
            assert np.array_equal(w.mask.numpy(), reference.masks[w.name]), (i, w.name)
        for (name, a), b in zip(D.named_parameters(), theirs.parameters()):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9, msg=f"{i} {name}")
            for key, moments in (("exp_avg", reference.adam.m), ("exp_avg_sq", reference.adam.v)):
                np.testing.assert_allclose(optimizer.state[a][key].numpy(), moments[name], rtol=0, atol=1e-9)
        densities.append(rg.density("D"))
    assert max(densities) == pytest.approx(0.5 if strict else 0.6)
    assert min(densities) == pytest.approx(0.1 if strict else 0.2)
    assert {"grow", "shrink", "stay"} <= set(actions)
    assert ("exchange" in actions) == strict


def test_balance_ratio_by_hand() -> None:
    real, before, after = torch.tensor([3.0, 5.0]), torch.tensor([0.0, -2.0]), torch.tensor([1.0, 2.0])
    assert balance_ratio(real, before, after).item() == pytest.approx((1.5 + 1) / (4 + 1))


@pytest.mark.parametrize(
    ("density", "ratio", "expected"),
    [(0.3, 0.5, 0.3), (0.3, 0.55, 0.35), (0.3, 0.45, 0.25), (0.48, 0.9, 0.5), (0.07, -1.0, 0.05), (0.8, 0.9, 0.8)],
)
def test_adjusted_density(density: float, ratio: float, expected: float) -> None:
    assert adjusted_density(density, ratio, BalancePolicy(highest=0.5)) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["plain", "old_sn", "new_sn"])
def test_the_ratio_is_measured_around_g_s_step_and_nobody_notices(kind: str) -> None:
    """Against copies of the networks that are called by hand, and against a run without measurements."""
    measured: list[float] = []
    expected: list[float] = []
    runs = []
    for measures in (True, False):
        host = Host(kind, dtype=torch.float64)
        every = 1 if measures else 10**6
        policy = {**ADAPT, **SHORT, "balance.measure": every, "balance.every": 10**6, "balance.window": 100}
        rg = rgplug.attach(host.G, host.D, policy)
        seen: dict[str, Any] = {}

        def before(optimizer: Any, *_: Any, host: Host = host, seen: dict[str, Any] = seen) -> None:
            if optimizer is host.opt["G"] and kind == "plain":
                seen["G"], seen["D"] = copy.deepcopy(host.G), copy.deepcopy(host.D)

        for _ in range(6):
            i = host.iteration
            rg.observe(host.data.x(i), host.data.z(2 * i + 1))
            handle = register_optimizer_step_pre_hook(before)
            host.run(1)
            handle.remove()
            if measures and kind == "plain":
                D, x, z = seen["D"], host.data.x(i), host.data.z(2 * i + 1)
                expected.append(oracle.measured_ratio(D, seen["G"], copy.deepcopy(host.G), x, z))
        if measures:
            measured = [float(v) for v in rg.networks["D"].method.ratio.values]
        runs.append(snapshot(rg) | {f"G.{k}": v.clone() for k, v in host.G.state_dict().items()})
        runs[-1] |= {f"D.{k}": v.clone() for k, v in host.D.state_dict().items()}
        rg.detach()
    assert len(measured) == 6
    if kind == "plain":
        assert measured == pytest.approx(expected, rel=1e-9)
    assert not different(*runs)


def test_real_images_that_the_policy_names(tmp_path: Path) -> None:
    images = (np.random.default_rng(0).random((6, 8, 8, 3)) * 255).astype(np.uint8)
    np.savez(tmp_path / "real.npz", images=images)
    host = Host()
    policy = {**ADAPT, **SHORT, "balance.measure": 2, "balance.real": tmp_path / "real.npz", "balance.batch": 4}
    rg = rgplug.attach(host.G, host.D, policy)
    host.run(6)
    assert len(rg.networks["D"].method.ratio.values) == 3


def test_a_resume_is_exact(tmp_path: Path) -> None:
    np.savez(tmp_path / "real.npz", images=np.full((3, 8, 8, 3), 99, np.uint8))
    policy = {**ADAPT, "balance.real": tmp_path / "real.npz", "balance.batch": 2, "balance.measure": 1}
    policy |= {"balance.every": 5, "balance.window": 4, "balance.upper": 0.0, "balance.lower": -1e9}
    first = Host(dtype=torch.float64)
    rg = rgplug.attach(first.G, first.D, policy, optimizers=first.opt)
    first.run(7)
    host, saved = copy.deepcopy(first.state_dict()), tmp_path / "state.safetensors"
    rg.save(saved)
    first.run(9)
    second = Host(seed=4, dtype=torch.float64)
    resumed = rgplug.attach(second.G, second.D, policy, optimizers=second.opt)
    second.load_state_dict(host)
    resumed.load(saved)
    second.run(9)
    assert not different(snapshot(rg), snapshot(resumed))
    assert rg.density("D") != pytest.approx(0.3, abs=1e-3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"balance.lower": 0.9}, "policy.balance.lower is 0.9, above policy.balance.upper"),
        ({"exploration.networks": ["D"]}, "policy.balance adjusts D's density and policy.exploration explores D too"),
        ({"balance.highest": 0.01}, "policy.balance.highest is 0.01"),
        ({"base": "rg-gan", "balance": True}, "policy.balance needs method: sparse"),
    ],
)
def test_bad_policies(change: dict[str, Any], sentence: str) -> None:
    own = {} if "base" in change else ADAPT
    with pytest.raises(RgplugError, match=sentence):
        Policy.load({**own, **change})


def test_no_real_images() -> None:
    host = Host()
    rgplug.attach(host.G, host.D, {**ADAPT, "balance.measure": 1})
    with pytest.raises(RgplugError, match=r"the balance ratio needs real images.*rg.observe"):
        host.run(1)


def test_a_discriminator_that_takes_labels() -> None:
    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(192, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.layer(x.flatten(1)).gather(1, y[:, None])

    host = Host()
    D = Labelled()
    rg = rgplug.attach(host.G, D, {**ADAPT, "balance.measure": 1})
    rg.observe(host.data.x(0), host.data.z(0))
    optimizer = torch.optim.SGD(host.G.parameters(), 0.1)
    host.G(host.data.z(0)).sum().backward()
    with pytest.raises(RgplugError, match="D does not take images alone"):
        optimizer.step()


def test_only_g() -> None:
    with pytest.raises(RgplugError, match=r"policy.balance needs both networks"):
        rgplug.attach(network(), None, ADAPT)

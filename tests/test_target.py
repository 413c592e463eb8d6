"""A density that was asked for is there, at every end_epoch from 10 % of the way on."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from common import Host, adam, sgd
from torch import nn

import rgplug
from rgplug.schedule import scheduled_density

pytestmark = pytest.mark.filterwarnings("ignore:rgplug. densities have drifted apart")
STEPS, EVERY = 48, 4
TOLERANCE = 0.005


class Mapped(nn.Module):
    """Equalized learning rate with a mapping layer whose weights have standard deviation 100 (StyleGAN2's)."""

    class Mapping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(24, tiny.Z) * 100)

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return F.leaky_relu(F.linear(z, self.weight * (0.01 * tiny.Z**-0.5)), 0.2)

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mapping = self.Mapping()
        self.first = tiny.EqualLinear(24, 8 * 16)
        self.conv = tiny.EqualConv2d(8, 8, 3, 1, 1)
        self.rgb = tiny.EqualConv2d(8, 3, 3, 1, 1)
        self.to(dtype)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x = self.first(self.mapping(z)).view(-1, 8, 4, 4)
        return torch.tanh(self.rgb(F.softplus(self.conv(F.interpolate(F.softplus(x), scale_factor=2)))))


def host_of(kind: str) -> Host:
    torch.manual_seed(0)
    host = Host("equalized" if kind == "mapped" else kind, optimizer=lambda m: adam(m, lr=2e-3))
    if kind == "plain":
        for net in host.nets.values():
            for m in net.modules():
                if isinstance(m, (nn.Linear, nn.Conv2d)):
                    nn.init.xavier_uniform_(m.weight)
    if kind == "mapped":
        host.G = Mapped(torch.float32)
        host.opt["G"] = adam(host.G, lr=2e-3)
    return host


def misses(kind: str, policy: dict[str, Any], steps: int = STEPS) -> list[str]:
    """Every end_epoch at which the density was off the schedule."""
    host = host_of(kind)
    rg = rgplug.attach(host.G, host.D, policy)
    target = rg.policy.target
    assert target is not None
    off = []
    for epoch in range(steps // EVERY):
        host.run(EVERY)
        rg.end_epoch(float(10 - 0.01 * epoch))
        way = (host.iteration - target.start) / max(target.by - target.start, 1)
        for n, net in rg.networks.items():
            wanted = scheduled_density(target, n, net.iteration)
            true = sum(int(w.mask.sum()) for w in net.weights) / sum(w.numel for w in net.weights)
            assert rg.density(n) == pytest.approx(true, abs=1e-9)
            if way >= 0.1 and wanted is not None and abs(true - wanted) > TOLERANCE:
                off.append(f"{host.iteration} {n}: {true:.4f} and not {wanted:.4f}")
    for n in rg.networks:
        for w in rg.weights(n):
            assert w.mask.any(), f"{n}.{w.name} is empty"
            assert torch.isfinite(w.param).all()
            assert torch.isfinite(w.threshold).all()
    rg.detach()
    return off


@pytest.mark.parametrize(
    ("kind", "shape"),
    [(kind, "cubic") for kind in ("plain", "equalized", "mapped", "old_sn", "new_sn")]
    + [("plain", "linear"), ("mapped", "linear"), ("old_sn", "constant"), ("mapped", "constant")],
)
def test_the_density_is_on_its_schedule(kind: str, shape: str) -> None:
    target = {"G": 0.5, "D": 0.3, "start": 4, "by": 40, "shape": shape}
    assert not misses(kind, {"target": target})


OPTIONS: list[dict[str, Any]] = [
    {"threshold": {"units": "layer_std"}},
    {"threshold": {"units": "spectral"}},
    {"threshold": {"task_gradient": False}},
    {"threshold": {"weight_gradient": "full"}},
    {"regeneration": {"recurrent": False}},
    {"regeneration": {"recurrent": ["G"]}},
    {"sparsity_weight": 10.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["mapped", "old_sn"])
def test_the_density_is_on_its_schedule_under_every_policy(kind: str, options: dict[str, Any]) -> None:
    assert not misses(kind, {"target": {"G": 0.3, "D": 0.6, "by": 40}, **options})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mapped", "old_sn"])
def test_the_density_is_on_its_schedule_over_hundreds_of_steps(kind: str) -> None:
    assert not misses(kind, {"target": {"G": 0.3, "D": 0.6, "by": 250}, "threshold": {"weight_gradient": "full"}}, 300)


@pytest.mark.parametrize("density", [0.05, 0.9])
@pytest.mark.parametrize("kind", ["plain", "mapped"])
def test_very_sparse_and_nearly_dense(kind: str, density: float) -> None:
    assert not misses(kind, {"target": {"G": density, "D": density, "by": 30}})


def test_sgd_and_one_network_only() -> None:
    host = host_of("plain")
    host.opt = {n: sgd(m, lr=1e-2, momentum=0.9) for n, m in host.nets.items()}
    rg = rgplug.attach(host.G, host.D, {"target": {"D": 0.4, "by": 30}, "sparsity_weight": 1e-9})
    host.run(40)
    rg.end_epoch(1.0)
    assert rg.density("D") == pytest.approx(0.4, abs=TOLERANCE)
    assert rg.density("G") > 0.6  # its own thresholds, and no target


def test_differences_between_filters_stay_learned() -> None:
    """The target shifts all thresholds together; what tells filters apart is the loss."""
    host = host_of("plain")
    rg = rgplug.attach(host.G, host.D, {"target": {"G": 0.5, "D": 0.5, "by": 30}})
    host.run(60)
    spread = [w.threshold.std().item() for w in rg.weights("G") if w.threshold.numel() > 1]
    assert min(spread) > 1e-4


def test_before_the_start_everything_is_kept() -> None:
    host = host_of("plain")
    rg = rgplug.attach(host.G, host.D, {"target": {"G": 0.5, "start": 20, "by": 40}})
    host.run(10)
    rg.end_epoch(1.0)
    assert rg.density("G") == 1.0


def test_density_is_back_on_the_schedule_after_a_dense_phase() -> None:
    host = host_of("plain")
    rg = rgplug.attach(host.G, host.D, {"target": {"G": 0.5, "D": 0.5, "by": 20}})
    host.run(25)
    for metric in (5, 6, 7, 8, 9):
        record = rg.end_epoch(metric)
    assert record.phase == "dense"
    assert rg.density() == {"G": 1.0, "D": 1.0}
    host.run(5)
    record = rg.end_epoch(1.0)
    assert record.phase == "sparse"
    assert rg.density("G") == pytest.approx(0.5, abs=TOLERANCE)
    assert rg.density("D") == pytest.approx(0.5, abs=TOLERANCE)


@pytest.mark.parametrize("how", ["two optimizers", "a frozen layer"])
def test_the_density_follows_between_evaluations_whatever_the_optimizers_hold(how: str) -> None:
    """Not in one leap at the evaluation: the schedule is there so that the network can adapt."""
    host = host_of("plain")
    layers = [m for m in host.G if sum(1 for _ in m.parameters())]
    trained = layers if how == "two optimizers" else layers[:-1]
    opts = [adam(m, lr=2e-3) for m in trained]
    rg = rgplug.attach(host.G, None, {"target": {"G": 0.5, "by": 40, "shape": "linear"}})
    for i in range(40):
        host.G.zero_grad()
        host.losses()["G"]().backward()
        for opt in opts:
            opt.step()
        host.iteration += 1
        if i >= 10:
            assert rg.density("G") == pytest.approx(1 - 0.5 * (i + 1) / 40, abs=0.05)
    rg.end_epoch(1.0)
    assert rg.density("G") == pytest.approx(0.5, abs=TOLERANCE)

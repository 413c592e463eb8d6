"""Counting from inside a run: #RI and FLOPs, by hand."""

from __future__ import annotations

import pytest
import torch
from common import Host
from torch import nn

import rgplug


class Generator(nn.Module):
    z_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3 * 4 * 4)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.linear(z).view(-1, 3, 4, 4)


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return Generator(), nn.Sequential(nn.Flatten(), nn.Linear(48, 1))


def train(G: nn.Module, D: nn.Module, d_steps: int, g_steps: int) -> None:
    opt_g, opt_d = torch.optim.SGD(G.parameters(), 1e-3), torch.optim.SGD(D.parameters(), 1e-3)
    for _ in range(d_steps):
        D(torch.randn(2, 3, 4, 4)).sum().backward()
        opt_d.step()
    for _ in range(g_steps):
        D(G(torch.randn(2, 4))).sum().backward()
        opt_g.step()


def test_dense_run_by_hand() -> None:
    G, D = networks()
    rg = rgplug.attach(G, D, {"base": "dense", "batch_size": {"G": 8, "D": 16}})
    train(G, D, d_steps=5, g_steps=2)
    f_g, f_d = 2 * 4 * 48, 2 * 48  # 2 FLOPs a MAC
    assert rg.accounting.real_images == 5 * 16
    assert rg.accounting.flops() == 5 * (3 * f_d * 32 + f_g * 16) + 2 * (3 * f_g * 8 + 3 * f_d * 8)
    assert "80" in str(rg.accounting)
    rg.detach()


def test_density_is_integrated_over_the_steps() -> None:
    G, D = networks()
    policy = {"target": {"G": 0.25, "by": 0, "shape": "constant"}, "networks": {"D": {}}, "batch_size": 2}
    rg = rgplug.attach(G, D, policy)
    train(G, D, d_steps=0, g_steps=3)  # every step of G ends at a quarter
    assert rg.density("G") == pytest.approx(0.25, abs=0.01)
    f_g, f_d = 2 * 4 * 48, 2 * 48
    expected = 3 * (3 * rg.density("G") * f_g * 2 + 3 * f_d * 2)
    assert rg.accounting.flops() == pytest.approx(expected, rel=1e-6)
    rg.detach()


def test_what_is_not_known_is_said() -> None:
    G, D = networks()
    rg = rgplug.attach(G, D, "dense")
    train(G, D, 1, 1)
    assert rg.accounting.real_images is None
    assert rg.accounting.flops() is None
    assert "batch_size" in str(rg.accounting)
    rg.accounting.shown(7)
    rg.accounting.shown(7)
    assert rg.accounting.real_images == 14
    rg.detach()


def test_inputs_that_cannot_be_guessed_can_be_given() -> None:
    G, D = networks()
    del Generator.z_dim
    try:
        G = nn.Sequential(
            nn.Identity(), nn.Unflatten(1, (4, 1, 1)), nn.Conv2d(4, 48, 1), nn.Flatten(), nn.Unflatten(1, (3, 4, 4))
        )
        rg = rgplug.attach(G, D, {"base": "dense", "batch_size": 2})
        rg.accounting.trace(G=torch.randn(1, 4), D=torch.randn(1, 3, 4, 4))
        assert rg.accounting.macs["G"].total == 4 * 48
        rg.detach()
    finally:
        Generator.z_dim = 4


def test_counts_survive_a_resume() -> None:
    G, D = networks()
    rg = rgplug.attach(G, D, {"base": "dense", "batch_size": 2})
    train(G, D, 3, 1)
    flops, state = rg.accounting.flops(), rg.state_dict()
    rg.detach()
    again = rgplug.attach(*networks(), {"base": "dense", "batch_size": 2})
    again.load_state_dict(state)
    assert again.accounting.flops() == flops
    assert again.accounting.real_images == 6
    again.detach()


class Unscriptable(nn.Module):
    """Traces fail half-way, and a second network that cannot be run at all."""

    def __init__(self) -> None:
        super().__init__()
        self.z_dim = 4
        self.layer = nn.Linear(4, 3 * 4 * 4)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_tracing():
            raise RuntimeError("no trace")
        return self.layer(z).view(-1, 3, 4, 4)


class NeedsLabels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(48, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.layer(x.flatten(1)) * labels


def test_a_trace_that_fails_leaves_no_hooks_and_no_halves() -> None:
    G, D = Unscriptable(), NeedsLabels()
    rg = rgplug.attach(G, D, {"method": "dense", "batch_size": 2})
    for net in (G, D):
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        optimizer.step()
    assert rg.accounting.flops() is None
    assert rg.accounting.flops() is None
    assert "rg.accounting.trace" in rg.accounting.unknown
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in [*G.modules(), *D.modules()])
    rg.accounting.trace(G=(torch.zeros(1, 4),), D=(torch.zeros(1, 3, 4, 4), torch.ones(1, 1)))
    assert rg.accounting.macs["G"].source == "torch.utils.flop_counter"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in [*G.modules(), *D.modules()])
    assert rg.accounting.flops() > 0


def test_what_is_missing_is_what_is_missing() -> None:
    """batch_size is set: what lacks is D."""
    host = Host()
    with rgplug.attach(host.G, None, {"batch_size": 4}) as rg:
        said = str(rg.accounting)
    assert "real images shown to D unknown (D is not attached: say it with rg.accounting.shown(images))" in said
    assert "set batch_size" not in said
    with rgplug.attach(host.G, host.D, {"batch_size": 4, "networks": {"D": None}}) as rg:
        assert "D is left dense (networks: {D: null})" in str(rg.accounting)
        rg.accounting.shown(8)
        assert "shown to D 8," in str(rg.accounting)
    with rgplug.attach(host.G, host.D) as rg:
        assert "unknown (set batch_size in the policy)" in str(rg.accounting)

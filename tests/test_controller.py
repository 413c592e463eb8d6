"""The controller itself: weights and densities, networks left out, presets, detach."""

from __future__ import annotations

import pytest
import torch
from common import MILD, RAMP, Host, attached, linear, set_grad, sgd
from torch import nn

import rgplug
from rgplug.errors import RgplugError

pytestmark = pytest.mark.filterwarnings("ignore:rgplug. densities have drifted apart")


def test_weights_and_density() -> None:
    _, rg = attached(steps=2)
    for w in rg.weights("G"):
        assert w.density == pytest.approx(w.mask.double().mean().item())
        assert torch.equal(w.param.detach(), w.theta * w.mask)
    total = sum(w.numel for w in rg.weights("G"))
    assert rg.density("G") == pytest.approx(sum(w.density * w.numel for w in rg.weights("G")) / total)
    with pytest.raises(RgplugError, match=r"no managed network 'E'.*G, D"):
        rg.density("E")


@pytest.mark.parametrize("finish", ["sparse", "dense", "as-is"])
@pytest.mark.parametrize("phase", ["sparse", "dense"])
@pytest.mark.parametrize("by", ["argument", "policy"])
def test_detach(finish: str, phase: str, by: str) -> None:
    G = linear([[1.0, 0.05], [2.0, 0.02]])
    stock = type(G)
    rg = rgplug.attach(G, policy={**MILD, **({"finish": finish} if by == "policy" else {})})
    rg.weights("G")[0].threshold.fill_(0.5)
    rg.networks["G"].refresh_all()
    if phase == "dense":
        rg.networks["G"].go_dense()
    rg.detach(**({"finish": finish} if by == "argument" else {}))
    dense = finish == "dense" or (finish == "as-is" and phase == "dense")
    weights = [[1, 0.05], [2, 0.02]] if dense else [[1, 0], [2, 0]]
    torch.testing.assert_close(G.weight.detach(), torch.tensor(weights, dtype=torch.float32))
    assert stock is not nn.Linear or type(G) is nn.Linear
    rg.detach()  # twice is once
    opt = sgd(G)
    set_grad(G, -1.0)
    opt.step()
    assert (G.weight.detach() >= 1).all()  # nobody masks any more
    with pytest.raises(RgplugError, match="detached"):
        rg.end_epoch(1.0)
    rgplug.attach(G).detach()


def test_an_unknown_finish_is_refused() -> None:
    rg = rgplug.attach(linear([[1.0, 0.05]]))
    with pytest.raises(RgplugError, match="sparse"):
        rg.detach(finish="desne")  # type: ignore[arg-type]


def test_context_manager() -> None:
    G = nn.Sequential(nn.Linear(2, 2))
    with rgplug.attach(G) as rg:
        assert type(G[0]) is not nn.Linear
    assert type(G[0]) is nn.Linear
    with pytest.raises(ZeroDivisionError), rgplug.attach(G):
        1 / 0  # noqa: B018
    assert type(G[0]) is nn.Linear
    with pytest.raises(RgplugError, match="detached"):
        rg.load_state_dict({})


def test_d_may_be_none_and_networks_may_be_left_out() -> None:
    host = Host()
    with rgplug.attach(host.G) as rg:
        assert set(rg.density()) == {"G"}
    with rgplug.attach(host.G, host.D, {"networks": {"G": None}}) as rg:
        assert set(rg.density()) == {"D"}
        host.run(1)
        assert set(rg.end_epoch(1.0).density) == {"D"}


def test_the_released_preset_is_a_ramp_of_equal_thresholds() -> None:
    """methods.md 1.4: per step lr * lambda / (lambda + eps) under Adam(0, .9), the same in every filter and layer."""
    host = Host(optimizer=lambda m: torch.optim.Adam(m.parameters(), lr=2e-4, betas=(0.0, 0.9)))
    rg = rgplug.attach(host.G, host.D, "rg-gan-released")
    host.run(5)
    ramp = 5 * 2e-4 * 1e-12 / (1e-12 + 1e-8)
    for n in "GD":
        for w in rg.weights(n):
            torch.testing.assert_close(w.threshold, torch.full_like(w.threshold, ramp), rtol=1e-3, atol=0)


def test_two_forwards_before_one_backward_with_masks_that_change_in_between() -> None:
    """The pattern that buffers break: D(real), D(fake), one backward, while G's step redraws masks."""
    host, rg = attached(steps=2)
    real = host.D(host.data.x(0))
    fake = host.D(host.G(host.data.z(0)).detach())
    host.opt["G"].zero_grad()
    host.D(host.G(host.data.z(1))).mean().backward()
    host.opt["D"].zero_grad()
    (real.mean() - fake.mean()).backward()
    host.opt["G"].step()
    host.opt["D"].step()
    assert rg.density("D") < 1


def test_ramp_policy_prunes() -> None:
    _, rg = attached(RAMP, steps=5)
    assert min(rg.density().values()) < 1

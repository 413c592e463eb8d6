"""Masks on copies of a network, moving averages above all."""

from __future__ import annotations

import copy

import pytest
import torch
from common import MILD, Host, attached
from torch import nn

import rgplug
from rgplug.errors import RgplugError

pytestmark = pytest.mark.filterwarnings("ignore:rgplug. densities have drifted apart")


def test_apply_masks_gives_a_copy_the_live_mask() -> None:
    host, rg = attached(steps=2)
    ema = copy.deepcopy(host.G)
    for p in ema.parameters():
        p.data.fill_(1.0)
    assert rg.apply_masks(ema) is ema
    named = dict(ema.named_parameters())
    for w in rg.weights("G"):
        assert torch.equal(named[w.name] != 0, w.mask)
    assert host.G[0].bias is not None
    assert named["0.bias"].eq(1).all()
    d = copy.deepcopy(host.D)
    rg.apply_masks(d, "D")
    with pytest.raises(RgplugError, match=r"0\.weight.*shape"):
        rg.apply_masks(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize("kind", ["old_sn", "new_sn"])
def test_apply_masks_finds_weights_below_spectral_norm(kind: str) -> None:
    host = Host(kind)
    rg = rgplug.attach(host.G, host.D, MILD)
    host.run(1)
    copied = copy.deepcopy(Host(kind, seed=3).D)
    rg.apply_masks(copied, "D")
    named = dict(copied.named_parameters())
    for w in rg.weights("D"):
        assert not named[w.name][~w.mask].any()
        assert named[w.name][w.mask].any()


def test_apply_masks_in_a_dense_phase_leaves_everything() -> None:
    host, rg = attached()
    rg.networks["G"].go_dense()
    ema = copy.deepcopy(host.G)
    rg.apply_masks(ema)
    assert all(torch.equal(a, b) for a, b in zip(ema.parameters(), host.G.parameters()))


def test_a_copy_that_does_not_fit_stays_as_it_is() -> None:
    G = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    rg = rgplug.attach(G, None, {"threshold.init": 0.3})
    assert not rg.weights("G")[0].mask.all()
    other = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 5))
    before = other[0].weight.clone()
    with pytest.raises(RgplugError, match=r"1.weight of G has shape \[3, 4\] and is of shape \[5, 4\]"):
        rg.apply_masks(other)
    assert torch.equal(other[0].weight, before)

"""Real code whose filters are divided by their own norms: StyleGAN3 (without an epsilon), HiFi-GAN (old weight norm).

Checkouts in the folder that RGPLUG_HOSTS names, unmodified: stylegan3 (NVlabs), hifi-gan (jik876).
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from types import ModuleType
from typing import Any

import host_runs
import pytest
import torch
from packaging.version import parse
from test_hosts import host
from torch import nn

import rgplug

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(not os.environ.get("RGPLUG_HOSTS"), reason="RGPLUG_HOSTS names no folder with checkouts"),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture
def stylegan3(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(host_runs.FOLDERS, "stylegan3", ("stylegan3", "", ""))
    if "pkg_resources" not in sys.modules:  # the host compares versions with it, and setuptools has it no more
        stand_in = ModuleType("pkg_resources")
        stand_in.parse_version = parse  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "pkg_resources", stand_in)
    with host("stylegan3"):
        networks = importlib.import_module("training.networks_stylegan3")
        torch.manual_seed(0)
        size = {"img_resolution": 16, "img_channels": 3, "channel_base": 512, "channel_max": 16}
        kwargs = {"num_layers": 6, "num_fp16_res": 0, "mapping_kwargs": {"num_layers": 2}}
        yield networks.Generator(z_dim=16, c_dim=0, w_dim=16, **size, **kwargs)


def is_normed(name: str) -> bool:
    """Convolutions of StyleGAN3's synthesis but ToRGB: their filters are divided by their root mean square."""
    return name.startswith("synthesis.L") and name.endswith(".weight") and "affine" not in name and "_16_3." not in name


def test_filters_of_stylegan3_keep_their_largest_weight(stylegan3: nn.Module) -> None:
    z = torch.randn(2, 16)
    random = torch.get_rng_state()
    policy = {"base": "sparse", "masks": {"density": 0.03, "distribution": "uniform"}}
    with rgplug.attach(stylegan3, None, policy) as rg:
        assert torch.equal(random, torch.get_rng_state())
        for w in rg.weights("G"):
            assert w.norm_dims == ((1, 2, 3) if is_normed(w.name) else None), w.name
            assert not is_normed(w.name) or w.mask.flatten(1).any(1).all()
        assert sum(is_normed(w.name) for w in rg.weights("G")) == 6
        assert stylegan3(z, None).isfinite().all()


def test_whole_filters_of_stylegan3_are_left_out(stylegan3: nn.Module) -> None:
    policy = {"base": "sparse", "masks.density": 0.5, "granularity": "filter"}
    with rgplug.attach(stylegan3, None, policy) as rg:
        assert not any(is_normed(w.name) for w in rg.weights("G"))
        assert rg.report().count("divided by the filter's own norm") == 6
        assert stylegan3(torch.randn(2, 16), None).isfinite().all()


def test_hifi_gan_is_checked_fresh_and_exported_right_after_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(host_runs.FOLDERS, "hifi-gan", ("hifi-gan", "", ""))
    folder = host_runs.folder("hifi-gan")
    with host("hifi-gan"):
        models, env = importlib.import_module("models"), importlib.import_module("env")
        settings = env.AttrDict(json.loads((folder / "config_v3.json").read_text()))
        G = models.Generator(settings)
        assert rgplug.check(G, make_batch=lambda: (torch.randn(1, 80, 4), None)).ok
        optimizer = torch.optim.Adam(G.parameters(), 1e-4)
        with rgplug.attach(G, None, {"target": {"G": 0.5, "by": 1}}) as rg:
            for _ in range(2):
                G(torch.randn(1, 80, 4)).square().mean().backward()
                optimizer.step()
            baked = rg.export()
            mel = torch.randn(1, 80, 4)
            with torch.no_grad():
                assert torch.equal(baked(mel), G.eval()(mel))

"""Checkouts of real GAN repositories, unmodified, in the folder that RGPLUG_HOSTS names.

Expected there: stylegan2-ada-pytorch, data-efficient-gans, FastGAN-pytorch. Their CUDA kernels fall back to their own
reference implementations on a CPU.
"""

from __future__ import annotations

import importlib
import os
import pickle
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from host_runs import folder as checkout
from torch import Tensor, nn

import rgplug

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(
        not os.environ.get("RGPLUG_HOSTS"),
        reason="RGPLUG_HOSTS names no folder with checkouts of real GAN repositories (the docstring lists them)",
    ),
]


@contextmanager
def host(name: str) -> Iterator[None]:
    """The host's folder on the import path; its modules are forgotten afterwards, since hosts share their names."""
    folder = checkout(name)
    known, path = set(sys.modules), list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.path[:] = path
        for module in set(sys.modules) - known:
            origin = getattr(sys.modules[module], "__file__", None) or ""
            if origin.startswith(str(folder)):
                del sys.modules[module]


def own_weights(network: nn.Module) -> set[str]:
    """What hosts.md calls a weight: an own Parameter `weight` or `weight_orig` of two or more dims, no embedding."""
    return {
        f"{n}.{k}" if n else k
        for n, m in network.named_modules()
        if not isinstance(m, nn.Embedding)
        for k, p in m.named_parameters(recurse=False)
        if k in ("weight", "weight_orig") and p.dim() >= 2
    }


def stylegan2() -> tuple[nn.Module, nn.Module]:
    networks = importlib.import_module("training.networks")
    common = {"c_dim": 0, "img_resolution": 16, "img_channels": 3}
    blocks = {"channel_base": 256, "channel_max": 16}
    torch.manual_seed(0)
    G = networks.Generator(z_dim=8, w_dim=8, mapping_kwargs={"num_layers": 2}, synthesis_kwargs=blocks, **common)
    D = networks.Discriminator(**common, **blocks, epilogue_kwargs={"mbstd_group_size": 2})
    return G.requires_grad_(False), D.requires_grad_(False)


def stylegan2_batch() -> tuple[Any, Any]:
    c = torch.zeros(2, 0)
    return (torch.randn(2, 8), c), (torch.randn(2, 3, 16, 16), c)


@pytest.mark.parametrize("name", ["stylegan2-ada", "diffaugment-stylegan2"])
def test_stylegan2(name: str) -> None:
    with host(name):
        G, D = stylegan2()
        report = rgplug.check(G, D, stylegan2_batch)
        assert report.ok, str(report)
        rg = rgplug.attach(G, D, {"target": {"G": 0.5, "D": 0.5, "by": 2}})
        for label, net in (("G", G), ("D", D)):
            assert {w.name for w in rg.weights(label)} == own_weights(net)
            assert len(rg.weights(label)) > 6
        # main and regularisation phase share an optimizer; requires_grad is off while it steps
        opt_g, opt_d = (torch.optim.Adam(n.parameters(), lr=2e-3, betas=(0.0, 0.99)) for n in (G, D))
        for _ in range(3):
            (z, c), (real, _) = stylegan2_batch()
            opt_d.zero_grad(set_to_none=True)
            D.requires_grad_(True)
            logits = D(real, c).mean() - D(G(z, c), c).mean()
            logits.backward()
            D.requires_grad_(False)
            opt_d.step()
            opt_d.zero_grad(set_to_none=True)
            D.requires_grad_(True)
            real.requires_grad_(True)
            (slope,) = torch.autograd.grad(D(real, c).sum(), real, create_graph=True)
            slope.square().sum().mul(10).backward()
            D.requires_grad_(False)
            with rg.auxiliary_step("D"):
                opt_d.step()
            opt_g.zero_grad(set_to_none=True)
            G.requires_grad_(True)
            (-D(G(z, c), c).mean()).backward()
            G.requires_grad_(False)
            opt_g.step()
        record = rg.end_epoch(1.0)
        assert record.steps == {"G": 3, "D": 3}
        assert record.density == {"G": pytest.approx(0.5, abs=0.005), "D": pytest.approx(0.5, abs=0.005)}
        snapshot = pickle.dumps({"G": G, "D": D})  # whole modules with their source, as the host's snapshots
        assert b"rgplug" not in snapshot
        rg.detach()
        loaded = pickle.loads(snapshot)
        for a, b in zip(loaded["G"].parameters(), G.parameters()):
            assert torch.equal(a, b)


def test_biggan() -> None:
    pytest.importorskip("torchvision")
    with host("biggan"):
        BigGAN = importlib.import_module("BigGAN")
        torch.manual_seed(0)
        common = {"resolution": 32, "n_classes": 10, "skip_init": False}
        G = BigGAN.Generator(G_ch=8, dim_z=16, G_attn="0", G_init="N02", no_optim=True, **common)
        D = BigGAN.Discriminator(D_ch=8, D_attn="0", D_init="N02", **common)

        def batch() -> tuple[Any, Any]:
            y = torch.randint(10, (4,))
            return (torch.randn(4, G.dim_z), G.shared(y).detach()), (torch.randn(4, 3, 32, 32), y)

        report = rgplug.check(G, D, batch)
        assert report.ok, str(report)
        rg = rgplug.attach(G, D, {"target": {"G": 0.5, "D": 0.5, "by": 2}})
        for label, net in (("G", G), ("D", D)):
            assert {w.name for w in rg.weights(label)} == own_weights(net)
            assert len(rg.weights(label)) > 5
        opt = torch.optim.Adam(D.parameters(), lr=2e-4, betas=(0.0, 0.999))
        for _ in range(3):
            (z, shared), (real, y) = batch()
            opt.zero_grad()
            (D(G(z, shared).detach(), y).mean() - D(real, y).mean()).backward()
            opt.step()
        rg.end_epoch(1.0)
        assert rg.density("D") == pytest.approx(0.5, abs=0.005)


def test_fastgan() -> None:
    with host("fastgan"):
        models = importlib.import_module("models")
        torch.manual_seed(0)
        G, D = models.Generator(ngf=4, nz=16, im_size=256), models.Discriminator(ndf=4, im_size=256)

        def weights_init(m: nn.Module) -> None:
            if "Conv" in type(m).__name__ and hasattr(m, "weight_orig"):
                m.weight_orig.data.normal_(0.0, 0.02)

        def batch() -> tuple[Any, Any]:
            return torch.randn(2, 16), (torch.randn(2, 3, 256, 256), "fake")

        report = rgplug.check(G, D, batch)
        assert report.ok, str(report)
        rg = rgplug.attach(G, D)
        G.apply(weights_init)  # a host that finds its layers by their class names, after attach
        for label, net in (("G", G), ("D", D)):
            assert {w.name for w in rg.weights(label)} == own_weights(net)
            assert len(rg.weights(label)) > 10
        transposed = next(w for w in rg.weights("G") if isinstance(w.module, nn.ConvTranspose2d))
        assert transposed.layout.dim == 1
        assert transposed.threshold.numel() == transposed.param.shape[1]
        opt = torch.optim.Adam(G.parameters(), lr=2e-4, betas=(0.5, 0.999))
        image: Tensor = G(torch.randn(2, 16))[0]
        image.square().mean().backward()
        opt.step()
        assert rg.networks["G"].iteration == 1


def test_filters_of_stylegan2_are_tied_with_their_styles() -> None:
    """Both networks are traced as they are; the style of a channel is decided with the filter that makes it."""
    policy = {"base": "sparse", "granularity": "filter", "masks": {"density": 0.5, "distribution": "uniform"}}
    with host("stylegan2-ada"):
        pair = [net.requires_grad_(True) for net in stylegan2()]  # the host freezes them, and masks would wait
        rg = rgplug.attach(*pair, policy)
        masks = {w.name: w.mask for w in rg.weights("G")}
        made = masks["synthesis.b8.conv0.weight"].flatten(1).any(1)
        assert 0 < made.sum() < len(made)
        assert torch.equal(masks["synthesis.b8.conv1.affine.weight"].any(1), made)
        assert "its filters are the network's output" in rg.report()
        assert rg.density("D") == pytest.approx(0.5, abs=0.05)

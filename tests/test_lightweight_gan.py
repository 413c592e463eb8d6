"""A real third-party GAN: lightweight-gan from PyPI (FastGAN's network), unmodified."""

from __future__ import annotations

from typing import Any

import model_fastgan
import pytest
import torch
from torch import nn

import rgplug


@pytest.fixture(scope="module")
def lightweight_gan() -> Any:
    return model_fastgan.lightweight_gan()


@pytest.fixture
def gan(lightweight_gan: Any) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    G = lightweight_gan.Generator(image_size=32, latent_dim=16, fmap_max=16, attn_res_layers=[])
    D = lightweight_gan.Discriminator(image_size=32, fmap_max=16, disc_output_size=1, attn_res_layers=[])
    return G, D


def test_check_passes_line_by_line(gan: tuple[nn.Module, nn.Module]) -> None:
    report = rgplug.check(*gan, lambda: (torch.randn(1, 16), torch.randn(1, 3, 32, 32)))
    assert report.ok, str(report)


def test_convolutions_are_managed_and_norms_are_not(gan: tuple[nn.Module, nn.Module]) -> None:
    G, D = gan
    rg = rgplug.attach(G, D)
    for name, net in (("G", G), ("D", D)):
        convolutions = {
            f"{n}.weight" for n, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))
        }
        assert {w.name for w in rg.weights(name)} == convolutions
        assert len(convolutions) > 5


def test_a_few_steps_prune_and_regrow(gan: tuple[nn.Module, nn.Module]) -> None:
    G, D = gan
    rg = rgplug.attach(G, D, {"target": {"G": 0.5, "D": 0.5, "by": 2, "shape": "linear"}})
    opt_g, opt_d = (torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.9)) for net in gan)
    for i in range(3):
        real = torch.rand(1, 3, 32, 32).requires_grad_()
        fake = G(torch.randn(1, 16)).detach()
        scores = [D(images, calc_aux_loss=True) for images in (real, fake)]
        loss = torch.relu(1 - scores[0][0]).mean() + torch.relu(1 + scores[1][0]).mean() + scores[0][2].mean()
        if i == 0:  # a gradient penalty every fourth step, as its Trainer has it
            (slope,) = torch.autograd.grad(scores[0][0].sum(), real, create_graph=True)
            loss = loss + 10 * (slope.flatten(1).norm(dim=1) - 1).square().mean()
        opt_d.zero_grad()
        loss.backward()
        opt_d.step()
        opt_g.zero_grad()
        (-D(G(torch.randn(1, 16)))[0].mean()).backward()
        opt_g.step()
    record = rg.end_epoch(1.0)
    assert record.density == {"G": pytest.approx(0.5, abs=0.005), "D": pytest.approx(0.5, abs=0.005)}
    assert all(torch.isfinite(p).all() for net in gan for p in net.parameters())
    assert min(record.pruned.values()) > 0

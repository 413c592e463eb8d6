"""The networks of official and published repositories, from checkouts in the folder that RGPLUG_HOSTS names, reduced.

Beside the checkouts of tests/test_hosts.py: Re-GAN (IntellicentAI-Lab/Re-GAN), of which ProGAN, SNGAN and AutoGAN.
"""

from __future__ import annotations

import importlib
from argparse import Namespace
from typing import Any

import torch
import torch.nn.functional as F
from model_training import Inputs, Training
from test_hosts import stylegan2
from torch import Tensor

FOLDERS = {f"re-gan-{name.lower()}": f"Re-GAN/{name}" for name in ("SNGAN", "ProGAN", "AutoGAN")}


class OfficialStyleGAN2(Training):
    """stylegan2-ada-pytorch, and the same networks in data-efficient-gans."""

    def __init__(self) -> None:
        G, D = stylegan2()
        super().__init__(G.requires_grad_(True), D.requires_grad_(True), lr=2e-3, betas=(0.0, 0.99))

    def inputs(self) -> tuple[Inputs, Inputs]:
        real, z = super().inputs()
        c = torch.zeros(self.batch, 0)
        return (*real, c), (*z, c)


class OfficialBigGAN(Training):
    """data-efficient-gans/DiffAugment-biggan-cifar."""

    size, z_dim, iterations = 32, 16, 3

    def __init__(self) -> None:
        module = importlib.import_module("BigGAN")
        common = {"resolution": self.size, "n_classes": 10, "skip_init": False}
        G = module.Generator(G_ch=4, dim_z=self.z_dim, G_attn="16", G_init="ortho", no_optim=True, **common)
        D = module.Discriminator(D_ch=4, D_attn="16", D_init="ortho", **common)
        self.z_dim = G.dim_z
        super().__init__(G, D, lr=2e-4, betas=(0.0, 0.999))

    def inputs(self) -> tuple[Inputs, Inputs]:
        real, z = super().inputs()
        y = torch.randint(10, (2, self.batch))
        return (*real, y[0]), (*z, y[1])

    def fake(self, z: Inputs) -> Tensor:
        return self.nets["G"](z[0], self.nets["G"].shared(z[1]))


class OfficialFastGAN(Training):
    size, z_dim, iterations = 256, 16, 3

    def __init__(self) -> None:
        module = importlib.import_module("models")
        G = module.Generator(ngf=4, nz=self.z_dim, im_size=self.size)
        super().__init__(G, module.Discriminator(ndf=4, im_size=self.size), lr=2e-4, betas=(0.5, 0.999))

    def fake(self, z: Inputs) -> Tensor:
        return self.nets["G"](*z)[0]

    def score(self, images: Tensor, *rest: Any) -> Tensor:
        return self.nets["D"](images, "fake")

    def d_loss(self, real: Inputs, z: Inputs) -> Tensor:
        """Hinge, and the reconstructions that the decoders make of real images."""
        scores, pictures = self.nets["D"](*real, "real", part=0)
        decoded = sum(F.mse_loss(p, F.interpolate(*real, size=p.shape[2:])) for p in pictures)
        return F.relu(1 - scores).mean() + F.relu(1 + self.score(self.fake(z).detach())).mean() + decoded

    def g_loss(self, z: Inputs) -> Tensor:
        """On the images of both resolutions."""
        return -self.nets["D"](self.nets["G"](*z), "fake").mean()

    @torch.no_grad()
    def look(self) -> Tensor:
        return self.nets["D"](self.nets["G"](*self.inputs()[1]), "real", part=0)[0]


class ReSNGAN(Training):
    size, z_dim, iterations = 32, 16, 3

    def __init__(self) -> None:
        module = importlib.import_module("model")
        super().__init__(module.ResGenerator32(self.z_dim), module.ResDiscriminator32(), lr=2e-4, betas=(0.0, 0.9))


class ReProGAN(Training):
    """One iteration in each stage: 4x4, 8x8, 16x16 and 32x32, faded in by half. The code's stages are its `step`."""

    iterations = 4

    def __init__(self) -> None:
        module = importlib.import_module("model")
        G, D = module.Generator(self.z_dim, 8), module.Discriminator(8)
        super().__init__(G, D, lr=1e-3, betas=(0.0, 0.99))

    def inputs(self) -> tuple[Inputs, Inputs]:
        stage = min(self.steps["G"], 3)
        real = torch.rand(self.batch, 3, 4 * 2**stage, 4 * 2**stage) * 2 - 1
        return (real, 0.5, stage), (torch.randn(self.batch, self.z_dim), 0.5, stage)

    @torch.no_grad()
    def look(self) -> Tensor:
        """All stages: a layer keeps its scaled weight, with its graph, from its last forward."""
        z = torch.randn(self.batch, self.z_dim)
        return torch.cat([self.score(self.nets["G"](z, 0.5, stage), 0.5, stage) for stage in range(4)])


class ReAutoGAN(Training):
    size, iterations = 32, 3

    def __init__(self) -> None:
        module = importlib.import_module("models.autogan_cifar10_a")
        sizes = Namespace(gf_dim=8, df_dim=8, bottom_width=4, latent_dim=self.z_dim, d_spectral_norm=True)
        super().__init__(module.Generator(sizes), module.Discriminator(sizes), lr=2e-4, betas=(0.0, 0.9))


OFFICIAL: dict[str, type[Training]] = {
    "stylegan2-ada": OfficialStyleGAN2,
    "diffaugment-stylegan2": OfficialStyleGAN2,
    "biggan": OfficialBigGAN,
    "fastgan": OfficialFastGAN,
    "re-gan-sngan": ReSNGAN,
    "re-gan-progan": ReProGAN,
    "re-gan-autogan": ReAutoGAN,
}

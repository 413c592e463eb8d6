"""DCGAN (Radford et al. 2016): transposed convolutions, strided convolutions, batch norm, the original GAN loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from model_training import Inputs, Training
from torch import Tensor, nn


class Generator(nn.Sequential):
    """Latents [N, z_dim] to images [N, 3, 16, 16]: a transposed convolution from 1x1 to 4x4, then doublings."""

    def __init__(self, z_dim: int, width: int) -> None:
        super().__init__(
            nn.Unflatten(1, (z_dim, 1, 1)),
            nn.ConvTranspose2d(z_dim, 2 * width, 4, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.ConvTranspose2d(width, 3, 4, stride=2, padding=1, bias=False),
            nn.Tanh(),
        )


class Discriminator(nn.Sequential):
    """Images [N, 3, 16, 16] to logits [N, 1]; no batch norm on the first and the last layer."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Conv2d(3, width, 4, stride=2, padding=1, bias=False),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 4, bias=False),
            nn.Flatten(),
        )


def initialize(module: nn.Module) -> None:
    """Normal weights of standard deviation 0.02, for layers found by their class names as hosts do it."""
    if "Conv" in type(module).__name__:
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif "BatchNorm" in type(module).__name__:
        nn.init.normal_(module.weight, 1.0, 0.02)


class DCGAN(Training):
    def __init__(self) -> None:
        nets = Generator(self.z_dim, 8).apply(initialize), Discriminator(8).apply(initialize)
        super().__init__(*nets, lr=2e-4, betas=(0.5, 0.999))

    def d_loss(self, real: Inputs, z: Inputs) -> Tensor:
        """Binary cross-entropy, each half with a forward of its own."""
        true, false = self.score(*real), self.score(self.fake(z).detach())
        bce = F.binary_cross_entropy_with_logits
        return bce(true, torch.ones_like(true)) + bce(false, torch.zeros_like(false))

    def g_loss(self, z: Inputs) -> Tensor:
        scores = self.score(self.fake(z))
        return F.binary_cross_entropy_with_logits(scores, torch.ones_like(scores))

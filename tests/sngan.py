"""Small models for tests: the 32x32 SNGAN-ResNet pair (Miyato et al. 2018) that the CIFAR experiments use."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm


class GeneratorBlock(nn.Module):
    """BN-ReLU-upsample-conv3-BN-ReLU-conv3 plus upsample-conv1x1; doubles height and width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.b1 = nn.BatchNorm2d(width)
        self.c1 = nn.Conv2d(width, width, 3, padding=1)
        self.b2 = nn.BatchNorm2d(width)
        self.c2 = nn.Conv2d(width, width, 3, padding=1)
        self.c_sc = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.interpolate(F.relu(self.b1(x)), scale_factor=2)
        h = self.c2(F.relu(self.b2(self.c1(h))))
        return h + self.c_sc(F.interpolate(x, scale_factor=2))


class SNGANGenerator(nn.Module):
    """Latents [N, z_dim] to images [N, 3, 32, 32] in [-1, 1]; 4,276,739 parameters at width 256."""

    def __init__(self, width: int = 256, z_dim: int = 128) -> None:
        super().__init__()
        self.z_dim = z_dim
        self.width = width
        self.l1 = nn.Linear(z_dim, 4 * 4 * width)
        self.block2 = GeneratorBlock(width)
        self.block3 = GeneratorBlock(width)
        self.block4 = GeneratorBlock(width)
        self.b5 = nn.BatchNorm2d(width)
        self.c5 = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.l1(z).view(-1, self.width, 4, 4)
        h = self.block4(self.block3(self.block2(h)))
        return torch.tanh(self.c5(F.relu(self.b5(h))))


class FirstBlock(nn.Module):
    """conv3-ReLU-conv3-pool plus pool-conv1x1: no activation on the image, and the cheap order in the shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c1 = spectral_norm(nn.Conv2d(3, width, 3, padding=1))
        self.c2 = spectral_norm(nn.Conv2d(width, width, 3, padding=1))
        self.c_sc = spectral_norm(nn.Conv2d(3, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.c2(F.relu(self.c1(x))), 2) + self.c_sc(F.avg_pool2d(x, 2))


class DiscriminatorBlock(nn.Module):
    """ReLU-conv3-ReLU-conv3 (-pool) plus the input, or conv1x1-pool of it where the block halves the image."""

    def __init__(self, width: int, downsample: bool) -> None:
        super().__init__()
        self.c1 = spectral_norm(nn.Conv2d(width, width, 3, padding=1))
        self.c2 = spectral_norm(nn.Conv2d(width, width, 3, padding=1))
        self.c_sc = spectral_norm(nn.Conv2d(width, width, 1)) if downsample else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.c2(F.relu(self.c1(F.relu(x))))
        if self.c_sc is None:
            return h + x
        return F.avg_pool2d(h, 2) + F.avg_pool2d(self.c_sc(x), 2)


class SNGANDiscriminator(nn.Module):
    """Images [N, 3, 32, 32] to scores [N, 1]; spectral norm on every layer; 1,053,824 parameters at width 128."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.block1 = FirstBlock(width)
        self.block2 = DiscriminatorBlock(width, downsample=True)
        self.block3 = DiscriminatorBlock(width, downsample=False)
        self.block4 = DiscriminatorBlock(width, downsample=False)
        self.l5 = spectral_norm(nn.Linear(width, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        h = self.block4(self.block3(self.block2(self.block1(x))))
        return self.l5(F.relu(h).sum((2, 3)))

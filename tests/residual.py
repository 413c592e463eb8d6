"""A small network whose filters are tied: by a residual sum of two convolutions, by batch norm, and by a Linear whose
output is viewed as [C, 2, 2]; with a transposed convolution. Who is tied with whom is written down here by hand.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from oracle_units import Layout
from torch import Tensor, nn

Z, BATCH = 8, 4


class Residual(nn.Module):
    """[B, 8] -> [B, 3, 8, 8]. Layers differ in scale, so that ranks over the network mix them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(Z, 32)  # four rows make one channel
        self.norm0 = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 12, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 12, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(8, 12, 1, bias=False)  # its sum with conv2 ties the filters of both
        self.norm2 = nn.BatchNorm2d(12)
        self.up = nn.ConvTranspose2d(12, 8, 4, 2, 1)
        self.rgb = nn.Conv2d(8, 3, 3, padding=1)
        with torch.no_grad():
            for weight, factor in ((self.conv1.weight, 2), (self.conv2.weight, 2), (self.up.weight, 3)):
                weight *= factor

    def forward(self, z: Tensor) -> Tensor:
        x = F.softplus(self.norm0(self.stem(z).view(-1, 8, 2, 2)))
        x = F.interpolate(x, scale_factor=2.0)
        x = self.shortcut(x) + self.conv2(F.softplus(self.norm1(self.conv1(x))))
        return torch.tanh(self.rgb(F.softplus(self.up(F.softplus(self.norm2(x))))))


LAYOUTS = {
    "stem.weight": Layout(),
    "conv1.weight": Layout(),
    "conv2.weight": Layout(),
    "shortcut.weight": Layout(),
    "up.weight": Layout(1, 0),
    "rgb.weight": Layout(),
}
FILTERS = {"stem": 32, "conv1": 12, "conv2": 12, "shortcut": 12, "up": 8, "rgb": 3}
CHANNELS = {
    "stem.weight": np.arange(32) // 4,
    "conv1.weight": 100 + np.arange(12),
    "conv2.weight": 200 + np.arange(12),
    "shortcut.weight": 200 + np.arange(12),
    "up.weight": 300 + np.arange(8),
}  # the filters of rgb are the image: they have to stay


def network() -> Residual:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Residual().double()


def losses(steps: int) -> list[Callable[[Callable[..., Tensor]], Tensor]]:
    """One loss a step, of any forward: regression to images of a fixed random teacher."""
    generator = torch.Generator().manual_seed(1)
    teacher = torch.randn(Z, 3 * 64, generator=generator, dtype=torch.float64) / 3

    def loss_of(z: Tensor) -> Callable[[Callable[..., Tensor]], Tensor]:
        images = torch.tanh(z @ teacher).view(-1, 3, 8, 8)
        return lambda forward: 4 * (forward(z) - images).square().mean()

    return [loss_of(torch.randn(BATCH, Z, generator=generator, dtype=torch.float64)) for _ in range(steps)]

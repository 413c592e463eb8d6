"""AutoGAN (Gong et al. 2019), reduced: cells of the search space in the order found for CIFAR-10, and SNGAN's D.

The architecture found (A): pre-activation cells without norms; nearest, bilinear, nearest up-sampling; shortcuts in the
first two; each cell also gets what the cells before it had after their first convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from model_training import Training
from sngan import SNGANDiscriminator
from torch import Tensor, nn

WIDTH = 8


@dataclass(frozen=True)
class Choice:
    """What the search decides about one cell."""

    up: str  # nearest | bilinear | deconv
    shortcut: bool
    pre_activation: bool = True
    norm: str = "none"  # none | batch | instance


FOUND = (Choice("nearest", True), Choice("bilinear", True), Choice("nearest", False))
OTHER = (  # the rest of the search space
    Choice("deconv", True, pre_activation=False, norm="batch"),
    Choice("deconv", False, pre_activation=False, norm="instance"),
    Choice("bilinear", True, pre_activation=True, norm="batch"),
)
NORMS = {"none": nn.Identity, "batch": nn.BatchNorm2d, "instance": nn.InstanceNorm2d}


class ConvBlock(nn.Module):
    """Norm, ReLU and convolution; the convolution first where it is no pre-activation block."""

    def __init__(self, choice: Choice) -> None:
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.norm = NORMS[choice.norm](WIDTH)
        self.pre_activation = choice.pre_activation

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.norm(x))) if self.pre_activation else F.relu(self.norm(self.conv(x)))


class Cell(nn.Module):
    """Doubles height and width. Returns its output, and what later cells get of it."""

    def __init__(self, choice: Choice, before: int) -> None:
        super().__init__()
        self.mode = choice.up
        if choice.up == "deconv":
            self.up = nn.ConvTranspose2d(WIDTH, WIDTH, 3, stride=2, padding=1, output_padding=1)
        self.c1, self.c2 = ConvBlock(choice), ConvBlock(choice)
        self.shortcut = nn.Conv2d(WIDTH, WIDTH, 1) if choice.shortcut else None
        self.from_before = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 1) for _ in range(before))

    def forward(self, x: Tensor, before: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        x = self.up(x) if self.mode == "deconv" else F.interpolate(x, scale_factor=2.0, mode=self.mode)
        handed_on = self.c1(x)
        h = handed_on
        for layer, earlier in zip(self.from_before, before):
            h = h + layer(F.interpolate(earlier, size=h.shape[2:]))
        h = self.c2(h)
        return (h if self.shortcut is None else h + self.shortcut(x)), handed_on


class Generator(nn.Module):
    """Latents [N, z_dim] to images [N, 3, 16, 16]."""

    def __init__(self, z_dim: int, choices: Sequence[Choice]) -> None:
        super().__init__()
        self.first = nn.Linear(z_dim, WIDTH * 4)
        self.cells = nn.ModuleList(Cell(choice, i) for i, choice in enumerate(choices))
        self.norm, self.to_rgb = nn.BatchNorm2d(WIDTH), nn.Conv2d(WIDTH, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.first(z).view(-1, WIDTH, 2, 2)
        before: list[Tensor] = []
        for cell in self.cells:
            x, handed_on = cell(x, before)
            before.append(handed_on)
        return torch.tanh(self.to_rgb(F.relu(self.norm(x))))


class AutoGAN(Training):
    """Hinge; a linearly falling learning rate."""

    iterations, d_steps = 4, 2
    lr = 2e-4

    def __init__(self, choices: Sequence[Choice] = FOUND) -> None:
        super().__init__(Generator(self.z_dim, choices), SNGANDiscriminator(WIDTH), lr=self.lr, betas=(0.0, 0.9))
        self.schedulers = [torch.optim.lr_scheduler.LambdaLR(o, lambda i: 1 - i / 10) for o in self.optimizers.values()]

    def iterate(self) -> None:
        super().iterate()
        for scheduler in self.schedulers:
            scheduler.step()

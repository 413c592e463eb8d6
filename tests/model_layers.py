"""Layers that ProGAN and StyleGAN2 have in common (Karras et al. 2018, 2020), reduced; no subclasses of torch's own."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EqualizedConv2d(nn.Module):
    """A convolution with weights drawn from N(0, 1) and divided by sqrt(fan_in) in each forward."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale = 1 / math.sqrt(inputs * kernel**2)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.weight.shape[-1] // 2)


class EqualizedLinear(nn.Module):
    """The same for a linear layer. lr_multiplier: weights are stored divided by it, and so learn slower."""

    def __init__(self, inputs: int, outputs: int, lr_multiplier: float = 1.0, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((outputs,), bias / lr_multiplier))
        self.scale, self.lr_multiplier = lr_multiplier / math.sqrt(inputs), lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias * self.lr_multiplier)


def pixel_norm(x: Tensor) -> Tensor:
    """Each feature vector (dim 1) divided by its root mean square."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


def with_batch_deviation(x: Tensor) -> Tensor:
    """[N, C, H, W] to [N, C + 1, H, W]: the average standard deviation over the batch as one more channel."""
    deviation = (x.var(0, unbiased=False) + 1e-8).sqrt().mean()
    return torch.cat([x, deviation.expand(len(x), 1, *x.shape[2:])], 1)


def up(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

"""StyleGAN2 (Karras et al. 2020), reduced to 16x16: mapping, modulated convolutions, noise, skips, lazy penalties."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from model_layers import EqualizedConv2d, EqualizedLinear, pixel_norm, up, with_batch_deviation
from model_training import Inputs, Training
from torch import Tensor, nn

WIDTH, W_DIM = 8, 8


class ModulatedConv2d(nn.Module):
    """A convolution whose weights a style scales, sample by sample, and whose outputs demodulation brings to unit size.

    leading: the weight is kept as [1, out, in, k, k], as a widely used reimplementation has it, instead of
    [out, in, k, k] as in the official code.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, demodulate: bool, leading: bool) -> None:
        super().__init__()
        shape = (outputs, inputs, kernel, kernel)
        self.weight = nn.Parameter(torch.randn((1, *shape) if leading else shape))
        self.affine = EqualizedLinear(W_DIM, inputs, bias=1.0)
        self.scale, self.demodulate = 1 / math.sqrt(inputs * kernel**2), demodulate

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        n, _, height, width = x.shape
        weight = self.weight.view(1, *self.weight.shape[-4:]) * self.scale
        weight = weight * self.affine(style).view(n, 1, -1, 1, 1)
        if self.demodulate:
            weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        grouped = x.reshape(1, -1, height, width)
        out = F.conv2d(grouped, weight.flatten(0, 1), padding=weight.shape[-1] // 2, groups=n)
        return out.view(n, -1, height, width)


class StyledLayer(nn.Module):
    """Modulated convolution, noise, bias, leaky ReLU."""

    def __init__(self, leading: bool) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(WIDTH, WIDTH, 3, True, leading)
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        x = self.conv(x, w)
        x = x + self.noise_strength * torch.randn_like(x[:, :1]) + self.bias.view(-1, 1, 1)
        return F.leaky_relu(x, 0.2) * math.sqrt(2)


class ToRGB(nn.Module):
    def __init__(self, leading: bool) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(WIDTH, 3, 1, False, leading)
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return self.conv(x, w) + self.bias.view(-1, 1, 1)


class Generator(nn.Module):
    """Latents [N, z_dim] to images [N, 3, 16, 16]; the images of all resolutions are added up."""

    def __init__(self, z_dim: int, leading: bool) -> None:
        super().__init__()
        self.mapping = nn.ModuleList(EqualizedLinear(d, W_DIM, lr_multiplier=0.01) for d in (z_dim, W_DIM))
        self.const = nn.Parameter(torch.randn(1, WIDTH, 4, 4))
        self.layers = nn.ModuleList(StyledLayer(leading) for _ in range(3))
        self.to_rgb = nn.ModuleList(ToRGB(leading) for _ in range(3))

    def styles(self, z: Tensor) -> Tensor:
        w = pixel_norm(z)
        for layer in self.mapping:
            w = F.leaky_relu(layer(w), 0.2)
        return w

    def synthesis(self, w: Tensor) -> Tensor:
        x = self.const.expand(len(w), -1, -1, -1)
        image = torch.zeros(())
        for i, (layer, to_rgb) in enumerate(zip(self.layers, self.to_rgb)):
            x = layer(up(x) if i else x, w)
            image = to_rgb(x, w) + (up(image) if i else 0)
        return image

    def forward(self, z: Tensor) -> Tensor:
        return self.synthesis(self.styles(z))


class ResidualBlock(nn.Module):
    """Halves height and width."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = EqualizedConv2d(WIDTH, WIDTH, 3), EqualizedConv2d(WIDTH, WIDTH, 3)
        self.skip = EqualizedConv2d(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.c1(x), 0.2)
        h = F.leaky_relu(self.c2(F.avg_pool2d(h, 2)), 0.2)
        return (h + self.skip(F.avg_pool2d(x, 2))) / math.sqrt(2)


class Discriminator(nn.Module):
    """Images [N, 3, 16, 16] to logits [N, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.from_rgb = EqualizedConv2d(3, WIDTH, 1)
        self.blocks = nn.Sequential(ResidualBlock(), ResidualBlock())
        self.conv = EqualizedConv2d(WIDTH + 1, WIDTH, 3)
        self.fc, self.out = EqualizedLinear(WIDTH * 16, WIDTH), EqualizedLinear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.leaky_relu(self.from_rgb(x), 0.2))
        x = F.leaky_relu(self.conv(with_batch_deviation(x)), 0.2)
        return self.out(F.leaky_relu(self.fc(x.flatten(1)), 0.2))


class StyleGAN2(Training):
    """Non-saturating loss; R1 and path length every other iteration, as steps of their own of the same optimizers."""

    def __init__(self, leading: bool = False) -> None:
        super().__init__(Generator(self.z_dim, leading), Discriminator(), lr=2e-3, betas=(0.0, 0.99))
        self.left_out["G"] = {"const": "called 'const' and not weight; name it in include to manage it"}
        self.path_length = torch.zeros(())

    def iterate(self) -> None:
        super().iterate()
        if self.steps["G"] % 2:
            self.step("G", self.path_penalty(), lazy=True)
            self.step("D", self.r1(), lazy=True)

    def d_loss(self, real: Inputs, z: Inputs) -> Tensor:
        return F.softplus(-self.score(*real)).mean() + F.softplus(self.score(self.fake(z).detach())).mean()

    def g_loss(self, z: Inputs) -> Tensor:
        return F.softplus(-self.score(self.fake(z))).mean()

    def r1(self) -> Tensor:
        """The squared gradient of D on real images; a double backward."""
        real = self.inputs()[0][0].requires_grad_()
        (slope,) = torch.autograd.grad(self.score(real).sum(), real, create_graph=True)
        return slope.square().sum((1, 2, 3)).mean()

    def path_penalty(self) -> Tensor:
        """How far the length of the images' gradient with respect to w is from its moving average."""
        G = self.nets["G"]
        w = G.styles(self.inputs()[1][0])
        images = G.synthesis(w)
        (slope,) = torch.autograd.grad((images * torch.randn_like(images) / self.size).sum(), w, create_graph=True)
        lengths = slope.square().sum(1).sqrt()
        self.path_length = self.path_length.lerp(lengths.detach().mean(), 0.01)
        return 2 * (lengths - self.path_length).square().mean()

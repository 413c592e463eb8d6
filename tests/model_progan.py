"""ProGAN (Karras et al. 2018), reduced: 4x4, 8x8, then 16x16, each new stage faded in; WGAN-GP.

`ProGAN` has all stages as modules from the start; `GrowingProGAN` makes the modules of a stage when it comes to it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from model_layers import EqualizedConv2d, EqualizedLinear, pixel_norm, with_batch_deviation
from model_training import Inputs, Training
from torch import Tensor, nn

WIDTH = 8
STAGES = ((0, 1.0), (0, 1.0), (1, 0.5), (1, 1.0), (2, 0.5), (2, 1.0))  # stage and alpha of each iteration


class Generator(nn.Module):
    """Latents [N, z_dim] to images [N, 3, s, s] with s = 4 * 2 ** stage; alpha < 1 blends the stage before in."""

    def __init__(self, z_dim: int, stages: int) -> None:
        super().__init__()
        self.first = EqualizedLinear(z_dim, WIDTH * 16)
        self.blocks, self.to_rgb = nn.ModuleList(), nn.ModuleList()
        for _ in range(stages):
            self.grow()

    def grow(self) -> None:
        self.blocks.append(EqualizedConv2d(WIDTH, WIDTH, 3))
        self.to_rgb.append(EqualizedConv2d(WIDTH, 3, 1))

    def forward(self, z: Tensor, stage: int, alpha: float) -> Tensor:
        h = before = self.first(pixel_norm(z)).view(-1, WIDTH, 4, 4)
        for i, block in enumerate(self.blocks[: stage + 1]):
            before = F.interpolate(h, scale_factor=2.0) if i else h
            h = pixel_norm(F.leaky_relu(block(before), 0.2))
        image = self.to_rgb[stage](h)
        return image if alpha == 1 else alpha * image + (1 - alpha) * self.to_rgb[stage - 1](before)


class Discriminator(nn.Module):
    """Images [N, 3, s, s] to scores [N, 1]; the mirror image of the generator."""

    def __init__(self, stages: int) -> None:
        super().__init__()
        self.last = EqualizedConv2d(WIDTH + 1, WIDTH, 3)
        self.score = EqualizedLinear(WIDTH * 16, 1)
        self.blocks, self.from_rgb = nn.ModuleList(), nn.ModuleList()
        for _ in range(stages):
            self.grow()

    def grow(self) -> None:
        self.blocks.append(EqualizedConv2d(WIDTH, WIDTH, 3))
        self.from_rgb.append(EqualizedConv2d(3, WIDTH, 1))

    def forward(self, x: Tensor, stage: int, alpha: float) -> Tensor:
        h = F.leaky_relu(self.from_rgb[stage](x), 0.2)
        for i in range(stage, -1, -1):
            h = F.leaky_relu(self.blocks[i](h), 0.2)
            h = F.avg_pool2d(h, 2) if i else h
            if i == stage and alpha < 1:
                faded = F.leaky_relu(self.from_rgb[stage - 1](F.avg_pool2d(x, 2)), 0.2)
                h = alpha * h + (1 - alpha) * faded
        h = F.leaky_relu(self.last(with_batch_deviation(h)), 0.2)
        return self.score(h.flatten(1))


class ProGAN(Training):
    iterations = len(STAGES)

    def __init__(self, stages: int = 3) -> None:
        nets = Generator(self.z_dim, stages), Discriminator(stages)
        super().__init__(*nets, lr=1e-3, betas=(0.0, 0.99))

    def inputs(self) -> tuple[Inputs, Inputs]:
        stage, alpha = STAGES[min(self.steps["G"], len(STAGES) - 1)]
        size = 4 * 2**stage
        real = torch.rand(self.batch, 3, size, size) * 2 - 1
        return (real, stage, alpha), (torch.randn(self.batch, self.z_dim), stage, alpha)

    def d_loss(self, real: Inputs, z: Inputs) -> Tensor:
        """Wasserstein with gradient penalty between real and fake images, and the drift term."""
        fake, scores = self.fake(z).detach(), self.score(*real)
        way = torch.rand(self.batch, 1, 1, 1)
        between = (way * real[0] + (1 - way) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(self.score(between, *z[1:]).sum(), between, create_graph=True)
        penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
        return self.score(fake, *z[1:]).mean() - scores.mean() + 10 * penalty + 1e-3 * scores.square().mean()


class GrowingProGAN(ProGAN):
    """The modules of a stage are made, and given to the optimizers and the moving average, when the stage begins."""

    def __init__(self) -> None:
        super().__init__(stages=1)

    def iterate(self) -> None:
        while len(self.nets["G"].blocks) <= STAGES[self.steps["G"]][0]:
            self.ema.grow()
            for network, net in self.nets.items():
                net.grow()
                parts = net.blocks, net.to_rgb if network == "G" else net.from_rgb
                new = [p for part in parts for p in part[-1].parameters()]
                self.optimizers[network].add_param_group({"params": new})
        super().iterate()

"""BigGAN (Brock et al. 2019), reduced to 16x16: class-conditional batch norm, attention, a projection discriminator."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from model_training import Inputs, Training
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

WIDTH, CLASSES, SHARED = 8, 3, 4
CHUNK = 4  # of the latent, one for the first layer and one for each block


def conv(inputs: int, outputs: int, kernel: int, bias: bool = True) -> nn.Module:
    return spectral_norm(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias))


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose gains and biases are linear in the condition [N, SHARED + CHUNK]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(WIDTH, affine=False)
        self.gain = spectral_norm(nn.Linear(SHARED + CHUNK, WIDTH, bias=False))
        self.bias = spectral_norm(nn.Linear(SHARED + CHUNK, WIDTH, bias=False))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        gain, bias = (layer(condition)[:, :, None, None] for layer in (self.gain, self.bias))
        return self.norm(x) * (1 + gain) + bias


class Attention(nn.Module):
    """Non-local block (Zhang et al. 2019): keys and values on a pooled grid; its share `gamma` begins at 0."""

    def __init__(self) -> None:
        super().__init__()
        small = WIDTH // 4
        self.query, self.key = conv(WIDTH, small, 1, False), conv(WIDTH, small, 1, False)
        self.value, self.out = conv(WIDTH, WIDTH // 2, 1, False), conv(WIDTH // 2, WIDTH, 1, False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x).flatten(2)
        key, value = (F.max_pool2d(layer(x), 2).flatten(2) for layer in (self.key, self.value))
        weights = (query.transpose(1, 2) @ key).softmax(-1)
        seen = (value @ weights.transpose(1, 2)).view(len(x), -1, *x.shape[2:])
        return x + self.gamma * self.out(seen)


class GeneratorBlock(nn.Module):
    """Doubles height and width."""

    def __init__(self) -> None:
        super().__init__()
        self.n1, self.n2 = ConditionalBatchNorm(), ConditionalBatchNorm()
        self.c1, self.c2, self.skip = conv(WIDTH, WIDTH, 3), conv(WIDTH, WIDTH, 3), conv(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.c1(F.interpolate(F.relu(self.n1(x, condition)), scale_factor=2.0))
        h = self.c2(F.relu(self.n2(h, condition)))
        return h + self.skip(F.interpolate(x, scale_factor=2.0))


class Generator(nn.Module):
    """Latents [N, 3 * CHUNK] and labels [N] to images [N, 3, 16, 16]."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Embedding(CLASSES, SHARED)
        self.first = spectral_norm(nn.Linear(CHUNK, WIDTH * 16))
        self.b1, self.attention, self.b2 = GeneratorBlock(), Attention(), GeneratorBlock()
        self.norm, self.out = nn.BatchNorm2d(WIDTH), conv(WIDTH, 3, 3)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        first, *rest = z.split(CHUNK, 1)
        conditions = [torch.cat([self.shared(y), part], 1) for part in rest]
        x = self.first(first).view(-1, WIDTH, 4, 4)
        x = self.b2(self.attention(self.b1(x, conditions[0])), conditions[1])
        return torch.tanh(self.out(F.relu(self.norm(x))))


class DiscriminatorBlock(nn.Module):
    """Halves height and width."""

    def __init__(self, inputs: int, first: bool = False) -> None:
        super().__init__()
        self.c1, self.c2, self.skip = conv(inputs, WIDTH, 3), conv(WIDTH, WIDTH, 3), conv(inputs, WIDTH, 1)
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        h = self.c2(F.relu(self.c1(x if self.first else F.relu(x))))
        return F.avg_pool2d(h, 2) + F.avg_pool2d(self.skip(x), 2)


class Discriminator(nn.Module):
    """Images [N, 3, 16, 16] and labels [N] to scores [N, 1]: a linear one plus the projection on the class."""

    def __init__(self) -> None:
        super().__init__()
        self.b1, self.attention, self.b2 = DiscriminatorBlock(3, True), Attention(), DiscriminatorBlock(WIDTH)
        self.linear = spectral_norm(nn.Linear(WIDTH, 1))
        self.embed = spectral_norm(nn.Embedding(CLASSES, WIDTH))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = F.relu(self.b2(self.attention(self.b1(x)))).sum((2, 3))
        return self.linear(h) + (self.embed(y) * h).sum(1, keepdim=True)


@torch.no_grad()
def orthogonal(net: nn.Module) -> nn.Module:
    for param in net.parameters():
        if param.dim() > 1:
            nn.init.orthogonal_(param)
    return net


class BigGAN(Training):
    """Hinge, two steps of D per step of G, orthogonal regularization of G."""

    iterations, d_steps, z_dim = 4, 2, 3 * CHUNK

    def __init__(self) -> None:
        super().__init__(orthogonal(Generator()), orthogonal(Discriminator()), lr=2e-4, betas=(0.0, 0.999))
        self.left_out = {"G": {"shared.weight": "an embedding"}, "D": {"embed.weight_orig": "an embedding"}}

    def inputs(self) -> tuple[Inputs, Inputs]:
        (real,), (z,) = super().inputs()
        y = torch.randint(CLASSES, (2, self.batch))
        return (real, y[0]), (z, y[1])

    def g_loss(self, z: Inputs) -> Tensor:
        flat = [p.flatten(1) for name, p in self.nets["G"].named_parameters() if name.endswith("weight_orig")]
        mixed = ((p @ p.T * (1 - torch.eye(len(p)))).square().sum() for p in flat)
        return super().g_loss(z) + 1e-4 * sum(mixed)

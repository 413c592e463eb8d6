"""GANs small enough to train 200 iterations in a second, and a training loop for them.

8x8 images, batch 4, float64, 500 to 3,000 weights a network.

`build(kind, seed)` returns a generator and a discriminator. Kinds differ in how a weight reaches its layer:

    plain       nn.Linear, nn.Conv2d; batch norm in G
    old_sn      torch.nn.utils.spectral_norm on all of D and one layer of G      (parameter `weight_orig`)
    new_sn      the same with torch.nn.utils.parametrizations.spectral_norm      (`parametrizations.weight.original`)
    equalized   layers of the host's own making: weight ~ N(0, 1), times 1 / sqrt(fan_in) in forward
    transposed  ConvTranspose2d in G, and one in D
    grouped     grouped ConvTranspose2d in G, grouped Conv2d in D

and transposed_old_sn, transposed_new_sn: under spectral norm, which takes dim 1 of a ConvTranspose2d as its output.

All activations of D can be differentiated twice, so that gradient penalties work.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KINDS = ("plain", "old_sn", "new_sn", "equalized", "transposed", "grouped")
Z = 6  # size of the latent vector
IMAGE = (3, 8, 8)
BATCH = 4

Wrap = Callable[[nn.Module], nn.Module]


class EqualConv2d(nn.Module):
    """Convolution with equalized learning rate, not a subclass of nn.Conv2d."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels_out, channels_in, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(channels_out))
        self.gain = (channels_in * kernel * kernel) ** -0.5
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.gain, self.bias, self.stride, self.padding)


class EqualLinear(nn.Module):
    """Linear layer with equalized learning rate, not a subclass of nn.Linear."""

    def __init__(self, features_in: int, features_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features_out, features_in))
        self.bias = nn.Parameter(torch.zeros(features_out))
        self.gain = features_in**-0.5

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.gain, self.bias)


class Branched(nn.Module):
    """A discriminator with a layer that only some calls use."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.side = nn.Conv2d(8, 8, 3, 1, 1)
        self.head = nn.Linear(8 * 4 * 4, 1)

    def forward(self, x: Tensor, use_side: bool = True) -> Tensor:
        x = F.softplus(self.stem(x))
        if use_side:
            x = x + torch.tanh(self.side(x))
        return self.head(x.flatten(1))


def build(kind: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module]:
    """A generator [B, Z] -> [B, 3, 8, 8] and a discriminator [B, 3, 8, 8] -> [B, 1]; the same seed, the same pair."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the old spectral norm is deprecated, and widely used
        torch.manual_seed(seed)
        generator, discriminator = generator_of(kind), discriminator_of(kind)
    return generator.to(dtype), discriminator.to(dtype)


def branched(seed: int = 0, dtype: torch.dtype = torch.float64) -> Branched:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Branched().to(dtype)


def generator_of(kind: str) -> nn.Sequential:
    wrap = spectral_norm_of(kind)
    if kind.startswith("transposed"):
        return nn.Sequential(
            nn.Unflatten(1, (Z, 1, 1)),
            nn.ConvTranspose2d(Z, 8, 4),  # 4x4
            nn.BatchNorm2d(8),
            nn.Softplus(),
            wrap(nn.ConvTranspose2d(8, 5, 4, 2, 1)),  # 8x8
            nn.Tanh(),
            nn.ConvTranspose2d(5, 3, 3, 1, 1),
            nn.Tanh(),
        )
    if kind == "grouped":
        return nn.Sequential(
            nn.Linear(Z, 8 * 16),
            nn.Unflatten(1, (8, 4, 4)),
            nn.BatchNorm2d(8),
            nn.Softplus(),
            nn.ConvTranspose2d(8, 12, 4, 2, 1, groups=4),  # weight [8, 3, 4, 4]: two input rows a group, three filters
            nn.Tanh(),
            nn.Conv2d(12, 3, 3, 1, 1),
            nn.Tanh(),
        )
    linear, conv = layers_of(kind)
    return nn.Sequential(
        linear(Z, 8 * 16),
        nn.Unflatten(1, (8, 4, 4)),
        nn.BatchNorm2d(8),
        nn.Softplus(),
        nn.Upsample(scale_factor=2),
        wrap(conv(8, 8, 3, 1, 1)),
        nn.Tanh(),
        conv(8, 3, 3, 1, 1),
        nn.Tanh(),
    )


def discriminator_of(kind: str) -> nn.Sequential:
    wrap = spectral_norm_of(kind)
    if kind.startswith("transposed"):
        return nn.Sequential(
            wrap(nn.Conv2d(3, 8, 3, 2, 1)),
            nn.Softplus(),
            wrap(nn.ConvTranspose2d(8, 6, 3, 1, 1)),
            nn.LeakyReLU(0.2),
            wrap(nn.Conv2d(6, 8, 3, 2, 1)),
            nn.Softplus(),
            nn.Flatten(),
            wrap(nn.Linear(8 * 4, 1)),
        )
    if kind == "grouped":
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.Softplus(),
            nn.Conv2d(8, 12, 3, 1, 1, groups=4),  # weight [12, 2, 3, 3]
            nn.LeakyReLU(0.2),
            nn.Conv2d(12, 8, 3, 2, 1, groups=2),
            nn.Softplus(),
            nn.Flatten(),
            nn.Linear(8 * 4, 1),
        )
    linear, conv = layers_of(kind)
    return nn.Sequential(
        wrap(conv(3, 8, 3, 2, 1)),
        nn.LeakyReLU(0.2),
        wrap(conv(8, 12, 3, 2, 1)),
        nn.Softplus(),
        nn.Flatten(),
        wrap(linear(12 * 4, 1)),
    )


def layers_of(kind: str) -> tuple[Callable[..., nn.Module], Callable[..., nn.Module]]:
    return (EqualLinear, EqualConv2d) if kind == "equalized" else (nn.Linear, nn.Conv2d)


def spectral_norm_of(kind: str) -> Wrap:
    if kind.endswith("old_sn"):
        return nn.utils.spectral_norm
    if kind.endswith("new_sn"):
        return nn.utils.parametrizations.spectral_norm
    return lambda layer: layer


HINGE = (lambda s: F.relu(1 - s).mean(), lambda s: F.relu(1 + s).mean(), lambda s: -s.mean())
LOGISTIC = (lambda s: F.softplus(-s).mean(), lambda s: F.softplus(s).mean(), lambda s: F.softplus(-s).mean())


class Side(Protocol):
    """A G and a D in training, by whatever implementation."""

    def call(self, name: str, *args: Any) -> Tensor: ...
    def requires_grad(self, name: str, flag: bool) -> None: ...
    def zero_grad(self, name: str, set_to_none: bool) -> None: ...
    def regularizer(self, name: str) -> Tensor | float: ...
    def step(self, name: str, **how: Any) -> None: ...
    def auxiliary_step(self, name: str) -> None: ...
    def host_optimizer(self, name: str) -> torch.optim.Optimizer: ...
    def snapshot(self) -> Any: ...


class Data:
    """Eight batches of images and 32 of latent vectors, the same for both sides."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randn(8, BATCH, *IMAGE, generator=generator, dtype=torch.float64).tanh().to(dtype)
        self.latents = torch.randn(32, BATCH, Z, generator=generator, dtype=torch.float64).to(dtype)

    def x(self, i: int) -> Tensor:
        return self.images[i % len(self.images)]

    def z(self, i: int) -> Tensor:
        return self.latents[i % len(self.latents)]


@dataclass
class Loop:
    """A host's training script, told which of the usual things to do."""

    schedule: str = "several"
    iterations: int = 200
    every: int = 20  # snapshots
    closures: bool = False
    set_to_none: bool = True
    skip_d: int = 61  # amp: iteration with an infinite loss of D
    skip_g: int = 117
    decay: float = 1.0  # factor of the learning rates per iteration
    d_args: Callable[[int], tuple] | None = None  # further arguments of D in iteration i
    dtype: torch.dtype = torch.float64

    def run(self, side: Side) -> dict[int, Any]:
        self.side, self.data = side, Data(self.dtype)
        amp = self.schedule == "amp"
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10) if amp else None
        freeze = self.schedule in ("accumulation", "r1")  # D while G learns; other hosts let it collect gradients
        self.real, self.fake, self.adversarial = HINGE if self.schedule in ("several", "amp") else LOGISTIC
        seen = {}
        for i in range(self.iterations):
            self.turn("D", i, getattr(self, f"d_{self.schedule}"))
            if self.schedule == "r1" and i % 4 == 2:
                self.lazy_penalty(i)
            if freeze:
                side.requires_grad("D", False)
            self.turn("G", i, getattr(self, f"g_{self.schedule}"))
            if freeze:
                side.requires_grad("D", True)
            if self.scaler is not None:
                self.scaler.update()
            for name in ("G", "D"):
                for group in side.host_optimizer(name).param_groups:
                    group["lr"] *= self.decay
            if (i + 1) % self.every == 0:
                seen[i + 1] = side.snapshot()
        return seen

    def turn(self, name: str, i: int, backward: Callable[[int], Tensor]) -> None:
        def closure() -> Tensor:
            self.side.zero_grad(name, self.set_to_none)
            return backward(i)

        if self.closures:
            self.side.step(name, closure=closure)
        else:
            closure()
            self.side.step(name, **({} if self.scaler is None else {"scaler": self.scaler}))

    def fakes(self, i: int) -> Tensor:
        with torch.no_grad():
            return self.side.call("G", self.data.z(2 * i))

    def score(self, images: Tensor, i: int) -> Tensor:
        return self.side.call("D", images, *(self.d_args(i) if self.d_args else ()))

    # several backward passes per step

    def d_several(self, i: int) -> Tensor:
        loss_real = self.real(self.score(self.data.x(i), i)) + self.side.regularizer("D")
        loss_real.backward()
        loss_fake = self.fake(self.score(self.fakes(i), i))
        loss_fake.backward()
        return (loss_real + loss_fake).detach()

    def g_several(self, i: int) -> Tensor:
        loss = self.adversarial(self.score(self.side.call("G", self.data.z(2 * i + 1)), i)) + self.side.regularizer("G")
        loss.backward()
        return loss.detach()

    # gradient accumulation over two micro batches

    def d_accumulation(self, i: int) -> Tensor:
        for half, (x, fake) in enumerate(zip(self.data.x(i).chunk(2), self.fakes(i).chunk(2))):
            score_real, score_fake = self.score(torch.cat([x, fake]), i).chunk(2)
            loss = (self.real(score_real) + self.fake(score_fake)) / 2
            if half == 1:
                loss = loss + self.side.regularizer("D")
            loss.backward()
        return loss.detach()

    def g_accumulation(self, i: int) -> Tensor:
        for half, z in enumerate(self.data.z(2 * i + 1).chunk(2)):
            loss = self.adversarial(self.score(self.side.call("G", z), i)) / 2
            if half == 1:
                loss = loss + self.side.regularizer("G")
            loss.backward()
        return loss.detach()

    # gradient penalty: with the loss when i % 4 == 0, in a step of its own when i % 4 == 2

    def d_r1(self, i: int) -> Tensor:
        real, fake = self.score(torch.cat([self.data.x(i), self.fakes(i)]), i).chunk(2)
        loss = self.real(real) + self.fake(fake) + self.side.regularizer("D")
        if i % 4 == 0:
            loss = loss + self.penalty(i)
        loss.backward()
        return loss.detach()

    g_r1 = g_several

    def penalty(self, i: int) -> Tensor:
        x = self.data.x(i + 3).clone().requires_grad_()
        (slope,) = torch.autograd.grad(self.score(x, i).sum(), x, create_graph=True)
        return slope.square().sum(dim=(1, 2, 3)).mean()

    def lazy_penalty(self, i: int) -> None:
        self.side.zero_grad("D", self.set_to_none)
        (4 * self.penalty(i)).backward()
        self.side.auxiliary_step("D")

    # GradScaler

    def d_amp(self, i: int) -> Tensor:
        real, fake = self.score(torch.cat([self.data.x(i), self.fakes(i)]), i).chunk(2)
        loss = self.real(real) + self.fake(fake) + self.side.regularizer("D")
        if i == self.skip_d:
            loss = loss + float("inf") * real.mean()  # not loss * inf: a hinge that is satisfied has gradient 0
        self.scaler.scale(loss).backward()
        return loss.detach()

    def g_amp(self, i: int) -> Tensor:
        score = self.score(self.side.call("G", self.data.z(2 * i + 1)), i)
        loss = self.adversarial(score) + self.side.regularizer("G")
        if i == self.skip_g:
            loss = loss + float("inf") * score.mean()
        self.scaler.scale(loss).backward()
        return loss.detach()

"""A pair whose ties are known by hand, and what a mask of each granularity has to look like on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rgplug

CHANNELS, Z = 8, 4
LEAVE_OUT = {"networks": {"D": {"exclude": ["first.weight"]}}}  # three input channels are no multiple of four


class Generator(nn.Module):
    """[B, 4] -> [B, 3, 4, 4]. One channel: four rows of `linear` and a filter of `residual`, which are summed up."""

    z_dim = Z

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(Z, CHANNELS * 4)
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.residual = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.up = nn.ConvTranspose2d(CHANNELS, CHANNELS, 4, 2, 1)
        self.last = nn.Conv2d(CHANNELS, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = F.softplus(self.norm(self.linear(z).view(-1, CHANNELS, 2, 2)))
        x = x + torch.tanh(self.residual(x))
        return torch.tanh(self.last(F.softplus(self.up(x))))


class Discriminator(nn.Module):
    """[B, 3, 4, 4] -> [B, 1]. A filter of `first` and one of `second` make one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.second = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.grouped = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=2)
        self.third = nn.ConvTranspose2d(CHANNELS, CHANNELS, 3, padding=1, groups=2)
        self.last = nn.Linear(CHANNELS * 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.first(x), 0.2)
        x = x + F.leaky_relu(self.second(x), 0.2)
        return self.last(F.leaky_relu(self.third(torch.tanh(self.grouped(x))), 0.2).flatten(1))


def pair(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Generator, Discriminator]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Generator().to(dtype), Discriminator().to(dtype)


class Run:
    """GAN training of a pair, step by step; `optimizers` per network may split its parameters among several."""

    def __init__(self, G: nn.Module, D: nn.Module, lr: float = 5e-3, split: bool = False):
        self.nets = {"G": G, "D": D}
        self.dtype = next(G.parameters()).dtype
        self.optimizers = {
            label: [torch.optim.Adam(part, lr, betas=(0.5, 0.999)) for part in self.parts(net, split)]
            for label, net in self.nets.items()
        }
        self.done = 0

    @staticmethod
    def parts(net: nn.Module, split: bool) -> list[list[nn.Parameter]]:
        """All parameters, or every second layer's in an optimizer of its own."""
        layers = list(net.children())
        chosen = [layers[::2], layers[1::2]] if split else [layers]
        return [[p for layer in some for p in layer.parameters()] for some in chosen]

    def batch(self) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(self.done)
        real = torch.randn(4, 3, 4, 4, generator=random, dtype=torch.float64).tanh().to(self.dtype)
        return real, torch.randn(4, Z, generator=random, dtype=torch.float64).to(self.dtype)

    def backward(self, label: str) -> None:
        real, z = self.batch()
        G, D = self.nets["G"], self.nets["D"]
        for optimizer in self.optimizers[label]:
            optimizer.zero_grad()
        if label == "D":
            loss = F.softplus(-D(real)).mean() + F.softplus(D(G(z).detach())).mean()
        else:
            loss = F.softplus(-D(G(z))).mean()
        loss.backward()

    def steps(self, count: int) -> Iterator[str]:
        """Train; yields the network's name after each step of each optimizer."""
        for _ in range(count):
            for label in ("D", "G"):
                self.backward(label)
                for optimizer in self.optimizers[label]:
                    optimizer.step()
                    yield label
            self.done += 1

    def run(self, count: int) -> None:
        for _ in self.steps(count):
            pass

    def state_dict(self) -> dict[str, Any]:
        nets = {k: {n: t.clone() for n, t in v.state_dict().items()} for k, v in self.nets.items()}
        return {**nets, "optimizers": {k: [o.state_dict() for o in v] for k, v in self.optimizers.items()}}


def masks(rg: rgplug.Controller, label: str) -> dict[str, Tensor]:
    return {w.name.removesuffix(".weight"): w.mask.clone() for w in rg.weights(label)}


def channels(label: str, held: dict[str, Tensor]) -> dict[str, Tensor]:
    """layer -> bool [8, entries of a filter, or of the rows of a channel]: what each channel's filters keep."""
    found = {}
    for name, mask in held.items():
        if (label, name) == ("G", "linear"):
            found[name] = mask.reshape(CHANNELS, -1)
        elif name == "up":
            found[name] = mask.transpose(0, 1).flatten(1)
        elif name == "third":  # [2 groups of 4 inputs, 4 filters a group]
            found[name] = mask.unflatten(0, (2, 4)).transpose(1, 2).reshape(CHANNELS, -1)
        else:
            found[name] = mask.flatten(1)
    return found


def check(rg: rgplug.Controller, label: str, granularity: str) -> None:
    """The present masks are made of whole units, what is tied agrees, and no layer is empty."""
    held = masks(rg, label)
    for w in rg.weights(label):
        assert not w.data[~w.mask].any(), w.name
        assert w.mask.any(), w.name
    if granularity == "kernel":
        for name, mask in held.items():
            assert mask.dim() == 2 or torch.equal(mask, mask[..., :1, :1].expand_as(mask)), name
    elif granularity == "2:4":
        for name, mask in held.items():
            along = mask.movedim(0, 1) if name in ("up", "third") else mask
            assert (along.unflatten(1, (-1, 4)).sum(2) == 2).all(), name
    else:
        found = channels(label, held)
        for name, rows in found.items():
            assert torch.equal(rows, rows[:, :1].expand_as(rows)), name
        a, b = {"G": ("linear", "residual"), "D": ("first", "second")}[label]
        assert torch.equal(found[a][:, 0], found[b][:, 0])
        assert "last" not in found  # it makes the network's output

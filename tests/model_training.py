"""An ordinary training loop around a pair of networks, which the base models fill with their losses and schedules."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rgplug

Inputs = tuple[Any, ...]  # what a network is called with


class Training:
    """G, D, their Adams and G's moving average. Of rgplug it knows what a host may have to: `observe`, lazy steps."""

    iterations = 5
    d_steps = 1  # per step of G
    z_dim, batch, size = 8, 2, 16
    alike = 1  # weights of one layer that begin with the same value

    def __init__(self, G: nn.Module, D: nn.Module, lr: float, betas: tuple[float, float]) -> None:
        self.nets = {"G": G, "D": D}
        # parameters of two or more dims that are no weights to prune, and the reason that the report gives
        self.left_out: dict[str, dict[str, str]] = {"G": {}, "D": {}}
        self.ema = copy.deepcopy(G).requires_grad_(False)
        self.optimizers = {k: torch.optim.Adam(net.parameters(), lr, betas) for k, net in self.nets.items()}
        self.steps = {"G": 0, "D": 0}  # without those of lazy regularization
        self.losses: list[Tensor] = []
        self.rg: rgplug.Controller | None = None
        self.after: Callable[[str], Any] = lambda network: None  # called after every step, lazy ones included

    # ---- what a model may say otherwise ------------------------------------------------------------------------------

    def inputs(self) -> tuple[Inputs, Inputs]:
        """What D is called with for real images, and G; what follows the images or latents is D's for fakes too."""
        return (torch.rand(self.batch, 3, self.size, self.size) * 2 - 1,), (torch.randn(self.batch, self.z_dim),)

    def score(self, images: Tensor, *rest: Any) -> Tensor:
        return self.nets["D"](images, *rest)

    def fake(self, z: Inputs) -> Tensor:
        return self.nets["G"](*z)

    def d_loss(self, real: Inputs, z: Inputs) -> Tensor:
        """Hinge."""
        fake = self.fake(z).detach()
        return F.relu(1 - self.score(*real)).mean() + F.relu(1 + self.score(fake, *z[1:])).mean()

    def g_loss(self, z: Inputs) -> Tensor:
        return -self.score(self.fake(z), *z[1:]).mean()

    # ---- the loop ----------------------------------------------------------------------------------------------------

    def iterate(self) -> None:
        for _ in range(self.d_steps):
            real, z = self.inputs()
            self.step("D", self.d_loss(real, z))
        real, z = self.inputs()
        if self.rg is not None:
            self.rg.observe(real=real, z=z)
        self.step("G", self.g_loss(z))
        self.update_ema()

    def run(self, iterations: int | None = None) -> None:
        for _ in range(self.iterations if iterations is None else iterations):
            self.iterate()

    def step(self, network: str, loss: Tensor, lazy: bool = False) -> None:
        optimizer = self.optimizers[network]
        optimizer.zero_grad()
        loss.backward()
        self.losses.append(loss.detach())
        with self.rg.auxiliary_step(network) if lazy and self.rg is not None else nullcontext():
            optimizer.step()
        self.steps[network] += not lazy
        self.after(network)

    @torch.no_grad()
    def update_ema(self, decay: float = 0.9) -> None:
        for average, live in zip(self.ema.parameters(), self.nets["G"].parameters()):
            average.lerp_(live, 1 - decay)
        for average, live in zip(self.ema.buffers(), self.nets["G"].buffers()):
            average.copy_(live)

    @torch.no_grad()
    def look(self) -> Tensor:
        """Scores of generated images; leaves plain tensors where layers keep what they last computed."""
        _, z = self.inputs()
        return self.score(self.fake(z), *z[1:])

"""Whole training step of a discriminator: dense, under rgplug, and with the mask in the graph.

    python -m benchmarks.training_step [--rounds 30]

rgplug runs twice, with its compiled loops and with tensor operations. One hinge step on real and generated images with
Adam. The variants alternate in one process, so that what the machine does meanwhile hits all alike; reported are ratios
of medians. Memory is what attach adds per byte of managed weight.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import rgplug
from benchmarks import keep_memory

CASES = {  # name -> (channels, resolution, batch)
    "batch 16, 64 ch, 32x32": (64, 32, 16),
    "batch 64, 64 ch, 32x32": (64, 32, 64),
    "batch 8, 128 ch, 16x16": (128, 16, 8),
}


class Mask(torch.autograd.Function):
    """theta, t -> theta * S(|theta| - t), with H' as the derivative of S; the gradient of theta is masked."""

    @staticmethod
    def forward(ctx, theta: Tensor, t: Tensor) -> Tensor:
        keep = (theta.abs() > t).to(theta.dtype)
        ctx.save_for_backward(theta, t, keep)
        return theta * keep

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        theta, t, keep = ctx.saved_tensors
        x = (theta.abs() - t).abs()
        slope = torch.where(x <= 0.4, 2 - 4 * x, torch.where(x <= 1, 0.4, 0.0))
        return grad * keep, -(grad * theta * slope).sum(tuple(range(1, theta.dim())), keepdim=True)


class GraphConv2d(nn.Conv2d):
    """A convolution that masks its weight in every forward, as published code does."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.threshold = nn.Parameter(torch.zeros(self.out_channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, Mask.apply(self.weight, self.threshold), self.bias)


class Discriminator(nn.Sequential):
    """Eight 3x3 convolutions, two of them strided, and a linear layer."""

    def __init__(self, channels: int, conv: type[nn.Conv2d]):
        layers: list[nn.Module] = []
        for i in range(8):
            layers += [conv(channels if i else 3, channels, 3, 2 if i in (2, 4) else 1, 1), nn.LeakyReLU(0.1)]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1))


def stepper(
    net: nn.Module, batch: int, resolution: int, regularizer: Callable[[], Tensor] | None = None
) -> Callable[[], None]:
    optimizer = torch.optim.Adam(net.parameters(), 2e-4, betas=(0.0, 0.9))
    real, fake = torch.randn(2, batch, 3, resolution, resolution)

    def step() -> None:
        optimizer.zero_grad()
        loss = (1 - net(real)).relu().mean() + (1 + net(fake)).relu().mean()
        (loss if regularizer is None else loss + regularizer()).backward()
        optimizer.step()

    return step


def compare(channels: int, resolution: int, batch: int, rounds: int) -> dict[str, float]:
    """Medians as ratios to the dense step of the same run."""
    torch.manual_seed(0)
    dense = Discriminator(channels, nn.Conv2d)
    control, managed = copy.deepcopy(dense), copy.deepcopy(dense)
    graph = Discriminator(channels, GraphConv2d)
    graph.load_state_dict(dense.state_dict(), strict=False)
    thresholds = [m.threshold for m in graph.modules() if isinstance(m, GraphConv2d)]
    unfused = copy.deepcopy(dense)
    rg = rgplug.attach(managed, None, {"method": "rg-gan"})
    eager = rgplug.attach(unfused, None, {"method": "rg-gan", "kernels": "eager"})
    steps = {
        "dense": stepper(dense, batch, resolution),
        "control": stepper(control, batch, resolution),  # another dense one: what is left to chance
        "rgplug": stepper(managed, batch, resolution),
        "eager": stepper(unfused, batch, resolution),
        "graph": stepper(graph, batch, resolution, lambda: 5e-12 * sum(torch.exp(-t).sum() for t in thresholds)),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(rounds + 2):
        for name, step in list(steps.items())[:: 1 if i % 2 else -1]:  # what runs before differs, too
            start = time.perf_counter()
            step()
            if i >= 2:
                times[name].append(time.perf_counter() - start)
    rg.detach()
    eager.detach()
    medians = {name: statistics.median(t) for name, t in times.items()}
    return {
        "rgplug": medians["rgplug"] / medians["dense"],
        "rgplug, eager": medians["eager"] / medians["dense"],
        "mask in the graph": medians["graph"] / medians["dense"],
        "another dense": medians["control"] / medians["dense"],
        "dense, ms": 1000 * medians["dense"],
    }


def kept_beside(rg: rgplug.Controller, network: str = "G") -> float:
    """Bytes that rgplug keeps between two steps beside a host's network, per byte of managed weight."""
    net = rg.networks[network]
    held = [x for w in net.weights for x in (w.dormant, w.threshold, *net.method.state_of(w).values())]
    extra = sum(x.numel() * x.element_size() for x in held if isinstance(x, Tensor))
    return extra / sum(w.numel * w.param.element_size() for w in net.weights)


def memory(dormant: str = "own") -> float:
    """`kept_beside` of a discriminator after its first step, with this dtype of dormant values."""
    net = Discriminator(64, nn.Conv2d)
    with rgplug.attach(net, None, {"method": "rg-gan", "dormant": dormant}) as rg:
        stepper(net, 2, 32)()
        return kept_beside(rg)


def run(rounds: int = 30) -> dict[str, dict[str, float]]:
    """Case -> ratios of `compare`, and "memory" -> bytes beside the host per byte of managed weight."""
    bytes_beside = {"ratio": memory(), "dormant: bfloat16": memory("bfloat16")}
    return {name: compare(*case, rounds=rounds) for name, case in CASES.items()} | {"memory": bytes_beside}


if __name__ == "__main__":
    keep_memory()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30, help="steps of each variant that are timed")
    for case, values in run(parser.parse_args().rounds).items():
        print(case, {k: round(v, 3) for k, v in values.items()})

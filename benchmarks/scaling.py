"""What rgplug costs per step, from one million to a hundred million managed weights.

    python -m benchmarks.scaling [--rounds 20]

A stack of 1000x1000 linear layers on four samples with SGD: a step that does next to nothing with its weights, so that
the work around it shows. Two copies, one of them attached, alternate in one process; cost is the median over the rounds
of the time with rgplug minus the time without. It grows in proportion to the weights where the cost per weight stays
level (the smallest stack fits into the processor's caches). The largest needs about 2.5 GB.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

import rgplug
from benchmarks import keep_memory
from benchmarks.training_step import kept_beside

WIDTH, BATCH = 1000, 4
MILLIONS = (1, 10, 30, 100)


def stack(layers: int) -> nn.Sequential:
    """`layers` linear layers that keep the size of what passes through them."""
    net = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)))
    for layer in net:
        nn.init.normal_(layer.weight, std=WIDTH**-0.5)
    return net


def stepper(net: nn.Module) -> Callable[[], float]:
    """A function that makes one step and returns its seconds; gradients are gone after it, so that the two stacks
    together need the memory of one more set of weights and not of three."""
    optimizer = torch.optim.SGD(net.parameters(), 1e-6)
    x = torch.randn(BATCH, WIDTH)

    def step() -> float:
        start = time.perf_counter()
        net(x).square().mean().backward()
        optimizer.step()
        seconds = time.perf_counter() - start
        optimizer.zero_grad()
        return seconds

    return step


def measure(millions: int, rounds: int) -> dict[str, float]:
    """Milliseconds of a step without and with rgplug, its cost in all and per weight, and memory beside the host."""
    torch.manual_seed(0)
    stock, managed = stack(millions), stack(millions)
    with rgplug.attach(managed, None, {"method": "rg-gan"}) as rg:
        without, attached = stepper(stock), stepper(managed)
        times = [(without(), attached()) for _ in range(rounds + 2)][2:]
        weights = sum(w.numel for w in rg.weights("G"))
        memory = kept_beside(rg)
    cost = statistics.median(b - a for a, b in times)
    return {
        "weights": weights,
        "without, ms": 1e3 * statistics.median(a for a, _ in times),
        "with, ms": 1e3 * statistics.median(b for _, b in times),
        "cost, ms": 1e3 * cost,
        "cost, ns per weight": 1e9 * cost / weights,
        "memory": memory,
    }


def run(rounds: int = 20) -> dict[str, dict[str, float]]:
    """Size -> what `measure` found."""
    return {f"{n} M": measure(n, rounds) for n in MILLIONS}


if __name__ == "__main__":
    keep_memory()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="steps of each variant that are timed")
    for size, values in run(parser.parse_args().rounds).items():
        print(size, {k: round(v, 3) for k, v in values.items()})

"""A host for tests of comparisons: the pair of tests/tiny.py in a training that can be resumed, and its faults."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import tiny
import torch
from common import Host
from torch import nn

ITERATIONS, EVERY = 12, 4
POLICY = {"batch_size": tiny.BATCH}
LENGTH = {"length": ITERATIONS, "density": 0.5, "rounds": 2}


def build() -> tuple[nn.Module, nn.Module]:
    host = Host(seed=int(torch.randint(10**6, ())))
    return host.G, host.D


def train(build: Any, attach: Any, seed: int, run_dir: Path) -> None:
    """Twelve iterations, three evaluations; the metric is the mean size of the generator's images."""
    run(build, attach, seed, run_dir)


def run(build: Any, attach: Any, seed: int, run_dir: Path, before_end: Any = None, after_end: Any = None) -> None:
    torch.manual_seed(seed)
    host = Host()
    host.G, host.D = build()
    rg = attach(host.G, host.D)
    nets = {"G": host.G, "D": host.D}
    host.opt = {name: torch.optim.Adam(net.parameters(), 1e-2, (0.5, 0.999)) for name, net in nets.items()}
    checkpoint = Path(run_dir) / "checkpoint.pt"
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        host.load_state_dict(state["host"])
        rg.load_state_dict(state["rg"])
    rg.observe(host.data.x(0), host.data.z(0))
    while host.iteration < ITERATIONS:
        host.run(EVERY)
        if before_end is not None:
            before_end(rg, host)
        with torch.no_grad():
            metric = host.G(host.data.z(0)).abs().mean().item()
        rg.end_epoch(metric, metric_name="size")
        if after_end is not None:
            after_end(rg, host)
        partial = checkpoint.with_suffix(".part")
        torch.save({"host": host.state_dict(), "rg": rg.state_dict()}, partial)
        os.replace(partial, checkpoint)


def killed_train(build: Any, attach: Any, seed: int, run_dir: Path) -> None:
    """Dies once, by SIGKILL, in the middle of the second evaluation of the run that KILL names."""
    flag = Path(os.environ["KILL_FLAG"])

    def die(rg: Any, host: Host) -> None:
        if os.environ["KILL_IN"] in str(run_dir) and host.iteration == 2 * EVERY and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    run(build, attach, seed, run_dir, after_end=die)

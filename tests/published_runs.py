"""Small runs from which the papers' tables and figures are made: sweeps, tickets, and run folders of an adapter.

`made(folder)` trains all of it (about 60 trainings of twelve iterations, evaluated six times) and returns the folders.
The file is a host of `rgplug compare` too: it takes --share, of the training images.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from common import Host
from torch import nn

from rgplug.adapters.run import Run
from rgplug.baselines import compare
from rgplug.baselines.compare import run as compare_host
from rgplug.baselines.host import HostFile
from rgplug.baselines.methods import Scale
from rgplug.policy import Policy

ITERATIONS, EVERY, BATCHES = 12, 2, 8
SEEDS, SHARES, DENSITIES = 2, (1.0, 0.1), (0.3, 0.5)
REGENERATION = {"augmented": {"window": 1, "weights": [1.0], "include_current": False}}
RG_GAN = {"base": "rg-gan", "sparsity_weight": 1e-2, "threshold": {"init": 0.05}, "regeneration": REGENERATION}
RE_GAN = {"base": "re-gan", "cycle": {"warm_up": 2, "period": 4}}
COMMON = {"batch_size": tiny.BATCH}


@dataclass(frozen=True)
class Made:
    """Folders of runs, by what they are for."""

    sweep: Path  # dense, pf-uniform, stu-gan, tickets; densities of G (STU-GAN, Tables 1, 2, 4)
    shares: Path  # dense, rg-gan; shares of the images (RG-GAN, Tables 1, 2, 3)
    cost: Path  # dense, tickets, re-gan, rg-gan (RG-GAN, Table 5)
    official: Path  # run folders of an adapter: dense, rg-gan (RG-GAN, Table 4)


def made(folder: Path) -> Made:
    found = Made(folder / "sweep", folder / "shares", folder / "cost", folder / "official")
    scale: dict[str, Any] = {"length": ITERATIONS, "rounds": 2, "seeds": SEEDS, "policy": COMMON}
    grid = {"density.G": list(DENSITIES)}
    compare(
        ["dense", "pf-uniform", "stu-gan", "tickets"],
        train, build, out=found.sweep, grid=grid, density={"G": 0.3, "D": 0.5}, ratio="density", **scale,
    )  # fmt: skip
    host = HostFile(__file__, ("--share", "{share}"))
    compare_host(
        {"dense": None, "rg-gan": RG_GAN}, host, found.shares, SEEDS, COMMON, Scale(), grid={"share": list(SHARES)}
    )
    compare(
        {"dense": None, "tickets": None, "re-gan": RE_GAN, "rg-gan": RG_GAN},
        train, build, out=found.cost, rounds=3, seeds=SEEDS, policy=COMMON,
    )  # fmt: skip
    number = 0
    for policy in ({"base": "dense"}, RG_GAN):
        for seed in range(SEEDS):
            adapter_run(found.official / f"{number:05d}-robots-{tiny.BATCH}", policy, seed)
            number += 1
    return found


def adapter_run(folder: Path, policy: Any, seed: int, share: float = 1.0) -> None:
    """A run as adapters of the official repositories leave it: history.jsonl and setup.json in the run folder."""
    folder.mkdir(parents=True)
    argv = ["train_rgplug.py", f"--outdir={folder.parent}", "--cfg", "auto", "--share", str(share), "--seed", str(seed)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", argv)
        torch.manual_seed(seed)
        host = Host(seed=seed)
        run = Run(Policy.load({**policy, **COMMON}))
        run.in_folder(folder)
        run.network("G", host.G)
        run.network("D", host.D)
        for _ in range(ITERATIONS // EVERY):
            host.run(EVERY)
            run.evaluated({"fid50k_full": fid_of(host)})
        run.close()


def host(argv: list[str]) -> tuple[Any, Any]:
    share = float(argv[argv.index("--share") + 1])
    return build, lambda *args: trained(share, *args)


def build() -> tuple[nn.Module, nn.Module]:
    made = Host(seed=int(torch.randint(10**6, ())))
    return made.G, made.D


def train(build: Any, attach: Any, seed: int, run_dir: Path) -> None:
    trained(1.0, build, attach, seed, run_dir)


def trained(share: float, build: Any, attach: Any, seed: int, run_dir: Path) -> None:
    torch.manual_seed(seed)
    host = Host(seed=seed)
    host.G, host.D = build()
    nets = {"G": host.G, "D": host.D}
    host.opt = {name: torch.optim.Adam(net.parameters(), 1e-2, (0.5, 0.999)) for name, net in nets.items()}
    host.data = Images(share)
    rg = attach(host.G, host.D)
    rg.observe(host.data.x(0), host.data.z(0))
    for _ in range(ITERATIONS // EVERY):
        host.run(EVERY)
        rg.end_epoch({"fid": fid_of(host), "is": is_of(host)})


class Images(tiny.Data):
    """The first `share` of eight batches of images, over and over."""

    def __init__(self, share: float):
        super().__init__(torch.float32)
        self.batches = max(round(share * BATCHES), 1)

    def x(self, i: int) -> torch.Tensor:
        return super().x(i % self.batches)


def fid_of(host: Host) -> float:
    """A distance that goes up and down: how far the mean image is from that of the images, in squares."""
    with torch.no_grad():
        fake, real = host.G(host.data.z(999)), host.data.x(999)
        return float(100 * (fake.mean((0, 2, 3)) - real.mean((0, 2, 3))).square().sum() + 1)


def is_of(host: Host) -> float:
    with torch.no_grad():
        return float(1 + host.G(host.data.z(998)).std())

"""An iteration of a GAN under each method, against the same iteration without rgplug.

    python -m benchmarks.methods [--rounds 20]

SNGAN's 32x32 pair (64 channels), hinge loss, batch 16, one step of D and one of G with Adam. All variants alternate in
one process; reported are ratios of medians. Steps at which masks are exchanged, a density is adjusted or a balance
ratio is measured are timed as variants of their own, in which each step is such a step, and counted in as often as
the published schedule has them: ratio = ordinary + sum (special - ordinary) / interval.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import rgplug
from benchmarks import keep_memory
from rgplug.examples.sngan import Discriminator, Generator

BATCH = 16
METHODS = (
    "dense", "sparse", "pf-global", "re-gan", "stu-gan", "stu-gan-b", "set", "rigl", "adapt",
    "rg-gan-released", "rg-gan",
)  # fmt: skip
ALWAYS_UP = {"balance.every": 1, "balance.window": 1, "balance.upper": -1e9, "balance.lower": -1e9}
EVERY_STEP = {"exploration.every": 1, "exploration.end": 10**9}
SPECIAL: dict[str, list[tuple[str, dict[str, Any], int]]] = {  # method -> (what, policy, published interval)
    "stu-gan": [("exchange", EVERY_STEP, 1000)],
    "stu-gan-b": [("exchange", EVERY_STEP, 1000)],
    "set": [("exchange", EVERY_STEP, 1000)],
    "rigl": [("exchange", EVERY_STEP, 100)],
    "adapt": [
        ("exchange of G", EVERY_STEP, 500),
        ("measurement", {"balance.measure": 1}, 10),
        ("adjustment of D", ALWAYS_UP, 1000),
    ],
    "re-gan": [("change of phase", {"cycle.warm_up": 0, "cycle.period": 1}, 15000)],
}  # fmt: skip


class Pair:
    """A G and a D in training."""

    def __init__(self, G: nn.Module, D: nn.Module, policy: dict[str, Any] | None):
        self.G, self.D = copy.deepcopy(G), copy.deepcopy(D)
        self.rg = None if policy is None else rgplug.attach(self.G, self.D, policy)
        self.optimizers = [torch.optim.Adam(n.parameters(), 2e-4, betas=(0.0, 0.9)) for n in (self.G, self.D)]
        self.real = torch.randn(BATCH, 3, 32, 32).tanh()

    def iteration(self) -> None:
        fake = self.G(torch.randn(BATCH, 128))
        real_score, fake_score = self.D(torch.cat([self.real, fake.detach()])).chunk(2)
        self.optimizers[1].zero_grad()
        (F.relu(1 - real_score).mean() + F.relu(1 + fake_score).mean()).backward()
        self.optimizers[1].step()
        self.optimizers[0].zero_grad()
        (-self.D(fake).mean()).backward(inputs=list(self.G.parameters()))
        self.optimizers[0].step()


def variants(real: Path) -> dict[tuple[str, str], dict[str, Any] | None]:
    """(method, what) -> policy; None: without rgplug."""
    found: dict[tuple[str, str], dict[str, Any] | None] = {("stock", ""): None}
    for method in METHODS:
        own: dict[str, Any] = {"base": method}
        if method in ("stu-gan", "stu-gan-b", "set", "rigl", "adapt", "sparse"):
            own["masks.density"] = {"G": 0.3, "D": 0.3}
        if method == "adapt":
            own |= {"balance.real": str(real), "balance.batch": BATCH}
        ordinary = {"balance.measure": 10**9, "balance.every": 10**9} if method == "adapt" else {}
        found[method, ""] = {**own, **ordinary}
        for what, changes, _ in SPECIAL.get(method, []):
            found[method, what] = {**own, **ordinary, **changes}
    return found


def run(rounds: int = 20) -> dict[str, dict[str, float]]:
    """method -> ratio (all counted in), ordinary, and one entry per special step; ratios to the stock iteration."""
    torch.manual_seed(0)
    G, D = Generator(64), Discriminator(64)
    with tempfile.TemporaryDirectory() as folder:
        real = Path(folder) / "real.npz"
        np.savez(real, images=np.random.default_rng(0).integers(0, 255, (64, 32, 32, 3), np.uint8))
        pairs = {key: Pair(G, D, policy) for key, policy in variants(real).items()}
        adjusting = pairs["adapt", "adjustment of D"]
        assert adjusting.rg is not None
        adjusting.rg.networks["D"].method.ratio.add(torch.tensor(0.0))
        times: dict[tuple[str, str], list[float]] = {key: [] for key in pairs}
        for i in range(rounds + 2):
            for key, pair in pairs.items():
                start = time.perf_counter()
                pair.iteration()
                if i >= 2:
                    times[key].append(time.perf_counter() - start)
        for pair in pairs.values():
            if pair.rg is not None:
                pair.rg.detach()
    medians = {key: statistics.median(t) for key, t in times.items()}
    stock = medians["stock", ""]
    rows: dict[str, dict[str, float]] = {}
    for method in METHODS:
        ordinary = medians[method, ""] / stock
        row = {"ordinary": ordinary}
        total = ordinary
        for what, _, interval in SPECIAL.get(method, []):
            row[what] = medians[method, what] / stock
            total += (row[what] - ordinary) / interval
        rows[method] = {"ratio": total, **row}
    rows["stock, ms"] = {"ratio": 1000 * stock}
    return rows


if __name__ == "__main__":
    keep_memory()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add: Callable[..., Any] = parser.add_argument
    add("--rounds", type=int, default=20, help="timed iterations of each variant")
    for name, values in run(parser.parse_args().rounds).items():
        print(name, {k: round(v, 3) for k, v in values.items()})

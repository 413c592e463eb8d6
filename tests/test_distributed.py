"""Two processes: thresholds come from reduced gradients, so masks agree bit for bit without further communication."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from common import adam, snapshot
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import rgplug
from rgplug.processes import from_first_rank
from rgplug.snapshot import epoch_of

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch is built without torch.distributed")


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mapping = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.synthesis = nn.Sequential(
            nn.Unflatten(1, (8, 1, 1)), nn.ConvTranspose2d(8, 4, 4), nn.ReLU(), nn.Conv2d(4, 3, 3, 1, 1)
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.synthesis(self.mapping(z)).tanh()


def worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for when in ("before DDP", "after DDP", "unequal"):
        train(rank, f"{folder}/{when}", when)
    dist.destroy_process_group()


def train(rank: int, folder: str, when: str) -> None:
    torch.manual_seed(rank if when == "unequal" else 0)
    G = Generator()
    D = nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(3, 8, 3, 2)), nn.LeakyReLU(), nn.Flatten(), nn.Linear(8, 1))
    policy = {
        "sparsity_weight": 1e-2,
        "threshold": {"init": 0.05, "units": {"G": "layer_std", "D": "spectral"}},
        "target": {"D": 0.5, "by": 10},
        "run_dir": folder,
        "snapshots": {"folder": folder, "best": True},
    }
    rg = rgplug.attach(G, D, policy) if when != "after DDP" else None
    # one wrapper around each sub-module, as StyleGAN2-ADA does
    G.mapping = DistributedDataParallel(G.mapping)
    G.synthesis = DistributedDataParallel(G.synthesis)
    parallel_d = DistributedDataParallel(D, broadcast_buffers=False)
    rg = rg or rgplug.attach(G, parallel_d, policy)
    if when == "unequal":  # each rank made weights of its own; DDP has made them equal since
        rg.synchronize()
    opt_g, opt_d = adam(G), adam(D)
    torch.manual_seed(rank + 1)  # every rank has images and latents of its own
    phases = []
    for i in range(8):
        opt_d.zero_grad()
        real, fake = torch.randn(4, 3, 4, 4), G(torch.randn(4, 4)).detach()
        loss = F.softplus(-parallel_d(real)).mean() + F.softplus(parallel_d(fake)).mean()
        loss.backward()
        opt_d.step()
        opt_g.zero_grad()
        F.softplus(-parallel_d(G(torch.randn(4, 4)))).mean().backward()
        opt_g.step()
        # the first rank's number decides, whatever the others measured
        value = [5, 6, 7, 8, 9, 9, 1, 1][i]
        record = rg.end_epoch({"fid": value, "is": 3.0} if rank == 0 else 1.0)
        assert record.metrics == {"fid": value, "is": 3.0}
        assert record.metric_name == "fid"
        phases.append(record.phase)
    best = rg.state_dict()["best"]
    assert best == {"sparse": {"epoch": 8, "value": 1.0}, "dense": {"epoch": 7, "value": 1.0}}  # on every rank
    names = [w.name for n in "GD" for w in rg.weights(n)]
    numbers = [from_first_rank(v, torch.device("cpu")) for v in (3.5 + rank, None if rank == 0 else 1.0, 0.0)]
    torch.save((snapshot(rg), phases, names, numbers, rg.density()), f"{folder} rank{rank}.pt")
    rg.detach()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All orders, trained in one pair of processes: starting them takes most of the time."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    path = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, args=(port, str(path)), nprocs=2)
    return path


@pytest.mark.parametrize("when", ["before DDP", "after DDP", "unequal"])
def test_two_ranks_stay_bit_for_bit_the_same(folder: Path, when: str) -> None:
    seen: list[Any] = [torch.load(folder / f"{when} rank{r}.pt", weights_only=False) for r in range(2)]
    (first, phases, names, numbers, density), (second, *others) = seen
    assert names == ["mapping.0.weight", "synthesis.1.weight", "synthesis.3.weight", "0.weight_orig", "3.weight"]
    assert others[:2] == [phases, names]
    assert phases == ["sparse"] * 4 + ["dense"] * 2 + ["sparse"] * 2
    assert set(first) == set(second)
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
    assert numbers == others[2] == [3.5, None, 0.0]
    assert density["D"] == pytest.approx(0.545, abs=0.06)
    assert len((folder / when / "history.jsonl").read_text().splitlines()) == 8  # the first rank writes, alone
    assert [epoch_of(folder / when / f"best_{phase}.safetensors") for phase in ("sparse", "dense")] == [8, 7]

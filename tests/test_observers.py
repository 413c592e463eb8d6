"""Which optimizers a run's snapshots know, and for how long."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from common import adam
from torch import nn

import rgplug
from rgplug.observers import StartedOptimizers
from rgplug.snapshot import read


class _Start:
    filled = 0

    def fill(self, optimizer: torch.optim.Optimizer, modules: Any) -> None:
        self.filled += 1


def test_each_new_optimizer_is_started_also_one_at_the_address_of_another() -> None:
    start = _Start()
    observer = StartedOptimizers(start, {})  # type: ignore[arg-type]
    param = nn.Parameter(torch.zeros(1))
    for _ in range(50):
        optimizer = torch.optim.SGD([param], lr=0.1)
        observer.before_step("G", optimizer)
        observer.before_step("G", optimizer)
        del optimizer
        gc.collect()
    assert start.filled == 50


@pytest.fixture
def run(tmp_path: Path) -> tuple[nn.Linear, rgplug.Controller, Path]:
    torch.manual_seed(0)
    G = nn.Linear(4, 4)
    policy = {"base": "dense", "snapshots": {"folder": tmp_path, "optimizers": True}}
    return G, rgplug.attach(G, None, policy), tmp_path


def step(G: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    G(torch.randn(2, 4)).square().sum().backward()
    optimizer.step()


def moments(folder: Path) -> dict[str, Any]:
    return read(folder / "trained.safetensors")["optimizers"]["G"]


def test_optimizers_that_a_host_is_through_with_at_detach_are_in_the_snapshot(run: Any) -> None:
    G, rg, folder = run
    optimizer = adam(G)
    step(G, optimizer)
    expected = optimizer.state[G.weight]["exp_avg"].clone()
    del optimizer
    gc.collect()
    rg.detach()
    assert torch.equal(moments(folder)["weight"]["exp_avg"], expected)


def test_after_an_evaluation_an_optimizer_belongs_to_the_host_alone(run: Any) -> None:
    G, rg, folder = run
    optimizer = adam(G)
    step(G, optimizer)
    gone = weakref.ref(optimizer)
    rg.end_epoch(1.0)
    assert "exp_avg" in moments(folder)["weight"]
    del optimizer
    gc.collect()
    assert gone() is None
    rg.detach()


def test_one_that_is_replaced_is_let_go_and_the_new_ones_moments_count(run: Any) -> None:
    G, rg, folder = run
    first = adam(G)
    step(G, first)
    gone = weakref.ref(first)
    del first
    second = torch.optim.SGD(G.parameters(), 0.1, momentum=0.9)
    step(G, second)
    gc.collect()
    assert gone() is None
    rg.end_epoch(1.0)
    assert list(moments(folder)["weight"]) == ["momentum_buffer"]
    step(G, second)
    expected = second.state[G.weight]["momentum_buffer"].clone()
    rg.detach()
    assert torch.equal(moments(folder)["weight"]["momentum_buffer"], expected)


def test_optimizers_of_parts_are_all_kept(tmp_path: Path) -> None:
    G = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    rg = rgplug.attach(G, None, {"base": "dense", "snapshots": {"folder": tmp_path, "optimizers": True}})
    for layer in G:
        G(torch.randn(2, 4)).square().sum().backward()
        torch.optim.Adam(layer.parameters(), 1e-2).step()
    gc.collect()
    rg.end_epoch(1.0)
    assert set(moments(tmp_path)) == {"0.weight", "1.weight"}
    rg.detach()

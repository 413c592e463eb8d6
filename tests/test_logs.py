"""Records in TensorBoard and Weights & Biases."""

from __future__ import annotations

import builtins
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from common import Host

import rgplug
from rgplug import RgplugError

POLICY = {"base": "sparse", "masks.density": 0.5, "batch_size": 4}


def trained(policy: dict[str, Any]) -> rgplug.Controller:
    host = Host()
    rg = rgplug.attach(host.G, host.D, policy)
    for epoch in range(2):
        host.run(3)
        rg.end_epoch(5.0 - epoch, metric_name="fid")
    rg.detach()
    return rg


def test_tensorboard(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trained({**POLICY, "log": "tensorboard", "run_dir": tmp_path})
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("rgplug/fid")] == [(1, 5.0), (2, 4.0)]
    assert events.Scalars("rgplug/density/G")[0].value == pytest.approx(0.5, abs=1e-2)
    assert [e.value for e in events.Scalars("rgplug/real_images")] == [12, 24]
    assert "rgplug/density/D/0.weight" in events.Tags()["scalars"]


class Run:
    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []
        self.finished = False

    def log(self, numbers: dict[str, float]) -> None:
        self.logged.append(numbers)

    def finish(self) -> None:
        self.finished = True


@pytest.mark.parametrize("of_the_host", [True, False])
def test_weights_and_biases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, of_the_host: bool) -> None:
    """The host's run if it has one, which stays open; else one of our own, which ends with the controller."""
    run = Run()
    fake = types.SimpleNamespace(run=run if of_the_host else None, init=lambda **_: run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    trained({**POLICY, "log": ["wandb"], "run_dir": tmp_path})
    assert [n["rgplug/fid"] for n in run.logged] == [5.0, 4.0]
    assert run.logged[0]["rgplug/steps/G"] == 3
    assert run.finished is not of_the_host


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_not_installed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    real = builtins.__import__

    def missing(module: str, *rest: Any) -> Any:
        if module.startswith((name, f"torch.utils.{name}")):
            raise ImportError(f"No module named {module}")
        return real(module, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    host = Host()
    before = [p.clone() for p in host.G.parameters()]
    with pytest.raises(RgplugError, match=f"policy.log asks for {name}, which is not installed"):
        rgplug.attach(host.G, host.D, {**POLICY, "log": name})
    assert all(map(torch.equal, before, host.G.parameters()))
    host.run(1)
    assert host.G[0].weight.count_nonzero() == host.G[0].weight.numel()


def test_another_name() -> None:
    with pytest.raises(RgplugError, match=r"policy.log names 'mlflow'; allowed: tensorboard, wandb"):
        rgplug.Policy.load({"log": ["mlflow"]})

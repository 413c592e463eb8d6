"""attach that fails at whatever point leaves everything as it was."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from common import adam
from PIL import Image
from torch import nn
from torch.optim import optimizer as torch_optimizer

import rgplug
from rgplug.controller import attached_networks
from rgplug.errors import RgplugError

AUGMENTED = {"window": 2, "weights": [0.5, 0.5], "include_current": True}


class Broken(Exception):
    pass


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stand-in for the package that notes what is opened and finished."""
    seen: list[str] = []

    class Run:
        def finish(self) -> None:
            seen.append("finished")

        def log(self, numbers: Any) -> None: ...

    def init(**options: Any) -> Run:
        seen.append("opened")
        return Run()

    module = types.ModuleType("wandb")
    module.run, module.init = None, init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return seen


class Host:
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.G = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 48), nn.Unflatten(1, (3, 4, 4)))
        self.D = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
        self.began = self.state()
        self.hooks = _global_hooks()

    def state(self) -> list[torch.Tensor]:
        return [p.detach().clone() for m in (self.G, self.D) for p in m.parameters()]

    def is_untouched(self) -> bool:
        modules = [*self.G, *self.D]
        return (
            all(torch.equal(a, b) for a, b in zip(self.state(), self.began))
            and {type(m) for m in modules} == {nn.Linear, nn.Unflatten, nn.Flatten}
            and _global_hooks() == self.hooks
            and self.G not in attached_networks
            and self.D not in attached_networks
        )


def _global_hooks() -> tuple[int, int]:
    return len(torch_optimizer._global_optimizer_pre_hooks), len(torch_optimizer._global_optimizer_post_hooks)


PLACES = [
    ("rgplug.attach.Network", "rg-gan"),
    ("rgplug.attach.LearnedThresholds", "rg-gan"),
    ("rgplug.attach.MaskedWeight", "rg-gan"),
    ("rgplug.attach.Sparse", "adapt"),
    ("rgplug.attach.BalanceRatio", "adapt"),
    ("rgplug.attach.BalanceMeter", "adapt"),
    ("rgplug.attach.Controller", "rg-gan"),
    ("rgplug.controller.Journal", "rg-gan"),
    ("rgplug.controller.Accounting", "rg-gan"),
    ("rgplug.controller.AugmentedRegeneration", "rg-gan"),
    ("rgplug.controller.Evaluation", "rg-gan"),
    ("rgplug.controller.Monitor", "rg-gan"),
    ("rgplug.controller.Snapshots", "rg-gan"),
    ("rgplug.observers.copies", "rg-gan"),
    ("rgplug.controller.StepHooks", "rg-gan"),
    ("rgplug.attach.layers.swap", "rg-gan"),
    ("rgplug.network.Network.refresh_all", "rg-gan"),
    ("rgplug.journal.open_logger", "rg-gan"),
]


def policy_of(base: str, folder: Path) -> dict[str, Any]:
    if base == "adapt":
        return {"base": "adapt", "balance.real": str(folder), "log": ["wandb"]}
    return {
        "base": "rg-gan",
        "threshold.init": 0.1,
        "snapshots": {"folder": str(folder)},
        "regeneration": {"augmented": AUGMENTED},
        "metric": {"real": str(folder)},
        "log": ["wandb"],
    }


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize(("place", "base"), PLACES)
def test_a_failure_at_any_point_is_undone(
    place: str, base: str, at: int, wandb: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first call there fails, and the second one: for G's part then, D's is half done."""
    calls = []
    where, _, name = place.rpartition(".")
    try:
        owner: Any = sys.modules[where]
    except KeyError:
        module, _, inner = where.rpartition(".")
        owner = getattr(sys.modules[module], inner)
    original = getattr(owner, name)

    def fails(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            raise Broken
        return original(*args, **kwargs)

    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    host = Host()
    monkeypatch.setattr(owner, name, fails)
    policy = policy_of(base, tmp_path)
    try:
        rgplug.attach(host.G, host.D, policy).detach("dense")
    except Broken:
        assert len(calls) == at
    else:
        assert len(calls) < at  # called once only: tried with at = 1
        return
    assert host.is_untouched()
    assert wandb.count("opened") == wandb.count("finished")
    monkeypatch.undo()
    rgplug.attach(host.G, host.D, "rg-gan").detach()


def test_no_run_is_opened_for_an_attach_that_fails(wandb: list[str]) -> None:
    other = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(RgplugError, match="holds no managed weight"):
        rgplug.attach(nn.Linear(4, 4), None, {"base": "rg-gan", "log": ["wandb"]}, optimizers=[other])
    assert wandb == []


def _cannot_be_opened(*_: Any) -> None:
    raise RgplugError("tensorboard cannot be opened")


def test_a_logger_that_cannot_be_opened_closes_the_one_before(
    wandb: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rgplug.logs.TensorBoard.__init__", _cannot_be_opened)
    host = Host()
    with pytest.raises(RgplugError, match="tensorboard"):
        rgplug.attach(host.G, host.D, {"base": "rg-gan", "threshold.init": 0.1, "log": ["wandb", "tensorboard"]})
    assert wandb == ["opened", "finished"]
    assert host.is_untouched()


def test_steps_after_a_failed_attach_are_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> Any:
        raise Broken

    host, plain = Host(), Host()
    monkeypatch.setattr("rgplug.controller.Monitor", fails)
    with pytest.raises(Broken):
        rgplug.attach(host.G, host.D, {"base": "rg-gan", "threshold.init": 0.2})
    for h in (host, plain):
        torch.manual_seed(1)
        optimizer = adam(h.G)
        h.D(h.G(torch.randn(4, 4))).square().mean().backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(host.state(), plain.state()))

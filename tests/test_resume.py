"""Save, kill, load, continue: bit for bit the uninterrupted run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from common import Host, adam, different, sgd, snapshot

import rgplug

OPTIMIZERS = {"adam": adam, "sgd": lambda m: sgd(m, 1e-2, momentum=0.9)}
# metrics of eight evaluations, one an iteration: dense after the fifth, sparse again after the seventh
METRICS = [5, 6, 7, 8, 9, 9, 1, 2]
pytestmark = pytest.mark.filterwarnings("ignore:rgplug. densities have drifted apart")


def run(host: Host, rg: rgplug.Controller, start: int, stop: int) -> list[str]:
    phases = []
    for i in range(start, stop):
        host.run(1)
        phases.append(rg.end_epoch(METRICS[i]).phase)
    return phases


def everything(host: Host, rg: rgplug.Controller) -> dict[str, torch.Tensor]:
    seen = snapshot(rg)
    for n, net in host.nets.items():
        seen.update({f"{n} {k}": v.clone() for k, v in net.state_dict().items()})
        for i, state in enumerate(host.opt[n].state.values()):
            seen.update({f"{n} {i} {k}": v.clone() for k, v in state.items() if isinstance(v, torch.Tensor)})
        seen[f"{n} counts"] = torch.stack(
            [getattr(rg.networks[n].counts, key) for key in ("kept", "regrown", "pruned")]
        )
    return seen


@pytest.mark.parametrize("stop", [3, 5, 6, 7])  # sparse, just gone dense, dense, just back
@pytest.mark.parametrize("order", ["host first", "rgplug first"])
@pytest.mark.parametrize(
    ("units", "optimizer", "kind", "options"),
    [
        ("absolute", "adam", "plain", {}),
        ("spectral", "adam", "old_sn", {"optimizer_state": "reset"}),
        ("layer_std", "sgd", "grouped", {"target": {"G": 0.5, "D": 0.5, "by": 6}}),
        ("layer_std", "adam", "new_sn", {"regularization": "loss", "regeneration": {"recurrent": ["G"]}}),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(
    tmp_path: Path, stop: int, order: str, units: str, optimizer: str, kind: str, options: dict[str, Any]
) -> None:
    policy = {"sparsity_weight": 1e-2, "threshold": {"units": units, "init": 0.05}, **options}

    def fresh(seed: int) -> tuple[Host, rgplug.Controller]:
        host = Host(kind, seed=seed, optimizer=OPTIMIZERS[optimizer])
        return host, rgplug.attach(host.G, host.D, policy)

    host, rg = fresh(0)
    phases = run(host, rg, 0, len(METRICS))
    assert phases == ["sparse"] * 4 + ["dense"] * 2 + ["sparse"] * 2
    expected, epoch = everything(host, rg), rg.epoch
    rg.detach()

    host, rg = fresh(0)
    run(host, rg, 0, stop)
    torch.save(host.state_dict(), tmp_path / "host.pt")
    rg.save(tmp_path / "rgplug.safetensors")
    rg.detach()
    del host, rg

    host, rg = fresh(7)
    saved = torch.load(tmp_path / "host.pt", weights_only=True)
    if order == "host first":
        host.load_state_dict(saved)
        rg.load(tmp_path / "rgplug.safetensors")
    else:
        rg.load(tmp_path / "rgplug.safetensors")
        host.load_state_dict(saved)
    assert run(host, rg, stop, len(METRICS)) == phases[stop:]
    assert not different(everything(host, rg), expected)
    assert rg.epoch == epoch


def test_the_hosts_checkpoint_before_attach() -> None:
    """A script that loads its checkpoint, attaches, and then loads rgplug's state."""
    policy = {"sparsity_weight": 1e-2, "threshold": {"init": 0.05}}
    host = Host()
    rg = rgplug.attach(host.G, host.D, policy)
    host.run(3)
    saved, state = host.state_dict(), rg.state_dict()
    saved = {**saved, **{n: {k: v.clone() for k, v in saved[n].items()} for n in "GD"}}
    saved["opt"] = {n: copy.deepcopy(o) for n, o in saved["opt"].items()}
    host.run(3)
    expected = everything(host, rg)
    rg.detach()
    host = Host(seed=7)
    host.load_state_dict(saved)
    rg = rgplug.attach(host.G, host.D, policy)
    rg.load_state_dict(state)
    host.run(3)
    assert not different(everything(host, rg), expected)


def test_going_back_to_an_earlier_state_in_the_same_process() -> None:
    """A run that diverged is rolled back and repeated: the second try is the first one."""
    host = Host()
    rg = rgplug.attach(host.G, host.D, {"sparsity_weight": 1e-2, "threshold": {"init": 0.05}})
    host.run(3)
    saved, state = copy.deepcopy(host.state_dict()), rg.state_dict()
    host.run(3)
    expected = everything(host, rg)
    host.load_state_dict(saved)
    rg.load_state_dict(state)
    host.run(3)
    assert not different(everything(host, rg), expected)


def test_a_thresholds_learning_rate_after_going_back_is_the_hosts() -> None:
    host = Host()
    rg = rgplug.attach(host.G, host.D, {"sparsity_weight": 1e-2})
    host.run(2)
    host.load_state_dict(copy.deepcopy(host.state_dict()))
    for opt in host.opt.values():
        for group in opt.param_groups:
            group["lr"] = 0.0
    before = snapshot(rg)
    host.run(2)
    assert not [k for k in different(snapshot(rg), before) if "threshold" in k]

"""What differs from device to device, tried on what every machine has: the CPU, and the meta device for places."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from common import MILD, adam
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import rgplug
from rgplug import devices
from rgplug.devices import counter, optimizer_value, widest
from rgplug.methods.threshold_optimizer import ThresholdOptimizer
from rgplug.snapshot import Start


def test_the_widest_dtypes_of_a_device() -> None:
    assert (widest(torch.device("cpu")), counter(torch.device("cpu"))) == (torch.float64, torch.float64)
    assert (widest(torch.device("cuda", 1)), counter(torch.device("cuda"))) == (torch.float64, torch.float64)
    assert (widest(torch.device("mps")), counter(torch.device("mps", 0))) == (torch.float32, torch.int64)


class _NoDouble(TorchDispatchMode):
    """As MPS: no operation may make a float64 tensor. Copies to the CPU, which is another device there, may."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, (tuple, list)) else [out]
        assert not any(isinstance(x, Tensor) and x.dtype is torch.float64 for x in made), str(func)
        return out


POLICIES: dict[str, dict[str, Any]] = {
    "entries": {**MILD},
    "units": {**MILD, "threshold.units": "layer_std", "threshold.init": 0.3},
    "target": {"target": {"G": 0.5, "by": 4}},
    "filters": {"threshold.init": 0.1, "granularity": "filter", "target": {"G": 0.5, "by": 4}},
    "kernels": {**MILD, "granularity": "kernel"},
    "stu-gan": {"base": "stu-gan", "exploration.every": 2, "exploration.end": 10},
    "re-gan": {"base": "re-gan", "cycle.period": 2, "cycle.warm_up": 1},
}


def trained(policy: dict[str, Any], mode: Any = nullcontext) -> dict[str, Any]:
    """What six steps leave; `mode` is entered after attach, whose trace of tied filters runs on the CPU."""
    torch.manual_seed(0)
    G = nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 12), nn.Unflatten(1, (3, 2, 2))
    )
    rg = rgplug.attach(G, None, {"kernels": "eager", **policy})
    optimizer = adam(G)
    net = rg.networks["G"]
    with mode():
        for i in range(6):
            optimizer.zero_grad()
            G(torch.randn(8, 6)).square().mean().backward()
            optimizer.step()
            if i == 3:
                with torch.no_grad():
                    G[2].weight.fill_(0.25)  # the host writes at pruned positions
        net.take_written()
    counts = {k: getattr(net.counts, k) for k in ("kept", "regrown", "pruned", "written", "density_steps")}
    found = {**counts, "density": rg.density("G"), **net.layer_density(), **dict(G.named_parameters())}
    rg.detach()
    return found


@pytest.mark.parametrize("name", list(POLICIES))
def test_without_float64_a_run_is_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = trained(POLICIES[name])
    monkeypatch.setattr(devices, "_WITHOUT_DOUBLE", {"cpu"})
    found = trained(POLICIES[name], _NoDouble)
    assert found["kept"].dtype is torch.int64
    for key, value in expected.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(found[key].detach(), value.detach(), check_dtype=False, rtol=1e-6, atol=0)
        else:
            assert found[key] == pytest.approx(value, rel=1e-6)


def test_counters_of_a_state_are_float64_on_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_WITHOUT_DOUBLE", {"cpu"})
    G = nn.Linear(4, 4)
    rg = rgplug.attach(G, None, {"threshold.init": 0.2, "kernels": "eager"})
    state = rg.state_dict()
    assert all(v.dtype is torch.float64 for v in state["networks"]["G"]["counters"].values())
    before = rg.networks["G"].counts.kept.clone()
    rg.networks["G"].counts.kept.zero_()
    rg.load_state_dict(state)
    assert torch.equal(rg.networks["G"].counts.kept, before)
    assert rg.networks["G"].counts.kept.dtype is torch.int64
    rg.detach()


def test_the_step_count_goes_where_the_optimizer_keeps_it() -> None:
    """torch.optim.Adam: on the device of the parameter if the group is fused or capturable, else on the CPU."""
    param, step = torch.empty(3, device="meta"), torch.tensor(5.0)
    for group, place in (
        ({"fused": True}, "meta"),
        ({"capturable": True, "fused": None}, "meta"),
        ({"fused": None, "capturable": False}, "cpu"),
        ({}, "cpu"),
    ):
        assert optimizer_value("step", step, param, group).device.type == place
    assert optimizer_value("exp_avg", torch.zeros(3), param, {}).device.type == "meta"
    assert optimizer_value("step", 5, param, {"fused": True}) == 5
    copied = optimizer_value("step", step, torch.empty(3), {})
    copied.add_(1)
    assert step.item() == 5


def test_a_started_fused_adam_has_its_step_count_with_its_parameter() -> None:
    """The fused flag of the group alone decides: the parameters are on the meta device, which no kernel needs."""
    G = nn.Linear(3, 2, bias=False, device="meta")
    optimizer = torch.optim.Adam(G.parameters())
    optimizer.param_groups[0]["fused"] = True
    start = Start.__new__(Start)
    start.path = "snapshot.safetensors"
    start._moments = {
        "G": {"weight": {"step": torch.tensor(7.0), "exp_avg": torch.ones(2, 3), "exp_avg_sq": torch.ones(2, 3)}}
    }
    start.fill(optimizer, {"G": G})
    state = optimizer.state[G.weight]
    assert (state["step"].device.type, state["exp_avg"].device.type) == ("meta", "meta")
    other = torch.optim.Adam(G.parameters())
    start.fill(other, {"G": G})
    assert other.state[G.weight]["step"].device.type == "cpu"


@pytest.mark.parametrize("capturable", [True, False])
def test_a_loaded_threshold_optimizer_has_its_step_count_where_it_belongs(
    capturable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    G = nn.Linear(3, 2)
    rg = rgplug.attach(G, None, "rg-gan")
    (w,) = rg.weights("G")
    w.threshold = torch.zeros(2, device="meta")
    own = ThresholdOptimizer("inherit", "G")
    own.load(w, {"step": torch.tensor(7.0), "exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)})
    monkeypatch.setattr(own, "_settings", lambda *_: {"lr": 0.1, "capturable": capturable})
    flat = own._build([w], torch.optim.Adam(G.parameters()), {})
    state = flat.optimizer.state[flat.flat]
    assert state["step"].device.type == ("meta" if capturable else "cpu")
    assert state["exp_avg"].device.type == "meta"
    rg.detach()

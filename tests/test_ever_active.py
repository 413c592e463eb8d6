"""The share of weights that were ever active: the union of all masks of a run, over steps, resumes and old states."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from common import Host, attached
from torch import Tensor, nn

import rgplug
from rgplug.errors import RgplugError

EXPLORES = {"masks.density": 0.3, "exploration.every": 3, "exploration.end": 1000}
ADAPT = {"base": "adapt", "masks.density": {"G": 0.4, "D": 0.3}, "exploration.every": 3}
GROWS = {"balance.window": 1, "balance.measure": 1, "balance.delta": 0.1, "balance.upper": -1e9, "balance.lower": -2e9}


def masks(rg: rgplug.Controller) -> dict[str, Tensor]:
    return {f"{n}.{w.name}": w.mask.clone() for n in "GD" for w in rg.weights(n)}


class Union:
    """All masks of a run, laid over each other by hand after each step."""

    def __init__(self, rg: rgplug.Controller):
        self.rg, self.seen = rg, masks(rg)

    def __call__(self) -> None:
        for name, mask in masks(self.rg).items():
            self.seen[name] = self.seen[name] | mask

    def share(self, network: str) -> float:
        own = [m for name, m in self.seen.items() if name.startswith(f"{network}.")]
        return sum(int(m.sum()) for m in own) / sum(m.numel() for m in own)


@pytest.mark.parametrize("kernels", ["auto", "eager"])
@pytest.mark.parametrize("granularity", ["weight", "kernel", "filter"])
@pytest.mark.parametrize("preset", ["set", "rigl", "stu-gan-b"])
def test_it_is_the_union_of_the_masks_of_all_steps(preset: str, granularity: str, kernels: str) -> None:
    host = Host()
    policy = {"base": preset, **EXPLORES, "granularity": granularity, "kernels": kernels}
    rg = rgplug.attach(host.G, host.D, policy)
    host.run(1)
    union, before = Union(rg), 0.0
    for _ in range(3):
        host.run(4, after=union)
        record = rg.end_epoch(5.0)
        assert record.ever_active == {n: pytest.approx(union.share(n), abs=0) for n in "GD"}
        assert record.ever_active["G"] > max(before, record.density["G"])
        before = record.ever_active["G"]


def test_where_weights_of_d_are_gained_and_lost() -> None:
    """ADAPT: D's density grows here; then it shrinks, and what it has lost was active all the same."""
    host = Host()
    rg = rgplug.attach(host.G, host.D, {**ADAPT, **GROWS, "balance.every": 2, "balance.exchange": False})
    z, x = host.data.z(0), host.data.x(0)
    rg.observe(real=x, z=z)
    host.run(1)
    union = Union(rg)
    host.run(4, after=union)
    grown = rg.end_epoch(5.0)
    assert grown.density["D"] > 0.4
    assert grown.ever_active["D"] == union.share("D")
    shrinks = {"balance.lower": 1e9, "balance.upper": 2e9}
    again = Host(seed=3)
    state, weights = rg.state_dict(), copy.deepcopy(host.state_dict())
    rg.detach()
    rg = rgplug.attach(again.G, again.D, {**ADAPT, **GROWS, **shrinks, "balance.every": 2})
    again.load_state_dict(weights)
    rg.load_state_dict(state)
    rg.observe(real=x, z=z)
    union.rg = rg
    again.run(6, after=union)
    shrunk = rg.end_epoch(5.0)
    assert shrunk.density["D"] < grown.density["D"] <= shrunk.ever_active["D"]
    assert shrunk.ever_active["D"] == union.share("D")


def test_masks_that_stay_and_networks_that_begin_whole() -> None:
    """Neither takes any memory: a density that stays is the share, and what began whole was active once."""
    _, rg = attached({"base": "sparse", "masks.density": {"G": 0.3, "D": 0.6}}, steps=3)
    assert rg.end_epoch(5.0).ever_active == rg.density() == pytest.approx({"G": 0.3, "D": 0.6}, abs=0.01)
    assert rg.networks["G"].method.ever.masks == {}  # type: ignore[attr-defined]
    for policy in ({"base": "rg-gan", "target": {"G": 0.2, "D": 0.2, "by": 1}}, {"base": "dense"}):
        _, rg = attached(policy, steps=3)
        assert rg.end_epoch(5.0).ever_active == {"G": 1.0, "D": 1.0}
    _, rg = attached({"base": "stu-gan", **EXPLORES}, steps=7)
    record = rg.end_epoch(5.0)
    assert record.ever_active["D"] == record.density["D"]  # whose masks stay
    assert record.ever_active["G"] > record.density["G"]


def through_a_file(rg: rgplug.Controller, again: rgplug.Controller, folder: Path) -> None:
    rg.save(folder / "state.safetensors")
    again.load(folder / "state.safetensors")


def through_a_dict(rg: rgplug.Controller, again: rgplug.Controller, folder: Path) -> None:
    again.load_state_dict(copy.deepcopy(rg.state_dict()))


@pytest.mark.parametrize("carry", [through_a_file, through_a_dict])
def test_a_resume_knows_what_was_active_before(carry: Callable[..., None], tmp_path: Path) -> None:
    policy = {"base": "rigl", **EXPLORES}

    def shares(resume: bool) -> list[dict[str, float]]:
        host = Host()
        rg = rgplug.attach(host.G, host.D, policy)
        found = []
        for _ in range(4):
            host.run(4)
            found.append(rg.end_epoch(5.0).ever_active)
            if resume:
                held = copy.deepcopy(host.state_dict())
                other = Host(seed=7)
                again = rgplug.attach(other.G, other.D, policy)
                other.load_state_dict(held)
                carry(rg, again, tmp_path)
                rg.detach()
                host, rg = other, again
        return found

    straight = shares(resume=False)
    assert straight[0]["G"] < straight[-1]["G"]
    assert shares(resume=True) == straight


def test_a_state_from_before_it_was_kept_starts_from_its_masks() -> None:
    host, rg = attached({"base": "rigl", **EXPLORES}, steps=7)
    assert rg.end_epoch(5.0).ever_active["G"] > rg.density("G")
    old = rg.state_dict()
    for net in old["networks"].values():
        for weight in net["weights"].values():
            del weight["method.ever"]
    rg.load_state_dict(old)
    assert rg.end_epoch(5.0).ever_active == rg.density()
    union = Union(rg)
    host.run(6, after=union)
    assert rg.end_epoch(5.0).ever_active == {n: union.share(n) for n in "GD"}


def test_states_that_do_not_fit_are_refused() -> None:
    _, rg = attached({"base": "rigl", **EXPLORES}, steps=7)
    good = rg.state_dict()
    name = next(iter(good["networks"]["G"]["weights"]))

    def changed(value: Any) -> dict[str, Any]:
        state = copy.deepcopy(good)
        state["networks"]["G"]["weights"][name]["method.ever"] = value
        return state

    packed = good["networks"]["G"]["weights"][name]["method.ever"]
    for value, said in (
        (packed[:-1].clone(), "has a 'ever' that has shape"),
        (packed.bool(), "has a 'ever' that is of bool"),
        (torch.zeros_like(packed), f"says of weights of {name} that they were never active"),
    ):
        with pytest.raises(RgplugError, match=said):
            rg.load_state_dict(changed(value))
    rg.load_state_dict(good)


def test_a_layer_that_trains_later_counts_from_its_first_mask() -> None:
    """A part that is frozen at attach, and joins with a mask of its own."""
    torch.manual_seed(0)
    G = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    G[2].weight.requires_grad_(False)
    rg = rgplug.attach(G, None, {"base": "rigl", "exploration.networks": ["G"], "masks.density": 0.3, **EXPLORES})
    optimizer = torch.optim.SGD(G.parameters(), 0.1)

    def run(steps: int, union: dict[str, Tensor]) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            G(torch.randn(5, 6)).square().sum().backward()
            optimizer.step()
            for w in rg.weights("G"):
                union[w.name] = union.get(w.name, torch.zeros_like(w.mask)) | w.mask

    union: dict[str, Tensor] = {}
    run(4, union)
    G[2].weight.requires_grad_(True)
    run(8, union)
    assert len(union) == 2
    expected = sum(int(m.sum()) for m in union.values()) / sum(m.numel() for m in union.values())
    assert rg.end_epoch(5.0).ever_active == {"G": expected}


def test_ordinary_steps_touch_nothing_of_it() -> None:
    host, rg = attached({"base": "rigl", **EXPLORES, "exploration.every": 4}, steps=5)
    held = rg.networks["G"].method.ever.masks  # type: ignore[attr-defined]
    versions = {name: tensor._version for name, tensor in held.items()}
    assert versions
    host.run(2)
    assert {name: tensor._version for name, tensor in held.items()} == versions
    host.run(1)
    assert all(tensor._version > versions[name] for name, tensor in held.items())

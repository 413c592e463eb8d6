"""Which weights a state belongs to."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from common import Host, different, snapshot
from torch import nn

import rgplug
from rgplug import state
from rgplug.errors import RgplugError
from rgplug.fingerprint import fingerprint

POLICY = {"sparsity_weight": 1e-2, "threshold": {"init": 0.05}}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_bit_and_its_place_count(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 4, 4).to(dtype), torch.randn(5).to(dtype)
    before = (a.clone(), b.clone())
    own = fingerprint([a, b])
    assert -(2**63) <= own < 2**63
    assert fingerprint([a, b]) == own
    assert torch.equal(a, before[0])  # looking at weights does not change them
    assert torch.equal(b, before[1])
    assert fingerprint([a.contiguous(memory_format=torch.channels_last), b]) == own
    assert fingerprint([b, a]) != own
    assert fingerprint([a.flip(0), b]) != own
    for i in (0, 7, 95):
        changed = a.clone()
        changed.view(-1)[i] = -changed.view(-1)[i]  # one bit
        assert fingerprint([changed, b]) != own


def test_by_hand() -> None:
    """sum of bits_i m_i: for one entry, i = 0 and m_0 = 1; the bits of 1.0 are 0x3f800000."""
    assert fingerprint([torch.tensor([1.0])]) == 0x3F800000
    assert fingerprint([torch.zeros(1000)]) == 0
    assert fingerprint([]) == 0


def test_more_entries_than_are_taken_at_a_time() -> None:
    weights = torch.zeros(2**20 + 3)
    weights[-1] = 1.0
    alone = fingerprint([torch.zeros(2**20 + 2), torch.ones(1)])
    assert fingerprint([weights]) == alone != 0


def warned(seen: list[warnings.WarningMessage]) -> list[str]:
    return [str(w.message) for w in seen if "other weights" in str(w.message)]


@pytest.mark.parametrize("order", ["host first", "rgplug first"])
@pytest.mark.parametrize("other", [False, True])
def test_a_state_of_a_sibling_is_noticed_once(order: str, other: bool) -> None:
    """Two pairs of equal shapes: their states fit each other, and belong to one of them only."""
    host = Host(seed=0)
    rg = rgplug.attach(host.G, host.D, POLICY)
    host.run(2)
    saved, own = copy.deepcopy(host.state_dict()), rg.state_dict()
    host = Host(seed=1 if other else 0)
    rg = rgplug.attach(host.G, host.D, POLICY)
    host.run(2)
    loads = [lambda: None if other else host.load_state_dict(saved), lambda: rg.load_state_dict(own)]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for load in loads if order == "host first" else reversed(loads):
            load()
        host.run(2)
    found = warned(seen)
    assert len(found) == other
    assert not other or "other weights than G and D" in found[0]
    assert all(w.filename == str(Path(__file__).with_name("common.py")) for w in seen if "other weights" in str(w))


def test_a_state_from_before_there_were_fingerprints_still_loads() -> None:
    host = Host()
    rg = rgplug.attach(host.G, host.D, POLICY)
    host.run(2)
    old = rg.state_dict()
    for net in old["networks"].values():
        del net["fingerprint"]
        for weight in net["weights"].values():
            weight.pop("method.optimizer.class")
    expected = snapshot(rg)
    host.run(2)
    rg.load_state_dict(old)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        host.run(1)
    assert not warned(seen)
    assert different(snapshot(rg), expected)


def test_the_file_before_is_taken_where_it_belongs_to_the_weights(tmp_path: Path) -> None:
    """The host's checkpoint is one evaluation behind rgplug's file, as after a kill between the two."""
    path = tmp_path / "rgplug.safetensors"
    host = Host()
    rg = rgplug.attach(host.G, host.D, POLICY)
    for _ in range(3):
        before = copy.deepcopy(host.state_dict())
        rg.save(path)
        expected = snapshot(rg)
        host.run(2)
    rg.save(path)
    rg.save(path)  # the same weights again: the one before stays
    for _ in range(2):  # and again after a continuation that was killed at the same place
        host = Host(seed=5)
        host.load_state_dict(before)
        with rgplug.attach(host.G, host.D, {**POLICY, "threshold": {"init": 0.0}}) as rg:
            rg.load(path)
            assert not different(snapshot(rg), expected)
            with torch.no_grad():
                host.G[0].weight.add_(1e-3)  # a continuation that is not the same to the bit
            rg.save(path)
    assert state.fingerprints(path) != state.fingerprints(path.with_name("rgplug.previous.safetensors"))


def test_a_damaged_file_where_the_one_before_belongs_to_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "state"
    host = Host()
    rg = rgplug.attach(host.G, host.D, POLICY)
    rg.save(path)
    saved = copy.deepcopy(host.state_dict())
    host.run(1)
    rg.save(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(RgplugError, match="truncated or corrupt"):
        rg.load(path)
    host.load_state_dict(saved)
    rg.load(path)
    rg.save(path)  # the damaged one does not become the one before
    assert state.fingerprints(path) == state.fingerprints(path.with_name("state.previous"))


def test_live_zeros_stay_when_the_state_comes_after_the_weights() -> None:
    """A kept weight of exactly 0, at a place that was pruned at attach, is not the old value from there."""
    net = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 0.0]]))
    kept = rgplug.attach(net, None, {"threshold.init": 0.0})
    kept.networks["G"].weights[0].set_mask(torch.tensor([[True, True]]))
    own = kept.state_dict()
    own["policy"]["threshold"]["init"] = 0.5
    kept.detach()
    other = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        other.weight.copy_(torch.tensor([[0.9, 0.4]]))
    rg = rgplug.attach(other, None, {"threshold.init": 0.5})
    assert other.weight.tolist() == [[pytest.approx(0.9), 0.0]]
    with torch.no_grad():
        other.weight.copy_(torch.tensor([[1.0, 0.0]]))  # the host loads its checkpoint
    rg.load_state_dict(own)
    assert other.weight.tolist() == [[1.0, 0.0]]

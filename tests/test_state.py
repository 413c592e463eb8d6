"""State files: damaged, foreign or newer ones are refused in one sentence; writing is whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pickle
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from common import Host, different, snapshot
from safetensors.torch import load_file, save_file
from torch import nn

import rgplug
from rgplug import state
from rgplug.errors import RgplugError

POLICY = {"sparsity_weight": 1e-2, "threshold": {"init": 0.05}}


@pytest.fixture
def pair() -> tuple[Host, rgplug.Controller]:
    host = Host()
    rg = rgplug.attach(host.G, host.D, POLICY)
    host.run(2)
    return host, rg


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return set(a) == set(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return a == b


def test_masks_are_packed_eight_to_a_byte() -> None:
    for shape in ((3, 3), (16,), (5, 7, 3, 3)):
        mask = torch.rand(shape) < 0.5
        packed = state.pack_mask(mask)
        assert packed.dtype == torch.uint8
        assert packed.numel() == -(-mask.numel() // 8)
        assert torch.equal(state.unpack_mask(packed, list(shape)), mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_what_is_written_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    G = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3)).to(dtype)
    opt = torch.optim.SGD(G.parameters(), lr=1e-2, momentum=0.9)
    rg = rgplug.attach(G, policy={**POLICY, "threshold": {"init": 0.05, "units": "spectral"}})
    for _ in range(2):
        for p in G.parameters():
            p.grad = torch.randn_like(p)
        opt.step()
    rg.end_epoch(3.0)
    rg.save(tmp_path / "a" / "state.safetensors")
    assert same(rg.state_dict(), state.load(tmp_path / "a" / "state.safetensors"))
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["state.safetensors"]


def test_a_nearly_dense_state_is_small(tmp_path: Path) -> None:
    G = nn.Linear(512, 512)
    rg = rgplug.attach(G)
    rg.save(tmp_path / "state")
    assert (tmp_path / "state").stat().st_size < 512 * 512 / 8 + 3 * 512 * 4 + 4096  # and not 4 bytes a weight


def test_truncated_at_any_length(tmp_path: Path, pair: tuple[Host, rgplug.Controller]) -> None:
    _, rg = pair
    rg.save(tmp_path / "state")
    data = (tmp_path / "state").read_bytes()
    before = snapshot(rg)
    for length in (0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 8, len(data) - 1):
        (tmp_path / "cut").write_bytes(data[:length])
        with pytest.raises(RgplugError, match=r"cut") as error:
            rg.load(tmp_path / "cut")
        assert "\n" not in str(error.value)
    assert not different(snapshot(rg), before)


def test_a_flipped_bit_is_noticed_or_means_nothing(tmp_path: Path, pair: tuple[Host, rgplug.Controller]) -> None:
    G = nn.Linear(3, 3)
    small = rgplug.attach(G, policy=POLICY)
    small.save(tmp_path / "state")
    data = (tmp_path / "state").read_bytes()
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << (at % 8)
        (tmp_path / "bad").write_bytes(damaged)
        with contextlib.suppress(RgplugError):
            loaded = state.load(tmp_path / "bad")
            # such as white space that pads the header
            assert same(loaded, small.state_dict()), f"byte {at} of {len(data)}: {data[max(at - 20, 0) : at + 20]!r}"


def test_a_pickle_is_refused_and_runs_no_code(tmp_path: Path, pair: tuple[Host, rgplug.Controller]) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "exploded"),)

    for name, write in (
        ("pickle", lambda p: p.write_bytes(pickle.dumps(Bomb()))),
        ("torch", lambda p: torch.save(Bomb(), p)),
    ):
        write(tmp_path / name)
        with pytest.raises(RgplugError, match=name):
            pair[1].load(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_files_of_others_newer_ones_and_missing_ones(tmp_path: Path, pair: tuple[Host, rgplug.Controller]) -> None:
    _, rg = pair
    save_file({"a": torch.ones(2)}, str(tmp_path / "other"))
    with pytest.raises(RgplugError, match="no rgplug state file"):
        rg.load(tmp_path / "other")
    save_file({"a": torch.ones(2)}, str(tmp_path / "newer"), metadata={"format": "rgplug", "version": "99"})
    with pytest.raises(RgplugError, match=r"newer rgplug.*99"):
        rg.load(tmp_path / "newer")
    with pytest.raises(RgplugError, match="missing"):
        rg.load(tmp_path / "missing")
    with pytest.raises(RgplugError):
        rg.load(tmp_path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, pair: tuple[Host, rgplug.Controller]) -> None:
    host, rg = pair
    path = tmp_path / "state"
    rg.save(path)
    old = path.read_bytes()
    host.run(1)

    def half_written(tensors: Any, name: str, metadata: Any) -> None:
        Path(name).write_bytes(b"half")
        raise OSError("No space left on device")

    with (
        mock.patch.object(state, "save_file", half_written),
        pytest.raises(RgplugError, match=r"No space left.*untouched"),
    ):
        rg.save(path)
    with mock.patch("os.replace", side_effect=OSError("busy")), pytest.raises(RgplugError, match="busy"):
        rg.save(path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_a_place_that_cannot_be_written(tmp_path: Path, pair: tuple[Host, rgplug.Controller]) -> None:
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "state", tmp_path):
        with pytest.raises(RgplugError, match="could not be written"):
            pair[1].save(path)


def test_a_state_of_another_network_names_both_shapes_and_changes_nothing(tmp_path: Path) -> None:
    other = rgplug.attach(nn.Sequential(nn.Linear(4, 4)), policy=POLICY)
    other.save(tmp_path / "state")
    G = nn.Sequential(nn.Linear(4, 6))
    rg = rgplug.attach(G, policy=POLICY)
    before = snapshot(rg)
    with pytest.raises(RgplugError, match=r"G\.0\.weight has shape \[4, 4\], this network's has \[6, 4\]"):
        rg.load(tmp_path / "state")
    assert not different(snapshot(rg), before)
    assert len(load_file(str(tmp_path / "state"))) > 2


@pytest.mark.parametrize(
    ("network", "match"),
    [
        (lambda: nn.Sequential(nn.ReLU(), nn.Linear(4, 4)), r"no weight G\.1\.weight.*\[4, 4\]"),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), r"no weight G\.1\.weight"),
    ],
)
def test_a_state_without_the_weight(network: Any, match: str) -> None:
    saved = rgplug.attach(nn.Sequential(nn.Linear(4, 4))).state_dict()
    with pytest.raises(RgplugError, match=match):
        rgplug.attach(network()).load_state_dict(saved)


def test_a_state_with_a_weight_too_many_or_a_network_too_few() -> None:
    saved = rgplug.attach(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))).state_dict()
    with pytest.raises(RgplugError, match=r"G\.1\.weight \(shape \[4, 4\]\)"):
        rgplug.attach(nn.Sequential(nn.Linear(4, 4))).load_state_dict(saved)
    with pytest.raises(RgplugError, match="no D"):
        rgplug.attach(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Linear(2, 2)).load_state_dict(saved)


@pytest.mark.parametrize("saved", [{}, {"networks": {}}, {"weight": torch.ones(2)}])
def test_a_dict_that_is_no_state(saved: Any) -> None:
    with pytest.raises(RgplugError, match="the state has no"):
        rgplug.attach(nn.Linear(2, 2)).load_state_dict(saved)


def test_a_damaged_state_changes_nothing(pair: tuple[Host, rgplug.Controller]) -> None:
    """Nothing is taken over unless all of it fits."""
    host, rg = pair
    saved = rg.state_dict()
    host.run(2)
    before = snapshot(rg)
    last = list(saved["networks"]["D"]["weights"])[-1]
    del saved["networks"]["D"]["weights"][last]["steps"]
    with pytest.raises((RgplugError, KeyError)):
        rg.load_state_dict(saved)
    assert not different(snapshot(rg), before)


def test_the_state_is_a_copy(pair: tuple[Host, rgplug.Controller]) -> None:
    host, rg = pair
    saved = rg.state_dict()
    before = rg.state_dict()
    host.run(2)
    assert same(saved, before)
    rg.load_state_dict(saved)
    host.run(2)
    assert same(saved, before)


def test_a_state_from_before_a_decision_goes_on_from_the_decision() -> None:
    """What adapters save: masks and dormant values that belong to the weights in a checkpoint, and the phase after."""
    net = nn.Linear(6, 4)
    policy = {"threshold.init": 0.2, "regeneration": {"augmented": {"window": 1, "weights": [1.0]}}}
    rg = rgplug.attach(net, None, {**policy, "regeneration.augmented.include_current": False})
    theta, before, weights = rg.weights("G")[0].theta, rg.state_dict(), net.weight.detach().clone()
    assert (weights == 0).any()
    rg.end_epoch(1.0)
    assert rg.end_epoch(9.0).phase == "dense"
    held = {**rg.state_dict(), "networks": before["networks"]}
    rg.detach()

    other = nn.Linear(6, 4)
    resumed = rgplug.attach(other, None, {**policy, "regeneration.augmented.include_current": False})
    resumed.load_state_dict(held)
    with torch.no_grad():
        other.weight.copy_(weights)  # the host loads its checkpoint
    assert resumed.phase == "dense"
    resumed.resume_phase()
    assert torch.equal(other.weight, theta)
    assert resumed.density("G") == 1
    resumed.resume_phase()
    assert torch.equal(other.weight, theta)


def test_files_are_as_private_as_others_of_the_user(tmp_path: Path, pair: tuple[Host, rgplug.Controller]) -> None:
    pair[1].save(tmp_path / "state.safetensors")
    (tmp_path / "other").touch()
    assert (tmp_path / "state.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode

"""Baked networks and sparse files: equal outputs, small files, strict reading."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from common import Host
from model_fastgan import lightweight_gan
from sngan import SNGANGenerator
from torch import nn

import rgplug
from rgplug import RgplugError
from rgplug.cli import main
from rgplug.export import load_sparse, read_sparse, save_sparse


def trained(density: float, kind: str = "plain") -> tuple[rgplug.Controller, Host]:
    host = Host(kind)
    rg = rgplug.attach(host.G, host.D, {"base": "sparse", "masks.density": density, "masks.distribution": "uniform"})
    host.run(3)
    return rg, host


@pytest.mark.parametrize("density", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("kind", ["plain", "transposed", "new_sn", "equalized"])
def test_a_baked_network_is_the_masked_one(kind: str, density: float) -> None:
    rg, host = trained(density, kind)
    z = host.data.z(0)
    baked = rg.export()
    host.G.eval()
    assert torch.equal(baked(z), host.G(z))
    assert [type(m).__name__ for m in baked.modules()] == [type(m).__name__ for m in Host(kind).G.modules()]
    assert list(baked.state_dict()) == list(Host(kind).G.state_dict())
    if kind != "new_sn":  # torch itself pickles no parametrized module
        assert b"rgplug" not in pickle.dumps(baked)
    assert not any(p.requires_grad for p in baked.parameters())
    for w in rg.weights("G"):
        assert not baked.get_parameter(w.name)[~w.mask].any()


def test_a_baked_average_wears_the_live_mask() -> None:
    rg, host = trained(0.5)
    average = copy.deepcopy(host.G)
    with torch.no_grad():
        for p in average.parameters():
            p.fill_(1.0)
    baked = rg.export(ema=average)
    for w in rg.weights("G"):
        assert torch.equal(baked.get_parameter(w.name) != 0, w.mask)
    assert all((p == 1).all() for p in average.parameters())


def test_while_dense_there_is_nothing_to_export(tmp_path: Path) -> None:
    host = Host()
    rg = rgplug.attach(host.G, host.D, {"base": "rg-gan", "threshold.init": 0.1})
    host.run(1)
    rg.networks["G"].go_dense()
    with pytest.raises(RgplugError, match=r"G trains dense at the moment .*take copy.deepcopy\(G\)"):
        rg.export(tmp_path / "G.safetensors")
    with pytest.raises(RgplugError, match=r'rg\.detach\(finish="sparse"\) prunes G as its sparse phases do'):
        rg.export()
    assert not list(tmp_path.iterdir())
    rg.networks["G"].go_sparse()
    assert rg.export() is not host.G


@pytest.mark.parametrize("density", [1.0, 0.5, 0.1])
def test_sparse_files_of_sngan(tmp_path: Path, density: float) -> None:
    """Within 5 % of four bytes per value and a bit per entry; loads into the host's network, bit for bit."""
    G = SNGANGenerator(width=64)
    rg = rgplug.attach(G, None, {"base": "sparse", "masks.density": density})
    baked = rg.export(tmp_path / "G.safetensors")
    state = baked.state_dict()
    count = sum(int((t != 0).sum()) for t in state.values())
    entries = sum(t.numel() for t in state.values())
    size = (tmp_path / "G.safetensors").stat().st_size
    assert size <= 1.05 * (4 * count + entries / 8)
    fresh = SNGANGenerator(width=64).eval()
    load_sparse(tmp_path / "G.safetensors", fresh)
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), state.values()))
    z = torch.randn(4, 128)
    assert torch.equal(fresh(z), baked(z))


def test_half_precision(tmp_path: Path) -> None:
    rg, _ = trained(0.3)
    state = rg.export(tmp_path / "full.safetensors").state_dict()
    rg.export(tmp_path / "half.safetensors", half=True)
    read = read_sparse(tmp_path / "half.safetensors")
    for name, tensor in state.items():
        expected = tensor.half().to(tensor.dtype) if tensor.is_floating_point() else tensor
        assert torch.equal(read[name], expected)
        assert read[name].dtype is tensor.dtype


def test_a_layer_that_is_all_zero_and_other_dtypes(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {
        "zeros": torch.zeros(7, 9),
        "negative zero": torch.tensor([0.0, -0.0, 1.0] * 50),
        "count": torch.tensor(3),
        "flags": torch.tensor([True, False]),
        "bf16": torch.randn(40).bfloat16() * (torch.rand(40) > 0.8),
        "nan": torch.tensor([float("nan"), 0.0, float("inf")]),
        "empty": torch.empty(0, 3),
    }
    save_sparse(tmp_path / "x.safetensors", tensors)
    read = read_sparse(tmp_path / "x.safetensors")
    for name, tensor in tensors.items():
        assert read[name].dtype is tensor.dtype
        assert read[name].shape == tensor.shape
        assert torch.equal(torch.nan_to_num(read[name].double(), 7.0), torch.nan_to_num(tensor.double(), 7.0))
    assert torch.equal(torch.signbit(read["negative zero"]), torch.signbit(tensors["negative zero"]))


def test_fastgan(tmp_path: Path) -> None:
    module = lightweight_gan()
    torch.manual_seed(0)
    G = module.Generator(image_size=32, latent_dim=16, fmap_max=16, attn_res_layers=[])
    rg = rgplug.attach(G, None, {"base": "sparse", "masks.density": 0.5})
    baked = rg.export(tmp_path / "G.safetensors")
    fresh = module.Generator(image_size=32, latent_dim=16, fmap_max=16, attn_res_layers=[]).eval()
    load_sparse(tmp_path / "G.safetensors", fresh)
    z = torch.randn(2, 16)
    torch.manual_seed(1)
    expected = baked(z)
    torch.manual_seed(1)
    assert torch.equal(fresh(z), expected)


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    rg, host = trained(0.5)
    path = tmp_path / "G.safetensors"
    rg.export(path)
    other = nn.Sequential(nn.Linear(6, 4))
    before = [p.clone() for p in other.parameters()]
    sentence = r"of another Sequential: it has shape \[128, 6\] for '0.weight', and the network needs shape \[4, 6\]"
    with pytest.raises(RgplugError, match=sentence):
        load_sparse(path, other)
    assert all(map(torch.equal, before, other.parameters()))
    rg.save(tmp_path / "state.safetensors")
    with pytest.raises(RgplugError, match="is no sparse file of a network"):
        read_sparse(tmp_path / "state.safetensors")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(RgplugError, match="truncated or corrupt"):
        read_sparse(path)
    with pytest.raises(RgplugError, match="there is no state file"):
        read_sparse(tmp_path / "nowhere")
    with pytest.raises(RgplugError, match="give a copy of G"):
        rg.export(ema=host.D)


def test_a_network_that_holds_a_graph_can_be_exported() -> None:
    rg, host = trained(0.5, "old_sn")
    baked = rg.export(network="D")
    images = torch.randn(4, 3, 8, 8)
    assert torch.equal(baked(images), host.D.eval()(images))


def test_from_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rg, _ = trained(0.3)
    state = rg.export().state_dict()
    checkpoint, out = tmp_path / "checkpoint.pt", tmp_path / "G.safetensors"
    torch.save({"nets": {"G_ema": state}, "iteration": 3}, checkpoint)
    assert main(["export", str(checkpoint), str(out), "--key", "nets.G_ema"]) == 0
    assert "non-zeros of" in capsys.readouterr().out
    read = read_sparse(out)
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())
    for arguments, sentence in (
        ([], "holds no state dict at '' but nets, iteration"),
        (["--key", "nets.D"], "has no 'nets.D': where 'D' should be, it has G_ema"),
        (["--key", "iteration"], "holds no state dict at 'iteration' but a int"),
    ):
        assert main(["export", str(checkpoint), str(out), *arguments]) == 2
        assert sentence in capsys.readouterr().err
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    assert main(["export", str(tmp_path / "broken.pt"), str(out)]) == 2
    assert "cannot be read without running code" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "none.pt"), str(out)]) == 2
    assert "there is no checkpoint" in capsys.readouterr().err

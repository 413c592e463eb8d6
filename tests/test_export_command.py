"""`rgplug export` with the network beside its weights, and what it says where something is missing."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from sngan import SNGANGenerator
from torch import nn

import rgplug
from rgplug.cli import main
from rgplug.export import load_compact, read_sparse

FILE = Path(__file__).parent / "sngan.py"
NETWORK = f"{FILE}:SNGANGenerator(width=8)"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A generator of eight channels, two of which do nothing in the first convolution."""
    torch.manual_seed(0)
    G = SNGANGenerator(width=8)
    with torch.no_grad():
        G.block2.c1.weight[:2] = 0
    torch.save({"G_ema": G.state_dict()}, tmp_path / "checkpoint.pt")
    return tmp_path / "checkpoint.pt"


def export(checkpoint: Path, *options: str) -> int:
    return main(["export", str(checkpoint), str(checkpoint.parent / "G.safetensors"), "--key", "G_ema", *options])


def test_a_compact_network_and_its_onnx_file(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    small, file = checkpoint.parent / "out" / "G.compact", checkpoint.parent / "out" / "G.onnx"
    assert export(checkpoint, "--network", NETWORK, "--compact", str(small), "--onnx", str(file)) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "2 channels removed" in said.out
    assert f"{file}: ONNX, {file.stat().st_size:,} bytes" in said.out
    assert load_compact(small, SNGANGenerator(width=8)).block2.c1.weight.shape == (6, 8, 3, 3)
    assert [6, 8, 3, 3] in [list(w.dims) for w in onnx.load(str(file)).graph.initializer]
    assert (checkpoint.parent / "G.safetensors").is_file()


def test_a_card(checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rgplug.export.onnx_file.PACKAGES", ("no_such_package",))
    assert export(checkpoint, "--network", NETWORK, "--card", "-") == 0
    said = capsys.readouterr().out
    assert "# What SNGANGenerator costs" in said
    assert "There are no ONNX forms: ONNX files need no_such_package" in said
    assert export(checkpoint, "--network", NETWORK, "--card", str(checkpoint.parent / "new" / "card.md")) == 0
    assert (checkpoint.parent / "new" / "card.md").read_text().startswith("# What SNGANGenerator costs")
    assert read_sparse(checkpoint.parent / "G.safetensors")["block2.c1.weight"].shape == (8, 8, 3, 3)


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("averaged", ["deep copy", "AveragedModel"])
def test_an_average_of_a_checkpoint_gets_the_mask(
    beside: bool, averaged: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Averages in checkpoints are unmasked; rgplug's state lies beside them, or in a file of its own."""
    torch.manual_seed(0)
    G = SNGANGenerator(width=8)
    average = copy.deepcopy(G) if averaged == "deep copy" else torch.optim.swa_utils.AveragedModel(G)
    rg = rgplug.attach(G, None, {"base": "sparse", "masks.density": 0.5})
    rg.save(tmp_path / "rgplug.safetensors")
    held = {"G_ema": average.state_dict(), **({"rg": rg.state_dict()} if beside else {})}
    torch.save(held, tmp_path / "checkpoint.pt")
    options = [] if beside else ["--state", str(tmp_path / "rgplug.safetensors")]
    assert export(tmp_path / "checkpoint.pt", "--network", NETWORK, *options) == 0
    assert "under the mask of G in " in capsys.readouterr().out
    found = read_sparse(tmp_path / "G.safetensors")
    for name, value in rg.export(ema=average).state_dict().items():
        assert torch.equal(found[name], value), name


def test_a_state_of_another_network(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rgplug.attach(nn.Linear(3, 3), None, "sparse").save(checkpoint.parent / "other.safetensors")
    assert export(checkpoint, "--state", str(checkpoint.parent / "other.safetensors")) == 2
    assert "manages no weights that are in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--compact", "x"], "--compact needs the network and not only its weights; give --network FILE.py:EXPRESSION"),
        (["--onnx", "x"], "--onnx needs the network"),
        (["--card", "-"], "--card needs the network"),
        (["--network", "SNGANGenerator()"], "is no FILE.py:EXPRESSION"),
        (["--network", "nowhere.py:G()"], "there is no file nowhere.py"),
        (["--network", f"{FILE}:SNGANAutoencoder()"], "does not build a network in sngan.py (NameError"),
        (
            ["--network", f"{FILE}:SNGANGenerator(width=4)"],
            "is of another network than SNGANGenerator(width=4): it has",
        ),
        (["--network", NETWORK, "--onnx", "x"], "need no_such_package, which is not installed"),
    ],
)
def test_what_is_missing(
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    sentence: str,
) -> None:
    """One sentence, and nothing is written."""
    monkeypatch.setattr("rgplug.export.onnx_file.PACKAGES", ("no_such_package",))
    assert export(checkpoint, *options) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert list(checkpoint.parent.iterdir()) == [checkpoint]

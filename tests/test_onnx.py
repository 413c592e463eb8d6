"""ONNX files: what onnxruntime makes of them is what torch makes, with noise inside too; what cannot be is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import tiny
import torch
from model_stylegan2 import Generator as StyleGAN2Generator
from sngan import SNGANGenerator
from torch import Tensor, nn

import rgplug
from rgplug import RgplugError
from rgplug.export import save_onnx

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Noisy(nn.Module):
    """Latents [N, 4] to images [N, 3, 2, 2] with noise of two kinds and an argument that may be None."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 12)

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        x = self.linear(z).view(-1, 3, 2, 2)
        return x * (1 + torch.rand_like(x)) + torch.randn_like(x)


class NoiseOfLength(Noisy):
    """As above, with a number of rows that the trace takes for a constant."""

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        return self.linear(z).view(-1, 3, 2, 2) + torch.randn(len(z), 1, 2, 2)


class ByValue(Noisy):
    """What its forward does depends on values, which no trace can follow."""

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        x = super().forward(z)
        return x if x.sum() > 0 else -x


class OfClasses(Noisy):
    """Latents [N, 4] and classes [N]; a tensor without a batch is the third."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)

    def forward(self, z: Tensor, c: Tensor | None = None, gain: Tensor | None = None) -> Tensor:
        assert c is not None
        assert gain is not None
        return gain * self.linear(z + self.embedding(c)).view(-1, 3, 2, 2)


def test_a_baked_network_in_onnxruntime(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    G = SNGANGenerator(width=8)
    rg = rgplug.attach(G, None, {"base": "sparse", "masks.density": 0.5})
    baked = rg.export()
    path = tmp_path / "new folder" / "G.onnx"
    flags, state = [m.training for m in baked.modules()], torch.get_rng_state()
    check = save_onnx(path, baked)
    assert capfd.readouterr() == ("", "")
    assert (check.dynamic, check.batch, check.noise) == (True, 3, 0)
    assert check.bytes == path.stat().st_size
    assert check.difference < 1e-5
    assert [m.training for m in baked.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state)
    z = torch.randn(5, 128)
    (images,) = onnxruntime.InferenceSession(str(path)).run(None, {"z": z.numpy()})
    torch.testing.assert_close(torch.from_numpy(images), baked(z), rtol=0, atol=1e-5)
    assert "takes any number of latents" in str(check)


@pytest.mark.parametrize("kind", ["old_sn", "new_sn"])
def test_layers_that_compute_their_weight(tmp_path: Path, kind: str) -> None:
    G, _ = tiny.build(kind, dtype=torch.float32)
    check = save_onnx(tmp_path / "G.onnx", G)
    assert check.dynamic
    assert check.difference < 1e-5


def test_noise_inside_is_drawn_by_the_file_and_compared_with_the_same(tmp_path: Path) -> None:
    G, path = Noisy(), tmp_path / "G.onnx"
    check = save_onnx(path, G, (torch.randn(2, 4), None))
    assert (check.dynamic, check.noise) == (True, 2)
    assert check.difference < 1e-6
    assert "same noise in its 2 draws" in str(check)
    session = onnxruntime.InferenceSession(str(path))
    first, second = (session.run(None, {"z": torch.ones(200, 4).numpy()})[0] for _ in range(2))
    assert abs(first - second).max() > 0.1  # not frozen at what the comparison saw


def test_a_batch_that_cannot_stay_open_is_fixed(tmp_path: Path) -> None:
    """StyleGAN2's convolutions have a group per image, which ONNX keeps as a number."""
    G = StyleGAN2Generator(16, leading=True)
    with torch.no_grad():
        for name, p in G.named_parameters():
            if "noise" in name:
                p.fill_(0.5)
    check = save_onnx(tmp_path / "G.onnx", G, (torch.randn(2, 16),))
    assert (check.dynamic, check.batch) == (False, 2)
    assert check.noise > 0
    assert "latents 2 at a time" in str(check)


def test_noise_of_a_fixed_shape_fixes_the_batch(tmp_path: Path) -> None:
    """The comparison gives the model torch's noise, and would not notice that its own fits two latents only."""
    check = save_onnx(tmp_path / "G.onnx", NoiseOfLength(), (torch.randn(2, 4), None))
    assert (check.dynamic, check.batch, check.noise) == (False, 2, 1)


def test_classes_and_tensors_without_a_batch(tmp_path: Path) -> None:
    check = save_onnx(tmp_path / "G.onnx", OfClasses(), (torch.randn(2, 4), torch.tensor([1, 4]), torch.tensor(0.5)))
    assert check.dynamic
    assert check.difference < 1e-6


def test_outputs_that_are_not_finite_agree_with_nothing(tmp_path: Path) -> None:
    G = nn.Sequential(nn.Linear(4, 12), nn.Unflatten(1, (3, 2, 2)))
    with torch.no_grad():
        G[0].bias[0] = float("nan")
    with pytest.raises(RgplugError, match=r"differs from torch by nan"):
        save_onnx(tmp_path / "G.onnx", G)
    assert list(tmp_path.iterdir()) == []


def test_above_the_tolerance_an_earlier_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "G.onnx"
    path.write_bytes(b"an earlier file")
    monkeypatch.setattr("rgplug.export.onnx_file._traced", lambda *_, **__: onnx.ModelProto())
    monkeypatch.setattr("rgplug.export.onnx_file.difference", lambda *_, **__: (2e-4, 0))
    with pytest.raises(RgplugError, match=r"by 2.0e-04 of its largest output, where 1.0e-04 is allowed, so .* was not"):
        save_onnx(path, Noisy(), (torch.randn(2, 4),))
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"an earlier file"
    assert save_onnx(path, Noisy(), (torch.randn(2, 4),), tolerance=1e-3).difference == 2e-4
    assert path.read_bytes() == b""


def test_what_cannot_be_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "G.onnx"
    G = SNGANGenerator(width=8)
    rg = rgplug.attach(G, None, "sparse")
    with pytest.raises(RgplugError, match=r"^l1 of this SNGANGenerator is under a mask .*export what rg.export"):
        save_onnx(path, G)
    rg.detach()
    with pytest.raises(RgplugError, match=r"^ByValue cannot be exported to ONNX \(Guard"):
        save_onnx(path, ByValue(), (torch.randn(2, 4),))
    with pytest.raises(RgplugError, match="have to be a tuple with a tensor"):
        save_onnx(path, Noisy(), (None,))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(RgplugError, match=r"need onnxscript, .*pip install 'rgplug\[onnx\]'"):
        save_onnx(path, Noisy())
    assert list(tmp_path.iterdir()) == []

"""The example script, on a few tiny images."""

import numpy as np
import pytest
import torch
from PIL import Image

from rgplug.examples import train_gan


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six images of different sizes and modes, one of them in a subfolder, and a file that is no image."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    (folder / "more").mkdir()
    for i, (h, w) in enumerate([(16, 16), (20, 16), (16, 40), (64, 64), (9, 9), (33, 21)]):
        pixels = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).convert("L" if i == 1 else "RGBA" if i == 2 else "RGB")
        image.save(folder / ("more" if i == 3 else "") / f"{i}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def run(folder, out, *options):
    train_gan.main([
        f"--data={folder}", f"--out={out}", "--resolution=16", "--batch=4", "--epoch-iterations=2", *options,
    ])  # fmt: skip
    return torch.load(out / "checkpoint.pt", weights_only=True)


def leaves(value, path=""):
    """Every tensor and number of a nested checkpoint, by its path."""
    if isinstance(value, dict):
        return {k: v for name, inner in value.items() for k, v in leaves(inner, f"{path}/{name}").items()}
    if isinstance(value, list | tuple):
        return {k: v for i, inner in enumerate(value) for k, v in leaves(inner, f"{path}/{i}").items()}
    return {path: value}


def assert_identical(a, b):
    a, b = leaves(a), leaves(b)
    assert a.keys() == b.keys()
    for name in a:
        same = torch.equal(a[name], b[name]) if isinstance(a[name], torch.Tensor) else a[name] == b[name]
        assert same, name


def test_images_are_cropped_to_squares(folder):
    images = train_gan.load_images(folder, 16)
    assert images.shape == (6, 3, 16, 16)
    assert images.dtype == torch.uint8
    exact = np.asarray(Image.open(folder / "0.png"))  # already 16x16: untouched
    assert (images[0].permute(1, 2, 0).numpy() == exact).all()


def test_two_iterations(folder, tmp_path, capsys):
    state = run(folder, tmp_path, "--iterations=2")
    assert state["iteration"] == 2
    for name in ("samples.png", "samples/epoch_001.png"):
        with Image.open(tmp_path / name) as grid:
            assert grid.size == (8 * 16, 8 * 16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "samples", "samples.png"]
    assert "epoch   1" in "".join(capsys.readouterr())


def test_resume_is_bit_identical_to_an_uninterrupted_run(folder, tmp_path):
    whole = run(folder, tmp_path / "whole", "--iterations=5")
    first = run(folder, tmp_path / "parts", "--iterations=2")
    parts = run(folder, tmp_path / "parts", "--iterations=5", "--resume")
    assert_identical(whole, parts)
    for epoch in (1, 2, 3):
        name = f"samples/epoch_{epoch:03d}.png"
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    assert not torch.equal(first["G"]["linear.weight"], parts["G"]["linear.weight"])


def test_the_seed_decides(folder, tmp_path):
    a = run(folder, tmp_path / "a", "--iterations=1")
    b = run(folder, tmp_path / "b", "--iterations=1")
    c = run(folder, tmp_path / "c", "--iterations=1", "--seed=1")
    assert_identical(a, b)
    assert not torch.equal(a["G"]["linear.weight"], c["G"]["linear.weight"])


def test_ema_follows_the_generator(folder, tmp_path):
    start, end = (run(folder, tmp_path / str(n), f"--iterations={n}") for n in (1, 2))
    weight = "linear.weight"
    step = end["G"][weight] - start["G_ema"][weight]
    moved = end["G_ema"][weight] - start["G_ema"][weight]
    torch.testing.assert_close(moved, (1 - train_gan.EMA) * step, rtol=1e-2, atol=1e-7)


def test_augmentation_alters_each_image_and_passes_gradients():
    torch.manual_seed(0)
    images = torch.rand(8, 3, 16, 16).mul(2).sub(1).requires_grad_()
    altered = train_gan.augment(images)
    assert altered.shape == images.shape
    assert (altered - images).abs().amax(dim=(1, 2, 3)).min() > 0.05
    altered.sum().backward()
    assert images.grad.abs().amax(dim=(1, 2, 3)).min() > 0


def test_translation_shifts_by_at_most_an_eighth_and_fills_with_zeros():
    torch.manual_seed(0)
    images = torch.full((64, 3, 16, 16), 0.5)
    images[:, :, 8, 8] = 100.0
    grey = train_gan.augment(images)
    where = grey.mean(dim=1).flatten(1).argmax(dim=1)  # [64]
    rows, columns = where // 16, where % 16
    assert set(rows.tolist()) == set(columns.tolist()) == set(range(6, 11))
    shifted_down = grey[rows == 10]
    assert (shifted_down[:, :, :2] == 0).all()


@pytest.mark.parametrize("resolution", [16, 64, 128])
def test_networks_fit_each_other(resolution):
    G, D = train_gan.Generator(resolution), train_gan.Discriminator(resolution)
    images = G(torch.randn(2, train_gan.Z_DIM))
    assert images.shape == (2, 3, resolution, resolution)
    assert images.abs().max() <= 1
    assert D(images).shape == (2,)


def error(capsys, *arguments):
    with pytest.raises(SystemExit) as info:
        train_gan.main([str(a) for a in arguments])
    return str(info.value) if info.value.code != 2 else capsys.readouterr().err


def test_errors_are_one_sentence(folder, tmp_path, capsys):
    assert "there is no folder" in error(capsys, "--data", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no images" in error(capsys, "--data", tmp_path / "empty")
    assert "power of two" in error(capsys, "--data", folder, "--resolution", 48)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"nothing")
    assert "a.png" in error(capsys, "--data", tmp_path / "broken")


def test_a_checkpoint_of_another_architecture(folder, tmp_path, capsys):
    run(folder, tmp_path, "--iterations=1")
    said = error(capsys, "--data", folder, "--out", tmp_path, "--resolution", 32, "--resume")
    assert "another architecture" in said
    assert "\n" not in said
    (tmp_path / "checkpoint.pt").write_bytes(b"no checkpoint")
    assert "cannot be read" in error(capsys, "--data", folder, "--out", tmp_path, "--resume")
    assert "no checkpoint" in error(capsys, "--data", folder, "--out", tmp_path / "new", "--resume")

"""examples/prepare_data.py on tiny archives of the same structure as the ones that are downloaded."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rgplug.examples import sngan
from rgplug.examples.prepare_data import main
from rgplug.metrics.sources import open_source

Pixels = NDArray[np.uint8]


def picture(value: int, size: int = 32) -> Pixels:
    return np.full((size, size, 3), value, np.uint8)


def cifar_archive(where: Path) -> Path:
    """20 images in five batches, 8 in the test batch; image i is of value i (test: 100 + i) and of class i % 4."""
    path = where / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, values in [(f"data_batch_{b + 1}", range(4 * b, 4 * b + 4)) for b in range(5)] + [
            ("test_batch", range(100, 108))
        ]:
            rows = np.stack([picture(v).transpose(2, 0, 1).reshape(-1) for v in values])
            held = pickle.dumps({"data": rows, "labels": [v % 4 for v in values], "batch_label": name}, protocol=2)
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(held)
            archive.addfile(info, io.BytesIO(held))
    return path


def png(value: int, size: int = 64) -> bytes:
    held = io.BytesIO()
    Image.fromarray(picture(value, size)).save(held, "PNG")
    return held.getvalue()


def tiny_archive(where: Path) -> Path:
    path = where / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny-imagenet-200/wnids.txt", "n02\nn01\n")
        for wnid, start in (("n01", 50), ("n02", 10)):
            for i in (0, 2, 10):
                archive.writestr(f"tiny-imagenet-200/train/{wnid}/images/{wnid}_{i}.JPEG", png(start + i))
            archive.writestr(f"tiny-imagenet-200/train/{wnid}/{wnid}_boxes.txt", "")
        rows = ["val_0.JPEG\tn01\t0\t0\t1\t1", "val_1.JPEG\tn02\t0\t0\t1\t1"]
        archive.writestr("tiny-imagenet-200/val/val_annotations.txt", "\n".join(rows))
        for i in range(2):
            archive.writestr(f"tiny-imagenet-200/val/images/val_{i}.JPEG", png(200 + i))
            archive.writestr(f"tiny-imagenet-200/test/images/test_{i}.JPEG", png(220 + i))
    return path


def prepared(*arguments: object) -> int:
    return main([str(a) for a in arguments])


def values(path: Path) -> list[int]:
    """The first pixel of each image, as rgplug itself reads them."""
    source = open_source(path)
    return [int(np.asarray(source.read(i))[0, 0, 0]) for i in range(source.count)]


def labels(path: Path) -> dict[str, int] | None:
    if path.is_dir():
        held = json.loads((path / "dataset.json").read_text())
    else:
        with zipfile.ZipFile(path) as archive:
            held = json.loads(archive.read("dataset.json"))
    return None if held["labels"] is None else dict(held["labels"])


def test_cifar10_in_every_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = cifar_archive(tmp_path)
    for name in ("a.zip", "a.npz", "a"):
        assert prepared("cifar10", source, tmp_path / name) == 0
        assert values(tmp_path / name) == list(range(20))
    assert capsys.readouterr().out.count("20 of 20 images, 4 classes") == 3
    with np.load(tmp_path / "a.npz") as held:
        assert held["images"].shape == (20, 32, 32, 3)
        assert held["labels"].tolist() == [i % 4 for i in range(20)]
    assert labels(tmp_path / "a.zip") == {f"00000/img{i:08d}.png": i % 4 for i in range(20)}
    assert labels(tmp_path / "a") == {f"img{i:08d}.png": i % 4 for i in range(20)}
    assert sorted(os.listdir(tmp_path / "a"))[1] == "img00000000.png"  # side by side, as FastGAN looks for them
    assert prepared("cifar10", source, tmp_path / "test.npz", "--part", "test") == 0
    assert values(tmp_path / "test.npz") == list(range(100, 108))
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path, filter="data")
    assert prepared("cifar10", tmp_path / "cifar-10-batches-py", tmp_path / "unpacked.npz") == 0
    assert (tmp_path / "unpacked.npz").read_bytes() == (tmp_path / "a.npz").read_bytes()


def test_shares(tmp_path: Path) -> None:
    """The first int(N share); or as many of each class, the same ones that examples/sngan.py takes."""
    source = cifar_archive(tmp_path)
    prepared("cifar10", source, tmp_path / "all.npz")
    prepared("cifar10", source, tmp_path / "first.npz", "--share", "0.29")  # 0.29 x 20 = 5.8
    assert values(tmp_path / "first.npz") == [0, 1, 2, 3, 4]
    prepared("cifar10", source, tmp_path / "counted.zip", "--count", "7")
    assert values(tmp_path / "counted.zip") == list(range(7))
    for seed in (0, 1):
        prepared("cifar10", source, tmp_path / f"b{seed}.npz", "--share", "0.4", "--balanced", "--seed", seed)
        taken = values(tmp_path / f"b{seed}.npz")
        assert sorted(v % 4 for v in taken) == [0, 0, 1, 1, 2, 2, 3, 3]
        theirs = sngan.load_images(tmp_path / "all.npz", 0.4, seed)
        assert taken == theirs[:, 0, 0, 0].tolist()
    assert values(tmp_path / "b0.npz") != values(tmp_path / "b1.npz")
    prepared("cifar10", source, tmp_path / "b8.npz", "--count", "8", "--balanced")
    assert values(tmp_path / "b8.npz") == values(tmp_path / "b0.npz")


def test_tiny_imagenet(tmp_path: Path) -> None:
    """Classes by wnids.txt, images of a class by their numbers."""
    source = tiny_archive(tmp_path)
    assert prepared("tiny-imagenet", source, tmp_path / "train.npz") == 0
    assert values(tmp_path / "train.npz") == [10, 12, 20, 50, 52, 60]
    with np.load(tmp_path / "train.npz") as held:
        assert held["labels"].tolist() == [0, 0, 0, 1, 1, 1]
        assert held["images"].shape == (6, 64, 64, 3)
    prepared("tiny-imagenet", source, tmp_path / "half.npz", "--count", "2", "--balanced")
    assert len({v // 40 for v in values(tmp_path / "half.npz")}) == 2
    prepared("tiny-imagenet", source, tmp_path / "val.zip", "--part", "val")
    assert list((labels(tmp_path / "val.zip") or {}).values()) == [0, 1]
    assert values(tmp_path / "val.zip") == [201, 200]
    prepared("tiny-imagenet", source, tmp_path / "test.npz", "--part", "test", "--size", "32")
    with np.load(tmp_path / "test.npz") as held:
        assert held["images"].shape == (2, 32, 32, 3)
        assert "labels" not in held


def test_parts_of_prepared_data(tmp_path: Path) -> None:
    """A .zip (as StyleGAN2-ADA's dataset_tool.py writes it), a folder of classes, an .npz."""
    prepared("cifar10", cifar_archive(tmp_path), tmp_path / "all.zip")
    prepared("images", tmp_path / "all.zip", tmp_path / "five.zip", "--count", "5")
    assert values(tmp_path / "five.zip") == [0, 1, 2, 3, 4]
    assert list((labels(tmp_path / "five.zip") or {}).values()) == [0, 1, 2, 3, 0]
    prepared("images", tmp_path / "five.zip", tmp_path / "flat", "--size", "16")
    assert open_source(tmp_path / "flat").size() == (16, 16)
    for kind, value in (("cat", 1), ("dog", 2)):
        (tmp_path / "pets" / kind).mkdir(parents=True)
        (tmp_path / "pets" / kind / "a.png").write_bytes(png(value))
    prepared("images", tmp_path / "pets", tmp_path / "pets.npz")
    with np.load(tmp_path / "pets.npz") as held:
        assert held["labels"].tolist() == [0, 1]
    prepared("images", tmp_path / "pets.npz", tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "pets.npz").read_bytes()
    (tmp_path / "flat" / "dataset.json").unlink()
    prepared("images", tmp_path / "flat", tmp_path / "without.zip")
    assert labels(tmp_path / "without.zip") is None


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    source = cifar_archive(tmp_path)
    for name in ("a.zip", "b.zip"):
        prepared("cifar10", source, tmp_path / name, "--share", "0.5", "--balanced")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


PAGE = Path(__file__).parent.parent / "docs" / "protocols.md"
COMMANDS = re.findall(r"^ *python examples/prepare_data\.py (.*)$", PAGE.read_text(), re.M)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_page_on_protocols(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is understood, and works on data under the names that it gives."""
    monkeypatch.chdir(tmp_path)
    filled = command.replace("$share", "1").replace("$part", "test").replace("$name", "obama")
    words = filled.replace("--count 1000", "--count 3").split()
    Path("data").mkdir()
    if words[0] == "cifar10":
        cifar_archive(tmp_path)
    elif words[0] == "tiny-imagenet":
        tiny_archive(tmp_path)
    else:
        prepared("cifar10", cifar_archive(tmp_path), words[1])
    assert main(words) == 0, capsys.readouterr().err
    assert Path(words[2]).exists()


def test_the_page_on_protocols_has_each_command() -> None:
    assert {command.split()[0] for command in COMMANDS} == {"cifar10", "tiny-imagenet", "images"}


def evil(where: Path) -> Path:
    folder = where / "cifar-10-batches-py"
    folder.mkdir()
    for i in range(1, 6):
        (folder / f"data_batch_{i}").write_bytes(b"cposix\nsystem\n(S'touch owned'\ntR.")
    return folder


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = cifar_archive(tmp_path)
    prepared("cifar10", source, tmp_path / "there.zip")
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    for size in (8, 9):
        (tmp_path / "mixed" / f"{size}.png").write_bytes(png(1, size))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_bytes(b"no picture")
    for arguments, sentence in [
        (("cifar10", source, tmp_path / "there.zip"), "there.zip is there already"),
        (("cifar10", tmp_path / "empty", tmp_path / "x.zip"), "has no data_batch_1 of CIFAR-10"),
        (("cifar10", evil(tmp_path), tmp_path / "x.zip"), "has no data_batch_1 of CIFAR-10"),
        (("tiny-imagenet", tmp_path / "there.zip", tmp_path / "x.zip"), "has no wnids.txt"),
        (("images", tmp_path / "empty", tmp_path / "x.zip"), "holds no .png"),
        (("images", tmp_path / "nowhere", tmp_path / "x.zip"), "is neither a folder nor a .zip"),
        (("images", tmp_path / "mixed", tmp_path / "x.npz"), "2 different sizes; give --size"),
        (("images", tmp_path / "mixed", tmp_path / "x.zip", "--balanced"), "this data set has none"),
        (("images", broken, tmp_path / "x.zip"), "a.png in"),
        (("images", tmp_path / "mixed", tmp_path / "x.tar"), "has to end in .zip or .npz"),
        (("cifar10", source, tmp_path / "x.zip", "--count", 21), "21 of 20 images cannot be taken"),
        (("cifar10", source, tmp_path / "x.zip", "--share", 0.01), "0 of 20 images cannot be taken"),
        (("cifar10", source, tmp_path / "x.zip", "--share", 2), "give --share, above 0 and up to 1"),
    ]:
        assert prepared(*arguments) == 2, arguments
        error = capsys.readouterr().err
        assert sentence in error
        assert len(error.strip().splitlines()) == 1
        assert not (tmp_path / "x.zip").exists()
    assert not Path("owned").exists()

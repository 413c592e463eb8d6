"""Real images from folders, archives, arrays and tensors, and what is said when there are none."""

import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from rgplug.errors import RgplugError
from rgplug.metrics.sources import open_source


def picture(value: int, size: int = 6) -> Image.Image:
    return Image.new("RGB", (size, size), (value, value, value))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b" / "c").mkdir(parents=True)
    picture(10).save(tmp_path / "a.png")
    picture(20).save(tmp_path / "b" / "x.BMP")
    picture(30).save(tmp_path / "b" / "c" / "y.webp", lossless=True)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "._a.png").write_text("what some systems leave behind")
    return tmp_path


def values(source) -> list[int]:
    return [int(batch[i, 0, 0, 0]) for batch in source.batches(2, source.size()) for i in range(len(batch))]


def test_a_folder_is_read_recursively_in_a_fixed_order(folder):
    source = open_source(folder)
    assert source.count == 3
    assert values(source) == [10, 30, 20]  # a.png, b/c/y.webp, b/x.BMP
    assert source.size() == (6, 6)


def test_batches_have_the_asked_size(folder):
    shapes = [tuple(b.shape) for b in open_source(str(folder)).batches(2, (4, 5))]
    assert shapes == [(2, 3, 4, 5), (1, 3, 4, 5)]


def test_a_zip_of_images(tmp_path, folder):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.write(folder / "a.png", "deep/a.png")
        archive.write(folder / "b" / "x.BMP", "b.bmp")
        archive.writestr("__MACOSX/deep/._a.png", "")
        archive.writestr("readme.md", "")
    assert values(open_source(tmp_path / "set.zip")) == [20, 10]


def test_an_npz_and_a_tensor_are_the_same_source(tmp_path):
    arrays = np.random.default_rng(0).integers(0, 256, (5, 4, 7, 3), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images=arrays, labels=np.zeros(5))
    from_file = open_source(tmp_path / "set.npz")
    tensor = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    from_memory = open_source(tensor)
    assert torch.equal(next(from_file.batches(5, (4, 7))), tensor)
    assert torch.equal(next(from_memory.batches(5, (4, 7))), tensor)
    assert from_file.digest() == from_memory.digest() == open_source(tensor.float() / 127.5 - 1).digest()
    assert open_source(from_memory) is from_memory


def test_the_digest_is_of_contents_not_of_places(folder, tmp_path_factory):
    before = open_source(folder).digest()
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "moved"
    folder.rename(elsewhere)
    assert open_source(elsewhere).digest() == before
    (elsewhere / "notes.txt").write_text("something else")
    assert open_source(elsewhere).digest() == before
    picture(11).save(elsewhere / "a.png")
    assert open_source(elsewhere).digest() != before


def test_transparent_and_palette_images_become_rgb(tmp_path):
    Image.new("RGBA", (3, 3), (1, 2, 3, 0)).save(tmp_path / "a.png")
    Image.new("L", (3, 3), 9).save(tmp_path / "b.png")
    pixels = torch.cat(list(open_source(tmp_path).batches(2, (3, 3))))
    assert pixels[:, :, 0, 0].tolist() == [[1, 2, 3], [9, 9, 9]]


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(RgplugError, match=r"nowhere does not exist; give a folder"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(RgplugError, match=r"holds no \.png"):
        open_source(tmp_path)
    (tmp_path / "set.tar").write_text("no archive of ours")
    with pytest.raises(RgplugError, match=r"set\.tar is neither a folder nor"):
        open_source(tmp_path / "set.tar")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("a.txt", "")
    with pytest.raises(RgplugError, match=r"empty\.zip holds no"):
        open_source(tmp_path / "empty.zip")
    with pytest.raises(RgplugError, match="none in the given tensor"):
        open_source(torch.zeros(0, 3, 4, 4))


def test_an_unreadable_file_is_named(tmp_path):
    picture(1).save(tmp_path / "a.png")
    held = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(held, "PNG")
    (tmp_path / "b.png").write_bytes(held.getvalue()[:1000])  # cut off
    with pytest.raises(RgplugError, match=r"cannot read .*b\.png"):
        list(open_source(tmp_path).batches(2, (6, 6)))


def test_sixteen_bits_are_refused_not_clipped(tmp_path):
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(RgplugError, match=r"deep\.png has more than 8 bits"):
        open_source(tmp_path).size()


@pytest.mark.parametrize(
    "held", [{"x": np.zeros(3)}, {"images": np.zeros((2, 4, 4, 3))}, {"images": np.zeros((2, 4), np.uint8)}]
)
def test_an_npz_without_images_says_what_it_should_hold(tmp_path, held):
    np.savez(tmp_path / "set.npz", **held)
    with pytest.raises(RgplugError, match=r"must hold `images`, uint8 \[N, H, W, 3\]"):
        open_source(tmp_path / "set.npz")


def test_a_broken_npz_is_named(tmp_path):
    (tmp_path / "set.npz").write_bytes(b"PK nonsense")
    with pytest.raises(RgplugError, match=r"cannot read .*set\.npz"):
        open_source(tmp_path / "set.npz")

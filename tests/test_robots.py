"""The data set that comes with the package."""

import numpy as np
import pytest
from PIL import Image

from rgplug.data import robots, write_folder


def test_two_hundred_robots_all_different():
    images = robots()
    assert images.shape == (200, 64, 64, 3)
    assert images.dtype == np.uint8
    assert len({image.tobytes() for image in images}) == 200


def test_each_is_a_picture_on_the_same_background():
    images = robots()
    assert (images[:, 0, 0] == images[0, 0, 0]).all()
    away = np.abs(images.astype(int) - images[0, 0, 0]).max(axis=-1) > 40  # [200, 64, 64]: not background
    share = away.mean(axis=(1, 2))
    assert share.min() > 0.1
    assert share.max() < 0.7


def test_the_file_is_small_and_comes_with_its_attribution():
    from importlib.resources import files

    folder = files("rgplug.data")
    assert len((folder / "robots64.npz").read_bytes()) < 2_000_000
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "Zikri Kader" in text
    assert "creativecommons.org/licenses/by/" in text


def test_write_folder_twice(tmp_path):
    folder = write_folder(tmp_path / "a" / "robots")
    files = sorted(folder.iterdir())
    assert len(files) == 200
    with Image.open(files[7]) as image:
        assert image.format == "PNG"
        assert (np.asarray(image) == robots()[7]).all()
    before = [path.stat().st_mtime_ns for path in files]
    assert write_folder(folder) == folder
    assert [path.stat().st_mtime_ns for path in sorted(folder.iterdir())] == before


def test_an_interrupted_write_is_completed(tmp_path, monkeypatch):
    save, left = Image.Image.save, [3]

    def killed(self, path, **options):
        left[0] -= 1
        if left[0] < 0:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        save(self, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            write_folder(tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 3
    write_folder(tmp_path)
    images = [np.asarray(Image.open(path)) for path in sorted(tmp_path.glob("*.png"))]
    assert (np.stack(images) == robots()).all()
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".png"] == []

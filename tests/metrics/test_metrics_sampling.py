"""Guessing how a generator wants to be called."""

import pytest
import torch
from torch import nn

from rgplug.errors import RgplugError
from rgplug.metrics.sampling import Latent, default_sample_fn, guess_latent, pick_images


class Generator(nn.Module):
    """Linear to an image; attributes and further arguments as a test wants them."""

    def __init__(self, dim: int = 6, **attributes: object) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(dim, 3 * 4 * 4), nn.BatchNorm1d(48))
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.body(z).reshape(-1, 3, 4, 4).tanh()


class Convolutional(nn.Module):
    def __init__(self, nz: int = 5) -> None:
        super().__init__()
        self.main = nn.Sequential(nn.ConvTranspose2d(nz, 8, 4), nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh())

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.main(z)


class Rearranging(Convolutional):
    """Like lightweight-gan: begins with a convolution, but takes [n, z]."""

    def __init__(self) -> None:
        super().__init__()
        self.latent_dim = 5

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        assert z.ndim == 2
        return self.main(z[:, :, None, None])


@pytest.mark.parametrize("name", ["z_dim", "nz", "latent_dim", "dim_z", "latent_size", "noise_dim"])
def test_the_latent_size_comes_from_an_attribute(name):
    assert guess_latent(Generator(**{name: 6})) == Latent(6)
    assert guess_latent(nn.Sequential(Generator(**{name: 6}))) == Latent(6)  # of a child
    assert guess_latent(nn.DataParallel(Generator(**{name: 6}))) == Latent(6)


def test_attributes_that_are_no_sizes_are_passed_over():
    assert guess_latent(Generator(z_dim=None, nz=True, latent_dim=0)) == Latent(6)


def test_the_latent_size_comes_from_the_first_layer():
    assert guess_latent(Generator(7)) == Latent(7)
    assert guess_latent(Convolutional(9)) == Latent(9, spatial=True)
    assert Latent(9, spatial=True).shape(2) == (2, 9, 1, 1)


@pytest.mark.parametrize("first", [nn.Conv2d(3, 8, 3), nn.Embedding(10, 4), nn.BatchNorm2d(3)])
def test_another_first_layer_says_nothing(first):
    with pytest.raises(
        RgplugError, match=r"cannot tell the latent size of Sequential: .* give z_dim, or give sample_fn"
    ):
        guess_latent(nn.Sequential(first))


@pytest.mark.parametrize("generator", [Generator(), Convolutional(), Rearranging(), torch.compile(Generator())])
def test_default_sample_fn_makes_images(generator):
    sample = default_sample_fn(generator.eval())
    assert sample(3).shape[:2] == (3, 3)
    assert not sample(1).requires_grad


def test_the_same_seed_gives_the_same_images_and_skipping_keeps_the_sequence():
    generator = Generator().eval()
    first, second = default_sample_fn(generator, seed=1), default_sample_fn(generator, seed=1)
    three = [first(2), first(3), first(2)]
    assert torch.equal(second(2), three[0])
    second.skip(3)
    assert torch.equal(second(2), three[2])
    assert not torch.equal(default_sample_fn(generator, seed=2)(2), three[0])


def test_latents_are_standard_normal_in_the_generators_dtype():
    z = default_sample_fn(Generator(200).double()).draw(500)
    assert z.dtype == torch.float64
    assert abs(float(z.mean())) < 0.02
    assert abs(float(z.std()) - 1) < 0.02


def test_trying_it_out_leaves_no_trace():
    generator = Generator().train()
    before, state = {n: v.clone() for n, v in generator.state_dict().items()}, torch.get_rng_state()
    default_sample_fn(generator)
    assert all(torch.equal(v, before[n]) for n, v in generator.state_dict().items())
    assert generator.body[1].training
    assert torch.equal(torch.get_rng_state(), state)


def test_a_wrong_z_dim_is_reported_with_the_generators_own_words():
    with pytest.raises(RgplugError, match=r"does not take latents of shape \(2, 5\) \(.*2x5 and 6x48.*give sample_fn"):
        default_sample_fn(Generator(6), z_dim=5)


def test_a_conditional_generator_needs_a_sample_fn():
    class WithLabels(Generator):
        def forward(self, z, y):
            return super().forward(z)

    with pytest.raises(RgplugError, match=r"WithLabels needs 'y' besides its first argument .*; give sample_fn"):
        default_sample_fn(WithLabels())


def test_stylegans_second_argument_is_none_without_classes():
    class WithCondition(Generator):
        def forward(self, z, c, truncation_psi=1):
            assert c is None
            return super().forward(z)

    assert default_sample_fn(WithCondition(z_dim=6, c_dim=0))(2).shape == (2, 3, 4, 4)
    with pytest.raises(RgplugError, match="needs 'c' besides its first argument"):
        default_sample_fn(WithCondition(z_dim=6, c_dim=10))


def test_images_are_found_in_tuples_lists_and_dicts():
    small, large, latent = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 8, 8), torch.zeros(2, 512)
    assert pick_images(small) is small
    assert pick_images((large, latent)) is large
    assert pick_images([large, small]) is large  # FastGAN's two resolutions, in either order
    assert pick_images([small, large]) is large
    assert pick_images({"w": latent, "image": large}) is large
    other = large.clone()
    assert pick_images((large, other)) is large


@pytest.mark.parametrize("output", [torch.zeros(2, 512), (torch.zeros(2, 5, 8, 8),), None, "image", []])
def test_an_output_without_images_is_an_error(output):
    with pytest.raises(RgplugError, match=r"no images \[N, 3, H, W\]; give sample_fn"):
        pick_images(output)

"""Images from a generator that nobody described: find its latent size, call it, find the images in what it returns."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rgplug.errors import RgplugError
from rgplug.metrics.isolation import evaluation_mode, preserved_buffers, preserved_rng
from rgplug.wrappers import unwrap

SampleFn = Callable[[int], Tensor]  # n -> images [n, 3, H, W], float in [-1, 1] or uint8
LATENT_NAMES = ("z_dim", "nz", "latent_dim", "dim_z", "latent_size", "noise_dim")
GIVE = "give sample_fn, a function of n that returns n images"


@dataclass(frozen=True)
class Latent:
    """Shape of one latent vector: (dim,), or (dim, 1, 1) for a generator that starts with a convolution."""

    dim: int
    spatial: bool = False

    def shape(self, n: int) -> tuple[int, ...]:
        """Shape of n of them."""
        return (n, self.dim, 1, 1) if self.spatial else (n, self.dim)


def guess_latent(generator: nn.Module) -> Latent:
    """Latent of a generator, from an attribute named as in LATENT_NAMES (its own first, then its children's), else
    from its first layer with parameters: in_features of a Linear, in_channels of a ConvTranspose2d.

    RgplugError when neither says anything.
    """
    module = unwrap(generator)
    first = next((m for m in module.modules() if next(m.parameters(recurse=False), None) is not None), None)
    convolution = isinstance(first, (nn.ConvTranspose2d, nn.Conv2d))
    for part in module.modules():
        for name in LATENT_NAMES:
            found = getattr(part, name, None)
            if isinstance(found, int) and not isinstance(found, bool) and found > 0:
                return Latent(found, convolution and getattr(first, "in_channels", None) == found)
    if isinstance(first, nn.Linear):
        return Latent(first.in_features)
    if isinstance(first, nn.ConvTranspose2d):
        return Latent(first.in_channels, spatial=True)
    raise RgplugError(
        f"cannot tell the latent size of {type(module).__name__}: it has none of {', '.join(LATENT_NAMES)} and does "
        f"not begin with a Linear or ConvTranspose2d; give z_dim, or {GIVE}"
    )


class LatentSampler:
    """sample_fn over a generator: the same standard normal latents, in the same order, for the same seed.

    They are drawn on the CPU by a torch.Generator of its own. skip(n) leaves out n images, which is how several
    processes share one sequence.
    """

    def __init__(self, generator: nn.Module, latent: Latent, seed: int = 0, extra: tuple[None, ...] = ()) -> None:
        module = unwrap(generator)
        self._generator: Callable[[], nn.Module | None] = lambda: module
        self.latent = latent
        self._extra = extra
        self._random = torch.Generator().manual_seed(seed)

    @property
    def generator(self) -> nn.Module:
        module = self._generator()
        if module is None:
            raise RgplugError("the generator of this sampler does not exist any more")
        return module

    def weakened(self) -> LatentSampler:
        """The sampler itself, which does not keep its generator alive from here on."""
        self._generator = weakref.ref(self.generator)
        return self

    def draw(self, n: int) -> Tensor:
        """The next n latents, with the generator's device and dtype."""
        z = torch.randn(self.latent.shape(n), generator=self._random)
        example = next(self.generator.parameters(), None)
        return z if example is None else z.to(example.device, example.dtype)

    def arguments(self, n: int) -> tuple[Tensor | None, ...]:
        """What the generator's forward is called with for the next n images: (z,), or (z, None)."""
        return (self.draw(n), *self._extra)

    def get_state(self) -> Tensor:
        """Where it is in its sequence of latents."""
        return self._random.get_state()

    def set_state(self, state: Tensor) -> None:
        self._random.set_state(state)

    def skip(self, n: int) -> None:
        """Leave out the next n images."""
        torch.randn(self.latent.shape(n), generator=self._random)

    def __call__(self, n: int) -> Tensor:
        with torch.no_grad():
            return pick_images(self.generator(*self.arguments(n)))


def default_sample_fn(generator: nn.Module, z_dim: int | None = None, seed: int = 0) -> LatentSampler:
    """A sample_fn for an unconditional generator, tried out with two images before it is returned.

    z_dim: latent size, guessed when None. RgplugError (one sentence) for a class-conditional generator, an unknown
    latent size, or an output without images.
    """
    module = unwrap(generator)
    latent = guess_latent(module) if z_dim is None else Latent(z_dim)
    extra = further_arguments(module)
    failure: Exception | None = None
    with evaluation_mode(module), preserved_buffers(module), preserved_rng():
        for spatial in (latent.spatial, not latent.spatial):
            shaped = Latent(latent.dim, spatial)
            try:
                LatentSampler(module, shaped, seed, extra)(2)
            except RgplugError:
                raise
            except Exception as error:  # whatever the host's forward raises; the first layout's is the telling one
                failure = failure or error
            else:
                return LatentSampler(module, shaped, seed, extra)
    raise RgplugError(
        f"{type(module).__name__} does not take latents of shape {latent.shape(2)} ({failure}); give z_dim, or {GIVE}"
    ) from failure


def example_inputs(generator: nn.Module, n: int = 1) -> tuple[tuple[Tensor | None, ...], Tensor]:
    """What a generator's forward can be called with, and the images [n, C, H, W] that it makes of it, for traces of G
    and of D. Modes, buffers and random states stay as they are. RgplugError as in `default_sample_fn`."""
    sampler = default_sample_fn(generator)
    with evaluation_mode(sampler.generator), preserved_buffers(sampler.generator), preserved_rng(), torch.no_grad():
        arguments = sampler.arguments(n)
        return arguments, pick_images(sampler.generator(*arguments))


def further_arguments(module: nn.Module) -> tuple[None, ...]:
    """What forward wants after z, or after the images: nothing, or None where the network says that it has no classes
    (c_dim = 0). RgplugError where it wants more."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p.name for p in parameters if p.kind in positional and p.default is inspect.Parameter.empty][1:]
    classes = getattr(module, "c_dim", 0)
    if classes or needed:
        if not classes and len(needed) == 1 and hasattr(module, "c_dim"):  # StyleGAN2 and 3: G(z, c)
            return (None,)
        wanted = needed[0] if needed else "c"
        raise RgplugError(f"{type(module).__name__} needs {wanted!r} besides its first argument (classes?); {GIVE}")
    return ()


def pick_images(output: Any) -> Tensor:
    """The image tensor [N, 1 or 3, H, W] in a generator's output: a tensor, or the largest of a tuple, list or dict.

    RgplugError when there is none.
    """
    if isinstance(output, Tensor):
        candidates = [output]
    elif isinstance(output, Mapping):
        candidates = [v for v in output.values() if isinstance(v, Tensor)]
    elif isinstance(output, (tuple, list)):
        candidates = [v for v in output if isinstance(v, Tensor)]
    else:
        candidates = []
    images = [c for c in candidates if c.ndim == 4 and c.shape[1] in (1, 3) and min(c.shape[2:]) > 1]
    if not images:
        found = [tuple(c.shape) for c in candidates] or type(output).__name__
        raise RgplugError(f"the generator returned {found}, no images [N, 3, H, W]; {GIVE}")
    return max(images, key=lambda i: i.shape[2] * i.shape[3])  # the first of equals

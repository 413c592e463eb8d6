"""FastGAN (odegeasslbc/FastGAN-pytorch as its author published it).

    from rgplug.adapters import fastgan
    fastgan.install(policy="rg-gan.yaml")              # at module top level of train.py, after its imports

train.py imports its helpers by name, so the names in train.py are what is wrapped:

  networks built      models.Generator and .Discriminator: attached when D is there, before weights_init, the averaged
                      list, Adam, --ckpt and DataParallel
  get_dir(args)       the run folder, the training images, the batch size
  copy_G_params       its first result is the moving average, a list in the order of G's parameters
  zip(..., average)   the host's update of the average: under a method with a sparse moving average (STU-GAN) managed
                      weights come out as its Eq. 5 has them
  load_params         the average swapped into G for images and saves: wears G's live mask there
  torch.save          all_N.pth: the average in it wears the mask; a sidecar beside it (models/N.pth holds G_ema alone)
  torch.load          --ckpt: the sidecar, and what the mask hid of the average
  tqdm(range(...))    the end of an iteration. The host measures nothing, so rgplug does, every `every` iterations: the
                      Frechet distance of the averaged generator to the training folder. The generator is sampled in
                      training mode, as the host's own images and its eval.py do. Random states and buffers are left as
                      they were
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rgplug.adapters.hosting import Adapter, Host, Patches
from rgplug.adapters.run import Run
from rgplug.errors import RgplugError
from rgplug.policy import ENVIRONMENT, SEED, MetricPolicy, Policy

HOST = Host("FastGAN", "1a848e5")
_adapter = Adapter(HOST)


def install(policy: Any = "rg-gan", *, every: int | None = None) -> None:
    """Train with rgplug from here on.

    policy: as for rgplug.attach; without `metric`, the training folder is what the generator is compared with. every:
    iterations between two evaluations; default ten times the host's --save_interval, which is when it draws images.
    Raises RgplugError where the code is not the host's.

    The host has no option for a seed. In a run of a comparison (environment variable RGPLUG_SEED) everything random is
    seeded here, and so is the order of its images, which it draws anew by the clock in each epoch otherwise.
    """
    if every is not None and every < 1:
        raise RgplugError(f"install(every={every}) has to be a number of iterations, 1 or more")
    frame = inspect.currentframe()
    caller = frame.f_back.f_globals if frame is not None and frame.f_back is not None else {}
    _adapter.install(policy, lambda patches, loaded: _hook(patches, loaded, every, caller), every=every)


def uninstall() -> None:
    """Undo `install`."""
    _adapter.uninstall()


def _hook(patches: Patches, policy: Policy, every: int | None, script: dict[str, Any]) -> str:
    models = HOST.seam("models")
    operation = HOST.seam("operation")
    for name in ("Generator", "Discriminator", "weights_init"):
        HOST.seam("models", name)
    for name in ("get_dir", "copy_G_params", "load_params"):
        if script.get(name) is not HOST.seam("operation", name):
            raise HOST.unknown(f"train.py does not import {name} from operation before install()")
    if not callable(script.get("tqdm")):
        raise HOST.unknown("train.py has no tqdm around its iterations")
    session = _Session(policy, every)
    seed = os.environ.get(SEED)
    if seed is not None:
        HOST.seam("operation", "InfiniteSampler")
        patches.wrap(operation, "InfiniteSampler", lambda original: _seeded(int(seed)))

    def built(label: str) -> Callable[[Any], Any]:
        def make(original: Any) -> Any:
            @functools.wraps(original)
            def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
                original(self, *args, **kwargs)
                session.run.network(label, self)

            return __init__

        return make

    def folder(original: Any) -> Any:
        def get_dir(args: Any) -> Any:
            folders = original(args)
            session.begin(args)
            return folders

        return get_dir

    def copies(original: Any) -> Any:
        def copy_G_params(model: nn.Module) -> list[Tensor]:
            if session.average is not None:  # live weights are put aside: from here on they may not change
                session.run.meet_target()
            made: list[Tensor] = original(model)
            session.copied(made)
            return made

        return copy_G_params

    def loads(original: Any) -> Any:
        def load_params(model: nn.Module, new_param: Any) -> None:
            if new_param is session.average:
                with session.run.masked_ema():
                    original(model, new_param)
            else:
                original(model, new_param)

        return load_params

    def pairs(original: Any) -> Any:
        def zipped(*iterables: Any, **kwargs: Any) -> Any:
            made = original(*iterables, **kwargs)
            updates = len(iterables) == 2 and iterables[1] is session.average
            return session.averaged(made) if updates else made

        return zipped

    def save(original: Any) -> Any:
        def saved(what: Any, file: Any, *args: Any, **kwargs: Any) -> Any:
            if not _is_checkpoint(what) or what["g_ema"] is not session.average:
                return original(what, file, *args, **kwargs)
            with session.run.masked_ema():
                result = original(what, file, *args, **kwargs)
                session.run.write_sidecar(file)
            return result

        return saved

    def load(original: Any) -> Any:
        def loaded(file: Any, *args: Any, **kwargs: Any) -> Any:
            what = original(file, *args, **kwargs)
            if _is_checkpoint(what) and session.run.rg is not None and isinstance(file, (str, Path)):
                session.resume(file, what["g_ema"])
            return what

        return loaded

    def progress(original: Any) -> Any:
        def tqdm(iterable: Iterable[Any], *args: Any, **kwargs: Any) -> Any:
            bar = original(iterable, *args, **kwargs)
            return session.iterations(bar) if isinstance(iterable, range) else bar

        return tqdm

    patches.wrap(models.Generator, "__init__", built("G"))
    patches.wrap(models.Discriminator, "__init__", built("D"))
    for owner in (script, operation):
        patches.wrap(owner, "get_dir", folder)
        patches.wrap(owner, "copy_G_params", copies)
        patches.wrap(owner, "load_params", loads)
    patches.shadow(script, "zip", pairs)
    patches.wrap(script, "tqdm", progress)
    patches.wrap(torch, "save", save)
    patches.wrap(torch, "load", load)
    return "networks, averages, saves, --ckpt, iterations"


def _is_checkpoint(what: Any) -> bool:
    return isinstance(what, dict) and {"g", "d", "g_ema", "opt_g", "opt_d"} <= set(what)


def _seeded(seed: int) -> Callable[[int], Iterator[int]]:
    """Seeds everything random, and gives an order of images that goes through all of them, epoch by epoch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002, the host draws from it
    torch.manual_seed(seed)

    def orders(images: int) -> Iterator[int]:
        generator = np.random.default_rng(abs(seed))
        while True:
            yield from generator.permutation(images).tolist()

    return orders


class _Session:
    """The run of the host's train.py in this process."""

    def __init__(self, policy: Policy, every: int | None):
        self.run = Run(policy)
        self.every = every
        self.image_size = 256
        self.average: list[Tensor] | None = None

    def begin(self, args: Any) -> None:
        """The host's options are known; the networks are not built yet."""
        self.every = self.every or 10 * int(args.save_interval)
        self.image_size = int(args.im_size)
        policy = self.run.policy
        if policy.batch_size is None:
            policy = dataclasses.replace(policy, batch_size=int(args.batch_size))
        compared = ENVIRONMENT in os.environ  # then methods that decide nothing from it are measured too
        if policy.metric is None and (compared or policy.regeneration.augmented is not None):
            if "lmdb" in args.path:
                raise RgplugError(
                    f"{args.path} is an lmdb, which rgplug does not read; name a folder of the same images in the "
                    "policy (metric: {real: FOLDER}), or switch augmented regeneration off"
                )
            policy = dataclasses.replace(policy, metric=MetricPolicy(real=args.path))
        self.run.policy = policy
        self.run.in_folder(Path(args.output_path) / "train_results" / args.name)

    def copied(self, made: list[Tensor]) -> None:
        if self.average is None:
            self._averages(made)

    def resume(self, checkpoint: str | Path, average: list[Tensor]) -> None:
        self.run.resume(checkpoint)
        self._averages(average)
        self.run.resume_ema()

    def _averages(self, average: list[Tensor]) -> None:
        self.average = average
        self.run.averages(lambda: average)

    def averaged(self, pairs: Iterable[Any]) -> Iterator[Any]:
        """The pairs of G's parameters and their averages, which the host's loop over them updates."""
        with self.run.averaging():
            yield from pairs

    def iterations(self, bar: Iterable[int]) -> Iterator[int]:
        """The host's iterations, with an evaluation after every `every`-th."""
        run, size = self.run, self.image_size
        G = run.networks["G"]
        on = {"device": next(G.parameters()).device}
        run.count_flops(
            lambda: (torch.zeros(1, _latent_size(G), **on),), lambda: (torch.zeros(1, 3, size, size, **on), "fake")
        )
        run.controller.resume_phase()
        try:
            for i in bar:
                yield i
                if i > 0 and i % (self.every or 1) == 0:
                    self._evaluate()
        finally:
            self.run.close()

    def _evaluate(self) -> None:
        run = self.run
        if run.policy.metric is None:
            run.evaluated({})
        else:
            run.evaluated({}, ema=self.average, sample_fn=self._sample)

    def _sample(self, n: int) -> Tensor:
        """Images of the network as the host draws them: in training mode (its batch norms use the batch)."""
        G: Any = self.run.networks["G"]
        G.train()
        device = next(G.parameters()).device
        with torch.no_grad():
            images: Tensor = G(torch.randn(n, _latent_size(G), device=device))[0]
        return images


def _latent_size(G: nn.Module) -> int:
    """Channels of the first transposed convolution."""
    first = next(m for m in G.modules() if isinstance(m, nn.ConvTranspose2d))
    return int(first.in_channels)

"""Context managers after which a training run cannot tell that it was interrupted."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from rgplug.errors import RgplugError
from rgplug.wrappers import plain_tensors, tensors_of

Weights = Mapping[str, Tensor] | Sequence[Tensor]


@contextmanager
def preserved_rng(seed: int | None = None) -> Iterator[None]:
    """Restore the global random states of python, numpy and torch (CPU, CUDA, MPS) afterwards; seed them if asked."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002 - hosts use the global state
            torch.default_generator.manual_seed(seed)  # not torch.manual_seed: it reaches a GPU not yet initialised
            if cuda is not None:
                torch.cuda.manual_seed_all(seed)
            if mps is not None:
                torch.mps.manual_seed(seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)


@contextmanager
def evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    """`eval()` on the modules; afterwards every sub-module has its own `training` flag back."""
    flags = [(m, m.training) for module in modules for m in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for m, training in flags:
            m.training = training  # not .train(): hosts override it


@contextmanager
def preserved_buffers(*modules: nn.Module) -> Iterator[None]:
    """Restore buffers, bit for bit and as the same tensor objects, and tensors that are plain attributes.

    The latter are what torch.nn.utils.spectral_norm leaves in `module.weight`: recomputed, not changed in place.
    """
    parts = [m for module in modules for m in module.modules()]
    buffers = [(m, n, b, b.detach().clone()) for m in parts for n, b in m._buffers.items() if b is not None]
    plain = [(m, n, v) for m in parts for n, v in vars(m).items() if isinstance(v, Tensor)]
    try:
        yield
    finally:
        for m, name, buffer, saved in buffers:
            buffer.data.copy_(saved)
            m._buffers[name] = buffer
        for m, name, value in plain:
            m.__dict__[name] = value


@contextmanager
def preserved_hooks(*modules: nn.Module) -> Iterator[None]:
    """Forward hooks as they were: a trace that fails half-way leaves its own behind, and they cannot be pickled."""
    parts = [m for module in modules for m in module.modules()]
    tables = [(table, dict(table)) for m in parts for table in (m._forward_hooks, m._forward_pre_hooks)]
    try:
        yield
    finally:
        for table, kept in tables:
            if list(table) != list(kept):
                table.clear()
                table.update(kept)


@contextmanager
def swapped_weights(module: nn.Module, weights: Weights) -> Iterator[None]:
    """Put `weights` into a module and its own values back afterwards, bit for bit.

    weights: a state dict (also of parameters only, also of a wrapper: DDP, AveragedModel, torch.compile), or a list of
    tensors in the order of module.parameters() (or of those that require a gradient). Values are copied, so
    addresses stay; `.data` is written, so no autograd graph that the host still holds is invalidated.
    """
    pairs = aligned(module, weights)
    saved = [target.detach().clone() for target, _ in pairs]
    try:
        for target, value in pairs:
            target.data.copy_(value)
        yield
    finally:
        for (target, _), value in zip(pairs, saved):
            target.data.copy_(value)


def aligned(module: nn.Module, weights: Weights) -> list[tuple[Tensor, Tensor]]:
    """(tensor of the module, value) pairs; RgplugError when names, number or shapes do not fit."""
    own, given = plain_tensors(module), tensors_of(weights, module)
    if isinstance(weights, Mapping):
        unknown = sorted(set(given) - set(own))
        lent = {id(own[n]) for n in given if n in own}  # a tied tensor may be given under any of its names
        missing = sorted(n for n, p in own.items() if p.requires_grad and id(p) not in lent)
        if unknown or missing:
            what = f"has no {missing[0]!r}" if missing else f"has {unknown[0]!r}, which the generator has not"
            raise RgplugError(f"ema: the state dict {what}; give a state dict of the generator")
    pairs = [(own[n], v) for n, v in given.items()]
    for target, value in pairs:
        if target.shape != value.shape:
            raise RgplugError(f"ema: a tensor {tuple(value.shape)} where the generator has {tuple(target.shape)}")
    return pairs

"""Trained-looking generators of the papers, pruned by whole channels, by entries, or with one layer left empty."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from model_dcgan import Generator as DCGANGenerator
from model_fastgan import FastGAN
from model_stylegan2 import StyleGAN2
from sngan import SNGANGenerator
from test_hosts import host
from torch import Tensor, nn

from rgplug.channels import filter_channels
from rgplug.policy import NetworkPolicy
from rgplug.select import select

Made = tuple[nn.Module, Callable[[int], tuple[Any, ...]]]  # generator, n -> what its forward takes


def latents(dim: int, *rest: Callable[[int], Any]) -> Callable[[int], tuple[Any, ...]]:
    return lambda n: (torch.randn(n, dim), *(make(n) for make in rest))


def sngan() -> Made:
    return SNGANGenerator(8, 6), latents(6)


def dcgan() -> Made:
    return DCGANGenerator(6, 8), latents(6)


def lightweight() -> Made:
    training = FastGAN()
    return training.nets["G"], latents(training.z_dim)


def stylegan2() -> Made:
    training = StyleGAN2()
    G = training.nets["G"]
    G.z_dim = training.z_dim  # type: ignore[assignment]
    return G, latents(training.z_dim)


def official(name: str) -> AbstractContextManager[None]:
    """A checkout on the import path, its modules forgotten afterwards; the test is skipped where there is none."""
    if not os.environ.get("RGPLUG_HOSTS"):
        pytest.skip("RGPLUG_HOSTS names no folder of checkouts")
    return host(name)


def official_fastgan() -> Made:
    with official("fastgan"):
        from models import Generator

        return Generator(ngf=4, nz=6, im_size=256), latents(6)


def official_stylegan2() -> Made:
    with official("stylegan2-ada"):
        from training.networks import Generator

        sizes = {"mapping_kwargs": {"num_layers": 2}, "synthesis_kwargs": {"channel_base": 128, "channel_max": 8}}
        G = Generator(z_dim=8, c_dim=0, w_dim=8, img_resolution=16, img_channels=3, **sizes)
        return G.requires_grad_(True), latents(8, lambda n: torch.zeros(n, 0))


MODELS: dict[str, Callable[[], Made]] = {
    "sngan": sngan,
    "dcgan": dcgan,
    "lightweight-gan": lightweight,
    "stylegan2": stylegan2,
    "official fastgan": official_fastgan,
    "official stylegan2": official_stylegan2,
}
NOISY = ("lightweight-gan", "stylegan2", "official fastgan", "official stylegan2")  # gains and biases go with a filter
NORMED = ("official fastgan",)  # spectral norm divides by 0 where a layer is empty


def made(name: str) -> Made:
    """A generator with weights, biases, gains, noise and running statistics that look trained; in eval mode."""
    torch.manual_seed(0)
    G, inputs = MODELS[name]()
    with torch.no_grad():
        for p in G.parameters():
            p.add_(0.1 * torch.randn_like(p))
        G.train()
        for _ in range(3):
            G(*inputs(4))
    return G.eval(), inputs


@torch.no_grad()
def prune_channels(G: nn.Module, inputs: tuple[Any, ...], density: float, vectors: bool) -> int:
    """Zero all filters of random channels, of each layer at least one stays; returns how many channels went."""
    found = {c.name: c for c in select(G, NetworkPolicy(vectors=vectors), "G") if not c.reason}
    channels = filter_channels(G, inputs, {n: c.layout for n, c in found.items() if c.layout is not None})
    score = torch.rand(1 + max(int(ids.max()) for ids in channels.of.values()))
    gone: set[int] = set()
    for ids in channels.of.values():
        own = ids.unique()
        gone |= set(own[score[own] > density].tolist()) - {int(own[score[own].argmin()])}
    for name, ids in channels.of.items():
        candidate = found[name]
        assert candidate.layout is not None
        kept = torch.tensor([i not in gone for i in ids.tolist()], dtype=torch.float32)
        candidate.param.mul_(candidate.layout.expand(kept))
    return len(gone)


@torch.no_grad()
def prune_entries(G: nn.Module, density: float) -> None:
    for c in select(G, NetworkPolicy(), "G"):
        if not c.reason:
            c.param.mul_((torch.rand_like(c.param) < density).float())


@torch.no_grad()
def empty_layer(G: nn.Module) -> str:
    """The weight in the middle of the network, all zero; its name."""
    found = [c for c in select(G, NetworkPolicy(), "G") if not c.reason and "affine" not in c.name]
    chosen = found[len(found) // 2]
    chosen.param.zero_()
    return chosen.name


@torch.no_grad()
def images(G: nn.Module, arguments: tuple[Any, ...], batch: int = 250) -> Tensor:
    """What G makes of the same latents and the same noise, the largest output of several, flattened."""
    torch.manual_seed(1)
    parts = []
    for i in range(0, len(arguments[0]), batch):
        out = G(*(a[i : i + batch] for a in arguments))
        parts.append(torch.cat([x.flatten(1) for x in (out if isinstance(out, (list, tuple)) else [out])], 1))
    return torch.cat(parts)

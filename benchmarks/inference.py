"""Speed of generators with half of their weights pruned, as whole filters that are taken out and singly.

    RGPLUG_HOSTS=FOLDER python -m benchmarks.inference [--rounds 10]

SNGAN's generator (256 channels, 32x32) and FastGAN's (ngf 64, 256x256) as published, or lightweight-gan's where
RGPLUG_HOSTS names no checkout. All forms take turns in one process; reported are ratios of medians. Spectral norm is
folded into the weights in all of them, since that alone makes a generator faster; what it costs as trained is told too.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import rgplug
from rgplug.channels import plain_copy
from rgplug.examples.sngan import Generator
from rgplug.export import compact
from rgplug.export.measure import alternating_medians
from rgplug.inspection import import_file
from rgplug.metrics import layer_macs, pick_images

BATCHES = (1, 16)
STEPS = 3  # of RG-GAN, under a target of half the weights


def sngan() -> tuple[nn.Module, int]:
    """(generator, latent size)."""
    return Generator(256), 128


def fastgan() -> tuple[nn.Module, int]:
    """The official generator, or lightweight-gan's."""
    folder = os.environ.get("RGPLUG_HOSTS")
    models = Path(folder).expanduser() / "FastGAN-pytorch" / "models.py" if folder else None
    if models is not None and models.is_file():
        return import_file(models).Generator(ngf=64, nz=256, im_size=256), 256
    with mock.patch("torch.cuda.is_available", return_value=True):  # its import asserts that there is a GPU
        module = importlib.import_module("lightweight_gan.lightweight_gan")
    return module.Generator(image_size=256, latent_dim=256, attn_res_layers=[]), 256


GENERATORS: dict[str, Callable[[], tuple[nn.Module, int]]] = {"SNGAN, 32x32": sngan, "FastGAN, 256x256": fastgan}


def trained(network: nn.Module, z: Tensor, granularity: str) -> nn.Module:
    """A baked copy after some steps of RG-GAN that prune half of the weights, in units of this granularity."""
    G = copy.deepcopy(network).train()
    target = {"G": 0.5, "start": 0, "by": 1, "shape": "constant"}
    policy: dict[str, Any] = {
        "base": "rg-gan",
        "threshold.units": "layer_std",
        "granularity": granularity,
        "target": target,
    }
    if (
        granularity == "filter"
    ):  # gains and biases go with their filter, or FastGAN's noise would still be in the channel
        policy["networks"] = {"G": {"vectors": True}}
    rg = rgplug.attach(G, None, policy)
    optimizer = torch.optim.Adam(G.parameters(), 2e-4, betas=(0.5, 0.999))
    for _ in range(STEPS):
        optimizer.zero_grad()
        pick_images(G(z)).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        G(z)  # a spectral norm's computed weight has no graph then, and can be copied
    baked = rg.export()
    rg.detach()
    return baked


def measure(make: Callable[[], tuple[nn.Module, int]], rounds: int) -> dict[str, float]:
    """Milliseconds of the dense generator, ratios of the others' to it, and shares of its parameters and MACs."""
    torch.manual_seed(0)
    network, dim = make()
    z = torch.randn(4, dim)
    with torch.no_grad():
        for _ in range(10):  # norms and power iterations find their values
            network.train()(z)
    stock = copy.deepcopy(network).eval().requires_grad_(False)
    dense = plain_copy(stock, (z,))
    small = compact(trained(network, z, "filter"), (z,))
    forms = {
        "dense": dense,
        "as trained": stock,
        "single weights": plain_copy(trained(network, z, "weight"), (z,)),
        "whole filters": small.network,
    }
    found: dict[str, float] = {"channels removed": small.removed}
    for batch in BATCHES:
        latents = torch.randn(batch, dim)
        with torch.no_grad():
            medians = alternating_medians({name: partial(f, latents) for name, f in forms.items()}, rounds)
        found[f"dense, ms, batch {batch}"] = medians["dense"]
        for name in list(forms)[1:]:
            found[f"{name}, batch {batch}"] = medians["dense"] / medians[name]
    counts: dict[str, tuple[int, float]] = {
        name: (sum(p.numel() for p in f.parameters()), layer_macs(f, z).total) for name, f in forms.items()
    }
    for index, what in enumerate(("parameters", "MACs")):
        found[f"{what} left"] = counts["whole filters"][index] / counts["dense"][index]
    return found


def run(rounds: int = 10) -> dict[str, dict[str, float]]:
    """Generator -> what `measure` returns; speeds are times of the dense generator over times of a form."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the hosts' older spectral norm is deprecated
        return {name: measure(make, rounds) for name, make in GENERATORS.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="timed calls of each form and batch")
    values: dict[str, Any]
    for name, values in run(parser.parse_args().rounds).items():
        print(name, {k: round(v, 3) for k, v in values.items()})

"""Crafted files with right checksums: each is refused with one sentence, or loads and then trains.

500 files by default; RGPLUG_FUZZ=N tries N others.
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from common import Host, different, snapshot
from fuzzed_files import mutate
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import rgplug
from rgplug.errors import RgplugError
from rgplug.export import compact, load_compact, load_sparse, save_compact

CASES = int(os.environ.get("RGPLUG_FUZZ", "500"))
GROWS = {"every": 1, "end": 100, "networks": ["G", "D"]}
POLICIES: dict[str, dict[str, Any]] = {
    "thresholds": {"sparsity_weight": 1e-2, "threshold": {"init": 0.05}, "target": {"G": 0.5, "D": 0.5, "by": 6}},
    "layer_std": {"sparsity_weight": 1e-2, "threshold": {"init": 0.05, "units": "layer_std"}},
    "spectral": {"sparsity_weight": 1e-2, "threshold": {"init": 0.05, "units": "spectral"}, "granularity": "kernel"},
    "filters": {"sparsity_weight": 1e-2, "threshold": {"init": 0.05}, "granularity": {"G": "filter"}},
    "loss": {"sparsity_weight": 1e-2, "regularization": "loss", "threshold": {"networks": ["G"]}},
    "random": {"method": "sparse", "masks.density": 0.3, "exploration": {**GROWS, "grow": "random"}},
    "gradient": {"method": "sparse", "masks.density": 0.3, "exploration": {**GROWS, "grow": "gradient"}},
    "momentum": {"method": "sparse", "masks.density": 0.3, "exploration": {**GROWS, "grow": "momentum"}},
    "balance": {"method": "sparse", "masks.density": 0.3, "balance": {"every": 1, "measure": 1, "window": 2}},
    "re-gan": {"method": "re-gan", "cycle": {"warm_up": 0, "period": 2, "networks": ["G", "D"]}},
    "dense": {"method": "dense"},
}
OTHERS = ("start", "masks", "sparse file", "compact file")
KINDS = [*POLICIES, *OTHERS]


def trained(policy: Any, steps: int = 2, load: Callable[[rgplug.Controller], None] | None = None) -> rgplug.Controller:
    """A controller whose pair has made some steps, and an evaluation, after `load` where that is given."""
    host = Host()
    rg = rgplug.attach(host.G, host.D, policy)
    try:
        rg.observe(host.data.x(0), host.data.z(0))
        if load is not None:
            load(rg)
        host.run(steps)
        rg.end_epoch(3.0)
        host.run(1)
        rg.end_epoch(4.0)
        rg.state_dict()
        str(rg)
    finally:
        rg.detach()
    return rg


def loads(policy: Any, path: Path) -> None:
    def load(rg: rgplug.Controller) -> None:
        before = snapshot(rg)
        try:
            rg.load(path)
        except RgplugError:
            assert not different(snapshot(rg), before), "something was changed before the file was refused"
            assert rg.epoch == 0
            raise

    trained(policy, load=load)


class Plain(nn.Sequential):
    """A generator from 8 numbers to 4x4 images, with two channels that are pruned."""

    def __init__(self) -> None:
        super().__init__(
            nn.Linear(8, 6 * 16), nn.Unflatten(1, (6, 4, 4)), nn.Conv2d(6, 6, 3, 1, 1), nn.BatchNorm2d(6), nn.ReLU(),
            nn.Conv2d(6, 3, 3, 1, 1),
        )  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A valid file of each kind."""
    folder = tmp_path_factory.mktemp("valid")
    found = {kind: folder / kind for kind in KINDS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind, policy in POLICIES.items():
            host = Host()
            rg = rgplug.attach(host.G, host.D, policy)
            rg.observe(host.data.x(0), host.data.z(0))
            host.run(3)
            rg.end_epoch(3.0)
            rg.save(found[kind])
            if kind == "filters":
                rg.snapshot(found["start"])
            rg.detach()
        host = Host()
        rg = rgplug.attach(host.G, host.D, POLICIES["gradient"])
        masks = {k: {w.name: w.mask for w in net.weights} for k, net in rg.networks.items()}
        rgplug.snapshot.save_masks(found["masks"], masks)
        rg.export(found["sparse file"])
        torch.manual_seed(0)
        G = Plain().eval()
        with torch.no_grad():
            for tensor in (G[2].weight, G[2].bias, G[3].weight, G[3].bias):
                tensor[:2] = 0
        save_compact(found["compact file"], compact(G))
    return found


def use(kind: str, path: Path) -> None:
    if kind in POLICIES:
        loads(POLICIES[kind], path)
    elif kind == "start":
        trained({"sparsity_weight": 1e-2, "start": {"weights": str(path), "optimizers": True}})
    elif kind == "masks":
        trained({"method": "sparse", "masks": {"file": str(path)}})
    elif kind == "sparse file":
        G = Host().G
        load_sparse(path, G)(torch.randn(2, 6))
    else:
        G = Plain()
        load_compact(path, G)(torch.randn(2, 8))


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_are_valid(files: dict[str, Path], kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        use(kind, files[kind])


@settings(max_examples=CASES, deadline=None, database=None, derandomize=CASES == 500)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32))
def test_a_crafted_file_is_refused_or_trains(files: dict[str, Path], kind: str, seed: int) -> None:
    path = files[kind].with_name("crafted")
    changes = mutate(files[kind], path, random.Random(seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            use(kind, path)
        except RgplugError as error:
            refusal = str(error)
        except Exception as error:
            raise AssertionError(f"{kind} {changes}: {type(error).__name__}: {error}") from error
        else:
            return
    assert "\n" not in refusal

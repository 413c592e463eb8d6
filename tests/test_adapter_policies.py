"""The example policies on the repositories that they are written for: attached to the real networks and trained."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_adapter_biggan as biggan
import test_adapter_biggan_pytorch as biggan_pytorch
import test_adapter_fastgan as fastgan
import test_adapter_stylegan2 as stylegan2
from host_runs import HostRun, cifar, folder, history, shapes
from test_hosts import host as imported

import rgplug
from rgplug.policy import Policy

pytestmark = pytest.mark.host
POLICIES = Path(__file__).parent.parent / "examples" / "policies"
# the policies' own settings are for whole runs; here a run has nine iterations
SHORT: dict[str, dict[str, Any]] = {
    "": {"target": {"by": 3}},
    "_stu_gan": {"exploration": {"every": 3}},
    "_re_gan": {"cycle": {"warm_up": 3, "period": 100}},
}
DENSITIES = {"": {"G": 0.5, "D": 0.7}, "_stu_gan": {"G": 0.1, "D": 0.3}}


def train_stylegan2(host: str, where: Path, policy: dict[str, Any]) -> Path:
    run = HostRun(host, where / "run", {"RGPLUG_TEST_TICK": "4", "RGPLUG_TEST_ITERATIONS": "9"})
    stylegan2.train(run, run.script("train.py", policy), shapes(where, 32))
    return stylegan2.last_folder(run)


def train_biggan(host: str, where: Path, policy: dict[str, Any]) -> Path:
    run = HostRun(host, where / "run")
    biggan.train(run, run.script("train.py", policy), cifar(where), "--num_epochs=2", "--test_every=4")
    return run.where / "base" / "logs" / "t"


def train_biggan_pytorch(host: str, where: Path, policy: dict[str, Any]) -> Path:
    run = HostRun(host, where / "run")
    biggan_pytorch.train(run, run.script("train.py", policy), cifar(where), "--num_epochs=1")
    return run.where / "base" / "logs" / "t"


def train_fastgan(host: str, where: Path, policy: dict[str, Any]) -> Path:
    data = shapes(where, 256)
    run = HostRun(host, where / "run")
    policy = {**policy, "metric": {"real": str(data), "distance": ["frechet", "kid"], **fastgan.METRIC}}
    fastgan.train(run, run.script("train.py", policy, every=4), data, "--iter=8")
    return run.where / "out" / "train_results" / "t"


HOSTS: dict[str, tuple[str, Callable[[str, Path, dict[str, Any]], Path]]] = {
    "stylegan2-ada": ("stylegan2_ada", train_stylegan2),
    "diffaugment-stylegan2": ("stylegan2_ada", train_stylegan2),
    "biggan": ("diffaugment_biggan", train_biggan),
    "biggan-pytorch": ("diffaugment_biggan", train_biggan_pytorch),
    "fastgan": ("fastgan", train_fastgan),
}
MEASURED = {
    "stylegan2_ada": ["fid50k_full"],
    "diffaugment_biggan": ["FID", "IS_mean", "IS_std"],
    "fastgan": ["fd_efficientnet_lite0", "kid_efficientnet_lite0"],
}


@pytest.mark.parametrize("method", list(SHORT))
@pytest.mark.parametrize("host", list(HOSTS))
def test_the_policy_trains_its_host(host: str, method: str, tmp_path: Path) -> None:
    folder(host)
    name, train = HOSTS[host]
    path = POLICIES / f"{name}{method}.yaml"
    record = history(train(host, tmp_path, {"base": str(path), **SHORT[method]}))[-1]
    assert record["steps"]["G"] >= 8
    assert not record["written"]
    policy = Policy.load(path)
    for label, wanted in (DENSITIES.get(method) or {"G": 1 - policy.cycle.sparsity}).items():
        assert record["density"][label] == pytest.approx(wanted, abs=0.02), label
    if method == "_re_gan":
        assert record["density"]["D"] == 1  # D trains dense
    assert list(record["metrics"]) == MEASURED[name]
    layers = set(record["layers"]["G"])
    assert layers
    assert not any("torgb.weight" in n or n.startswith("to_") or ".bn1." in n or ".bn2." in n for n in layers)


@pytest.mark.parametrize("model", ["BigGAN", "BigGANdeep"])
@pytest.mark.parametrize("method", ["", "_stu_gan", "_re_gan"])
def test_gains_of_norms_are_left_out_in_both_models(model: str, method: str) -> None:
    """Class-conditional norms are linear layers; the deep model has four of them in a block, the other two."""
    with imported("biggan-pytorch"):
        module = importlib.import_module(model)
        common = {"resolution": 32, "n_classes": 10, "skip_init": True}
        G = module.Generator(G_ch=8, dim_z=16, G_attn="0", no_optim=True, **common)
        D = module.Discriminator(D_ch=8, D_attn="0", **common)
        rg = rgplug.attach(G, D, POLICIES / f"diffaugment_biggan{method}.yaml")
        assert {w.name for w in rg.weights("G") if ".conv" not in w.name} == {"linear.weight", "output_layer.2.weight"}
        rg.detach()

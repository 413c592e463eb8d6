"""What can be known before a run is said at attach, and the networks stay as they were."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from common import adam, linear, set_grad, sgd
from PIL import Image
from torch import nn

import rgplug
from rgplug import RgplugError
from rgplug.metrics import inception


def refused(policy: dict[str, Any], match: str, optimizers: Any = None) -> None:
    G = linear([[1.0, 2.0], [3.0, 4.0]])
    before = copy.deepcopy(G.state_dict())
    with pytest.raises(RgplugError, match=match) as error:
        rgplug.attach(G, policy=policy, optimizers=optimizers)
    assert "\n" not in str(error.value)
    assert type(G) is nn.Linear
    assert all(torch.equal(value, before[key]) for key, value in G.state_dict().items())
    rgplug.attach(G).detach()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"learning_rate": 0.1}, "learning_rate is no setting of any optimizer of torch.optim.*optimizers="),
        ({"lr": "fast"}, "lr is 'fast'; it has to be a finite number"),
        ({"lr": "1e-3"}, "lr is '1e-3'; it has to be a finite number"),
        ({"lr": float("inf")}, "lr is inf; it has to be a finite number"),
        ({"lr": -1}, "does not take these settings .*Invalid learning rate"),
        ({"betas": [0.5, 2]}, "does not take these settings .*Invalid beta"),
        ({"betas": 0.5}, "does not take these settings"),
        ({"lr": [0.1]}, "does not take these settings"),
        ({"lr": 10**400}, "lr is a whole number of 1329 bits"),
        ({"weight_decay": 0.1}, "weight_decay has no effect"),
        ({"betas": [0.5, 0.9], "momentum": 0.5, "dampening": 0.1}, "no optimizer has the settings"),
        ({"lr": {"G": 0.1}}, "lr is {'G': 0.1}"),
    ],
)
def test_settings_of_the_thresholds_optimizer(settings: dict[str, Any], sentence: str) -> None:
    refused({"threshold": {"optimizer": settings}}, rf"policy\.threshold\.optimizer.*{sentence}")


def test_settings_are_those_of_the_class_where_it_is_given() -> None:
    G = linear([[1.0]])
    betas = {"threshold": {"optimizer": {"betas": [0.5, 0.9]}}}
    refused(betas, r"betas is no setting of SGD", sgd(G))
    rgplug.attach(G, policy=betas, optimizers=[adam(G)]).detach()

    class Mine(torch.optim.SGD):
        def __init__(self, params: Any, lr: float = 0.1, warmth: float = 0.0):
            super().__init__(params, lr)

    own = {"threshold": {"optimizer": {"warmth": 1.0}}}
    refused(own, r"warmth is no setting of any optimizer of torch.optim")
    rgplug.attach(G, policy=own, optimizers=Mine(G.parameters())).detach()


def test_a_rate_of_yaml_is_the_thresholds_rate(tmp_path: Path) -> None:
    """1e-3 is text in YAML 1.1."""
    path = tmp_path / "policy.yaml"
    path.write_text("threshold: {optimizer: {lr: 5e-1}, task_gradient: false}\nsparsity_weight: 2.5e-1\n")
    G = linear([[100.0]])
    opt = sgd(G, lr=1.0)
    rg = rgplug.attach(G, policy=path)
    set_grad(G, 0.0)
    opt.step()
    assert rg.weights("G")[0].threshold.item() == 0.125


def folder_of_images(path: Path) -> Path:
    path.mkdir()
    Image.new("RGB", (4, 4)).save(path / "a.png")
    return path


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda p: p / "nowhere", "does not exist"),
        (lambda p: p, r"holds no \.png"),
        (lambda p: (p / "x.txt").write_text("x") and p / "x.txt", "neither a folder nor"),
        (lambda p: (p / "x.png").write_text("x") and p, "cannot read .*x.png"),
        (lambda p: (p / "x.npz").write_text("x") and p / "x.npz", "cannot read"),
        (lambda p: np.savez(p / "x.npz", other=np.zeros(1)) or p / "x.npz", "must hold `images`.*has nothing"),
        (lambda p: np.savez(p / "x.npz", images=np.zeros((2, 4, 4, 3))) or p / "x.npz", "has float64"),
    ],
)
def test_real_images(make: Any, sentence: str, tmp_path: Path) -> None:
    refused({"metric": {"real": str(make(tmp_path)), "features": "efficientnet_lite0"}}, sentence)


def test_real_images_that_are_there(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", images=np.zeros((2, 4, 4, 3), np.uint8))
    for real in (tmp_path / "x.npz", folder_of_images(tmp_path / "images")):
        metric = {"real": str(real), "features": "efficientnet_lite0"}
        rgplug.attach(linear([[1.0]]), policy={"metric": metric}).detach()


def test_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = str(folder_of_images(tmp_path / "images"))
    refused({"metric": {"real": real, "features": "inceptoin"}}, r"no features called 'inceptoin'; there are auto")
    monkeypatch.setattr(inception, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(inception, "shared_folder", lambda: tmp_path / "shared")
    monkeypatch.setattr(inception, "_fetch", lambda *_: pytest.fail("downloads"))
    monkeypatch.delenv("RGPLUG_INCEPTION", raising=False)
    monkeypatch.setenv("RGPLUG_OFFLINE", "1")
    refused({"metric": {"real": real, "features": "inception"}}, r"Inception's weights cannot be had .RGPLUG_OFFLINE")
    monkeypatch.setenv("RGPLUG_INCEPTION", str(tmp_path / "none"))
    refused({"metric": {"real": real, "features": "inception"}}, r"RGPLUG_INCEPTION names .* but there is no")
    monkeypatch.delenv("RGPLUG_INCEPTION")
    monkeypatch.delenv("RGPLUG_OFFLINE")
    rgplug.attach(linear([[1.0]]), policy={"metric": {"real": real, "features": "inception"}}).detach()


@pytest.mark.parametrize("key", ["run_dir", "snapshots.folder"])
def test_folders(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    refused({key: str(tmp_path / "file")}, rf"policy\.{key} .*file is a file; name a folder")
    refused({key: str(tmp_path / "file" / "below")}, rf"policy\.{key} .*which is a file")
    refused({key: "a\0b"}, rf"policy\.{key} is .*NUL")
    refused({key: "x" * 5000}, rf"policy\.{key} .*cannot be written to")
    rgplug.attach(linear([[1.0]]), policy={key: str(tmp_path / "new" / "run")}).detach()
    assert not (tmp_path / "new").exists() or key != "run_dir"
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    refused({key: str(tmp_path)}, rf"policy\.{key} .*cannot be written to \(no permission")


def test_an_attach_that_fails_opens_no_logger(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    refused({"log": ["tensorboard"], "run_dir": str(tmp_path), "networks": {"G": {"include": ["x"]}}}, "matches no")
    assert not list(tmp_path.iterdir())
    rgplug.attach(linear([[1.0]]), policy={"log": ["tensorboard"], "run_dir": str(tmp_path)}).detach()
    assert list(tmp_path.iterdir())


def test_several_discriminators() -> None:
    G, Ds = linear([[1.0]]), [linear([[1.0]]), linear([[2.0]])]
    with pytest.raises(RgplugError, match=r"D is a list; attach needs an nn.Module; put .*: nn.ModuleList\(D\)"):
        rgplug.attach(G, Ds)  # type: ignore[arg-type]
    rg = rgplug.attach(G, nn.ModuleList(Ds))
    assert [w.name for w in rg.weights("D")] == ["0.weight", "1.weight"]

"""RG-GAN's released program (IntellicentAI-Lab/RG-GAN), run as it is on tiny networks, against rgplug: bit for bit.

Checkout: RGPLUG_HOSTS/RG-GAN. Replaced from outside: the data set, the evaluation (its FIDs are a list), the networks
(of the released MaskedConv2d and MaskedMLP; without spectral norm, where released masks come after the division).
"""

from __future__ import annotations

import copy
import importlib
from argparse import Namespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from released import Recorder, Replay, equal, released
from torch import Tensor, nn

pytestmark = pytest.mark.host

LAMBDA, LR = 1e-7, 5e-3
# sparse until there are five; then dense where the value is above its weighted average
FIDS = [9.0, 8.0, 7.0, 6.0, 7.5, 7.0, 4.0, 5.0, 4.5, 4.0, 4.0, 4.2, 3.0, 3.5]


def generator(linear: Any, conv: Any) -> nn.Module:
    return nn.Sequential(
        linear(6, 8 * 4),
        nn.Unflatten(1, (8, 2, 2)),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Upsample(scale_factor=2),
        conv(8, 8, (3, 3), padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        conv(8, 3, (1, 1)),
        nn.Tanh(),
    )


def discriminator(linear: Any, conv: Any) -> nn.Module:
    return nn.Sequential(
        conv(3, 8, (3, 3), padding=1),
        nn.LeakyReLU(0.1),
        conv(8, 8, (3, 3), stride=2, padding=1),
        nn.LeakyReLU(0.1),
        nn.Flatten(),
        linear(8 * 4, 1),
    )


def masks_too(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights, thresholds, Adam's moments, and the masks of the last forward as name:mask."""
    found = {}
    for name, m in net.named_modules():
        for key, p in m.named_parameters(prefix=name, recurse=False):
            found[key] = p.detach().clone()
            found |= {f"{key}:{k}": v.clone() for k, v in optimizer.state.get(p, {}).items() if k != "step"}
        if getattr(m, "mask", None) is not None:
            found[f"{name}.weight:mask"] = m.mask.clone()
    return found


def run_released(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Recorder, list[bool]]:
    """main() of rggan_main.py: one epoch of 7 batches between evaluations, D's weights pruned away twice over."""
    recorder, sparse = Recorder(masks_too), []
    program = importlib.import_module("rggan_main")
    dynamic = importlib.import_module("dynamic_layers")
    fids = iter(FIDS)
    torch.manual_seed(0)
    images = [(torch.rand(3, 4, 4) * 2 - 1, 0) for _ in range(7 * 4)]
    adam, made = torch.optim.Adam, []

    def make_adam(*args: Any) -> torch.optim.Optimizer:  # main makes D's, then G's
        made.append(adam(*args))
        recorder.optimizer("DG"[len(made) - 1], made[-1])
        return made[-1]

    def fid(*_: Any) -> float:
        sparse.append(recorder.nets["G"].sparse_train_mode)
        return recorder.evaluation(next(fids))

    replaced = {
        "dset": Namespace(CIFAR10=lambda **_: images),
        "optim": Namespace(Adam=make_adam),
        "fid_score": Namespace(calculate_fid_given_paths=fid),
        "RG_ResGenerator32": lambda *_: recorder.network("G", generator(dynamic.MaskedMLP, dynamic.MaskedConv2d)),
        "RG_ResDiscriminator32": lambda *_: recorder.network(
            "D", discriminator(dynamic.MaskedMLP, dynamic.MaskedConv2d)
        ),
        "get_inception_score": lambda *_: (1.0, 0.0),
        "ImageDataset": lambda *_, **__: [0],
        "torchvision": MagicMock(),
        "device": "cpu",
        "diffaug_flag": False,
        "current_model_result_dir": str(tmp_path),
        "current_model_eva_dir": str(tmp_path),
        "args": Namespace(
            dataroot="", image_size=4, data_ratio=1.0, batch_size=4, workers=0, noise_size=6, lr=LR, lambda_=LAMBDA,
            epoch=len(FIDS), n_critic=3, eva_epoch=1, eva_size=100,
        ),
    }  # fmt: skip
    for name, value in replaced.items():
        monkeypatch.setattr(program, name, value, raising=False)
    program.main()
    return recorder, [*sparse[1:], recorder.nets["G"].sparse_train_mode]


def twin(net: nn.Module) -> nn.Module:
    """The same network of torch's own layers."""
    found = copy.deepcopy(net)
    for i, m in enumerate(net):
        if hasattr(m, "threshold"):
            conv = m.weight.dim() == 4
            out, into = m.weight.shape[:2]
            kernel = {"kernel_size": m.weight.shape[2:], "stride": m.stride, "padding": m.padding} if conv else {}
            found[i] = nn.Conv2d(into, out, **kernel) if conv else nn.Linear(into, out)
            found[i].load_state_dict({k: v for k, v in m.state_dict().items() if k != "threshold"})
    for m in found.modules():
        m._forward_pre_hooks.clear()
    return found


def test_rg_gan(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with released("RG-GAN/src", "pytorch_fid", "pytorch_gan_metrics"):
        recorder, sparse = run_released(tmp_path, monkeypatch)
    policy = {"base": "rg-gan-released", "sparsity_weight": LAMBDA, "threshold.units": "absolute"}
    mine = Replay(*(twin(recorder.began[k]) for k in ("G", "D")), policy, LR)
    phases, pruned, reset = [], 0.0, 0
    for i, event in enumerate(recorder.events):
        if event.what == "E":
            mine.rg.end_epoch(event.value)
            phases.append(mine.rg.phase == "sparse")
            continue
        label = event.what
        mine.backward(event)
        equal(mine.thetas(label), event.before, f"event {i}, {label}")
        thresholds = {w.name.replace("weight", "threshold"): w.threshold for w in mine.rg.weights(label)}
        equal(thresholds, event.before, f"event {i}, {label}")
        equal({f"{k}:mask": m for k, m in mine.masks(label).items()}, event.before, f"event {i}, {label}")
        mine.step(event)
        after = {k: v for k, v in mine.state(label).items() if ":" in k or k.endswith("bias")}
        equal(after, event.after, f"event {i}, {label}")
        equal(mine.thetas(label), event.after, f"event {i}, {label}")
        pruned = max(pruned, 1 - mine.rg.density(label))
        reset += any(bool((t == 0).all()) for t in thresholds.values()) and i > 10
    assert phases == sparse
    assert {True, False} == set(sparse)
    assert pruned > 0.3
    assert reset, "the guard was never seen at work"

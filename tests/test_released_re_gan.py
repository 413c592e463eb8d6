"""Re-GAN's released program (IntellicentAI-Lab/Re-GAN, SNGAN), run as it is on tiny networks, against rgplug.

Checkout: RGPLUG_HOSTS/Re-GAN. Replaced from outside: the data set, the networks, and one deviation. The released sparse
phase masks weights after the backward pass, so that its first gradient is taken at the dense weights; here they are
zeroed when the masks are drawn, as in rgplug and the paper. Epochs end with a step of G, where rgplug's phases begin.
"""

from __future__ import annotations

import copy
import importlib
from argparse import Namespace
from typing import Any

import pytest
import torch
from released import Recorder, Replay, equal, released
from torch import Tensor, nn

pytestmark = pytest.mark.host

LR, SPARSITY, WARM_UP, G_EPOCHS, EPOCHS = 5e-3, 0.3, 2, 2, 11
BATCHES, CRITIC = 7, 3  # steps of G at the 1st, 4th and 7th batch of an epoch


class Generator(nn.Module):
    def __init__(self, z_dim: int = 6):
        super().__init__()
        self.linear = nn.Linear(z_dim, 32)
        self.main = nn.Sequential(
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 3, 1),
        )

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.main(self.linear(z).view(-1, 8, 2, 2)))


def discriminator() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 2), nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(8, 1))


def run_released(monkeypatch: pytest.MonkeyPatch, patched: bool) -> Recorder:
    """main() of SNGAN/main.py. patched: pruned weights are 0 from the moment that masks are drawn."""
    recorder = Recorder()
    program, regan = importlib.import_module("main"), importlib.import_module("regan")
    torch.manual_seed(0)
    images = [(torch.rand(3, 2, 2) * 2 - 1, 0) for _ in range(BATCHES * 4)]
    adam, made = torch.optim.Adam, []
    update = regan.Regan_training.update_masks

    def make_adam(*args: Any) -> torch.optim.Optimizer:  # main makes D's, then G's
        made.append(adam(*args))
        recorder.optimizer("DG"[len(made) - 1], made[-1])
        return made[-1]

    def update_masks(self: Any) -> None:
        update(self)
        for w, mask in zip(self.layers, self.masks):
            w.data[mask] = 0

    if patched:
        monkeypatch.setattr(regan.Regan_training, "update_masks", update_masks)
    replaced = {
        "dset": Namespace(CIFAR10=lambda **_: images),
        "optim": Namespace(Adam=make_adam),
        "ResGenerator32": lambda *_: recorder.network("G", Generator()),
        "ResDiscriminator32": lambda *_: recorder.network("D", discriminator()),
        "device": "cpu",
        "args": Namespace(
            dataroot="", image_size=2, data_ratio=1.0, batch_size=4, workers=0, noise_size=6, lr=LR, sparsity=SPARSITY,
            epoch=EPOCHS, n_critic=CRITIC, regan=True, warmup_epoch=WARM_UP, g=G_EPOCHS,
        ),
    }  # fmt: skip
    for name, value in replaced.items():
        monkeypatch.setattr(program, name, value, raising=False)
    program.main()
    return recorder


def replay(recorder: Recorder) -> int:
    """The number of steps of G that had something pruned. Fails at the first entry that differs."""
    per_epoch = len(range(0, BATCHES, CRITIC))
    policy = {
        "base": "re-gan",
        "networks": {"G": {"vectors": True}},
        "cycle": {"sparsity": SPARSITY, "warm_up": WARM_UP * per_epoch, "period": G_EPOCHS * per_epoch},
    }
    nets = {k: copy.deepcopy(net) for k, net in recorder.began.items()}
    mine, sparse = Replay(nets["G"], nets["D"], policy, LR), 0
    for i, event in enumerate(recorder.events):
        label, where = event.what, f"event {i}, {event.what}"
        mine.backward(event)
        equal({k: v for k, v in mine.state(label).items() if ":" not in k}, event.before, where)
        mine.step(event)
        changes = label == "G" and sum(e.what == "G" for e in recorder.events[: i + 1]) % per_epoch == 0
        after = mine.state(label)
        if changes:  # rgplug draws masks in this step, the released program at the start of the next epoch
            after = {k: v for k, v in after.items() if ":" in k}
        equal(after, event.after, where)
        sparse += mine.rg.density("G") < 0.9
    return sparse


def test_re_gan(monkeypatch: pytest.MonkeyPatch) -> None:
    with released("Re-GAN/SNGAN"):
        recorder = run_released(monkeypatch, patched=True)
    assert replay(recorder) > 20


def test_the_deviation_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the patch the first difference is in the first gradient of the first sparse phase."""
    with released("Re-GAN/SNGAN"):
        recorder = run_released(monkeypatch, patched=False)
    first = (WARM_UP * BATCHES) + WARM_UP * len(range(0, BATCHES, CRITIC))
    with pytest.raises(pytest.fail.Exception, match=rf"event {first}, D"):
        replay(recorder)

"""Runs of the SNGAN example at a small width, for its tests."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rgplug.examples import sngan

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
SMALL = ["--width=8", "--batch=4", "--batch-g=3", "--n-critic=2", "--eval-every=2"]


class Attached:
    """What `attach` returns, with a log of all calls; its state has a tensor drawn from torch's global generator."""

    def __init__(self, G, D, stop_at=None):
        self.log, self.networks, self.noise = ["attach"], (G, D), torch.rand(3)
        self.epochs = 0
        self.seen = []  # D's inputs
        self.stop_at = stop_at  # D's forward number so many never ends
        D.register_forward_pre_hook(self.before_forward)

    def before_forward(self, module, inputs):
        self.seen.append(inputs[0].detach().clone())
        if len(self.seen) == self.stop_at:
            raise KeyboardInterrupt

    def end_epoch(self, ema):
        self.log.append("end_epoch")
        self.ema = ema
        self.epochs += 1
        self.noise = self.noise + torch.rand(3)

    def state_dict(self):
        self.log.append("state_dict")
        return {"epochs": self.epochs, "noise": self.noise, "text": "t", "list": [1, 2.5, None]}

    def load_state_dict(self, state):
        self.log.append("load_state_dict")
        self.epochs, self.noise = state["epochs"], state["noise"]


def run(npz, folder, *options, stop_at=None, seed=0, attached=True):
    """One call of the protocol. Returns (EMA, what was attached, checkpoint or None)."""
    build, train = sngan.host([f"--data={npz}", *SMALL, *options])
    made = []

    def attach(G, D):
        made.append(Attached(G, D, stop_at))
        return made[-1]

    if stop_at is not None:
        with pytest.raises(KeyboardInterrupt):
            train(build, attach, seed, folder)
        return None, made[0], None
    ema = train(build, attach if attached else None, seed, folder)
    state = torch.load(Path(folder) / "checkpoint.pt", weights_only=True)
    return ema, made[0] if made else None, state


def assert_identical(a, b, path=""):
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for name in a:
            assert_identical(a[name], b[name], f"{path}/{name}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b)):
            assert_identical(x, y, f"{path}/{i}")
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, path

"""Training scripts that do anything, in any order: after each action masks, weights and counts have to agree.

Steps, skipped steps, gradients added to after masking, clipped or replaced, closures that step the other network, steps
that raise, new optimizers, averages swapped in around an evaluation, states saved and loaded, parts that are frozen.
108 runs of 30 actions by default; RGPLUG_FUZZ=N tries N others.
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rgplug

UNITS = {"units": "layer_std", "init": 0.2}
THRESHOLDS = {"base": "rg-gan", "threshold": UNITS, "sparsity_weight": 1e-3}
OFTEN = {"every": 2, "end": 1000}
POLICIES: dict[str, dict[str, Any]] = {
    "thresholds": THRESHOLDS,
    "target": {
        "base": "rg-gan",
        "threshold.units": "layer_std",
        "target": {"G": 0.5, "D": 0.6, "by": 6, "shape": "linear"},
    },
    "spectral": {**THRESHOLDS, "threshold": {"units": "spectral", "init": 0.05}},
    "loss": {**THRESHOLDS, "regularization": "loss"},
    "full": {**THRESHOLDS, "threshold": {**UNITS, "weight_gradient": "full"}},
    "kernel": {**THRESHOLDS, "granularity": "kernel"},
    "filter": {**THRESHOLDS, "granularity": {"D": "filter"}},
    "bfloat16": {**THRESHOLDS, "dormant": "bfloat16"},
    "without recurrence": {**THRESHOLDS, "base": "rg-gan-dp"},
    "stu-gan": {"base": "stu-gan-b", "masks.density": 0.5, "exploration": {"every": 3, "end": 1000}},
    "set": {"base": "set", "masks.density": 0.5, "exploration": OFTEN},
    "rigl": {"base": "rigl", "masks.density": 0.5, "exploration": OFTEN},
    "momentum": {
        "method": "sparse",
        "masks": {"density": 0.5},
        "exploration": {"grow": "momentum", "networks": ["G", "D"], **OFTEN},
    },
    "stu-gan by filters": {
        "base": "stu-gan-b",
        "masks.density": 0.5,
        "granularity": {"D": "filter"},
        "exploration": OFTEN,
    },
    "re-gan": {"base": "re-gan", "cycle": {"networks": ["G", "D"], "warm_up": 2, "period": 3}},
    "re-gan by kernels": {
        "base": "re-gan",
        "granularity": "kernel",
        "cycle": {"networks": ["G", "D"], "warm_up": 2, "period": 3},
    },
    "vectors": {
        "base": "re-gan",
        "networks": {"D": {"vectors": True}},
        "cycle": {"networks": ["D"], "warm_up": 1, "period": 2},
    },
    "pf": {"base": "pf-global", "masks.density": {"G": 0.5, "D": 0.5}},
}
SEEDS = range(6) if "RGPLUG_FUZZ" not in os.environ else range(100, 100 + -(-int(os.environ["RGPLUG_FUZZ"]) // 18))
pytestmark = pytest.mark.filterwarnings("ignore")


class Fails(torch.optim.Adam):
    """Moves the weights, and then raises."""

    fail = False

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        if self.fail:
            raise RuntimeError("out of memory")
        return loss


def generator() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 8 * 4),
        nn.Unflatten(1, (8, 2, 2)),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 3, 4, 2, 1),
        nn.Tanh(),
    )


def discriminator() -> nn.Module:
    def convolution(channels: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU())

    return nn.Sequential(*map(convolution, (3, 8, 8)), nn.Flatten(), nn.Linear(8 * 16, 1))


def optimizer(net: nn.Module, rng: random.Random) -> torch.optim.Optimizer:
    kinds: list[Callable[[Any], torch.optim.Optimizer]] = [
        lambda p: Fails(p, lr=1e-2, betas=(0.5, 0.9)),
        lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
        lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
        lambda p: torch.optim.RMSprop(p, lr=1e-3),
    ]
    return rng.choice(kinds)(net.parameters())


class Script:
    """A training script; its actions are the methods named in ACTIONS, each on G or D."""

    def __init__(self, policy: dict[str, Any], rng: random.Random) -> None:
        self.rng = rng
        self.nets = {"G": generator(), "D": discriminator()}
        self.frozen = rng.choice(["nothing", "a part of D", "all between phases"])
        self.backbone = self.nets["D"][0][0]  # type: ignore[index]
        if self.frozen == "a part of D":
            self.backbone.requires_grad_(False)
        elif self.frozen == "all between phases":
            for net in self.nets.values():
                net.requires_grad_(False)
        self.pretrained = self.backbone.weight.clone()
        self.rg = rgplug.attach(self.nets["G"], self.nets["D"], policy)
        self.opts = {label: optimizer(net, rng) for label, net in self.nets.items()}
        self.unclean: set[str] = set()  # networks whose pruned places may hold values until the next step

    def loss(self, label: str) -> Tensor:
        G, D = self.nets["G"], self.nets["D"]
        if self.frozen == "all between phases":
            self.nets[label].requires_grad_(True)
        fake = D(G(torch.randn(4, 6))).mean()
        loss = fake - D(torch.rand(4, 3, 4, 4)).mean() if label == "D" else -fake
        return loss + self.rg.regularization_loss(label) if self.rg.policy.regularization == "loss" else loss

    def backward(self, label: str) -> None:
        self.opts[label].zero_grad(set_to_none=self.rng.random() < 0.6)
        self.loss(label).backward()

    def finish(self, label: str, closure: Any = None) -> None:
        self.opts[label].step(closure) if closure else self.opts[label].step()
        self.unclean.discard(label)

    def step(self, label: str) -> None:
        self.backward(label)
        self.finish(label)

    def clip(self, label: str) -> None:
        self.backward(label)
        self.rg.mask_gradients(label)
        nn.utils.clip_grad_norm_(self.nets[label].parameters(), 1.0)
        self.finish(label)

    def accumulate_after_masking(self, label: str) -> None:
        self.backward(label)
        self.rg.mask_gradients()
        self.loss(label).backward()
        self.finish(label)

    def replace_gradients(self, label: str) -> None:
        self.backward(label)
        self.rg.mask_gradients(label)
        for p in self.nets[label].parameters():
            p.grad = None if p.grad is None else p.grad * 0.5
        self.finish(label)

    def leave_out_the_step(self, label: str) -> None:
        self.backward(label)
        self.rg.mask_gradients(label)

    def auxiliary_step(self, label: str) -> None:
        self.backward(label)
        with self.rg.auxiliary_step(label):
            self.finish(label)

    def closure(self, label: str) -> None:
        other = "D" if label == "G" else "G"

        def run() -> Tensor:
            if self.rng.random() < 0.3:
                self.step(other)
            self.opts[label].zero_grad()
            loss = self.loss(label)
            loss.backward()
            return loss

        self.finish(label, run)

    def raising_step(self, label: str) -> None:
        opt = self.opts[label]
        if isinstance(opt, Fails):
            self.backward(label)
            opt.fail = True
            with pytest.raises(RuntimeError, match="out of memory"):
                opt.step()
            opt.fail = False
            self.unclean.add(label)

    def new_optimizer(self, label: str) -> None:
        before, new = self.opts[label], optimizer(self.nets[label], self.rng)
        if type(new) is type(before) and self.rng.random() < 0.5:
            new.load_state_dict(before.state_dict())
        self.opts[label] = new

    def end_epoch(self, label: str) -> None:
        self.rg.end_epoch(self.rng.random() * 10)

    def end_epoch_in_inference_mode(self, label: str) -> None:
        with torch.inference_mode():
            self.rg.end_epoch(self.rng.random() * 10)

    def end_epoch_while_an_average_is_swapped_in(self, label: str) -> None:
        G = self.nets["G"]
        own = [p.detach().clone() for p in G.parameters()]
        with torch.no_grad():
            for p in G.parameters():
                p.mul_(0.9).add_(0.01)
        self.rg.end_epoch(self.rng.random() * 10)
        with torch.no_grad():
            for p, value in zip(G.parameters(), own, strict=True):
                p.copy_(value)
        self.unclean.add("G")

    def save_and_load(self, label: str) -> None:
        self.rg.load_state_dict(copy.deepcopy(self.rg.state_dict()))

    def copy(self, label: str) -> None:
        copy.deepcopy(self.nets[label])

    def unfreeze(self, label: str) -> None:
        if self.frozen == "a part of D" and self.rng.random() < 0.3:
            self.backbone.requires_grad_(True)
            self.frozen = "nothing"

    def act(self) -> str:
        label, action = self.rng.choice("GD"), self.rng.choice(ACTIONS)
        getattr(self, action)(label)
        if self.frozen == "all between phases":
            for net in self.nets.values():
                net.requires_grad_(False)
        return f"{action}({label})"

    def check(self) -> None:
        for label, net in self.rg.networks.items():
            for w in net.weights:
                assert not w.merged, w.name
                assert torch.isfinite(w.param).all(), w.name
                assert w.threshold is None or torch.isfinite(w.threshold).all(), w.name
                if net.sparse and not w.waits and label not in self.unclean:
                    assert not w.param.detach()[~w.mask].any(), w.name
            assert net.counts.kept.tolist() == [int(w.mask.sum()) for w in net.weights]
            assert all(w.mask.all() for w in net.all_weights if w.name in net.aside)
        if self.frozen == "a part of D":
            assert torch.equal(self.backbone.weight, self.pretrained)


ACTIONS = [
    *["step"] * 4,
    *["clip", "accumulate_after_masking", "replace_gradients", "leave_out_the_step", "auxiliary_step", "closure"],
    *["raising_step", "new_optimizer", "end_epoch", "end_epoch_in_inference_mode"],
    *["end_epoch_while_an_average_is_swapped_in", "save_and_load", "copy", "unfreeze"],
]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kernels", ["auto", "eager"])
def test_masks_weights_and_counts_agree_whatever_a_script_does(policy: str, kernels: str) -> None:
    for seed in SEEDS[kernels == "eager" :: 2]:
        torch.manual_seed(seed)
        script = Script({**POLICIES[policy], "kernels": kernels}, random.Random(seed))
        done: list[str] = []
        try:
            for _ in range(30):
                done.append(script.act())
                script.check()
        except Exception as error:
            story = f"seed {seed}, {script.frozen} frozen, after {', '.join(done)}"
            raise AssertionError(f"{story}: {error}") from error
        script.rg.detach(script.rng.choice(["dense", "sparse", "as-is"]))

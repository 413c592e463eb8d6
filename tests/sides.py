"""The engine and the oracle as two sides of one training loop, and what they have to agree on.

The engine trains a network with plain numbers in its parameters and hooks on its optimizers, the oracle trains the same
network with theta in its parameters and the mask in the graph. The loop (`tiny.train`) knows no formula.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import tiny
import torch
from oracle import Oracle
from torch import Tensor, nn

import rgplug

Net = str  # "G" or "D"
TOLERANCE = 1e-9  # absolute, float64
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam_b0": partial(torch.optim.Adam, lr=1e-3, betas=(0.0, 0.9)),
    "adam_b5": partial(torch.optim.Adam, lr=1e-3, betas=(0.5, 0.999)),
    "adamw": partial(torch.optim.AdamW, lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-2),
    "sgd": partial(torch.optim.SGD, lr=1e-2, momentum=0.9),
}
SCHEDULES = ("several", "accumulation", "r1", "amp")


def setting(optimizer: str, kind: str, task_gradient: bool = True) -> tuple[Any, dict[str, Any]]:
    """The optimizer's constructor, and a lambda with which 200 iterations prune part of the network.

    Against the task's gradient lambda has to be of its size. Alone, it sets the speed of a ramp: per step,
    lr * lambda / (lambda + eps) for Adam and lr / (1 - momentum) * lambda for SGD. Equalized weights are ten times
    larger than others.
    """
    make_optimizer = OPTIMIZERS[optimizer]
    if optimizer == "sgd" and kind == "equalized":
        make_optimizer = partial(make_optimizer, lr=3e-2)
    if task_gradient:
        weight = {"equalized": 1e-3, "grouped": 3e-3}.get(kind, 1e-2)
    elif optimizer == "sgd":
        weight = 3e-3 if kind == "equalized" else 1e-3
    else:
        weight = 1e-8 if kind == "equalized" else 3e-9
    return make_optimizer, dict(sparsity_weight=weight, task_gradient=task_gradient)


# -------------------------------------------------------------------------------------------------------- the two sides


@dataclass
class Snapshot:
    """What the two sides have to agree on; keys are "G.0.weight" and the like."""

    theta: dict[str, Tensor] = field(default_factory=dict)  # dense weights
    mask: dict[str, Tensor] = field(default_factory=dict)
    threshold: dict[str, Tensor] = field(default_factory=dict)
    rest: dict[str, Tensor] = field(default_factory=dict)  # biases, norms, buffers


class OracleSide:
    def __init__(
        self, G: nn.Module, D: nn.Module, make_optimizer: Any, *, sparsity_weight: float, **options: Any
    ) -> None:
        self.nets = {
            name: Oracle(net, make_optimizer, sparsity_weight=sparsity_weight, **options)
            for name, net in (("G", G), ("D", D))
        }

    def call(self, name: Net, *args: Any) -> Tensor:
        return self.nets[name](*args)

    def requires_grad(self, name: Net, flag: bool) -> None:
        self.nets[name].requires_grad(flag)

    def zero_grad(self, name: Net, set_to_none: bool) -> None:
        self.nets[name].zero_grad(set_to_none)

    def regularizer(self, name: Net) -> Tensor:
        return self.nets[name].regularizer()

    def step(self, name: Net, **how: Any) -> None:
        self.nets[name].step(**how)

    def auxiliary_step(self, name: Net) -> None:
        self.nets[name].step()  # nobody called regularizer(): that is all there is to it

    def host_optimizer(self, name: Net) -> torch.optim.Optimizer:
        return self.nets[name].optimizer

    def snapshot(self) -> Snapshot:
        snapshot = Snapshot()
        for name, side in self.nets.items():
            for layer in side.layers:
                snapshot.theta[f"{name}.{layer.name}"] = layer.theta.detach().clone()
                snapshot.mask[f"{name}.{layer.name}"] = layer.mask
                snapshot.threshold[f"{name}.{layer.name}"] = layer.t.detach().clone()
            rest_of(side.net, name, snapshot)
        return snapshot


class EngineSide:
    """G's optimizer is made before attach, D's after it."""

    def __init__(
        self,
        G: nn.Module,
        D: nn.Module,
        make_optimizer: Any,
        *,
        sparsity_weight: float,
        task_gradient: bool = True,
        weight_gradient: str = "masked",
        regularization: str = "hook",
        kernels: str = "auto",  # compiled loops where there is a compiler, or tensor operations ("eager")
    ) -> None:
        self.nets = {"G": G, "D": D}
        self.optimizers = {"G": make_optimizer(G.parameters())}
        self.rg = rgplug.attach(
            G,
            D,
            policy=dict(
                method="rg-gan",
                sparsity_weight=sparsity_weight,
                regularization=regularization,
                threshold=dict(task_gradient=task_gradient, weight_gradient=weight_gradient),
                optimizer_state="keep",
                kernels=kernels,
            ),
        )
        self.by_host = regularization == "loss"
        self.optimizers["D"] = make_optimizer(D.parameters())

    def call(self, name: Net, *args: Any) -> Tensor:
        return self.nets[name](*args)

    def requires_grad(self, name: Net, flag: bool) -> None:
        self.nets[name].requires_grad_(flag)

    def zero_grad(self, name: Net, set_to_none: bool) -> None:
        self.optimizers[name].zero_grad(set_to_none)

    def regularizer(self, name: Net) -> Tensor | float:
        return self.rg.regularization_loss(name) if self.by_host else 0.0

    def step(self, name: Net, scaler: torch.amp.GradScaler | None = None, closure: Callable | None = None) -> None:
        if scaler is not None:
            scaler.step(self.optimizers[name])
        else:
            self.optimizers[name].step(*filter(None, [closure]))

    def auxiliary_step(self, name: Net) -> None:
        with self.rg.auxiliary_step(name):
            self.optimizers[name].step()

    def host_optimizer(self, name: Net) -> torch.optim.Optimizer:
        return self.optimizers[name]

    def snapshot(self) -> Snapshot:
        snapshot = Snapshot()
        for name, net in self.nets.items():
            for weight in self.rg.weights(name):
                theta, mask = weight.theta.detach().clone(), weight.mask.detach().clone()
                effective = weight.param.detach()
                assert not effective[~mask].any(), f"{name}.{weight.name}: pruned entries of the parameter are not 0"
                assert torch.equal(effective[mask], theta[mask]), f"{name}.{weight.name}: parameter is not theta * mask"
                assert float(weight.density) == pytest.approx(mask.double().mean().item())
                snapshot.theta[f"{name}.{weight.name}"] = theta
                snapshot.mask[f"{name}.{weight.name}"] = mask
                snapshot.threshold[f"{name}.{weight.name}"] = weight.threshold.detach().clone()
            rest_of(net, name, snapshot)
        return snapshot


def rest_of(net: nn.Module, name: Net, snapshot: Snapshot) -> None:
    for key, value in net.state_dict().items():
        if f"{name}.{key}" not in snapshot.theta:
            snapshot.rest[f"{name}.{key}"] = value.detach().clone()


@contextlib.contextmanager
def engine(*args: Any, **options: Any) -> Iterator[EngineSide]:
    side = EngineSide(*args, **options)
    try:
        yield side
    finally:
        side.rg.detach()


def train(side: tiny.Side, **loop: Any) -> dict[int, Snapshot]:
    return tiny.Loop(**loop).run(side)


def train_engine(kind: str, make_optimizer: Any, options: dict[str, Any], **loop: Any) -> dict[int, Snapshot]:
    with engine(*networks(kind, loop), make_optimizer, **options) as side:
        return train(side, **loop)


def train_oracle(
    kind: str, make_optimizer: Any, options: dict[str, Any], **loop: Any
) -> tuple[dict[int, Snapshot], dict[str, Oracle]]:
    side = OracleSide(*networks(kind, loop), make_optimizer, **options)
    return train(side, **loop), side.nets


def networks(kind: str, loop: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    dtype = loop.get("dtype", torch.float64)
    if kind == "branched":
        return tiny.build("plain", dtype=dtype)[0], tiny.branched(dtype=dtype)
    return tiny.build(kind, dtype=dtype)


def assert_agree(ours: dict[int, Snapshot], theirs: dict[int, Snapshot], tolerance: float = TOLERANCE) -> None:
    """All snapshots in the order of time, so that the message names the first one that differs."""
    assert ours.keys() == theirs.keys()
    for i in sorted(ours):
        for quantity in ("mask", "threshold", "theta", "rest"):
            a, b = getattr(ours[i], quantity), getattr(theirs[i], quantity)
            assert a.keys() == b.keys(), f"{quantity}: {sorted(a.keys() ^ b.keys())} on one side only"
            for key in a:
                assert a[key].shape == b[key].shape, f"{quantity} of {key}: {a[key].shape} and {b[key].shape}"
                if quantity == "mask":
                    differ = int((a[key] != b[key]).sum())
                    assert not differ, f"iteration {i}: mask of {key} differs in {differ} of {a[key].numel()} entries"
                else:
                    largest = float((a[key] - b[key]).abs().max())
                    assert largest <= tolerance, f"iteration {i}: {quantity} of {key} differs by {largest:.2g}"


def assert_pruned(nets: dict[str, Oracle], both_ways: bool) -> None:
    """A run whose masks never moved would prove nothing."""
    assert any(0.01 < 1 - net.density() < 0.99 for net in nets.values())
    assert min(net.pruned for net in nets.values()) > 10
    if both_ways:
        assert sum(net.regrown for net in nets.values()) > 10


def one_layer(large: int) -> nn.Module:
    """20 inputs, 10 outputs, `large` weights of 1 and the others .001."""
    layer = nn.Linear(20, 10)
    with torch.no_grad():
        layer.weight.fill_(1e-3).view(-1)[:large] = 1.0
    return nn.Sequential(layer)

"""The engine against an independent autograd implementation of RG-GAN (oracle.py), over whole training runs.

One training loop, two sides: the engine trains a network with plain numbers in its parameters and hooks on its
optimizers, the oracle trains the same network with theta in its parameters and the mask in the graph. The loop knows no
formula. After 200 iterations, and at every 20th, weights, thresholds, masks, biases and buffers have to agree.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import tiny
import torch
from oracle import Layer, Oracle, Step, managed
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


# -------------------------------------------------------------------------------------------- the engine and the oracle


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("task_gradient", [True, False], ids=["task", "no_task"])
@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_equals_the_oracle(optimizer: str, kind: str, task_gradient: bool, schedule: str) -> None:
    make, options = setting(optimizer, kind, task_gradient)
    theirs, nets = train_oracle(kind, make, options, schedule=schedule)
    assert_pruned(nets, both_ways=task_gradient)
    assert_agree(train_engine(kind, make, options, schedule=schedule), theirs)
    if schedule == "several":
        assert_agree(train_engine(kind, make, {**options, "kernels": "eager"}, schedule=schedule), theirs)


@pytest.mark.parametrize("task_gradient", [True, False], ids=["task", "no_task"])
@pytest.mark.parametrize("kind", ["plain", "new_sn", "equalized", "grouped"])
@pytest.mark.parametrize("optimizer", ["adam_b5", "sgd"])
def test_full_weight_gradient(optimizer: str, kind: str, task_gradient: bool) -> None:
    """theta also gets the gradient through the step function."""
    make, options = setting(optimizer, kind, task_gradient)
    masked, _ = train_oracle(kind, make, options, schedule="r1", iterations=20)
    options["weight_gradient"] = "full"
    theirs, nets = train_oracle(kind, make, options, schedule="r1", iterations=80)
    assert_pruned(nets, both_ways=False)
    assert not torch.equal(masked[20].theta["G.0.weight"], theirs[20].theta["G.0.weight"])
    assert_agree(train_engine(kind, make, options, schedule="r1", iterations=80), theirs)


@pytest.mark.parametrize("schedule", ["several", "accumulation", "amp"])
@pytest.mark.parametrize("task_gradient", [True, False], ids=["task", "no_task"])
@pytest.mark.parametrize("optimizer", ["adam_b0", "sgd"])
def test_regularizer_in_the_hosts_loss(optimizer: str, task_gradient: bool, schedule: str) -> None:
    make, options = setting(optimizer, "old_sn", task_gradient)
    loop = dict(schedule=schedule, iterations=80, skip_d=31, skip_g=52)
    theirs, nets = train_oracle("old_sn", make, options, **loop)
    assert_pruned(nets, both_ways=False)
    for regularization in ("loss", "hook"):
        assert_agree(train_engine("old_sn", make, dict(options, regularization=regularization), **loop), theirs)


@pytest.mark.parametrize("regularization", ["hook", "loss"])
@pytest.mark.parametrize("task_gradient", [True, False], ids=["task", "no_task"])
@pytest.mark.parametrize("optimizer", ["adam_b5", "sgd"])
def test_closures(optimizer: str, task_gradient: bool, regularization: str) -> None:
    """optimizer.step(closure): the gradients appear inside the step."""
    make, options = setting(optimizer, "plain", task_gradient)
    theirs, nets = train_oracle("plain", make, options, iterations=80, closures=True)
    assert_pruned(nets, both_ways=task_gradient)
    options["regularization"] = regularization
    assert_agree(train_engine("plain", make, options, iterations=80, closures=True), theirs)


@pytest.mark.parametrize("set_to_none", [True, False], ids=["none", "zeros"])
@pytest.mark.parametrize("task_gradient", [True, False], ids=["task", "no_task"])
@pytest.mark.parametrize("optimizer", ["adam_b5", "adamw", "sgd"])
def test_layer_that_some_iterations_do_not_use(optimizer: str, task_gradient: bool, set_to_none: bool) -> None:
    """Without a gradient (None) its theta rests; its thresholds still have the regularizer's."""
    make, options = setting(optimizer, "branched", task_gradient)
    loop = dict(iterations=80, set_to_none=set_to_none, d_args=lambda i: (i % 3 == 1,))
    theirs, nets = train_oracle("branched", make, options, **loop)
    assert_pruned(nets, both_ways=False)
    assert_agree(train_engine("branched", make, options, **loop), theirs)


@pytest.mark.parametrize("schedule", ["several", "amp", "r1"])
@pytest.mark.parametrize("optimizer", ["adam_b5", "sgd"])
def test_gradients_zeroed_in_place(optimizer: str, schedule: str) -> None:
    make, options = setting(optimizer, "new_sn")
    loop = dict(iterations=80, schedule=schedule, skip_d=31, skip_g=52, set_to_none=False)
    theirs, nets = train_oracle("new_sn", make, options, **loop)
    assert_pruned(nets, both_ways=True)
    assert_agree(train_engine("new_sn", make, options, **loop), theirs)


@pytest.mark.parametrize("schedule", ["several", "r1"])
def test_amsgrad(schedule: str) -> None:
    amsgrad = partial(torch.optim.Adam, lr=1e-3, betas=(0.5, 0.99), amsgrad=True)
    options = dict(sparsity_weight=1e-2)
    theirs, nets = train_oracle("plain", amsgrad, options, schedule=schedule, iterations=100)
    assert_pruned(nets, both_ways=True)
    assert_agree(train_engine("plain", amsgrad, options, schedule=schedule, iterations=100), theirs)


@pytest.mark.parametrize("schedule", ["several", "amp"])
@pytest.mark.parametrize("task_gradient", [True, False], ids=["task", "no_task"])
def test_fused_optimizer(task_gradient: bool, schedule: str) -> None:
    """A fused optimizer unscales, and skips, inside its kernel; its step is called all the same."""
    make, options = setting("adam_b5", "old_sn", task_gradient)
    loop = dict(schedule=schedule, iterations=100, skip_d=31, skip_g=52)
    theirs, nets = train_oracle("old_sn", make, options, **loop)
    assert_pruned(nets, both_ways=task_gradient)
    assert_agree(train_engine("old_sn", partial(make, fused=True), options, **loop), theirs)


@pytest.mark.parametrize("task_gradient", [True, False], ids=["task", "no_task"])
def test_fused_optimizer_in_float32(task_gradient: bool) -> None:
    """A short run: in float32 a rounding difference can flip an entry, and training amplifies it."""
    options = dict(sparsity_weight=1e-2 if task_gradient else 1e-8, task_gradient=task_gradient)
    loop = dict(schedule="amp", iterations=20, skip_d=5, skip_g=9, every=4, dtype=torch.float32)
    single = train_engine("plain", partial(OPTIMIZERS["adam_b5"], foreach=False), options, **loop)
    fused = train_engine("plain", partial(OPTIMIZERS["adam_b5"], fused=True), options, **loop)
    assert not all(mask.all() for mask in single[20].mask.values())
    for i in single:
        for key, mask in single[i].mask.items():
            assert int((mask != fused[i].mask[key]).sum()) <= 0.005 * mask.numel()
            torch.testing.assert_close(single[i].threshold[key], fused[i].threshold[key], rtol=0, atol=1e-5)
            torch.testing.assert_close(single[i].theta[key], fused[i].theta[key], rtol=0, atol=1e-5)


@pytest.mark.parametrize("schedule", ["several", "r1"])
@pytest.mark.parametrize("task_gradient", [True, False], ids=["task", "no_task"])
@pytest.mark.parametrize("kind", ["plain", "old_sn", "new_sn", "transposed"])
def test_guard(kind: str, task_gradient: bool, schedule: str) -> None:
    """A lambda that empties layers again and again; under spectral norm an empty one would give NaN."""
    adam = partial(torch.optim.Adam, lr=1e-2, betas=(0.5, 0.9))
    options = dict(sparsity_weight=1.0, task_gradient=task_gradient)
    theirs, nets = train_oracle(kind, adam, options, schedule=schedule, iterations=80, every=5)
    assert all(net.resets >= 2 for net in nets.values())
    assert_agree(train_engine(kind, adam, options, schedule=schedule, iterations=80, every=5), theirs)


@pytest.mark.parametrize("kind", ["transposed_old_sn", "transposed_new_sn"])
@pytest.mark.parametrize("optimizer", ["adam_b0", "sgd"])
def test_transposed_under_spectral_norm(optimizer: str, kind: str) -> None:
    make, options = setting(optimizer, kind)
    theirs, nets = train_oracle(kind, make, options, schedule="r1", iterations=100)
    assert_pruned(nets, both_ways=True)
    assert_agree(train_engine(kind, make, options, schedule="r1", iterations=100), theirs)


@pytest.mark.parametrize("optimizer", ["adam_b5", "adamw", "sgd"])
def test_learning_rate_schedule(optimizer: str) -> None:
    """In the released code thresholds are in the network's own optimizer, so they follow its learning rate."""
    make, options = setting(optimizer, "plain")
    theirs, nets = train_oracle("plain", make, options, iterations=80, decay=0.98)
    assert_pruned(nets, both_ways=True)
    assert_agree(train_engine("plain", make, options, iterations=80, decay=0.98), theirs)


@pytest.mark.parametrize("survivors", [2, 3])
def test_guard_at_its_edge(survivors: int) -> None:
    """200 weights, t = .5 after one step: 2 kept are 1 %, so the layer starts again; 3 are more."""
    make = partial(torch.optim.SGD, lr=0.5)
    oracle_net, engine_net = one_layer(survivors), one_layer(survivors)
    theirs = Oracle(oracle_net, make, sparsity_weight=1.0)
    (theirs(torch.zeros(1, 20)).sum() + theirs.regularizer()).backward()
    theirs.step()
    optimizer = make(engine_net.parameters())
    rg = rgplug.attach(engine_net, None, policy=dict(method="rg-gan", sparsity_weight=1.0))
    try:
        engine_net(torch.zeros(1, 20)).sum().backward()
        optimizer.step()
        (ours,) = rg.weights("G")
        for mask, t in ((theirs.layers[0].mask, theirs.layers[0].t), (ours.mask, ours.threshold)):
            assert int(mask.sum()) == (200 if survivors == 2 else 3)
            torch.testing.assert_close(t.detach(), torch.full_like(t, 0.0 if survivors == 2 else 0.5))
    finally:
        rg.detach()


def one_layer(large: int) -> nn.Module:
    """20 inputs, 10 outputs, `large` weights of 1 and the others .001."""
    layer = nn.Linear(20, 10)
    with torch.no_grad():
        layer.weight.fill_(1e-3).view(-1)[:large] = 1.0
    return nn.Sequential(layer)


# --------------------------------------------------------------------------------------------------- the oracle by hand


double = partial(torch.tensor, dtype=torch.float64)


def test_surrogate_slope() -> None:
    x = double([-1.2, -1.0, -0.7, -0.3, 0.0, 0.1, 0.4, 0.5, 1.1]).requires_grad_()
    mask = x > 0
    y = Step.apply(x, mask)
    y.sum().backward()
    assert torch.equal(y, mask.double())
    expected = double([0, 0.4, 0.4, 0.8, 2, 1.6, 0.4, 0.4, 0])
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize(
    ("weight_gradient", "theta_gradient"), [("masked", [[1.0, 0], [0, 4]]), ("full", [[1.6, 0], [0, 6.88]])]
)
def test_gradients_by_hand(weight_gradient: str, theta_gradient: list[list[float]]) -> None:
    """theta [[.5, -.2], [.1, -.9]], t [.3, .6], A [[1, 2], [3, 4]], lambda 0.1.

    |theta| - t = [[.2, -.1], [-.5, .3]], so H' = [[1.2, 1.6], [.4, .8]] and M = [[1, 0], [0, 1]].
    dL/dt     = -[1 * .5 * 1.2 - 2 * .2 * 1.6, 3 * .1 * .4 - 4 * .9 * .8] - .1 exp(-t) = [.04, 2.76] - .1 exp(-t)
    dL/dtheta = A * M, in full A * (M + |theta| * H') * M
    """
    net = nn.Linear(2, 2, bias=False).double()
    oracle = Oracle(net, partial(torch.optim.SGD, lr=1.0), sparsity_weight=0.1, weight_gradient=weight_gradient)
    (layer,) = oracle.layers
    theta, t = double([[0.5, -0.2], [0.1, -0.9]]), double([0.3, 0.6])
    with torch.no_grad():
        net.weight.copy_(theta)
        layer.t.copy_(t)
    oracle.refresh(layer)
    assert layer.mask.tolist() == [[True, False], [False, True]]
    slope = double([[1.0, 2], [3, 4]])
    loss = (oracle(torch.eye(2).double()).T * slope).sum() + oracle.regularizer()
    loss.backward()
    torch.testing.assert_close(layer.t.grad, double([0.04, 2.76]) - 0.1 * torch.exp(-t))
    oracle.step()
    torch.testing.assert_close(net.weight.detach(), theta - double(theta_gradient))


def test_no_task_gradient() -> None:
    """Only the regularizer moves thresholds; in a step without it they rest."""
    G, _ = tiny.build("plain")
    oracle = Oracle(G, OPTIMIZERS["sgd"], sparsity_weight=0.5, task_gradient=False)
    (oracle(torch.randn(2, tiny.Z).double()).sum() + oracle.regularizer()).backward()
    for layer in oracle.layers:
        torch.testing.assert_close(layer.t.grad, torch.full_like(layer.t, -0.5))
    oracle.step()
    before = [layer.t.detach().clone() for layer in oracle.layers]
    oracle.zero_grad()
    oracle(torch.randn(2, tiny.Z).double()).sum().backward()
    oracle.step()
    assert all(torch.equal(layer.t, t) for layer, t in zip(oracle.layers, before))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_one_filter_is_one_output_channel(transposed: bool, groups: int) -> None:
    """A threshold that prunes its whole filter leaves only the bias in that output channel, and the others alone."""
    net = (nn.ConvTranspose2d if transposed else nn.Conv2d)(8, 12, 3, groups=groups).double()
    (layer,) = managed(net)
    assert len(layer.t) == 12
    x = torch.randn(2, 8, 5, 5).double()
    dense = net(x)
    for channel in range(12):
        cut = copy.deepcopy(net)
        t = torch.zeros(12).double()
        t[channel] = 100.0
        with torch.no_grad():
            cut.weight[layer.theta.abs() <= layer.spread(t)] = 0
        others = [c for c in range(12) if c != channel]
        assert torch.equal(cut(x)[:, others], dense[:, others])
        assert torch.equal(cut(x)[:, channel], torch.full_like(dense[:, channel], net.bias[channel].item()))


@pytest.mark.parametrize("kind", ["old_sn", "new_sn"])
def test_sigma_is_that_of_the_sparse_matrix(kind: str) -> None:
    _, D = tiny.build(kind)
    oracle = Oracle(D, OPTIMIZERS["sgd"], sparsity_weight=0.0)
    for layer in oracle.layers:
        layer.mask = layer.theta.abs() > 0.5 * layer.theta.abs().max()
    for _ in range(300):  # power iterations
        oracle(torch.zeros(1, *tiny.IMAGE).double())
    for layer in oracle.layers:
        sparse = (layer.theta * layer.mask).flatten(1)
        owner, _, _ = layer.name.rpartition(".")
        u = D.get_submodule(owner).state_dict()["weight_u" if kind == "old_sn" else "0._u"]
        sigma = torch.linalg.matrix_norm(sparse.detach(), 2)
        torch.testing.assert_close((sparse.detach().T @ u).norm(), sigma, rtol=1e-4, atol=0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_pruned_entries_are_frozen_exactly(optimizer: str) -> None:
    """Whatever momentum or decay does, and although the optimizer does move them."""
    side = OracleSide(*tiny.build("plain"), OPTIMIZERS[optimizer], sparsity_weight=1e-2)
    train(side, iterations=60)
    momentum = 0
    for _ in range(10):
        before = side.snapshot()
        train(side, iterations=1)
        for key, theta in side.snapshot().theta.items():
            pruned = ~before.mask[key]
            assert torch.equal(theta[pruned], before.theta[key][pruned])
            assert not torch.equal(theta, before.theta[key])
    for name, net in side.nets.items():
        for layer in net.layers:
            state = net.optimizer.state[layer.theta]
            pruned = ~before.mask[f"{name}.{layer.name}"]
            momentum += int(state.get("exp_avg", state.get("momentum_buffer"))[pruned].count_nonzero())
    assert (momentum > 0) == (optimizer != "adam_b0")


def test_skipped_step_changes_nothing() -> None:
    side = OracleSide(*tiny.build("plain"), OPTIMIZERS["adam_b5"], sparsity_weight=1e-2)
    train(side, iterations=30)
    net = side.nets["G"]
    before = copy.deepcopy((side.snapshot(), net.optimizer.state_dict(), net.threshold_optimizer.state_dict()))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    net.zero_grad()
    scaler.scale((net(torch.ones(2, tiny.Z).double()).sum() + net.regularizer()) * float("inf")).backward()
    net.step(scaler=scaler)
    scaler.update()
    assert scaler.get_scale() == 2.0**9
    after = (side.snapshot(), net.optimizer.state_dict(), net.threshold_optimizer.state_dict())
    for quantity in ("theta", "mask", "threshold"):
        for key, value in getattr(before[0], quantity).items():
            assert torch.equal(value, getattr(after[0], quantity)[key])
    for old, new in zip(before[1:], after[1:]):
        for index, state in old["state"].items():
            assert all(torch.equal(value, new["state"][index][key]) for key, value in state.items())


def test_guard_keeps_exact_zeros_and_the_optimizer_state() -> None:
    net = one_layer(2)
    with torch.no_grad():
        net[0].weight[5] = 0.0
    oracle = Oracle(net, partial(torch.optim.Adam, lr=0.5), sparsity_weight=1.0)
    oracle.regularizer().backward()
    oracle.step()
    (layer,) = oracle.layers
    assert oracle.resets == 1
    assert layer.mask.all()
    assert not layer.t.any()
    assert oracle.threshold_optimizer.state[layer.t]["exp_avg"].all()


def test_layers_that_are_managed() -> None:
    def names(net: nn.Module) -> list[str]:
        return [layer.name for layer in managed(net)]

    assert names(tiny.build("plain")[0]) == ["0.weight", "5.weight", "7.weight"]
    assert names(tiny.build("equalized")[1]) == ["0.weight", "2.weight", "5.weight"]
    assert names(tiny.build("old_sn")[1]) == ["0.weight_orig", "2.weight_orig", "5.weight_orig"]
    assert names(tiny.build("new_sn")[1]) == [f"{i}.parametrizations.weight.original" for i in (0, 2, 5)]
    assert isinstance(next(managed(nn.Linear(2, 3))), Layer)

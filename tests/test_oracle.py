"""The engine against an independent autograd implementation of RG-GAN (oracle.py), over whole training runs.

One training loop, two sides: the engine trains a network with plain numbers in its parameters and hooks on its
optimizers, the oracle trains the same network with theta in its parameters and the mask in the graph. The loop knows no
formula. After 200 iterations, and at every 20th, weights, thresholds, masks, biases and buffers have to agree.
"""

from __future__ import annotations

from functools import partial

import pytest
import tiny
import torch
from oracle import Oracle
from sides import (
    OPTIMIZERS,
    SCHEDULES,
    assert_agree,
    assert_pruned,
    one_layer,
    setting,
    train_engine,
    train_oracle,
)

import rgplug

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

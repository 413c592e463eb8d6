"""A step never waits for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from common import Host
from structured import LEAVE_OUT, Run, pair
from torch import Tensor

import rgplug
from rgplug.methods import threshold_shift


@contextmanager
def forbidden() -> Iterator[None]:
    """Everything that would wait for a device raises; what may be asked of a CPU is not asked, as on a device."""

    def refuse(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            raise AssertionError(f"{name} waits for the device")

        return call

    names = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu", "numpy", "nonzero", "is_nonzero")
    functions = ("nonzero", "masked_select", "unique", "equal", "allclose", "is_nonzero")
    with (
        mock.patch.multiple(Tensor, **{n: refuse(f"Tensor.{n}") for n in names}),
        mock.patch.multiple(torch, **{n: refuse(f"torch.{n}") for n in functions}),
        mock.patch.object(threshold_shift, "_may_hold", return_value=True),
    ):
        yield


@contextmanager
def allowed() -> Iterator[None]:
    """torch's own optimizers read their step counters, which live on the host."""
    originals = {n: ORIGINAL[n] for n in ORIGINAL}
    with mock.patch.multiple(Tensor, **originals):
        yield


ORIGINAL = {n: getattr(Tensor, n) for n in ("item", "__float__", "__int__", "__bool__", "tolist")}


def never_waiting(rg: rgplug.Controller) -> None:
    """From now on the work around a step raises where it would wait."""
    for net in rg.networks.values():
        for name in ("before_step", "after_step"):
            original = getattr(net, name)

            def guarded(*args: Any, original: Any = original, **kwargs: Any) -> Any:
                with forbidden():
                    return original(*args, **kwargs)

            setattr(net, name, guarded)
        optimizers = {id(f.optimizer): f.optimizer for f in net.method.optimizer._flats.values()}
        assert optimizers or net.method.units.granularity == "2:4"
        for optimizer in optimizers.values():
            step = optimizer.step

            def unguarded(step: Any = step) -> None:
                with allowed():
                    step()

            optimizer.step = unguarded


def test_only_a_cpu_is_asked() -> None:
    assert threshold_shift._may_hold(torch.tensor(True))
    assert not threshold_shift._may_hold(torch.tensor(False))
    assert threshold_shift._may_hold(torch.empty((), dtype=torch.bool, device="meta"))  # has no value to tell


@pytest.mark.parametrize("units", ["absolute", "layer_std", "spectral"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer_state": "reset"},
        {"regeneration": {"recurrent": False}},
        {"target": {"G": 0.5, "D": 0.5, "by": 20}},
        {"regularization": "loss"},
    ],
)
@pytest.mark.parametrize("kind", ["old_sn", "grouped"])
@pytest.mark.parametrize("kernels", ["auto", "eager"])
def test_a_step_never_waits_for_the_device(kernels: str, units: str, options: dict[str, Any], kind: str) -> None:
    """eager: the tensor operations that other devices take."""
    host = Host(kind)
    policy = {"sparsity_weight": 1e-2, "threshold": {"units": units, "weight_gradient": "full", "min": 0.0}, **options}
    rg = rgplug.attach(host.G, host.D, {**policy, "kernels": kernels})
    host.run(2)
    never_waiting(rg)
    host.run(2)
    assert rg.networks["G"].iteration == 4


@pytest.mark.parametrize("granularity", ["kernel", "filter", "2:4"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"regeneration": {"recurrent": False}},
        {"target": {"G": 0.5, "D": 0.5, "by": 20}},
    ],
)
def test_nor_with_larger_units(granularity: str, options: dict[str, Any]) -> None:
    if granularity == "2:4" and "target" in options:
        pytest.skip("another density than one half")
    run = Run(*pair(), split=True)
    policy = {"sparsity_weight": 1e-2, "granularity": granularity, **options}
    rg = rgplug.attach(run.nets["G"], run.nets["D"], policy | (LEAVE_OUT if granularity == "2:4" else {}))
    run.run(2)
    never_waiting(rg)
    run.run(2)
    assert rg.networks["G"].iteration == 4

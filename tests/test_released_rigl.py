"""Released dynamic sparse training of one network against rgplug: ITOP as it is, RigL (rigl-torch) with its deviations.

Checkouts: RGPLUG_HOSTS/In-Time-Over-Parameterization, RGPLUG_HOSTS/rigl-torch. SGD with momentum, as both use it; masks
at the start are those that the released code draws. Deviations of rigl-torch that are replaced from outside: the
optimizer does not step at an exchange, and counts are rounded down.
"""

from __future__ import annotations

import copy
import importlib
import math
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from released import equal, released, state_of
from torch import Tensor, nn

import rgplug
from rgplug.snapshot import save_masks

pytestmark = pytest.mark.host

STEPS, EVERY, END, FRACTION = 40, 6, 50, 0.4


def network() -> nn.Module:
    """Without ReLU: where too few inactive weights have a gradient, released ITOP counts active ones as grown."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Softplus(), nn.Conv2d(8, 8, 3), nn.Softplus(),
        nn.Flatten(), nn.Linear(32, 12), nn.Softplus(), nn.Linear(12, 5),
    )  # fmt: skip


def sgd(net: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def backward(net: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    torch.manual_seed(step)
    x, y = torch.randn(6, 3, 4, 4), torch.randint(5, (6,))
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(x), y).backward()


def state(net: nn.Module, optimizer: torch.optim.Optimizer, masks: dict[str, Tensor]) -> dict[str, Tensor]:
    buffers = {
        f"{n}:momentum": optimizer.state[p]["momentum_buffer"].clone()
        for n, p in net.named_parameters()
        if "momentum_buffer" in optimizer.state.get(p, {})
    }
    # what released code keeps of the momentum of inactive weights is masked before the optimizer sees it
    buffers = {n: b * masks.get(n.partition(":")[0], 1) for n, b in buffers.items()}
    return state_of(net, optimizer) | buffers | {f"{n}:mask": m.bool().clone() for n, m in masks.items()}


def compare(
    seen: list[dict[str, Tensor]], began: nn.Module, masks: dict[str, Tensor], final: float, where: Path
) -> list[int]:
    """Steps at which rgplug exchanged weights. Fails at the first difference."""
    save_masks(where / "masks.safetensors", {"G": masks})
    policy = {
        "base": "rigl", "masks.file": str(where / "masks.safetensors"), "exploration.networks": ["G"],
        "exploration.every": EVERY, "exploration.end": END, "exploration.fraction": FRACTION,
        "exploration.final": final,
    }  # fmt: skip
    rg = rgplug.attach(began, None, policy)
    optimizer, exchanges = sgd(began), []
    for i, theirs in enumerate(seen, 1):
        before = {w.name: w.mask for w in rg.weights("G")}
        backward(began, optimizer, i)
        optimizer.step()
        after = {w.name: w.mask for w in rg.weights("G")}
        equal(state(began, optimizer, after), theirs, f"step {i}")
        exchanges += [i] * any(not torch.equal(m, before[n]) for n, m in after.items())
    return exchanges


def run_itop() -> tuple[list[dict[str, Tensor]], nn.Module, dict[str, Tensor]]:
    core = importlib.import_module("sparselearning.core")
    net = network()
    optimizer = sgd(net)
    args = Namespace(fix=False, update_frequency=EVERY)
    mask = core.Masking(
        optimizer, death_rate=FRACTION, death_mode="magnitude", death_rate_decay=core.CosineDecay(FRACTION, END),
        growth_mode="gradient", redistribution_mode="none", args=args,
    )  # fmt: skip
    mask.add_module(net, density=0.3, sparse_init="ERK")
    first = {n: m.bool().clone() for n, m in mask.masks.items()}
    began, seen = copy.deepcopy(net), []
    for i in range(1, STEPS + 1):
        backward(net, optimizer, i)
        mask.step()
        seen.append(state(net, optimizer, mask.masks))
    return seen, began, first


def test_itop(tmp_path: Path) -> None:
    with released("In-Time-Over-Parameterization"):
        seen, began, masks = run_itop()
    assert compare(seen, began, masks, 0.005, tmp_path) == list(range(EVERY, STEPS + 1, EVERY))


def run_rigl(step: Callable[[Any, torch.optim.Optimizer], None]) -> tuple[Any, ...]:
    rigl = importlib.import_module("rigl_torch.RigL")
    net = network()
    optimizer = sgd(net)
    pruner = rigl.RigLScheduler(
        net, optimizer, dense_allocation=0.3, T_end=END, delta=EVERY, alpha=FRACTION, ignore_linear_layers=False
    )
    names = [next(n for n, p in net.named_parameters() if p is w) for w in pruner.W]

    def masks() -> dict[str, Tensor]:  # the first layer is dense
        every = zip(names, pruner.W, pruner.backward_masks)
        return {n: torch.ones_like(w, dtype=torch.bool) if m is None else m.clone() for n, w, m in every}

    first, began, seen = masks(), copy_of(net), []
    for i in range(1, STEPS + 1):
        backward(net, optimizer, i)
        step(pruner, optimizer)
        seen.append(state(net, optimizer, masks()))
    return seen, began, first


def copy_of(net: nn.Module) -> nn.Module:
    """Without the hooks that the released code puts on its weights."""
    found = network()
    found.load_state_dict(net.state_dict())
    return found


def as_released(pruner: Any, optimizer: torch.optim.Optimizer) -> None:
    if pruner():
        optimizer.step()


def always(pruner: Any, optimizer: torch.optim.Optimizer) -> None:
    optimizer.step()
    pruner()


def test_rigl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with released("rigl-torch"):
        rigl = importlib.import_module("rigl_torch.RigL")
        monkeypatch.setattr(rigl, "int", lambda value: math.ceil(value - 1e-9), raising=False)
        seen, began, masks = run_rigl(always)
    assert compare(seen, began, masks, 0.0, tmp_path) == list(range(EVERY, STEPS + 1, EVERY))


@pytest.mark.parametrize("step", [as_released, always])
def test_rigl_s_deviations_matter(step: Any, tmp_path: Path) -> None:
    """Both, and the rounding alone: equal up to the first exchange, and not beyond."""
    with released("rigl-torch"):
        seen, began, masks = run_rigl(step)
    with pytest.raises(pytest.fail.Exception, match=f"step {EVERY}:"):
        compare(seen, began, masks, 0.0, tmp_path)

"""Calls inside `torch.inference_mode()`: what rgplug makes there has to be usable in the next training step."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from common import adam
from torch import Tensor, nn

import rgplug

POLICIES: dict[str, dict[str, Any]] = {
    "rg-gan": {"base": "rg-gan", "threshold.init": 0.1},
    "layer_std": {"base": "rg-gan", "threshold.init": 0.3, "threshold.units": "layer_std"},
    "spectral": {"base": "rg-gan", "threshold.init": 0.1, "threshold.units": "spectral"},
    "target": {"base": "rg-gan", "target": {"G": 0.5, "by": 4}},
    "augmented": {
        "base": "rg-gan",
        "threshold.init": 0.1,
        "regeneration": {"augmented": {"window": 2, "weights": [0.5, 0.5], "include_current": True}},
    },
    "stu-gan": {"base": "stu-gan", "exploration.every": 2, "exploration.end": 100},
    "re-gan": {"base": "re-gan", "cycle.period": 2, "cycle.warm_up": 1},
    "dense": {"base": "dense"},
}


class Run:
    def __init__(self, policy: dict[str, Any], kernels: str = "auto") -> None:
        torch.manual_seed(0)
        self.G = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 64))
        self.average = copy.deepcopy(self.G)
        self.rg = rgplug.attach(self.G, None, {**policy, "kernels": kernels})
        self.optimizer = adam(self.G)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.G(torch.randn(4, 8)).square().mean().backward()
        self.rg.mask_gradients()
        self.optimizer.step()


@pytest.mark.parametrize("kernels", ["eager", "auto"])
@pytest.mark.parametrize("name", list(POLICIES))
def test_everything_called_in_inference_mode_leaves_the_run_as_it_is_outside(
    name: str, kernels: str, tmp_path: Path
) -> None:
    def train(mode: Any) -> dict[str, Tensor]:
        run = Run(POLICIES[name], kernels)
        for metric in (1.0, 5.0, 0.5):
            for _ in range(2):
                run.step()
            with mode():
                run.rg.end_epoch(metric, ema=run.average)
                run.rg.ema(run.average, 0.9)
                state = run.rg.state_dict()
                run.rg.save(tmp_path / "state")
                run.rg.load_state_dict(state)
                run.rg.load(tmp_path / "state")
                run.rg.resume_phase()
                run.rg.synchronize()
                run.rg.mask_gradients()
                run.rg.density()
            run.step()
        with mode():
            run.rg.detach("dense")
        run.optimizer.zero_grad()
        run.G(torch.randn(4, 8)).square().mean().backward()
        run.optimizer.step()
        found = {n: p.detach().clone() for n, p in run.G.named_parameters()}
        return found | {f"average.{n}": p.detach().clone() for n, p in run.average.named_parameters()}

    expected, found = train(torch.no_grad), train(torch.inference_mode)
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize("name", list(POLICIES))
def test_attach_in_inference_mode(name: str) -> None:
    with torch.inference_mode(False):
        G = nn.Linear(8, 64)
    with torch.inference_mode():
        rg = rgplug.attach(G, None, POLICIES[name])
    optimizer = adam(G)
    for _ in range(3):
        optimizer.zero_grad()
        G(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
    assert all(torch.equal(w.param.detach(), w.theta * w.mask) for w in rg.weights("G"))
    rg.detach()


def test_an_average_that_was_made_in_inference_mode_can_wear_the_mask() -> None:
    run = Run(POLICIES["rg-gan"])
    run.step()
    with torch.inference_mode():
        average = copy.deepcopy(run.G)
        for p in average.parameters():
            p.fill_(1.0)
    assert average[0].weight.is_inference()
    run.rg.apply_masks(average)
    (first, _) = run.rg.weights("G")
    assert torch.equal(average[0].weight != 0, first.mask)
    assert not first.mask.all()
    with torch.inference_mode():
        run.rg.ema(average, 0.5)
        run.rg.end_epoch(1.0, ema=average)
    run.rg.detach()


def test_warnings_still_point_at_the_line_that_called() -> None:
    rg = rgplug.attach(nn.Linear(4, 4), None, "rg-gan")
    with pytest.warns(UserWarning, match="no optimizer step was seen") as caught:
        rg.end_epoch(1.0)
    assert Path(caught[0].filename).name == Path(__file__).name
    rg.detach()

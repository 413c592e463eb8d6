"""Measuring from the loop: the average under the live mask, and the run goes on as if nothing had happened."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import rgplug
from rgplug.errors import RgplugError


class Generator(nn.Module):
    z_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3 * 16 * 16)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.linear(z)).view(-1, 3, 16, 16)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.setenv("RGPLUG_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    (tmp_path / "real").mkdir()
    for i in range(12):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(tmp_path / "real" / f"{i}.png")
    torch.manual_seed(0)
    G = Generator()
    metric = {"real": str(tmp_path / "real"), "features": "efficientnet_lite0", "samples": 12, "batch": 6}
    policy = {"target": {"G": 0.5, "by": 0, "shape": "constant"}, "metric": metric, "run_dir": str(tmp_path / "run")}
    rg = rgplug.attach(G, None, policy)
    ema = copy.deepcopy(G)
    optimizer = torch.optim.Adam(G.parameters(), 1e-3)
    G(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    with rg:
        yield G, ema, rg


def test_end_epoch_measures_and_names_the_value(run) -> None:  # type: ignore[no-untyped-def]
    G, ema, rg = run
    weights, average = ([p.detach().clone() for p in net.parameters()] for net in (G, ema))
    random = torch.get_rng_state()
    record = rg.end_epoch(ema=ema)
    assert record.metric_name == "fd_efficientnet_lite0"
    assert record.metric > 0
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(weights, G.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(average, ema.parameters()))
    assert ema.linear.weight.all()  # the mask was on it while it was measured, and only then


def test_evaluate_leaves_the_average_alone_and_measures_it_masked(run) -> None:  # type: ignore[no-untyped-def]
    _, ema, rg = run
    before = copy.deepcopy(ema.state_dict())
    module = rg.evaluate(ema=ema).value
    assert all(torch.equal(before[k], v) for k, v in ema.state_dict().items())
    as_state = rg.evaluate(ema=ema.state_dict()).value
    as_list = rg.evaluate(ema=list(ema.parameters())).value
    masked = copy.deepcopy(ema)
    rg.apply_masks(masked)
    assert module == as_state == as_list == rg.evaluate(ema=masked).value


def test_several_distances_of_one_evaluation(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Each has the value of a policy that names it alone; the images are made once."""
    G, ema, rg = run
    names = {"frechet": "fd_efficientnet_lite0", "kid": "kid_efficientnet_lite0", "is": "is_efficientnet_lite0"}
    values = {}
    for distance in names:
        rg.detach()
        rg = rgplug.attach(G, None, rg.policy.changed({"metric.distance": distance, "run_dir": None}))
        values[distance] = rg.evaluate(ema=ema)
    rg.detach()
    several = rg.policy.changed({"metric": ["is", "fid", "kid"], "run_dir": str(tmp_path / "several")})
    rg = rgplug.attach(G, None, several)
    made = []
    G.register_forward_hook(lambda _, z, __: made.append(len(z[0])))
    together = rg.evaluate()
    assert made.count(rg.policy.metric.batch) == 2  # all of its samples, once
    together = rg.evaluate(ema=ema)
    assert [(v.name, v.value, v.error) for v in together.all] == [
        (names[d], values[d].value, values[d].error) for d in ("is", "frechet", "kid")
    ]
    record = rg.end_epoch()
    assert list(record.metrics) == [names["is"], names["frechet"], names["kid"]]
    assert rg.regeneration.history == [record.metric]
    assert record.metric_name == names["is"]
    assert record.metrics == {v.name: v.value for v in rg.evaluate().all}


def test_sample_fn_and_every(run) -> None:  # type: ignore[no-untyped-def]
    _, _, rg = run
    seen = []

    def sample(n: int) -> torch.Tensor:
        seen.append(n)
        return torch.zeros(n, 3, 16, 16)

    assert rg.end_epoch(sample_fn=sample).metric > 0
    assert sum(seen) >= 12


def test_another_network_is_refused(run) -> None:  # type: ignore[no-untyped-def]
    _, _, rg = run
    with pytest.raises(RgplugError, match=r"linear\.weight of G has shape .* give a copy of G"):
        rg.apply_masks(nn.Linear(3, 3))
    with pytest.raises(RgplugError, match="has to be a module, a state dict, or a list"):
        rg.evaluate(ema=[torch.zeros(3)])


def test_non_finite_images_decide_nothing(run) -> None:  # type: ignore[no-untyped-def]
    G, _, rg = run
    with torch.no_grad():
        G.linear.bias.fill_(float("nan"))
    with pytest.warns(UserWarning, match="no decision"):
        record = rg.end_epoch()
    assert record.phase == "sparse"
    assert rg.regeneration.history == []

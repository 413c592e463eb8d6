"""What all adapters share: the average under the mask, sidecars, and the numbers for the host's logs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from common import Host
from torch import Tensor, nn

from rgplug import state
from rgplug.adapters.run import Run
from rgplug.policy import Policy

POLICY = {
    "threshold.init": 0.2,
    "regeneration.augmented": {"window": 1, "weights": [1.0], "include_current": False},
}


def started(host: Host) -> Run:
    run = Run(Policy.load(POLICY))
    run.network("G", host.G)
    run.network("D", host.D)
    host.run(2)
    assert run.controller.density("G") < 1
    return run


def average_of(G: nn.Module, form: str) -> Any:
    """An average of random values: a module (StyleGAN2, BigGAN) or a list of tensors (FastGAN)."""
    average = copy.deepcopy(G)
    with torch.no_grad():
        for p in average.parameters():
            p.copy_(torch.randn_like(p))
    return average if form == "module" else [p.detach() for p in average.parameters()]


def values(average: Any) -> list[Tensor]:
    return [p.detach().clone() for p in (average.parameters() if isinstance(average, nn.Module) else average)]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(map(torch.equal, a, b))


@pytest.mark.parametrize("form", ["module", "list"])
def test_a_snapshot_holds_the_masked_average_and_its_sidecar_the_rest(form: str, tmp_path: Path) -> None:
    host = Host()
    run = started(host)
    average = average_of(host.G, form)
    whole = values(average)
    run.averages(lambda: average)
    masks = {w.name: w.mask for w in run.controller.weights("G")}
    names = [name for name, _ in host.G.named_parameters()]
    with run.masked_ema(), run.masked_ema():
        saved = values(average)
        run.write_sidecar(tmp_path / "snapshot.pkl")
        for name, was, now in zip(names, whole, saved):
            assert torch.equal(now, was * masks[name] if name in masks else was), name
    assert equal(values(average), whole)

    # a resume: the host has loaded the masked average of its snapshot
    other = Host(seed=1)
    again = started(other)
    loaded = average_of(other.G, form)
    with torch.no_grad():
        for into, value in zip(loaded.parameters() if form == "module" else loaded, saved):
            into.copy_(value)
    again.averages(lambda: loaded)
    assert again.resume(tmp_path / "snapshot.pkl")
    again.resume_ema()
    assert equal(values(loaded), whole)


def test_without_an_average_there_is_nothing_to_mask(tmp_path: Path) -> None:
    run = started(Host())
    with run.masked_ema():
        run.write_sidecar(tmp_path / "snapshot.pkl")
    run.resume_ema()
    assert state.load(run.sidecar(tmp_path / "snapshot.pkl"))["ema"] == {}


def test_numbers_of_an_evaluation_are_of_what_was_measured() -> None:
    run = started(Host())
    density = run.controller.density("G")
    run.evaluated({"fid": 5.0})
    record = run.evaluated({"fid": 9.0})  # worse: goes dense
    numbers = run.numbers(record)
    assert (numbers["density_G"], numbers["sparse"], numbers["regenerated_G"]) == (density, 1.0, 0.0)
    assert numbers["restored_G"] == record.restored["G"] > 0
    assert (run.numbers()["density_G"], run.numbers()["sparse"]) == (1.0, 0.0)


def test_all_that_the_host_measured_is_recorded_and_one_decides() -> None:
    run = started(Host())
    with pytest.warns(UserWarning, match="got no metric"):
        assert run.evaluated({}).metric is None
    record = run.evaluated({"is": 8.0, "fid": 5.0}, "fid")
    assert (record.metric, record.metric_name) == (5.0, "fid")
    assert record.metrics == {"fid": 5.0, "is": 8.0}
    assert run.evaluated({"is": 7.0, "fid": 9.0}, "fid").phase == "dense"  # the score went down, the distance up
    assert run.evaluated({"kid": 1.0, "fid": 2.0}).metric_name == "kid"

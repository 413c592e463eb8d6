"""A state of another method or set-up: all of it fits, or nothing is changed and one sentence says what differs."""

from __future__ import annotations

import copy
import re
import warnings
from typing import Any

import pytest
import torch
from common import Host, adam, different, set_grad, sgd, snapshot
from fuzzed_files import rewritten
from PIL import Image
from torch import nn

import rgplug
from rgplug.errors import RgplugError

THRESHOLDS = {"sparsity_weight": 1e-2, "threshold": {"init": 0.05}}
EXPLORES = {"method": "sparse", "masks": {"density": 0.3}, "exploration": {"every": 1, "end": 100}}
SETUPS: dict[str, dict[str, Any]] = {
    "absolute": THRESHOLDS,
    "layer_std": {**THRESHOLDS, "threshold.units": "layer_std"},
    "spectral": {**THRESHOLDS, "threshold.units": "spectral"},
    "kernels": {**THRESHOLDS, "granularity": "kernel"},
    "filters": {**THRESHOLDS, "granularity": {"G": "filter"}},
    "G alone has thresholds": {**THRESHOLDS, "threshold.networks": ["G"]},
    "never dense": {**THRESHOLDS, "regeneration": {"augmented": None}},
    "static": {"method": "sparse", "masks": {"density": 0.3}},
    "set": {**EXPLORES, "exploration.grow": "random"},
    "rigl": {**EXPLORES, "exploration.grow": "gradient"},
    "momentum": {**EXPLORES, "exploration.grow": "momentum"},
    "adapt": {**EXPLORES, "balance": {"every": 1, "measure": 1, "window": 2}},
    "re-gan": {"method": "re-gan", "cycle": {"warm_up": 0, "period": 2}},
    "dense": {"method": "dense"},
}


def attached(policy: Any, optimizer: Any = adam) -> tuple[Host, rgplug.Controller]:
    host = Host(optimizer=optimizer)
    rg = rgplug.attach(host.G, host.D, policy)
    rg.observe(host.data.x(0), host.data.z(0))
    host.run(3)
    rg.end_epoch(3.0)
    return host, rg


@pytest.fixture(scope="module")
def states() -> dict[str, dict[str, Any]]:
    found = {}
    for name, policy in SETUPS.items():
        _, rg = attached(policy)
        found[name] = rg.state_dict()
        rg.detach()
    return found


@pytest.mark.parametrize("into", SETUPS)
def test_states_of_all_other_set_ups_are_refused_and_change_nothing(
    states: dict[str, dict[str, Any]], into: str
) -> None:
    host, rg = attached(SETUPS[into])
    before, count = snapshot(rg), rg.epoch
    for name, state in states.items():
        if name == into:
            continue
        with pytest.raises(RgplugError) as error:
            rg.load_state_dict(state)
        assert "\n" not in str(error.value)
        assert not different(snapshot(rg), before), name
        assert rg.epoch == count
    rg.load_state_dict(states[into])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other weights than the state's
        host.run(3)
    rg.end_epoch(4.0)
    rg.detach()


@pytest.mark.parametrize(
    ("saved", "into", "sentence"),
    [
        ("re-gan", "static", "the state is one of method re-gan, this policy's method is sparse"),
        ("layer_std", "absolute", "threshold.units: layer_std for G, this policy has absolute"),
        ("kernels", "absolute", "granularity: kernel for G, this policy has weight"),
        ("set", "rigl", "exploration.grow: random for G, this policy has gradient"),
        ("adapt", "rigl", "balance: yes, this policy has no"),
        ("absolute", "never dense", "regeneration.augmented: yes, this policy has no"),
    ],
)
def test_the_sentence_names_the_key(states: dict[str, dict[str, Any]], saved: str, into: str, sentence: str) -> None:
    _, rg = attached(SETUPS[into])
    with pytest.raises(RgplugError, match=re.escape(sentence)):
        rg.load_state_dict(states[saved])
    rg.detach()


@pytest.mark.parametrize(
    "changes",
    [
        {"metric.real": "elsewhere", "kernels": "eager", "dormant": "float16", "finish": "dense"},
        {"target": {"G": 0.5, "by": 10}, "run_dir": "elsewhere", "sparsity_weight": 1e-3, "batch_size": 3},
    ],
)
def test_keys_that_may_differ(changes: dict[str, Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "elsewhere" / "a.png")
    host, rg = attached(THRESHOLDS)
    state = rg.state_dict()
    rg.detach()
    with rgplug.attach(host.G, host.D, {**THRESHOLDS, **changes}) as other:
        other.load_state_dict(state)
        assert other.epoch == 1


def test_moments_of_another_optimizer_class() -> None:
    """Known when the host has stepped: refused. Else noticed at the first step, and the moments begin anew."""
    _, rg = attached(THRESHOLDS, lambda m: sgd(m, 1e-2, momentum=0.9))
    state = rg.state_dict()
    assert state["networks"]["G"]["weights"]["0.weight"]["method.optimizer.class"] == "SGD"
    rg.detach()
    _, rg = attached(THRESHOLDS)
    before = snapshot(rg)
    with pytest.raises(RgplugError, match=r"moments of SGD, and Adam steps its weights"):
        rg.load_state_dict(state)
    assert not different(snapshot(rg), before)
    rg.detach()
    host = Host()
    rg = rgplug.attach(host.G, host.D, THRESHOLDS)
    rg.load_state_dict(state)
    with pytest.warns(UserWarning, match=r"are no moments of Adam \(they are SGD's\)"):
        host.run(1)
    own = rg.state_dict()["networks"]["G"]["weights"]["0.weight"]
    assert own["method.optimizer.class"] == "Adam"
    assert float(own["method.optimizer.step"]) == 1
    rg.detach()


def test_counters_that_came_later_are_0_and_unknown_ones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _, rg = attached(THRESHOLDS)
    state = rg.state_dict()
    unknown = copy.deepcopy(state)
    unknown["networks"]["G"]["counters"]["more"] = torch.zeros_like(state["networks"]["G"]["counters"]["kept"])
    with pytest.raises(RgplugError, match=r"state of G has a 'counters' that has 'more', which is unknown"):
        rg.load_state_dict(unknown)
    for counter in ("kept", "density_steps"):
        missing = copy.deepcopy(state)
        del missing["networks"]["G"]["counters"][counter]
        with pytest.raises(RgplugError, match=f"has no {counter!r}"):
            rg.load_state_dict(missing)
    monkeypatch.setattr("rgplug.counts._ALWAYS", ("kept", "regrown", "pruned", "written"))
    missing = copy.deepcopy(state)
    for net in missing["networks"].values():
        del net["counters"]["density_steps"]
    rg.load_state_dict(missing)
    assert rg.networks["G"].counts.density_steps.eq(0).all()
    rg.detach()


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("networks", "G", "weights", "0.weight", "steps"), -1, r"G\.0\.weight has a 'steps' that is -1"),
        (("networks", "G", "weights", "0.weight", "threshold"), torch.zeros(3), r"'threshold' that has shape \[3\]"),
        (("networks", "G", "weights", "0.weight", "mask"), torch.ones(128, 6), r"'mask' that is of float32"),
        (("networks", "G", "iteration"), 2.5, r"'iteration' that is 2\.5"),
        (("regeneration", "history"), [1.0, "x"], r"state's regeneration has a 'history'"),
        (("accounting", "shown"), -3, r"state's accounting has a 'shown' that is -3"),
        (("last_counts",), {"G": [0, 0]}, r"state's last_counts has no 'D'"),
        (("epoch",), True, r"state's epoch is True"),
    ],
)
def test_every_part_judges_its_own_piece(path: tuple[str, ...], value: Any, sentence: str) -> None:
    _, rg = attached(THRESHOLDS)
    before, state = snapshot(rg), rg.state_dict()
    at = state
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(RgplugError, match=sentence):
        rg.load_state_dict(state)
    assert not different(snapshot(rg), before)
    rg.detach()


def test_a_state_with_a_network_too_many() -> None:
    host, rg = attached(THRESHOLDS)
    state = rg.state_dict()
    rg.detach()
    with rgplug.attach(host.G, None, THRESHOLDS) as alone, pytest.raises(RgplugError, match="also holds D"):
        alone.load_state_dict(state)


def test_active_units_that_the_mask_does_not_keep() -> None:
    _, rg = attached(SETUPS["rigl"])
    state = rg.state_dict()
    state["networks"]["G"]["weights"]["0.weight"]["method.active"] += 1
    with pytest.raises(RgplugError, match=r"counts \d+ active units of 0\.weight, and its mask keeps \d+"):
        rg.load_state_dict(state)
    rg.detach()


def test_a_shape_in_a_file_takes_no_memory(tmp_path: Any) -> None:
    """2^36 entries would be 64 GiB of a mask alone."""
    net = nn.Linear(4, 4)
    rg = rgplug.attach(net, None, THRESHOLDS)
    rg.save(tmp_path / "state")

    def larger(plain: Any, tensors: Any) -> None:
        plain["networks"]["G"]["weights"]["weight"]["shape"] = [2**18, 2**18]

    rewritten(tmp_path / "state", tmp_path / "larger", larger)
    with pytest.raises(RgplugError, match=r"G\.weight has the shape \[262144, 262144\], and no mask of as many bits"):
        rg.load(tmp_path / "larger")
    rg.detach()


def test_a_state_goes_on_where_it_was_after_a_refusal() -> None:
    """A refused state leaves a controller that trains on as if nothing had been asked of it."""
    runs = []
    for refuses in (False, True):
        net = nn.Linear(3, 2)
        with torch.no_grad():
            net.weight.copy_(torch.arange(6.0).view(2, 3) / 10)
        rg = rgplug.attach(net, None, THRESHOLDS)
        opt = adam(net)
        for step in range(4):
            if refuses and step == 2:
                broken = rg.state_dict()
                broken["accounting"] = None
                with pytest.raises(RgplugError):
                    rg.load_state_dict(broken)
            set_grad(net, 0.1 * step)
            opt.step()
        runs.append(snapshot(rg))
        rg.detach()
    assert not different(*runs)

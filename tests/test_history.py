"""Records: one line each on screen and in history.jsonl, once each over interruptions."""

from __future__ import annotations

import copy
import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
from common import MILD, RAMP, Host, linear, set_grad, sgd

import rgplug
from rgplug import history
from rgplug.baselines.records import check_record
from rgplug.errors import RgplugError
from rgplug.history import Record
from rgplug.sealed import Damaged


def record(epoch: int = 1, **changes: Any) -> Record:
    values: dict[str, Any] = dict(
        epoch=epoch,
        steps={"G": 10, "D": 20},
        metric=12.5,
        metric_name="fid",
        average=13.25,
        phase_before="sparse",
        phase="dense",
        density={"G": 0.5, "D": 0.75},
        layers={"G": {"0.weight": 0.5}, "D": {"0.weight": 0.75}},
        regenerated={"G": 1234, "D": 0},
        pruned={"G": 5, "D": 6},
    )
    return Record(**{**values, **changes})


def test_a_record_prints_as_one_line_with_what_was_decided() -> None:
    line = str(record())
    assert line == (
        "epoch   1 | fid 12.500 | average 13.250 | sparse -> dense | density G 0.500 D 0.750 | regenerated G 1,234 D 0 "
        "| pruned G 5 D 6"
    )
    assert "sparse -> " not in str(record(phase="sparse"))
    assert "fid" not in str(record(metric=None))
    assert "regenerated G 1,234 D 0 | restored G 50 D 0 | pruned" in str(record(restored={"G": 50, "D": 0}))
    assert "restored" not in str(record(restored={"G": 0, "D": 0}))


def test_json_has_every_field_and_no_nan() -> None:
    text = record(metric=math.nan).to_json()
    assert "\n" not in text
    row = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert row["metric"] is None
    assert row["density"] == {"G": 0.5, "D": 0.75}
    assert row["layers"]["D"] == {"0.weight": 0.75}


def test_truncate_drops_later_records_and_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    for epoch in range(1, 5):
        history.append(path, record(epoch))
    with path.open("a") as file:
        file.write(record(5).to_json()[:30])
    history.truncate(path, 2)
    assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()] == [1, 2]
    history.truncate(tmp_path / "missing.jsonl", 2)


def epochs(folder: Path) -> list[int]:
    return [json.loads(line)["epoch"] for line in (folder / "history.jsonl").read_text().splitlines()]


def test_a_resumed_run_goes_on_with_the_history_without_doubles(tmp_path: Path) -> None:
    policy = {**RAMP, "run_dir": str(tmp_path)}
    host = Host()
    rg = rgplug.attach(host.G, host.D, policy)
    states = []
    for epoch in range(1, 5):
        host.run(1)
        rg.end_epoch(10.0 - epoch)
        states.append((rg.state_dict(), (tmp_path / "rgplug.safetensors").read_bytes()))
    assert epochs(tmp_path) == [1, 2, 3, 4]
    rg.detach()
    # killed after epoch 4, continued from the checkpoint of epoch 2
    again = rgplug.attach(host.G, host.D, policy)
    again.load_state_dict(states[1][0])
    host.run(1)
    assert again.end_epoch(7.0).epoch == 3
    assert epochs(tmp_path) == [1, 2, 3]
    host.run(1)
    again.end_epoch(6.0)
    assert epochs(tmp_path) == [1, 2, 3, 4]


def test_the_state_beside_the_history_is_that_of_its_last_record(tmp_path: Path) -> None:
    G = linear([[100.0, 0.5]])
    opt = sgd(G)
    policy = {**RAMP, "run_dir": str(tmp_path)}
    rg = rgplug.attach(G, policy=policy)
    for _ in range(2):
        set_grad(G, 0.0)
        opt.step()
        rg.end_epoch(1.0)
    rg.detach()
    again = rgplug.attach(G, policy=policy)
    again.load(tmp_path / "rgplug.safetensors")
    assert again.epoch == 2
    assert again.end_epoch(1.0).epoch == 3
    assert epochs(tmp_path) == [1, 2, 3]


def test_a_fresh_run_does_not_wipe_out_the_history_of_another(tmp_path: Path) -> None:
    """A run that is started again by mistake (or without its state) loses nothing of the one before."""
    policy = {**RAMP, "run_dir": str(tmp_path)}
    for _ in range(2):
        host = Host()
        rg = rgplug.attach(host.G, host.D, policy)
        for _ in range(2):
            host.run(1)
            rg.end_epoch(5.0)
        rg.detach()
    kept = "".join(p.read_text() for p in tmp_path.iterdir() if p.name.startswith("history"))
    assert len(kept.splitlines()) == 4


def test_a_line_that_was_cut_off_is_not_glued_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    for epoch in (1, 2):
        history.append(path, record(epoch))
    whole = path.read_text()
    path.write_text(whole + record(3).to_json()[:40])
    history.append(path, record(3))
    assert epochs(tmp_path) == [1, 2, 3]
    path.write_text(whole.rstrip("\n"))  # all of the line but its end
    history.append(path, record(3))
    assert epochs(tmp_path) == [1, 2, 3]
    path.write_text('{"epo')
    history.append(path, record(1))
    assert epochs(tmp_path) == [1]


def test_a_full_disk_leaves_the_records_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "history.jsonl"
    history.append(path, record(1))

    def full(opened: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(history.os, "fsync", full)
    before = path.read_text()
    with pytest.raises(RgplugError, match=r"record of epoch 2 could not be added to .*No space left") as error:
        history.append(path, record(2))
    assert "\n" not in str(error.value)
    assert path.read_text() == before


def test_truncate_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "history.jsonl"
    for epoch in range(1, 5):
        history.append(path, record(epoch))
    before = path.read_text()

    def killed(old: Any, new: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr("os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            history.truncate(path, 2)
    assert path.read_text() == before
    history.truncate(path, 2)
    assert epochs(tmp_path) == [1, 2]


def test_a_fresh_run_names_the_one_that_was_there(tmp_path: Path) -> None:
    policy = {**RAMP, "run_dir": str(tmp_path)}
    for again in (False, True):
        host = Host()
        with rgplug.attach(host.G, host.D, policy) as rg:
            host.run(1)
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                rg.end_epoch(5.0)
                host.run(1)
                rg.end_epoch(5.0)
        named = [str(w.message) for w in seen if "earlier run" in str(w.message)]
        assert len(named) == again
        assert not again or (str(tmp_path) in named[0] and "history.jsonl as history-1.jsonl" in named[0])
    names = {p.name for p in tmp_path.iterdir()}
    assert {"history-1.jsonl", "rgplug-1.safetensors", "rgplug.previous-1.safetensors"} <= names


def test_several_values_and_the_share_ever_active_are_in_the_line() -> None:
    text = str(record(metrics={"fid": 12.5, "is": 8.25, "kid": None}))
    assert "fid 12.500 | is 8.250 | average 13.250" in text
    row = json.loads(record(metrics={"fid": 12.5, "is": math.inf}, ever_active={"G": 0.75, "D": 1.0}).to_json())
    assert (row["metrics"], row["ever_active"]) == ({"fid": 12.5, "is": None}, {"G": 0.75, "D": 1.0})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metrics": {"fid": "low"}}, "fid has to be a number"),
        ({"metrics": [1.0]}, "metrics has to be an object"),
        ({"ever_active": {"G": 1.5}}, "the density of G is 1.5"),
        ({"ever_active": {"G": -0.5}}, "G is -0.5; it cannot be negative"),
    ],
)
def test_damaged_values_of_a_line_are_named(changes: dict[str, Any], said: str) -> None:
    line = json.loads(record().to_json())
    check_record(line)
    check_record({k: v for k, v in line.items() if k not in ("metrics", "ever_active")})  # of an older version
    check_record({**line, "metrics": {"fid": None, "is": -3.0}, "ever_active": {"G": 1.0}})
    with pytest.raises(Damaged, match=said):
        check_record({**line, **changes})


def test_seconds_count_from_the_record_before_and_after_a_resume_from_attach(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 130.0, 175.0])
    monkeypatch.setattr("rgplug.monitor.time.perf_counter", lambda: next(clock))
    host = Host()
    rg = rgplug.attach(host.G, host.D, MILD)  # at 100
    host.run(1)
    assert [rg.end_epoch(5.0).seconds, rg.end_epoch(5.0).seconds] == [30.0, 45.0]
    held, state = copy.deepcopy(host.state_dict()), copy.deepcopy(rg.state_dict())
    rg.detach()
    clock = iter([10_000.0, 10_007.0, 10_009.0])  # another process
    again = Host(seed=3)
    rg = rgplug.attach(again.G, again.D, MILD)
    again.load_state_dict(held)
    rg.load_state_dict(state)
    again.run(1)
    assert [rg.end_epoch(5.0).seconds, rg.end_epoch(5.0).seconds] == [7.0, 2.0]

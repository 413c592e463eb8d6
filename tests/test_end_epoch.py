"""end_epoch: the record, what a metric decides, ablations, what is said at the end of an epoch."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from common import MILD, Host, adam, attached
from torch import nn

import rgplug
from rgplug.baselines.outcome import from_records
from rgplug.baselines.records import records_of
from rgplug.errors import RgplugError
from rgplug.logs import scalars

pytestmark = pytest.mark.filterwarnings("ignore:rgplug. densities have drifted apart")
ABLATION: dict[str, dict[str, Any]] = {
    "DP": {"recurrent": False, "augmented": False},
    "DP+RR": {"recurrent": True, "augmented": False},
    "DP+RR+AR": {"recurrent": True},
    "DP+AR on G": {"recurrent": False, "augmented": {"networks": ["G"]}},
}


def test_the_record_says_what_was_decided_and_seen() -> None:
    host, rg = attached({**MILD, "batch_size": 4}, steps=3)
    first = rg.end_epoch(9.0, metric_name="fid")
    assert (first.epoch, first.metric, first.metric_name, first.average) == (1, 9.0, "fid", None)
    assert (first.phase_before, first.phase) == ("sparse", "sparse")
    assert first.steps == {"G": 3, "D": 3}
    assert first.real_images == 12
    assert first.density == rg.density()
    assert set(first.layers["G"]) == {w.name for w in rg.weights("G")}
    for n in "GD":
        missing = sum(int((~w.mask).sum()) for w in rg.weights(n))
        assert first.density[n] < 1
        # attach itself pruned what lies below 0.05, before the first record
        assert first.pruned[n] - first.regenerated[n] == missing
    host.run(2)
    before = [int(w.mask.sum()) for w in rg.weights("G")]
    second = rg.end_epoch(9.0)
    assert second.epoch == 2
    third = rg.end_epoch(9.0)
    assert third.pruned == third.regenerated == {"G": 0, "D": 0}  # counts are since the record before
    assert before == [int(w.mask.sum()) for w in rg.weights("G")]
    assert "\n" not in str(third)
    assert rg.records == [first, second, third]


def test_five_rising_values_go_dense_and_a_fall_goes_back(tmp_path: Path) -> None:
    host, rg = attached({**MILD, "run_dir": str(tmp_path)}, steps=3)
    thetas = {n: [w.theta for w in rg.weights(n)] for n in "GD"}
    missing = {n: sum(int((~w.mask).sum()) for w in rg.weights(n)) for n in "GD"}
    for metric in (5, 6, 7, 8):
        assert rg.end_epoch(metric).phase == "sparse"
    record = rg.end_epoch(9)
    assert (record.phase_before, record.phase, rg.phase) == ("sparse", "dense", "dense")
    assert record.average == pytest.approx(7.7)
    # what was measured was sparse, and nothing came back by the rule; the decision brought everything back at once
    sizes = {n: sum(w.numel for w in rg.weights(n)) for n in "GD"}
    assert record.density == pytest.approx({n: 1 - missing[n] / sizes[n] for n in "GD"})
    assert record.regenerated == {"G": 0, "D": 0}
    assert record.restored == missing
    assert "sparse -> dense" in str(record)
    assert f"restored G {missing['G']:,} D {missing['D']:,}" in str(record)
    assert rg.density() == {"G": 1.0, "D": 1.0}
    for n in "GD":
        assert all(torch.equal(w.param, t) for w, t in zip(rg.weights(n), thetas[n]))  # the old values are back
    thresholds = [w.threshold.clone() for w in rg.weights("G")]
    host.run(3)
    assert all(torch.equal(w.threshold, t) for w, t in zip(rg.weights("G"), thresholds))
    back = rg.end_epoch(1)
    assert (back.phase_before, back.phase, back.density) == ("dense", "sparse", {"G": 1.0, "D": 1.0})
    assert back.layers["G"] == {w.name: 1.0 for w in rg.weights("G")}
    assert back.restored == {"G": 0, "D": 0}
    assert back.pruned["G"] == sum(int((~w.mask).sum()) for w in rg.weights("G"))  # by the decision
    assert rg.density("G") < 1
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["phase"] for line in lines] == ["sparse"] * 4 + ["dense", "sparse"]


def test_numbers_for_loggers_are_of_what_was_measured() -> None:
    """The value of a sparse network beside its own density and phase, in the record that goes dense; then reversed."""
    _, rg = attached({**MILD, "regeneration.augmented": {"window": 1, "weights": [1.0], "include_current": False}})
    rg.end_epoch(5.0)
    sparse = rg.density("G")
    going, back = rg.end_epoch(9.0), rg.end_epoch(1.0)
    assert [(r.phase_before, r.phase) for r in (going, back)] == [("sparse", "dense"), ("dense", "sparse")]
    assert [scalars(r)["sparse"] for r in (going, back)] == [1.0, 0.0]
    assert [scalars(r)["density/G"] for r in (going, back)] == [sparse, 1.0]
    assert [scalars(r)["restored/G"] > 0 for r in (going, back)] == [True, False]
    assert scalars(going)["regenerated/G"] == 0
    lines = [json.loads(r.to_json()) for r in (going, back)]
    best = from_records(lines, None, "rg-gan", 0, ".", higher_is_better=False)
    assert (best["best"], best["best_phase"], best["density"]["G"]) == (1.0, "dense", 1.0)
    assert best["phases"]["sparse"]["best"] == 9.0
    assert best["phases"]["sparse"]["density"]["G"] == sparse


def test_a_resume_after_a_decision_goes_on_with_the_same_records() -> None:
    """The state is that after the decision, with the counts of the record in which it was made."""
    window = {"augmented": {"window": 1, "weights": [1.0], "include_current": False}}
    policy = {**MILD, "regeneration": window, "batch_size": 4}

    def records(resume: bool) -> list[dict[str, Any]]:
        host = Host()
        rg = rgplug.attach(host.G, host.D, policy)
        found = []
        for value in (5.0, 9.0, 1.0, 2.0):  # dense after the second, sparse after the third, dense after the fourth
            host.run(2)
            found.append({k: v for k, v in vars(rg.end_epoch(value)).items() if k != "seconds"})
            if resume:
                held, weights = copy.deepcopy(rg.state_dict()), copy.deepcopy(host.state_dict())
                rg.detach(finish="as-is")
                host = Host(seed=7)
                rg = rgplug.attach(host.G, host.D, policy)
                host.load_state_dict(weights)
                rg.load_state_dict(held)
        return found

    straight = records(resume=False)
    assert [r["phase"] for r in straight] == ["sparse", "dense", "sparse", "dense"]
    assert [r["restored"]["G"] > 0 for r in straight] == [False, True, False, True]
    assert records(resume=True) == straight


def test_a_state_from_before_restored_weights_were_counted_apart() -> None:
    window = {"augmented": {"window": 1, "weights": [1.0], "include_current": False}}
    host, rg = attached({**MILD, "regeneration": window})
    for value in (5.0, 9.0, 1.0):
        rg.end_epoch(value)
    old = rg.state_dict()
    assert old.pop("last_restored")["G"] > 0
    for net in old["networks"].values():
        assert net["counters"].pop("restored").sum() > 0
    rg.detach(finish="as-is")
    again = rgplug.attach(host.G, host.D, {**MILD, "regeneration": window})
    again.load_state_dict(old)
    assert again.end_epoch(0.5).restored == {"G": 0, "D": 0}
    pruned = {n: sum(int((~w.mask).sum()) for w in again.weights(n)) for n in "GD"}
    assert again.end_epoch(9.0).restored == pruned


@pytest.mark.parametrize("metric", [float("nan"), float("inf"), -float("inf"), torch.tensor(float("nan"))])
def test_a_metric_that_is_no_number_decides_nothing_and_loses_nothing(metric: Any) -> None:
    _, rg = attached()
    for value in (5, 6, 7, 8):
        rg.end_epoch(value)
    with pytest.warns(UserWarning, match="no decision"):
        record = rg.end_epoch(metric)
    assert record.phase == "sparse"
    assert record.epoch == 5
    assert rg.regeneration.history == [5, 6, 7, 8]
    assert rg.end_epoch(9).phase == "dense"


def test_no_metric_is_said_once_and_decides_nothing() -> None:
    _, rg = attached()
    with pytest.warns(UserWarning, match=r"augmented regeneration cannot decide"):
        assert rg.end_epoch().metric is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rg.end_epoch()
    assert rg.epoch == 2


def test_a_metric_of_the_wrong_type_changes_nothing() -> None:
    _, rg = attached()
    with pytest.raises((RgplugError, TypeError, ValueError)):
        rg.end_epoch("fid")  # type: ignore[arg-type]
    assert rg.epoch == 0
    assert rg.end_epoch(5.0).epoch == 1


@pytest.mark.parametrize("metric", [5, 5.0, torch.tensor(5.0), torch.tensor(5)])
def test_numbers_of_every_kind(metric: Any) -> None:
    _, rg = attached()
    assert rg.end_epoch(metric).metric == 5.0


def test_several_values_by_name_are_recorded_and_the_first_decides(tmp_path: Path) -> None:
    _, rg = attached({**MILD, "run_dir": str(tmp_path)})
    for fid in (5, 6, 7, 8):
        record = rg.end_epoch({"fid": fid, "is": torch.tensor(3.0)})
    assert (record.metric, record.metric_name) == (8.0, "fid")
    assert list(record.metrics.items()) == [("fid", 8.0), ("is", 3.0)]
    assert rg.end_epoch({"fid": 9, "is": 1e9}).phase == "dense"  # by fid; the score is not looked at
    assert rg.regeneration.history[-1] == 9
    renamed = rg.end_epoch({"fid": 4.0, "is": 2.0}, metric_name="fid50k")
    assert (renamed.metric_name, renamed.metrics) == ("fid50k", {"fid50k": 4.0, "is": 2.0})
    assert "fid50k 4.000 | is 2.000" in str(renamed)
    assert {k: scalars(renamed)[k] for k in ("fid50k", "is")} == {"fid50k": 4.0, "is": 2.0}
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [line["metrics"] for line in lines] == [{"fid": float(v), "is": 3.0} for v in (5, 6, 7, 8)] + [
        {"fid": 9.0, "is": 1e9},
        {"fid50k": 4.0, "is": 2.0},
    ]


def test_one_value_is_the_only_one_among_the_records_metrics() -> None:
    _, rg = attached()
    assert rg.end_epoch(5.0).metrics == {"metric": 5.0}
    assert rg.end_epoch(5.0, metric_name="fid").metrics == {"fid": 5.0}
    with pytest.warns(UserWarning, match="cannot decide"):
        assert rg.end_epoch().metrics == {}


def test_a_further_value_that_is_not_finite_is_null_in_the_file_and_changes_nothing(tmp_path: Path) -> None:
    _, rg = attached({**MILD, "run_dir": str(tmp_path)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rg.end_epoch({"fid": 5.0, "kid": float("nan")})
    line = json.loads((tmp_path / "history.jsonl").read_text())
    assert (line["metric"], line["metrics"]) == (5.0, {"fid": 5.0, "kid": None})
    assert records_of(tmp_path) == [line]
    with pytest.warns(UserWarning, match="no decision"):
        record = rg.end_epoch({"fid": float("nan"), "is": 5.0})
    assert (record.phase, rg.regeneration.history) == ("sparse", [5.0])  # the others never decide in its place


@pytest.mark.parametrize(
    ("metric", "name", "said"),
    [
        ({}, None, "a mapping without values"),
        ({"fid": "low"}, None, "'low' as the metric 'fid'"),
        ({"fid": 1.0, "is": None}, None, "None as the metric 'is'"),
        ({"fid": torch.zeros(2)}, None, "as the metric 'fid'"),
        ({3: 1.0}, None, "3 as the name of a metric"),
        ({"fid": 1.0, "is": 2.0}, "is", "put the value that decides the phase first"),
    ],
)
def test_values_that_are_none_change_nothing(metric: Any, name: str | None, said: str) -> None:
    _, rg = attached()
    with pytest.raises(RgplugError, match=said):
        rg.end_epoch(metric, metric_name=name)
    assert rg.epoch == 0


def test_augmented_per_network() -> None:
    _, rg = attached({**MILD, "regeneration": {"augmented": {"networks": ["G"]}}})
    for metric in (5, 6, 7, 8, 9):
        record = rg.end_epoch(metric)
    assert record.phase == "dense"
    assert rg.density("G") == 1
    assert rg.density("D") < 1
    assert (record.restored["G"] > 0, record.restored["D"]) == (True, 0)


def test_without_augmented_regeneration_the_phase_stays_and_the_metric_is_recorded() -> None:
    _, rg = attached({**MILD, "regeneration": {"augmented": False}})
    for metric in (5, 6, 7, 8, 9):
        record = rg.end_epoch(metric)
    assert (record.phase, record.metric, record.average) == ("sparse", 9, None)


@pytest.mark.parametrize(
    ("name", "grows_in_a_step", "goes_dense"),
    [("DP", "", ""), ("DP+RR", "GD", ""), ("DP+RR+AR", "GD", "GD"), ("DP+AR on G", "", "G")],
)
def test_the_ablation_table_is_a_policy(name: str, grows_in_a_step: str, goes_dense: str) -> None:
    _, rg = attached({**MILD, "regeneration": ABLATION[name]}, steps=10)
    record = rg.end_epoch(5)
    assert {n for n in "GD" if record.regenerated[n]} == set(grows_in_a_step)
    for metric in (6, 7, 8, 9):
        record = rg.end_epoch(metric)
    assert {n for n in "GD" if rg.density(n) == 1} == set(goes_dense)
    assert {n for n in "GD" if record.restored[n]} == set(goes_dense)


def test_dense_counts_and_prunes_nothing() -> None:
    host = Host()
    before = Host()
    rg = rgplug.attach(host.G, host.D, "dense")
    host.run(3)
    before.run(3)
    for a, b in zip(host.G.parameters(), before.G.parameters()):
        assert torch.equal(a, b)
    record = rg.end_epoch(3.0)
    assert record.density == {"G": 1.0, "D": 1.0}
    assert (record.phase, record.steps["G"]) == ("dense", 3)
    assert rg.weights("G")[0].density == 1.0
    assert rg.weights("G")[0].mask.all()
    assert sum(w.mask.untyped_storage().nbytes() for w in rg.weights("G")) <= 8 * len(rg.weights("G"))


def test_a_network_nobody_steps_is_said_at_the_end_of_the_epoch() -> None:
    host = Host()
    rg = rgplug.attach(host.G, host.D, MILD)
    host.opt["D"] = adam(copy.deepcopy(host.D))
    host.run(1)
    with pytest.warns(UserWarning, match="no optimizer step was seen for D"):
        rg.end_epoch(1.0)


def test_a_replaced_parameter_is_said_at_the_end_of_the_epoch() -> None:
    host, rg = attached()
    host.G[0].weight = nn.Parameter(torch.randn_like(host.G[0].weight))
    with pytest.warns(UserWarning, match=r"G\.0\.weight was replaced"):
        rg.end_epoch(1.0)


def test_warnings_point_to_the_line_of_the_host() -> None:
    _, rg = attached()
    with pytest.warns(UserWarning, match="cannot decide") as no_metric:
        rg.end_epoch()
    with pytest.warns(UserWarning, match="no decision") as not_finite:
        rg.end_epoch(float("nan"))
    assert [Path(w.filename).name for w in (*no_metric, *not_finite)] == [Path(__file__).name] * 2


@pytest.mark.filterwarnings("default")
def test_densities_that_drift_apart_are_said() -> None:
    _, rg = attached({"sparsity_weight": 0.0, "target": {"G": 0.2, "by": 0, "shape": "constant"}})
    with pytest.warns(UserWarning, match=r"drifted apart \(G 0\.20, D"):
        rg.end_epoch(1.0)


@pytest.mark.parametrize(
    "policy",
    [
        {"target": {"G": 0.2, "D": 1.0, "by": 0, "shape": "constant"}},
        {"base": "sparse", "masks.density": {"G": 0.2, "D": 1.0}},
    ],
)
def test_densities_that_were_asked_for_have_not_drifted(policy: dict[str, Any]) -> None:
    _, rg = attached(policy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rg.end_epoch(1.0).density["G"] == pytest.approx(0.2, abs=0.02)


def test_the_last_records_are_held_and_the_file_has_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rgplug.controller.RECORDS_KEPT", 3)
    G = nn.Linear(2, 2)
    rg = rgplug.attach(G, policy={"run_dir": str(tmp_path)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(7):
            rg.end_epoch(1.0)
    assert [record.epoch for record in rg.records] == [5, 6, 7]
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    rg.detach()

"""What every layer pruned, regenerated and restored between two evaluations."""

from __future__ import annotations

from typing import Any

import pytest
from common import MILD, attached

import rgplug
from rgplug.baselines.records import check_record
from rgplug.errors import RgplugError
from rgplug.sealed import Damaged

WINDOW = {"augmented": {"window": 1, "weights": [1.0], "include_current": False}}


def test_layers_add_up_to_the_network_and_come_from_the_masks() -> None:
    """Exactly one evaluation apart, with a dense phase between: counted by hand from the masks themselves."""
    _, rg = attached({**MILD, "regeneration": WINDOW})
    for value in (5.0, 9.0, 1.0, 9.0):
        first = {n: {w.name: w.mask.clone() for w in rg.weights(n)} for n in "GD"}
        record = rg.end_epoch(value)
        for n in "GD":
            own = record.layer_counts[n]
            assert list(own) == [w.name for w in rg.weights(n)]
            totals = [sum(c[k] for c in own.values()) for k in range(3)]
            assert totals == [record.pruned[n], record.regenerated[n], record.restored[n]]
            if record.phase == "dense" and record.phase_before == "sparse":  # all that was pruned came back
                assert {name: c[2] for name, c in own.items()} == {k: int((~m).sum()) for k, m in first[n].items()}
                assert sum(c[2] for c in own.values()) > 0


def test_one_step_apart_a_layer_prunes_and_regenerates_what_its_mask_changed_by() -> None:
    host, rg = attached(MILD)
    rg.end_epoch()
    for _ in range(3):
        old = {n: {w.name: w.mask.clone() for w in rg.weights(n)} for n in "GD"}
        host.run(1)
        counts = rg.end_epoch().layer_counts
        for n in "GD":
            for w in rg.weights(n):
                was, now = old[n][w.name], w.mask
                assert counts[n][w.name] == [int((was & ~now).sum()), int((~was & now).sum()), 0]


def counts_of(resume: bool, forget: bool = False) -> list[dict[str, Any]]:
    policy = {**MILD, "regeneration": WINDOW}
    host, rg = attached(policy)
    found = []
    for number, value in enumerate((5.0, 9.0, 1.0, 9.0)):
        host.run(2)
        found.append(rg.end_epoch(value).layer_counts)
        if resume and number == 1:
            state, weights = rg.state_dict(), host.state_dict()
            if forget:
                del state["last_layers"]
            rg.detach(finish="as-is")
            host = type(host)(seed=7)
            rg = rgplug.attach(host.G, host.D, policy)
            host.load_state_dict(weights)
            rg.load_state_dict(state)
    return found


def test_a_resumed_run_counts_on() -> None:
    assert counts_of(resume=True) == counts_of(resume=False)


def test_a_state_without_counts_of_layers_that_was_saved_after_a_record_counts_on() -> None:
    assert counts_of(resume=True, forget=True) == counts_of(resume=False)


def test_an_older_state_saved_between_records_gives_no_counts_until_the_next_record() -> None:
    host, rg = attached(MILD)
    rg.end_epoch()
    host.run(2)
    state = rg.state_dict()
    del state["last_layers"]
    counted = rg.monitor.layer_counts.state_dict()["G"]
    assert counted != rg.networks["G"].counts.changes(), "something has to have been counted since"
    rg.load_state_dict(state)
    assert rg.end_epoch().layer_counts == {}
    host.run(1)
    assert set(rg.end_epoch().layer_counts) == {"G", "D"}


@pytest.mark.parametrize(
    "found",
    [
        [],
        {"G": []},
        {"G": {"a": [1, 2]}},
        {"G": {"a": [1, 2, -1]}},
        {"G": {"a": [1, 2, "3"]}},
        {"G": {"\n": [1, 1, 1]}},
    ],
)
def test_damaged_counts_of_a_history_are_named(found: Any) -> None:
    check_record({"epoch": 1, "layer_counts": {"G": {"a": [1, 2, 3]}}})
    check_record({"epoch": 1, "layer_counts": None})
    with pytest.raises(Damaged, match=r"layer_counts|G has|c is|c has"):
        check_record({"epoch": 1, "layer_counts": found})


def test_a_damaged_state_is_refused() -> None:
    _, rg = attached(MILD)
    state = rg.state_dict()
    for wrong in ({"G": {"x": [1, 2]}}, {"Q": {}}, 3):
        with pytest.raises(RgplugError, match="last_layers"):
            rg.load_state_dict({**state, "last_layers": wrong})

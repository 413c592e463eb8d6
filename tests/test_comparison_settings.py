"""A comparison's folder: which names it takes, and that a run in it is only used for the settings that made it."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import hosts_of_comparisons as hosts
import pytest
from hosts_of_comparisons import LENGTH, POLICY, build, train

from rgplug import RgplugError
from rgplug.baselines import compare, next_masks, read_results
from rgplug.baselines.driven import drive_tickets
from rgplug.baselines.host import Functions
from rgplug.baselines.names import check_names, why_not
from rgplug.baselines.results import RESULT
from rgplug.sealed import read_json, write_json
from rgplug.snapshot import read, save_masks

EVERYTHING: dict[str, Any] = {"policy": POLICY, **LENGTH}
SOME = ["dense", "stu-gan", "tickets", "tickets-random-mask", "pf-global"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("comparison")
    compare(SOME, train, build, out=out, **EVERYTHING)
    return out


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copied"))


def never(*_: Any) -> None:
    raise AssertionError("nothing may be trained")


never.__module__, never.__qualname__ = train.__module__, train.__qualname__


# ----------------------------------------------------------------------------
# Names.


@pytest.mark.parametrize(
    "name",
    ["../x", "a/b", "a\\b", "", " ", ".", "..", ".hidden", "x.", "x ", "nul", "COM1.txt", "a\nb", "a\0b", "a\u202eb",
     "a:b", "results.jsonl", "Report.html", "x" * 101, "\ud800", 3],
)  # fmt: skip
def test_a_name_that_can_be_no_folder_is_refused_before_anything_is_written(tmp_path: Path, name: Any) -> None:
    out = tmp_path / "deep" / "out"
    with pytest.raises(RgplugError, match=r"the method's name .* becomes a folder's name"):
        compare({"dense": None, name: {"base": "stu-gan"}}, never, build, out=out, policy=POLICY)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["mine", "stu-gan +10%", "größer", "v1.2", "console", "a" * 100])
def test_other_names_are_taken(name: str) -> None:
    assert why_not(name) == ""


def test_names_that_differ_only_by_case_are_refused(tmp_path: Path) -> None:
    for pair in (["Mine", "mine"], ["größer", "GRÖSSER"], ["\u00e9", "e\u0301"]):
        with pytest.raises(RgplugError, match="differ only in case"):
            compare({name: {"base": "stu-gan"} for name in pair}, never, build, out=tmp_path / "out", policy=POLICY)
    (tmp_path / "Mine" / "seed_0").mkdir(parents=True)
    with pytest.raises(RgplugError, match="holds runs of a method 'Mine'"):
        check_names(["mine"], tmp_path)
    check_names(["Mine", "dense"], tmp_path)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"methods": "dense"}, "methods is the text 'dense'; give a list"),
        ({"seeds": ["../x"]}, "the seed '../x' is no whole number"),
        ({"seeds": [[1]]}, r"the seed \[1\] is no whole number"),
        ({"seeds": True}, "seeds is True"),
        ({"seeds": "12"}, "seeds is '12'"),
        ({"length": 0}, "length is 0"),
        ({"n_critic": 1.5}, "n_critic is 1.5"),
        ({"early": -1}, "early is -1"),
        ({"jobs": 0}, "jobs is 0"),
        ({"out": __file__}, "cannot be a comparison's folder"),
    ],
)
def test_numbers_that_are_none(tmp_path: Path, keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RgplugError, match=sentence):
        compare(**{"methods": ["dense"], "train": never, "build": build, "out": tmp_path, **keys})


def test_a_seed_that_is_given_twice_is_one_run(tmp_path: Path) -> None:
    assert [r.seed for r in compare(["dense"], train, build, out=tmp_path, seeds=[3, 3], **EVERYTHING)] == [3]


# ----------------------------------------------------------------------------
# A finished run is only used for the settings that made it.


def test_finished_runs_are_used_for_the_same_settings(finished: Path) -> None:
    before = read_results(finished)
    assert {r.method for r in compare(SOME, never, build, out=finished, **EVERYTHING)} == set(SOME)
    assert read_results(finished) == before
    logged = {**POLICY, "log": ["tensorboard"]}  # changes nothing about a result
    compare(SOME, never, build, out=finished, **{**EVERYTHING, "policy": logged})


@pytest.mark.parametrize(
    ("methods", "keys", "sentence"),
    [
        (["stu-gan"], {"density": 0.4}, "policy.masks.density.G was 0.5, now it is 0.4"),
        (["stu-gan"], {"length": 24}, "policy.exploration.end.G was 12, now it is 24"),
        (["stu-gan"], {"n_critic": 2}, "policy.exploration.end.D was 12, now it is 24"),
        (["dense"], {"policy": {"batch_size": 8}}, "common.batch_size was 4, now it is 8"),
        ({"stu-gan": {"base": "stu-gan", "exploration.grow": "momentum"}}, {}, "policy.exploration.grow was"),
        (["tickets"], {"ratio": 0.5}, "ratio was 0.2, now it is 0.5"),
        (["tickets"], {"rounds": 1}, "rounds was 2, now it is 1"),
        (["tickets-random-mask"], {"ratio": 0.5}, "ratio was 0.2, now it is 0.5"),
    ],
)
def test_other_settings_are_refused_by_name(finished: Path, methods: Any, keys: dict[str, Any], sentence: str) -> None:
    before = {p: p.read_bytes() for p in finished.rglob("*.json*")}
    with pytest.raises(RgplugError, match=sentence):
        compare(methods, never, build, out=finished, **{**EVERYTHING, **keys})
    assert before == {p: p.read_bytes() for p in finished.rglob("*.json*")}


def other_build() -> Any:
    return build()


def test_another_host_is_refused(finished: Path) -> None:
    with pytest.raises(RgplugError, match=r"host.build was 'hosts_of_comparisons.build', now it is '.*other_build'"):
        compare(["dense"], never, other_build, out=finished, **EVERYTHING)
    with pytest.raises(RgplugError, match=r"host.train was .*hosts_of_comparisons.killed_train"):
        compare(["dense"], hosts.killed_train, build, out=finished, **EVERYTHING)


def test_arguments_that_are_bound_to_a_function_tell_hosts_apart() -> None:
    bound = [Functions(build, functools.partial(train, value, share=0.1)).identity for value in (1, 2, 1)]
    assert bound[0] == bound[2] != bound[1]
    thing = [Functions(build, functools.partial(train, object())).identity for _ in range(2)]
    assert thing[0] == thing[1]  # an address says nothing


def test_tickets_go_on_to_more_rounds(copied: Path) -> None:
    kept = {p: p.stat().st_mtime_ns for p in copied.glob("tickets/seed_0/round_0[12]/*")}
    results = compare(["tickets"], train, build, out=copied, **{**EVERYTHING, "rounds": 3})
    tickets = next(r for r in results if r.method == "tickets")
    assert [r.density["G"] for r in tickets.rounds] == pytest.approx([1, 0.8, 0.64, 0.512], abs=2e-3)
    assert tickets.run == "tickets/seed_0/round_03"
    assert kept == {p: p.stat().st_mtime_ns for p in kept}
    with pytest.raises(RgplugError, match="rounds was 2, now it is 3"):  # drawn after the masks of round 2
        compare(["tickets-random-mask"], train, build, out=copied, **{**EVERYTHING, "rounds": 3})


def test_rounds_of_a_version_that_kept_no_ratio_are_compared_by_their_masks(copied: Path) -> None:
    folder = copied / "tickets" / "seed_0"
    (folder / "task.json").unlink()
    text = (folder / RESULT).read_text()
    with pytest.raises(RgplugError, match=r"round_01.masks.safetensors holds other masks"):
        compare(["tickets"], never, build, out=copied, **{**EVERYTHING, "ratio": 0.5})
    (folder / "task.json").unlink()
    compare(["tickets"], never, build, out=copied, **EVERYTHING)
    assert (folder / RESULT).read_text() == text


def test_what_builds_on_another_dense_run_is_refused(copied: Path) -> None:
    path = copied / "dense" / "seed_0" / RESULT
    write_json(path, {**read_json(path, ""), "flops_total": 1e15})
    with pytest.raises(RgplugError, match=r"tickets.seed_0 holds a run with other settings \(built on.dense was"):
        compare(["tickets"], never, build, out=copied, **EVERYTHING)


def test_a_run_without_its_settings_is_refused(copied: Path) -> None:
    (copied / "stu-gan" / "seed_0" / "run.json").unlink()
    with pytest.raises(RgplugError, match=r"stu-gan.seed_0 holds outcome.json and no run.json"):
        compare(["stu-gan"], never, build, out=copied, **EVERYTHING)


def test_runs_of_an_earlier_version_are_used_and_named(copied: Path) -> None:
    path = copied / "stu-gan" / "seed_0" / "run.json"
    held = read_json(path, "")
    del held["host"]["build"]
    path.write_text(json.dumps(held))
    with pytest.warns(UserWarning, match="stu-gan seed 0: these runs are of an earlier version"):
        compare(["stu-gan"], never, build, out=copied, **EVERYTHING)


def test_an_early_snapshot_of_another_iteration_is_not_used(tmp_path: Path) -> None:
    compare(["dense"], train, build, out=tmp_path, early=3, **EVERYTHING)
    compare(["dense"], never, build, out=tmp_path, early=5, **EVERYTHING)  # nothing about the result
    with pytest.raises(RgplugError, match=r"early snapshot at iteration 3, .* to iteration 5; give --early 3"):
        compare(["tickets-early"], never, build, out=tmp_path, early=5, **EVERYTHING)


def test_rounds_of_an_earlier_layout_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tickets.json").write_text("{}")
    with pytest.raises(RgplugError, match=r"holds rounds of an earlier version .* give another --out"):
        drive_tickets(["true", "{out}"], tmp_path)


# ----------------------------------------------------------------------------
# Damaged files: one sentence that names the file.

DAMAGES = {
    "nothing": b"",
    "noise": bytes(range(128, 256)),
    "a list": b"[1, 2]",
    "cut off": b'{"method": "stu-gan", "seed',
    "deep": b"[" * 100_000,
    "too many digits": b'{"seed": 1' + b"0" * 5000 + b"}",
    "no number": b'{"method": "stu-gan", "seed": NaN}',
}


FILES = [
    "stu-gan/seed_0/result.json", "stu-gan/seed_0/outcome.json", "stu-gan/seed_0/run.json", "tickets/seed_0/task.json",
    "tickets/seed_0/round_01/outcome.json", "tickets/seed_0/round_02/run.json",
]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named(finished: Path, name: str, damage: str) -> None:
    path = finished / name
    others = [finished / "results.jsonl", *(finished / name.split("/")[0]).rglob(RESULT)]
    kept = {p: p.read_bytes() for p in [path, *others]}
    try:
        if path.name == "outcome.json":  # which is read where the result is not there yet
            (finished / name.split("/")[0] / "seed_0" / RESULT).unlink()
        path.write_bytes(DAMAGES[damage])
        with pytest.raises(RgplugError, match=rf"{name} is damaged: .*(delete|run)"):
            compare(["stu-gan", "tickets"], never, build, out=finished, **EVERYTHING)
    finally:
        for file, content in kept.items():
            file.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"best": [1]}, r"best has to be a number or null, not \[1\]"),
        ({"best": 10**400}, "best is .*which no training gives"),
        ({"best": None}, "best is None, with 3 evaluations"),
        ({"evaluations": 2.5}, "evaluations is 2.5; it has to be a whole number"),
        ({"flops": -1.0}, "flops is -1; it cannot be negative"),
        ({"flops_total": 0}, "more than flops_total"),
        ({"density": {"G": 1.5}}, "the density of G is 1.5"),
        ({"higher_is_better": "no"}, "higher_is_better has to be true or false"),
        ({"metric": "a\ud800"}, "characters that cannot be printed"),
        ({"method": "dense"}, "of dense seed 0"),
        ({"run": "dense/seed_0"}, "of stu-gan seed 0, in dense/seed_0"),
        ({"seed": 1}, "of stu-gan seed 1"),
    ],
)
def test_wrong_values_in_valid_json(finished: Path, change: dict[str, Any], sentence: str) -> None:
    path = finished / "stu-gan" / "seed_0" / RESULT
    kept = path.read_bytes()
    try:
        path.write_text(json.dumps({**read_json(path, ""), **change}))  # without a check, as earlier versions wrote it
        with pytest.raises(RgplugError, match=rf"result.json is .*{sentence}.*delete this file"):
            compare(["dense"], never, build, out=finished, **EVERYTHING)
    finally:
        path.write_bytes(kept)


def test_a_digit_that_was_changed_is_found(finished: Path) -> None:
    path = finished / "stu-gan" / "seed_0" / RESULT
    kept = path.read_text()
    try:
        path.write_text(kept.replace('"real_images_total": 48', '"real_images_total": 88'))
        assert path.read_text() != kept
        with pytest.raises(RgplugError, match=r"result.json is damaged: it was changed after it was written"):
            compare(["stu-gan"], never, build, out=finished, **EVERYTHING)
    finally:
        path.write_text(kept)


def test_a_result_that_was_deleted_comes_back_without_training(copied: Path) -> None:
    before = read_results(copied)
    for path in copied.rglob(RESULT):
        path.unlink()
    compare(SOME, never, build, out=copied, **EVERYTHING)
    assert read_results(copied) == before


def test_masks_and_snapshots_that_are_damaged(copied: Path) -> None:
    (copied / "tickets" / "seed_0" / RESULT).unlink()
    for name in ("tickets/seed_0/round_01/masks.safetensors", "dense/seed_0/trained.safetensors"):
        kept = (copied / name).read_bytes()
        (copied / name).write_bytes(kept[:-9] + bytes(9))
        with pytest.raises(RgplugError, match=rf"{name} is .*corrupt"):
            compare(["tickets"], never, build, out=copied, **EVERYTHING)
        (copied / name).write_bytes(kept)


def test_the_history_that_tells_which_weights_are_managed(copied: Path) -> None:
    path = copied / "dense" / "seed_0" / "history.jsonl"
    (copied / "tickets" / "seed_0" / RESULT).unlink()
    path.write_text(path.read_text().replace('"0.weight"', '"0.wieght"'))
    with pytest.raises(RgplugError, match=r"dense.seed_0.history.jsonl is not the history that the run wrote"):
        compare(["tickets"], never, build, out=copied, **EVERYTHING)


def test_masks_of_another_network_are_named(copied: Path) -> None:
    """Files that are whole, and do not belong together."""
    last, trained = copied / "tickets/seed_0/round_02/masks.safetensors", copied / "dense/seed_0/trained.safetensors"
    managed = {"G": ["0.weight", "no.weight"]}
    with pytest.raises(RgplugError, match=r"trained.safetensors has no weight G.no.weight"):
        next_masks(trained, None, 0.2, ["G"], managed)
    held = read(last, "masks")["masks"]
    held["G"]["0.weight"] = held["G"]["0.weight"][:, :1]
    save_masks(last, held)
    with pytest.raises(RgplugError, match=r"masks.safetensors: the mask of G.0.weight is of shape"):
        next_masks(trained, last, 0.2, ["G"], {"G": ["0.weight"]})

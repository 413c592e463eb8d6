"""Which runs a report takes: comparisons and runs by themselves, at any depth, from several folders; and which not."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from report_runs import METRIC, RESULTS, result, write_history, write_results

from rgplug import RgplugError
from rgplug.cli import main
from rgplug.policy import Policy
from rgplug.presets import PRESETS
from rgplug.report.drawings import Drawing
from rgplug.report.naming import method_of, seed_of
from rgplug.report.page import write_report
from rgplug.report.pivot import Wanted, pivot_table, wanted_of
from rgplug.report.results import read_all
from rgplug.report.tables import cost_table, rounds_table
from rgplug.sealed import sealed

DENSE = result("dense", 0, 40.0)


def with_keys(line: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return line | {"keys": {name.replace("_", "."): value for name, value in keys.items()}}


def names(folders: list[Path]) -> list[tuple[str, list[int]]]:
    """Rows of a report and their seeds."""
    return [(m.name, [run.seed for run in m.runs]) for m in read_all(folders).methods]


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from PIL import Image

    target = io.BytesIO()
    Image.new("RGB", (1, 1)).save(target, "PNG")
    monkeypatch.setattr(Drawing, "png", lambda _: target.getvalue())


# ----------------------------------------------------------------------------
# Several folders.


def test_comparisons_below_a_folder_and_in_several(tmp_path: Path) -> None:
    write_results(tmp_path / "sweeps" / "a", [with_keys(DENSE, share=0.1)])
    write_results(tmp_path / "sweeps" / "deep" / "b", [with_keys(DENSE, share=0.5)])
    write_results(tmp_path / "other", [with_keys(DENSE, share=1.0)])
    assert names([tmp_path / "sweeps"]) == [("dense@share=0.1", [0]), ("dense@share=0.5", [0])]
    assert [name for name, _ in names([tmp_path / "sweeps", tmp_path / "other"])] == [
        "dense@share=0.1", "dense@share=0.5", "dense@share=1",
    ]  # fmt: skip
    assert main(["report", str(tmp_path / "sweeps"), str(tmp_path / "other"), "--out", str(tmp_path / "p.html")]) == 0
    text = (tmp_path / "p.html").read_text()
    assert "<h1>Comparison: sweeps, other</h1>" in text
    assert "dense, seed 0 (sweeps/deep/b)" in text
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [r["method"] for r in rows if r["table"] == "cost"][2] == "dense@share=1"


def test_seeds_of_one_method_may_lie_in_two_folders(tmp_path: Path) -> None:
    for number in (0, 1):
        line = with_keys(result("dense", number, 40.0 + number), share=0.1, seed=number, outdir=f"runs/{number}")
        write_results(tmp_path / str(number), [line])
    assert names([tmp_path]) == [("dense", [0, 1])]


def test_the_same_run_in_two_folders_stays_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_results(tmp_path / folder, [with_keys(DENSE, share=0.1)])
    assert names([tmp_path / "a", tmp_path / "b"]) == [("dense@folder=a", [0]), ("dense@folder=b", [0])]
    comparison = read_all([tmp_path / "a", tmp_path / "b"])
    table = pivot_table(comparison, Wanted(("method",), ("folder",)))
    assert [c.title for c in table.columns] == ["method", "a", "b"]
    with pytest.raises(RgplugError, match=r"would hold dense, seed 0 \(a\) and dense, seed 0 \(b\).*add folder to"):
        pivot_table(comparison, Wanted())


def test_a_folder_given_twice_or_within_another_counts_once(tmp_path: Path) -> None:
    write_results(tmp_path / "a", [DENSE])
    assert names([tmp_path / "a", tmp_path / "b" / ".." / "a"][:1] * 2) == [("dense", [0])]
    write_results(tmp_path / "b", [result("pf", 0, 41.0)])
    assert names([tmp_path / "a", tmp_path]) == [("dense", [0]), ("pf", [0])]


def test_a_path_that_tells_rows_apart_is_called_by_its_end(tmp_path: Path) -> None:
    for number, data in enumerate(("/data/cifar_0.1.zip", "/data/cifar_1.zip")):
        write_results(tmp_path / str(number), [with_keys(DENSE, data=data)])
    assert [name for name, _ in names([tmp_path])] == ["dense@data=cifar_0.1.zip", "dense@data=cifar_1.zip"]
    write_results(tmp_path / "2", [with_keys(DENSE, data="/other/cifar_1.zip")])
    assert names([tmp_path])[2][0] == "dense@data=/other/cifar_1.zip"


def test_folders_of_the_same_name_are_told_apart_by_where_they_lie(tmp_path: Path) -> None:
    for place in ("x", "y"):
        write_results(tmp_path / place / "cifar", [DENSE])
    folders = [tmp_path / "x" / "cifar", tmp_path / "y" / "cifar"]
    assert [name for name, _ in names(folders)] == ["dense@folder=x/cifar", "dense@folder=y/cifar"]


def test_flops_are_multiples_of_the_dense_run_of_the_same_comparison(tmp_path: Path) -> None:
    for place, share, flops in (("a", 0.1, 4e15), ("b", 0.5, 8e15)):
        lines = [with_keys(result("dense", 0, 40.0, flops_total=flops), share=share),
                 with_keys(result("pf", 0, 41.0, flops_total=2e15), share=share)]  # fmt: skip
        write_results(tmp_path / place, lines)
    found = read_all([tmp_path])
    multiples = {m.name: found.multiple(m, lambda r: r.flops_total, lambda r: r.flops_total) for m in found.methods}
    assert {n: s and s.mean for n, s in multiples.items()} == {
        "dense@share=0.1": 1.0, "dense@share=0.5": 1.0, "pf@share=0.1": 0.5, "pf@share=0.5": 0.25,
    }  # fmt: skip


# ----------------------------------------------------------------------------
# Runs by themselves.


def setup(policy: Any, *argv: str, **changes: Any) -> dict[str, Any]:
    return sealed(
        {"version": "0.2", "command": ["train.py", *argv], "policy": Policy.load(policy).to_dict(), "networks": {},
         "batch": {}, "samples": None, "higher_is_better": False, **changes}
    )  # fmt: skip


def write_run(folder: Path, policy: Any, *argv: str, values: tuple[float, ...] = (41.0, 40.0), **changes: Any) -> Path:
    write_history(folder, *values)
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    history = "".join(json.dumps(line | {"metric_name": METRIC}) + "\n" for line in lines)
    (folder / "history.jsonl").write_text(history)
    (folder / "setup.json").write_text(json.dumps(setup(policy, *argv, **changes)))
    return folder


@pytest.mark.parametrize("preset", PRESETS)
def test_a_run_is_called_by_the_preset_that_its_policy_is(preset: str) -> None:
    policy = Policy.load({"base": preset, "batch_size": 4, "networks": {"G": {"exclude": ["head"]}}}).to_dict()
    assert method_of(SimpleNamespace(policy=policy), PRESETS) == preset  # type: ignore[arg-type]


def test_a_run_under_masks_of_a_file_is_a_ticket() -> None:
    policy = Policy.load({"method": "sparse", "masks.file": "masks.safetensors"}).to_dict()
    assert method_of(SimpleNamespace(policy=policy), PRESETS) == "ticket"  # type: ignore[arg-type]


@pytest.mark.parametrize(("argv", "seed"), [(["--seed", "3"], 3), (["--seed=5"], 5), (["--seed", "x"], 0), ([], 0)])
def test_the_seed_of_a_run_is_that_of_its_command(argv: list[str], seed: int) -> None:
    assert seed_of(SimpleNamespace(command=("train.py", *argv))) == seed  # type: ignore[arg-type]


def test_run_folders_of_an_adapter(tmp_path: Path) -> None:
    """Seeds of one method go together, whatever their folders are called; options tell rows apart."""
    for number, (policy, seed) in enumerate((p, s) for p in ("dense", "rg-gan") for s in (0, 1)):
        folder = tmp_path / f"{number:05d}-auto"
        write_run(folder, policy, f"--outdir={tmp_path}", "--seed", str(seed), values=(41.0, 40.0 + number))
    assert names([tmp_path]) == [("dense", [0, 1]), ("rg-gan", [0, 1])]
    means = [m.over_seeds(lambda run: run.best) for m in read_all([tmp_path]).methods]
    assert [m and m.mean for m in means] == [40.5, 41.0]  # the best of (41, 42) and (41, 43) is 41
    write_run(tmp_path / "00004-auto", "rg-gan", f"--outdir={tmp_path}", "--seed", "0", "--cfg", "paper")
    assert [name for name, _ in names([tmp_path])] == ["dense", "rg-gan", "rg-gan@cfg=paper"]


def test_a_comparison_and_a_run_together(tmp_path: Path) -> None:
    write_results(tmp_path / "c", [DENSE | {"samples": None}])
    write_run(tmp_path / "r", "rg-gan")
    assert names([tmp_path / "c", tmp_path / "r"]) == [("dense", [0]), ("rg-gan", [0])]


def test_a_run_that_builds_on_another_has_no_cost_of_its_own(tmp_path: Path) -> None:
    write_run(tmp_path / "r", {"method": "sparse", "masks.file": "m.safetensors"})
    comparison = read_all([tmp_path])
    assert comparison.runs[0].result.images_to_best is None
    assert "whose cost is not known" in comparison.notes[0]


def test_a_run_that_is_not_evaluated_yet_is_left_out_and_named(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "dense")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "setup.json").write_text(json.dumps(setup("dense")))
    comparison = read_all([tmp_path])
    assert len(comparison.runs) == 1
    assert comparison.notes == (f"{tmp_path / 'b'}: this run holds no evaluation yet, and is left out here.",)
    with pytest.raises(RgplugError, match="b holds no run that was evaluated yet"):
        read_all([tmp_path / "a", tmp_path / "b"])


# ----------------------------------------------------------------------------
# What is no report.


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one sentence of a command that fails; nothing that was there changes."""
    root = Path(str(arguments[0])).parent
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file() and not p.is_symlink()}
    assert main(["report", *map(str, arguments)]) == 2
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file() and not p.is_symlink()} == before
    said = capsys.readouterr().err
    assert said.startswith("rgplug: ")
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize(
    ("change", "one", "other"),
    [
        ({"metric": "fid"}, f"{METRIC} on 5000 samples", "fid on 5000 samples"),
        ({"samples": 10000}, "on 5000 samples", "on 10000 samples"),
        ({"samples": None}, "on 5000 samples", "as the host measured it"),
        ({"higher_is_better": True}, "5000 samples and", "(higher is better)"),
    ],
)
def test_folders_that_do_not_belong_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], one: str, other: str
) -> None:
    a, b = write_results(tmp_path / "a", [DENSE]), write_results(tmp_path / "b", [DENSE | change])
    said = fails(capsys, a, b, "--out", tmp_path / "page.html")
    assert f"{a} holds " in said
    assert f"{b} holds " in said
    assert one in said
    assert other in said
    assert not (tmp_path / "page.html").exists()


def test_an_empty_folder_among_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, empty = write_results(tmp_path / "a", [DENSE]), tmp_path / "empty"
    (empty / "deeper").mkdir(parents=True)
    said = fails(capsys, a, empty, "--out", tmp_path / "p.html")
    assert f"{empty} has neither results.jsonl nor history.jsonl, and no folder below it has" in said


def test_a_damaged_file_below_a_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "r" / "good", "dense")
    bad = write_run(tmp_path / "r" / "bad", "dense")
    (bad / "setup.json").write_text((bad / "setup.json").read_text().replace("0.2", "0.3"))
    assert f"{bad / 'setup.json'} is damaged" in fails(capsys, tmp_path / "r")
    (bad / "setup.json").unlink()
    (bad / "history.jsonl").write_text('{"epoch": null}\n{"epoch": 2}\n')
    assert str(bad / "history.jsonl") in fails(capsys, tmp_path / "r")
    write_results(tmp_path / "c", [DENSE | {"seed": "x"}])
    assert str(tmp_path / "c" / "results.jsonl") in fails(capsys, tmp_path / "c", tmp_path / "r", "--out", "x.html")


def test_several_folders_need_a_place_for_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write_results(tmp_path / "a", [DENSE]), write_results(tmp_path / "b", [DENSE])
    assert "say with --out PAGE where the page goes" in fails(capsys, a, b)
    for name in ("result.json", "setup.json", "results.jsonl"):
        assert "another file of a report or a run" in fails(capsys, a, b, "--out", a / name)


def test_links_out_of_a_folder_are_not_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outside = write_run(tmp_path / "outside" / "run", "dense")
    inside = tmp_path / "inside"
    (inside / "sub").mkdir(parents=True)
    (inside / "linked").symlink_to(outside, target_is_directory=True)
    (inside / "sub" / "history.jsonl").symlink_to(outside / "history.jsonl")
    (inside / "sub" / "setup.json").symlink_to(outside / "setup.json")
    assert "has neither results.jsonl nor history.jsonl" in fails(capsys, inside)
    write_run(inside / "own", "rg-gan")
    assert names([inside]) == [("rg-gan", [0])]
    (inside / "loop").symlink_to(inside, target_is_directory=True)
    assert names([inside]) == [("rg-gan", [0])]
    write_results(inside / "c", [result("dense", 0, 40.0, run="gone", samples=None)])
    (inside / "c" / "gone").mkdir()
    (inside / "c" / "gone" / "history.jsonl").symlink_to(outside / "history.jsonl")
    dense = read_all([inside / "c"]).runs[0]
    assert (dense.lines, dense.is_changed) == ((), False)


# ----------------------------------------------------------------------------
# Keys and cells that there are not; rounds off the ladder.


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (wanted_of("metod", None, None), "no run of this report has a key 'metod'; did you mean method"),
        (wanted_of("method", "exploration.evry", None), "did you mean exploration.every"),
        (wanted_of("method,method", None, None), "each key once"),
        (wanted_of("", None, None), "a table needs keys for its rows"),
        (wanted_of(None, None, "bset"), "cannot show 'bset'; did you mean best"),
        (wanted_of(None, None, ""), "a table needs something in its cells"),
    ],
)
def test_keys_that_there_are_not(tmp_path: Path, wanted: Wanted, sentence: str) -> None:
    folder = write_results(tmp_path, [DENSE])
    with pytest.raises(RgplugError, match=sentence):
        write_report(folder, wanted=wanted)
    assert [p.name for p in folder.iterdir()] == ["results.jsonl"]


def test_a_key_of_a_policy_that_a_run_lacks_has_its_default(tmp_path: Path) -> None:
    lines = [
        with_keys(result("mine", 0, 40.0), method="mine", exploration_every=50),
        with_keys(result("stu-gan", 0, 41.0), method="stu-gan", masks_density=0.1),  # of an earlier version
        with_keys(result("pf", 0, 42.0), method="pf", exploration=None),
        with_keys(result("dense", 0, 43.0), method="dense"),
    ]
    table = pivot_table(read_all([write_results(tmp_path, lines)]), Wanted(("method",), ("exploration.every",)))
    assert [c.title for c in table.columns] == [
        "method", "exploration.every 50", "exploration.every 1000", "exploration.every off",
    ]  # fmt: skip


def test_what_a_sweep_changes_nothing_about_stands_in_all_columns(tmp_path: Path) -> None:
    lines = [with_keys(result(f"stu-gan@density.G={d}", 0, 40 + d), method="stu-gan", density_G=d) for d in (0.1, 0.2)]
    lines += [with_keys(DENSE, method="dense"), result("ticket", 0, 39.0, density={"G": 0.13, "D": 1.0})]
    table = pivot_table(read_all([write_results(tmp_path, lines)]), Wanted(("method",), ("density.G",)))
    assert [c.title for c in table.columns[1:]] == ["density.G 0.1", "density.G 0.2"]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["dense", "40.00", "40.00"],
        ["stu-gan", "40.10", "40.20"],
        ["ticket", "39.00", "39.00"],
    ]


def test_values_by_length_in_thousands(tmp_path: Path) -> None:
    """STU-GAN, Table 3: a run five times as long is a column (or a row) more."""
    lines = [with_keys(result(f"stu-gan@length={n}", 0, 20.0 - n / 100, real_images=n * 1000.0), method="stu-gan",
                       length=n) for n in (100, 500)]  # fmt: skip
    comparison = read_all([write_results(tmp_path, lines)])
    table = pivot_table(comparison, wanted_of("method", "length", "best,ri") or Wanted())
    assert [(c.over, c.title) for c in table.columns] == [
        ((), "method"), (("length 100",), METRIC), (("length 100",), "#RI, thousand"),
        (("length 500",), METRIC), (("length 500",), "#RI, thousand"),
    ]  # fmt: skip
    assert [cell.text for cell in table.rows[0]] == ["stu-gan", "19.00", "100", "15.00", "500"]


def test_a_mean_over_different_settings_is_said(tmp_path: Path) -> None:
    lines = [with_keys(result("dense", seed, 40.0), share=share) for seed, share in ((0, 0.1), (1, 0.5))]
    for line in lines:
        write_results(tmp_path / str(line["seed"]), [line])
    table = pivot_table(read_all([tmp_path]), Wanted())
    assert "a mean over runs that differ in share" in " ".join(table.notes)


def test_rounds_are_named_by_their_density_whatever_the_ratio(tmp_path: Path) -> None:
    """RG-GAN has a ticket of 46 %, which no power of 0.8 gives. Three rounds, of which the middle one alone cost."""
    densities, best = (1.0, 0.8, 0.54), (40.0, 39.0, 38.0)
    rounds = [
        {"round": n, "run": f"r{n}", "density": {"G": d, "D": 1.0}, "best": b, "real_images": 2e6, "flops": 3e15,
         "real_images_total": 4e6, "flops_total": 5e15, "seconds": 10.0, "seconds_total": 20.0,
         "parameters_kept": {"G": int(1000 * d)}}
        for n, (d, b) in enumerate(zip(densities, best))
    ]  # fmt: skip
    before = {"real_images": 8e6, "flops": 1e16}
    line = result("tickets", 0, 38.0, density={"G": 0.54, "D": 1.0}, rounds=rounds, before=before, real_images=2e6,
                  flops=3e15, seconds=10.0, seconds_before=40.0, parameters={"G": 1000},
                  parameters_kept={"G": 540})  # fmt: skip
    comparison = read_all([write_results(tmp_path, [DENSE, line])])
    rows = {row[0].text: [cell.text for cell in row[1:8]] for row in cost_table(comparison).rows}
    assert rows["tickets@20%"] == ["0.800", "1.000", "6.00", "8.00e15", "30.0", "800 of 1.00k", "39.00"]
    assert rows["tickets@46%"] == ["0.540", "1.000", "10.00", "1.30e16", "50.0", "540 of 1.00k", "38.00"]
    last = [cell.text for cell in rounds_table(comparison).rows[-1]]
    assert last == [
        "tickets",
        "2",
        "0.540",
        "1.000",
        "38.00",
        "2.00",
        "3.00e15",
        "10.0",
        "10.00",
        "1.30e16",
        "540",
        "1",
    ]
    assert all("tickets" not in run.method or run.best == 38.0 for run in comparison.runs)
    assert RESULTS[4]["rounds"][0].get("real_images_total") is None  # earlier versions kept none: one row, as before
    old = cost_table(read_all([write_results(tmp_path / "old", RESULTS)]))
    assert [row[0].text for row in old.rows] == ["dense", "pf", "tickets", "broken"]

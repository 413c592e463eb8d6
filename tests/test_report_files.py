"""What `rgplug report` reads and writes: whole files or none, nothing outside the folder, text that stays text."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_runs import RESULTS, record, result, write_history, write_results

from rgplug import RgplugError
from rgplug.baselines.records import digest_of, records_of
from rgplug.cli import main
from rgplug.report.figures import image_grid
from rgplug.report.page import write_report
from rgplug.report.results import read_results
from rgplug.report.tables import tables_of
from rgplug.report.texts import as_text, csv_text, markdown
from rgplug.sealed import digest, sealed, write_all

# ----------------------------------------------------------------------------
# Text for other programs.


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ('=HYPERLINK("http://x")', '\'=HYPERLINK("http://x")'),
        ("+1+1", "'+1+1"),
        ("-x", "'-x"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("\rx", "'\rx"),
        ("\nx", "'\nx"),
        ("  =1", "'  =1"),
        ("＝1", "'＝1"),
        ("a;=1", "a;'=1"),  # where semicolons separate, a cell begins here
        ("-1.5", "-1.5"),
        ("+3", "+3"),
        ("1e-3", "1e-3"),
        ("stu-gan", "stu-gan"),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_a_text_that_spreadsheets_would_run_gets_a_quote(text: str, written: str) -> None:
    assert as_text(text) == written


def test_formulas_as_names_in_the_tables(tmp_path: Path) -> None:
    name, metric = '=HYPERLINK("http://x";"y")', "@cmd"
    write_results(tmp_path, [result(name, 0, -40.0, metric=metric), result("dense", 0, -41.0, metric=metric)])
    comparison = read_results(tmp_path)
    rows = list(csv.DictReader(io.StringIO(csv_text(comparison, tables_of(comparison)))))
    assert {row["method"] for row in rows} == {"'" + name, "dense"}
    assert {row["metric"] for row in rows} == {"'@cmd"}
    assert {float(row["metric_mean"]) for row in rows if row["metric_mean"]} == {-40.0, -41.0}


def test_markdown_shows_names_as_they_are(tmp_path: Path) -> None:
    write_results(tmp_path, [result("a|b `c` _d_ ~~e~~ <img src=x> stu_gan", 0, 40.0)])
    text = markdown(tables_of(read_results(tmp_path)))
    assert r"| a\|b \`c\` \_d\_ \~\~e\~\~ &lt;img src=x&gt; stu_gan |" in text


# ----------------------------------------------------------------------------
# Writing: whole or not at all, and never through a link.


def test_a_link_in_place_of_the_report_is_replaced(tmp_path: Path) -> None:
    runs = write_results(tmp_path / "runs", RESULTS[:1])
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("report.html", "table.csv", "table.md"):
        (outside / name).write_text("precious")
        (runs / name).symlink_to(outside / name)
    write_report(runs)
    for name in ("report.html", "table.csv", "table.md"):
        assert (outside / name).read_text() == "precious"
        assert not (runs / name).is_symlink()
        assert len((runs / name).read_text()) > 100


def test_pictures_from_outside_are_not_embedded(tmp_path: Path) -> None:
    runs = write_results(tmp_path / "runs", RESULTS[:1])
    image_grid(np.full((4, 8, 8, 3), 90, dtype=np.uint8), tmp_path / "secret.png")
    (runs / "pf" / "seed_0").mkdir(parents=True)
    (runs / "pf" / "seed_0" / "samples.png").symlink_to(tmp_path / "secret.png")
    assert "No run left a grid of samples." in write_report(runs).read_text()
    (runs / "pf" / "seed_0" / "samples.png").unlink()
    os.mkfifo(runs / "pf" / "seed_0" / "samples.png")  # opening it would wait for ever
    assert "No run left a grid of samples." in write_report(runs).read_text()


@pytest.mark.parametrize("name", ["results.jsonl", "history.jsonl", "table.csv", "table.md"])
def test_a_page_does_not_take_the_name_of_another_file(tmp_path: Path, name: str) -> None:
    runs = write_results(tmp_path, RESULTS[:1])
    kept = (runs / "results.jsonl").read_bytes()
    with pytest.raises(RgplugError, match="another file of a report or a run"):
        write_report(runs, runs / name)
    assert (runs / "results.jsonl").read_bytes() == kept


CHILD = """
import resource, signal, sys
from pathlib import Path
from rgplug.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
sys.exit(main(["report", sys.argv[1]]))
"""


def test_a_full_disk_leaves_the_old_report(tmp_path: Path) -> None:
    """The kernel refuses to write beyond a limit, in a process of its own: the page does not fit, a figure would."""
    runs = write_results(tmp_path / "runs", RESULTS)
    write_report(runs)
    size = (runs / "report.html").stat().st_size
    old = {p: p.read_bytes() for p in sorted(runs.iterdir())}
    write_results(runs, [*RESULTS, result("set", 0, 30.0)])
    old[runs / "results.jsonl"] = (runs / "results.jsonl").read_bytes()
    for limit in (size - 1000, 1000):  # not the page; not even a figure, which is drawn in a folder of its own
        child = subprocess.run([sys.executable, "-c", CHILD, str(runs), str(limit)], capture_output=True, text=True)
        assert child.returncode == 2, child.stderr
        assert "Traceback" not in child.stderr
        assert "File too large" in child.stderr
        assert {p: p.read_bytes() for p in sorted(runs.iterdir())} == old
    write_report(runs)
    assert "set, seed 0" in (runs / "report.html").read_text()


def test_files_take_their_places_together(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    (tmp_path / "b").mkdir()
    with pytest.raises(RgplugError, match=r"b could not be written: .*is a folder"):
        write_all({tmp_path / "a": "new", tmp_path / "b": "new"})
    assert (tmp_path / "a").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    os.umask(mask := os.umask(0o022))
    write_all({tmp_path / "c": "new"})
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o666 & ~mask


# ----------------------------------------------------------------------------
# Reading: what is damaged is named, or marked on the page.


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"epoch": 1.5}, "epoch is 1.5; it has to be a whole number"),
        ({"epoch": 10**10}, "epoch is larger"),
        ({"metric": "low"}, "metric has to be a number"),
        ({"metric": [1]}, "metric has to be a number"),
        ({"metric": float("nan")}, "metric is nan"),
        ({"average": 1e300}, "average is .*which no training gives"),
        ({"density": {"G": 2}}, "the density of G is 2"),
        ({"density": [1]}, "density has to be an object"),
        ({"layers": {"G": {"a": -1}}}, "a is -1; it cannot be negative"),
        ({"layers": {"G": 3}}, "G has to be an object"),
        ({"layers": 0}, "layers has to be an object"),
        ({"regenerated": {"G": 0.5}}, "G is 0.5; it has to be a whole number"),
        ({"phase": 3}, "phase has to be text"),
    ],
)
def test_a_wrong_value_in_a_history_is_named(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    lines = [record(1, 41.0), json.dumps({**json.loads(record(2, 40.0)), **change}), record(3, 39.0)]
    (tmp_path / "history.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(RgplugError, match=rf"history.jsonl is damaged at epoch .*{sentence}"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("line", ["[" * 100_000, '{"epoch": 1e999}', '{"epoch": Infinity}', '{"epoch": null}', "[1]"])
def test_a_line_of_a_history_that_is_none(tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "history.jsonl").write_text(line + "\n" + record(2, 40.0) + "\n")
    assert main(["report", str(tmp_path)]) == 2
    assert "history.jsonl" in capsys.readouterr().err


def test_names_that_look_like_formulas_in_the_figures_of_a_run(tmp_path: Path) -> None:
    line = {**json.loads(record(1, 41.0)), "layers": {"G": {r"$\nonsense$.weight": 0.5}}, "metric_name": r"$\odd"}
    (tmp_path / "history.jsonl").write_text(json.dumps(line) + "\n")
    assert write_report(tmp_path).is_file()


def test_a_history_that_was_changed_after_its_result_is_marked(tmp_path: Path) -> None:
    """Its digits are valid, so only what the result says of it can tell."""
    write_history(tmp_path / "dense" / "seed_0", 41.0, 40.0)
    path = tmp_path / "dense" / "seed_0" / "history.jsonl"
    line = result("dense", 0, 40.0, history=digest_of(records_of(path.parent)))
    write_results(tmp_path, [sealed(line)])
    assert "Damaged" not in write_report(tmp_path).read_text()
    path.write_text(path.read_text().replace("41.0", "14.0"))
    page = write_report(tmp_path).read_text()
    assert "Damaged: history.jsonl of dense seed 0 does not belong to the result of its run" in page
    assert "dense, seed 0: best fd_efficientnet_lite0 40.00 (epoch 2) (its history is damaged)" in page
    path.write_text("")
    assert "Damaged" in write_report(tmp_path).read_text()
    write_results(tmp_path, [result("dense", 0, 39.5)])  # of an earlier version: its best value is nowhere
    write_history(path.parent, 41.0, 40.0)
    assert "Damaged" in write_report(tmp_path).read_text()


def test_a_changed_digit_in_the_results_is_found(tmp_path: Path) -> None:
    write_results(tmp_path, [sealed(line) for line in RESULTS])
    write_report(tmp_path)
    path = tmp_path / "results.jsonl"
    path.write_text(path.read_text().replace('"best": 46.0', '"best": 16.0'))
    with pytest.raises(RgplugError, match=r"results.jsonl: line 1 .*changed after it was written"):
        write_report(tmp_path)


def test_what_the_results_lack_is_said(tmp_path: Path) -> None:
    write_results(tmp_path, RESULTS[:3])
    path = tmp_path / "results.jsonl"
    path.write_text(path.read_text()[:-30])
    lost = tmp_path / "set" / "seed_4" / "result.json"
    lost.parent.mkdir(parents=True)
    lost.write_text(json.dumps(sealed(result("set", 4, 1.0))))
    page = write_report(tmp_path).read_text()
    assert "The last line of results.jsonl is cut off" in page
    assert "left out here: set/seed_4." in page


@pytest.mark.parametrize("key", ["best", "evaluations", "higher_is_better", "flops_total", "density", "metric"])
def test_a_missing_key_is_no_value(tmp_path: Path, key: str) -> None:
    line = result("dense", 0, 40.0)
    del line[key]
    write_results(tmp_path, [line, RESULTS[0]])
    with pytest.raises(RgplugError, match=rf"results.jsonl: line 1 .*it has no '{key}'"):
        write_report(tmp_path)


def test_the_check_of_a_file_is_of_its_content() -> None:
    assert sealed({"b": 1.0, "a": [1]})["check"] == digest({"a": [1], "b": 1.0})
    assert digest({"a": 1}) != digest({"a": 2})


def test_set_with_a_value_that_is_no_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for value in ("a=[1", "a={", "a=2024-13-45", "a=" + "[" * 5000, "a=!!python/object:os.system x"):
        arguments = ["compare", "--host", "x.py", "--methods", "dense", "--out", str(tmp_path), "--set", value]
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert said.startswith("rgplug: the value of --set 'a=")
        assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())

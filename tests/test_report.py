"""`rgplug report`: reading a folder of runs, and a page that needs nothing but itself."""

from __future__ import annotations

import csv
import html
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from report_runs import RESULTS, result, write_history, write_results

from rgplug.errors import RgplugError
from rgplug.report.figure_curves import curve, curves_figure
from rgplug.report.figures import image_grid, training_figure
from rgplug.report.page import write_report
from rgplug.report.panels import Points, trade_off
from rgplug.report.results import read_results

HOSTILE = "a|b <script>alert(1)</script> $x$ & *c*"


def test_names_from_files_stay_text(tmp_path: Path) -> None:
    write_results(tmp_path, [result(HOSTILE, 0, 40.0, run="odd")])
    write_history(tmp_path / "odd", 41.0, 40.0)
    page = write_report(tmp_path).read_text()
    assert "<script" not in page
    assert html.escape(HOSTILE) in page
    table = (tmp_path / "table.md").read_text()
    assert r"a\|b &lt;script&gt;alert(1)&lt;/script&gt; $x$ &amp; \*c\*" in table
    assert next(csv.DictReader((tmp_path / "table.csv").open()))["method"] == HOSTILE


def test_a_last_line_cut_off_is_dropped_and_a_later_result_replaces_an_earlier(tmp_path: Path) -> None:
    write_results(tmp_path, [*RESULTS[:3], result("dense", 0, 39.0), RESULTS[3]])
    path = tmp_path / "results.jsonl"
    path.write_text(path.read_text()[:-30])
    dense = read_results(tmp_path).dense
    assert dense is not None
    assert [run.best for run in dense.runs] == [39.0]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"method": "de', "no JSON"),
        ("[1, 2]", "not an object"),
        (json.dumps(result("dense", 0, 1.0) | {"best": "low"}), "best has to be a number"),
        (json.dumps(result("dense", 0, 1.0) | {"method": None}), "method has to be text"),
        (json.dumps(result("dense", 0, 1.0) | {"seed": None}), "seed is missing"),
        (json.dumps(result("dense", 0, 1.0) | {"density": 0.5}), "density has to be an object"),
        (json.dumps(result("dense", 0, 1.0) | {"rounds": [3]}), "rounds has to be an object"),
        (json.dumps(result("dense", 0, 1.0) | {"run": "../elsewhere"}), "outside the folder"),
    ],
)
def test_a_corrupt_line_is_named(tmp_path: Path, line: str, what: str) -> None:
    write_results(tmp_path, RESULTS[:2])
    path = tmp_path / "results.jsonl"
    good = path.read_text().splitlines()
    path.write_text("\n".join([good[0], line, good[1]]) + "\n")
    with pytest.raises(RgplugError, match=rf"results\.jsonl: line 2 .*{what}"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_corrupt_history_is_named(tmp_path: Path) -> None:
    write_history(tmp_path / "dense" / "seed_0", 41.0, 40.0)
    path = tmp_path / "dense" / "seed_0" / "history.jsonl"
    path.write_text("{\n" + path.read_text())
    write_results(tmp_path, RESULTS[2:3])
    with pytest.raises(RgplugError, match=r"seed_0.history\.jsonl: line 1"):
        write_report(tmp_path)


def test_values_of_two_metrics_are_not_put_in_one_table(tmp_path: Path) -> None:
    write_results(tmp_path, [*RESULTS[:3], result("set", 0, 12.0, metric="fid")])
    with pytest.raises(RgplugError, match=r"fid on 5000 samples.*separate folders"):
        write_report(tmp_path)
    write_results(tmp_path, [*RESULTS[:3], result("set", 0, 12.0, samples=100)])
    with pytest.raises(RgplugError, match="on 100 samples"):
        write_report(tmp_path)


def test_folders_without_anything_to_report(tmp_path: Path) -> None:
    with pytest.raises(RgplugError, match=r"missing has neither results\.jsonl nor history\.jsonl"):
        write_report(tmp_path / "missing")
    with pytest.raises(RgplugError, match="no finished run"):
        write_report(write_results(tmp_path / "empty", []))
    write_history(tmp_path / "new")
    with pytest.raises(RgplugError, match="no evaluation yet"):
        write_report(tmp_path / "new")


def test_out_is_a_file_and_the_tables_are_beside_it(tmp_path: Path) -> None:
    runs = write_results(tmp_path / "runs", RESULTS[:1])
    out = write_report(runs, tmp_path / "a" / "b.html")
    assert out == tmp_path / "a" / "b.html"
    assert {p.name for p in out.parent.iterdir()} == {"b.html", "table.csv", "table.md"}
    assert [p.name for p in runs.iterdir()] == ["results.jsonl"]
    assert "This run left no history." in out.read_text()
    with pytest.raises(RgplugError, match="is a folder"):
        write_report(runs, tmp_path)
    with pytest.raises(RgplugError, match="cannot write into"):
        write_report(runs, runs / "results.jsonl" / "report.html")


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RgplugError, match=r"pip install rgplug\[demo\]"):
        write_report(write_results(tmp_path, RESULTS))


def test_the_page_of_a_single_run(tmp_path: Path) -> None:
    write_history(tmp_path, 41.0, None, 40.0)
    page = Elements(write_report(tmp_path).read_text())
    assert page.sections == ["training"]
    assert len(page.images) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["history.jsonl", "report.html"]


class Elements(HTMLParser):
    """What a page holds: ids of sections, images, values of attributes that load or lead somewhere."""

    def __init__(self, page: str):
        super().__init__()
        self.sections: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.targets: list[str] = []
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.tags.add(tag)
        if tag == "section":
            self.sections.append(str(found["id"]))
        if tag == "img":
            self.images.append(found)
        self.targets += [str(found[name]) for name in ("src", "href", "srcset", "data", "action") if name in found]


SECTIONS = ["how", "cost", "sparsity", "flops", "rounds", "curves", "samples", "runs"]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_results(tmp_path_factory.mktemp("report") / "cifar", RESULTS)
    for line in RESULTS[2:6]:
        write_history(folder / line["run"], 300.0, line["best"], None)
    image_grid(np.full((4, 8, 8, 3), 90, dtype=np.uint8), folder / "pf" / "seed_0" / "samples.png")
    (folder / "pf" / "seed_1").mkdir()
    (folder / "pf" / "seed_1" / "samples.png").write_text("no picture")
    return write_report(folder)


def test_the_page_holds_everything_itself(report: Path) -> None:
    text = report.read_text()
    page = Elements(text)
    assert page.sections == SECTIONS
    assert [t for t in page.targets if t.startswith("#")] == [f"#{key}" for key in SECTIONS]
    assert all(t.startswith(("#", "data:image/png;base64,")) for t in page.targets)
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert "url(" not in text
    assert "@import" not in text
    assert all(image["alt"] for image in page.images)
    # curves, two scatter plots, one readable grid of samples, four histories
    assert len(page.images) == 1 + 2 + 1 + 4
    assert text.count("<details>") == len(RESULTS)
    assert "theoretical: 2 × MAC × density" in text
    assert "FID" not in re.sub(r'base64,[^"]+', "", text)
    assert "tickets, seed 1: diverged" in text


def test_the_page_in_a_browser(report: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium is installed")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", report.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    page = Elements(dom)
    assert page.sections == SECTIONS
    assert len(page.images) == 8
    assert not re.search(r"""(src|href)=["']?(https?|file):""", dom)
    assert "47.00 ± 1.41" in dom


def test_panels_without_values_and_with_names_that_look_like_formulas(tmp_path: Path) -> None:
    lines = [{"epoch": 1, "metric": None}, {"epoch": 2, "metric": float("nan")}]
    curves = {r"$\nonsense$": [curve(lines)], "none": []}
    path = curves_figure(curves, tmp_path / "a.png", x_label="epoch", y_label=r"$\odd$")
    assert path.stat().st_size > 1000
    points = [Points(r"$\nonsense$", (1e15, 1e17), (40.0, 42.0)), Points("b", (1e15,), (40.0,))]
    assert trade_off(points, tmp_path / "b.png", x_label="FLOPs", y_label=r"$\odd$").stat().st_size > 1000


@pytest.mark.parametrize(("name", "best"), [("is", "9"), ("is_efficientnet_lite0", "9"), ("fid", "4")])
def test_the_star_of_a_run_is_at_its_best_value(tmp_path: Path, name: str, best: str) -> None:
    lines = [{"epoch": e, "metric": m, "metric_name": name} for e, m in ((1, 6.0), (2, 9.0), (3, 4.0))]
    drawn = training_figure(lines, tmp_path / "a.svg")
    assert f"<!-- best: {best} (epoch" in drawn.read_text()

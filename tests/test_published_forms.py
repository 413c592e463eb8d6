"""The papers' tables from small runs, in the papers' form; values worked out from the runs' histories by hand."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from PIL import Image
from published_runs import DENSITIES, ITERATIONS, SEEDS, Made, made
from report_runs import result, write_results

from rgplug.cli import main
from rgplug.report.drawings import Drawing

BATCH = 4
FORWARD_G, FORWARD_D = 2 * 51456, 2 * 6960  # FLOPs of one image: the layers' multiply-accumulates, counted by hand
# 768 + 9 * 8 * 8 * 64 + 27 * 8 * 64 of G, 27 * 8 * 16 + 72 * 12 * 4 + 48 of D


def _pixel() -> bytes:
    target = io.BytesIO()
    Image.new("RGB", (1, 1)).save(target, "PNG")
    return target.getvalue()


PIXEL = _pixel()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("published"))


class Page:
    """A report made by the command: its Markdown, the lines of its CSV, its HTML. Figures are one grey pixel each."""

    def __init__(self, out: Path, *arguments: str | Path):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Drawing, "png", lambda _: PIXEL)
            assert main(["report", *map(str, arguments), "--out", str(out / "page.html")]) == 0
        self.html = (out / "page.html").read_text()
        self.markdown = (out / "table.md").read_text()
        self.lines = list(csv.DictReader((out / "table.csv").open()))

    def asked(self, **keys: str) -> list[dict[str, str]]:
        return [r for r in self.lines if r["table"] == "asked" and all(r[k] == v for k, v in keys.items())]

    def mean(self, cell: str, **keys: str) -> float:
        (line,) = self.asked(cell=cell, **keys)
        return float(line["mean"])

    def row(self, table: str, method: str) -> dict[str, str]:
        (line,) = [r for r in self.lines if r["table"] == table and r["method"] == method]
        return line

    def table(self, title: str) -> list[list[str]]:
        """Rows of a table of the Markdown, stars left out."""
        part = next(p for p in self.markdown.split("## ") if p.startswith(title))
        rows = [line[1:-1].replace("*", "") for line in part.splitlines() if line.startswith("|")]
        return [[cell.strip() for cell in row.split("|")] for row in rows if "---" not in row]


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def best(lines: list[dict[str, Any]], **where: str) -> dict[str, Any]:
    return min((r for r in lines if all(r[k] == v for k, v in where.items())), key=lambda r: r["metric"])


def over_seeds(folder: Path, value: Callable[[list[dict[str, Any]]], float]) -> list[float]:
    return [value(history(folder / f"seed_{seed}")) for seed in range(SEEDS)]


def text(values: list[float]) -> str:
    return f"{fmean(values):.2f} ± {stdev(values):.2f}"


# ----------------------------------------------------------------------------
# RG-GAN.


def test_images_to_the_best_value_and_that_value_by_share(runs: Made, tmp_path: Path) -> None:
    """RG-GAN, Table 1: #RI and FID under each share, a row per model."""
    shown = Page(tmp_path, runs.shares, "--rows", "class.G,method", "--columns", "share", "--cells", "ri,best")
    header, units, dense, rg_gan = shown.table("#RI")
    assert header == ["", "", "share 1", "", "share 0.1", ""]  # the paper's columns go from all images down
    assert units == ["class.G", "method", "#RI, thousand", "FID", "#RI, thousand", "FID"]
    assert [row[:2] for row in (dense, rg_gan)] == [["Sequential", "dense"], ["Sequential", "rg-gan"]]
    for method, row in (("dense", dense), ("rg-gan", rg_gan)):
        for at, share in ((2, "1"), (4, "0.1")):
            folder = runs.shares / f"{method}@share={share}"
            values = over_seeds(folder, lambda lines: best(lines)["metric"])
            images = over_seeds(folder, lambda lines: best(lines)["real_images"])
            assert row[at + 1] == text(values)
            assert float(row[at]) == pytest.approx(fmean(images) / 1e3)
            exact = {"method": method, "share": str(float(share))}
            assert shown.mean("best", **exact) == pytest.approx(fmean(values))
            assert shown.mean("ri", **exact) == fmean(images)
            assert float(shown.asked(cell="best", **exact)[0]["sd"]) == pytest.approx(stdev(values))


def test_the_best_value_by_number_of_images(runs: Made, tmp_path: Path) -> None:
    """RG-GAN, Tables 2 and 3: FID alone."""
    shown = Page(tmp_path, runs.shares, "--columns", "share")
    header, *rows = shown.table("FID")
    assert header == ["method", "share 1", "share 0.1"]
    assert [row[0] for row in rows] == ["dense", "rg-gan"]
    values = over_seeds(runs.shares / "rg-gan@share=0.1", lambda lines: best(lines)["metric"])
    assert rows[1][2] == text(values)


def test_images_flops_and_value_of_an_adapters_runs(runs: Made, tmp_path: Path) -> None:
    """RG-GAN, Table 4: run folders of the official repositories; method and seed come from what each run left."""
    shown = Page(tmp_path, runs.official, "--cells", "ri,flops,best")
    header, dense, rg_gan = shown.table("#RI")
    assert header == ["method", "#RI, thousand", "Training FLOPs", "fid50k_full"]
    for row, numbers in ((dense, (0, 1)), (rg_gan, (2, 3))):
        found = [best(history(runs.official / f"{n:05d}-robots-4")) for n in numbers]
        assert row[3] == text([line["metric"] for line in found])
        assert float(row[1]) == pytest.approx(fmean(line["real_images"] for line in found) / 1e3)
        assert float(row[2]) == pytest.approx(fmean(line["flops"] for line in found), rel=5e-3)
    assert [row[0] for row in (dense, rg_gan)] == ["dense", "rg-gan"]
    assert "2 methods, 4 runs, 2 seeds (0, 1)" in shown.html


def test_best_values_of_phases_have_rows(runs: Made, tmp_path: Path) -> None:
    """RG-GAN, Table 5: Sparse_RG and Dense_RG, with the cost until then."""
    shown = Page(tmp_path, runs.cost)
    for phase in ("sparse", "dense"):
        row = shown.row("cost", f"{phase.capitalize()}_rg-gan")
        found = [best(history(runs.cost / "rg-gan" / f"seed_{s}"), phase_before=phase) for s in range(SEEDS)]
        assert float(row["metric_mean"]) == pytest.approx(fmean(line["metric"] for line in found))
        assert float(row["real_images"]) == fmean(line["real_images"] for line in found)
        assert float(row["training_flops"]) == pytest.approx(fmean(line["flops"] for line in found))
        assert float(row["density_G"]) == pytest.approx(fmean(line["density"]["G"] for line in found))
        assert row["phase"] == phase
    assert float(shown.row("cost", "Dense_rg-gan")["parameters_kept_G"]) == 1715  # 1,560 weights, 155 others
    names = [row[0] for row in shown.table("Cost")[1:]]
    assert names == [
        "dense", "re-gan", "rg-gan", "Sparse_rg-gan", "Dense_rg-gan", "tickets@20%", "tickets@36%", "tickets@49%",
    ]  # fmt: skip


def test_every_round_of_tickets_has_a_row_with_all_that_it_cost(runs: Made, tmp_path: Path) -> None:
    """RG-GAN, Table 5: ST_SNGAN@20%, #RI and FLOPs of all rounds before it and its own."""
    shown = Page(tmp_path, runs.cost)
    for number, name in ((1, "tickets@20%"), (2, "tickets@36%"), (3, "tickets@49%")):
        images, flops, values = [], [], []
        for seed in range(SEEDS):
            folders = [runs.cost / "dense" / f"seed_{seed}"]
            folders += [runs.cost / "tickets" / f"seed_{seed}" / f"round_{n:02d}" for n in range(1, number + 1)]
            *before, own = map(history, folders)
            images.append(sum(lines[-1]["real_images"] for lines in before) + best(own)["real_images"])
            flops.append(sum(lines[-1]["flops"] for lines in before) + best(own)["flops"])
            values.append(best(own)["metric"])
        row = shown.row("cost", name)
        assert float(row["real_images"]) == fmean(images)
        assert float(row["training_flops"]) == pytest.approx(fmean(flops))
        assert float(row["metric_mean"]) == pytest.approx(fmean(values))
        assert float(row["density_G"]) == pytest.approx(0.8**number, abs=1e-3)
        assert float(row["parameters_kept_G"]) == pytest.approx(1715 - 1560 * (1 - 0.8**number), abs=2)


def test_seconds_stand_beside_flops(runs: Made, tmp_path: Path) -> None:
    shown = Page(tmp_path, runs.cost)

    def until_best(lines: list[dict[str, Any]]) -> float:
        return sum(line["seconds"] for line in lines if line["epoch"] <= best(lines)["epoch"])

    row = shown.row("cost", "dense")
    assert float(row["seconds"]) == pytest.approx(fmean(over_seeds(runs.cost / "dense", until_best)))
    assert float(shown.row("cost", "tickets@49%")["seconds"]) > float(row["seconds"])
    header = shown.table("Cost")[0]
    assert header[4:7] == ["Training FLOPs", "Seconds", "Parameters G, kept"]


# ----------------------------------------------------------------------------
# STU-GAN.


def test_two_metrics_by_sparsity_of_both_networks(runs: Made, tmp_path: Path) -> None:
    """STU-GAN, Table 1: (FID, IS), columns by the sparsity of G, rows by method and the sparsity of D."""
    shown = Page(
        tmp_path, runs.sweep, "--rows", "method,sparsity.D", "--columns", "sparsity.G", "--cells", "fid,is"
    )  # fmt: skip
    header, *rows = shown.table("(FID, IS)")
    assert header == ["method", "sparsity.D", "sparsity.G 70 %", "sparsity.G 50 %"]
    assert [row[:2] for row in rows] == [
        ["dense", "0 %"], ["pf-uniform", "0 %"], ["stu-gan", "50 %"], ["tickets", "50 %"],
    ]  # fmt: skip
    for method, row in zip(("pf-uniform", "stu-gan"), rows[1:]):
        for at, density in ((2, "0.3"), (3, "0.5")):
            folder = runs.sweep / f"{method}@density.G={density}"
            fid = over_seeds(folder, lambda lines: best(lines)["metrics"]["fid"])
            inception = over_seeds(folder, lambda lines: best(lines)["metrics"]["is"])  # of the best FID's evaluation
            assert row[at] == f"({text(fid)}, {text(inception)})"
    fid = over_seeds(runs.sweep / "dense", lambda lines: best(lines)["metrics"]["fid"])
    assert rows[0][2] == rows[0][3]  # as printed in the paper: one dense run, under every sparsity
    assert rows[0][2].startswith(f"({text(fid)}, ")
    assert "Dense runs have no density" in shown.markdown


def test_rows_by_the_density_that_was_asked_for(runs: Made, tmp_path: Path) -> None:
    """STU-GAN, Table 4: one row per method and sparsities."""
    shown = Page(tmp_path, runs.sweep, "--rows", "method,density.D,density.G")
    rows = [row[:3] for row in shown.table("FID")[1:]]
    assert rows == [
        ["dense", "1", "1"], ["pf-uniform", "1", "0.3"], ["pf-uniform", "1", "0.5"], ["stu-gan", "0.5", "0.3"],
        ["stu-gan", "0.5", "0.5"], ["tickets", "0.5", "0.3"], ["tickets", "0.5", "0.5"],
    ]  # fmt: skip


def test_flops_by_layer_and_proportional(runs: Made, tmp_path: Path) -> None:
    """STU-GAN, Table 2, in both conventions.

    A step of D: real and fake images through D, forward and twice that backward, and the fakes through G; a step of G:
    its images through G and D, forward and backward. Twelve of each.
    """
    shown = Page(tmp_path, runs.sweep)
    on_g, on_d = ITERATIONS * (1 + 3) * BATCH * FORWARD_G, ITERATIONS * (3 * 2 + 3) * BATCH * FORWARD_D
    assert float(shown.row("flops", "dense")["flops_proportional_with_before"]) == on_g + on_d
    for density in DENSITIES:
        row = shown.row("flops", f"stu-gan@density.G={density:g}")
        expected = density * on_g + 0.5 * on_d
        assert float(row["flops_proportional_with_before"]) == pytest.approx(expected)
        assert float(row["training_multiple_proportional"]) == pytest.approx(expected / (on_g + on_d))
        assert float(row["inference_multiple_proportional"]) == pytest.approx(density)
        by_layer = over_seeds(runs.sweep / f"stu-gan@density.G={density:g}", lambda lines: lines[-1]["flops"])
        assert float(row["flops_total"]) == pytest.approx(fmean(by_layer))
        assert float(row["flops_total"]) < expected  # ERK: the layers that multiply most keep least
        row = shown.row("flops", f"pf-uniform@density.G={density:g}")  # and the dense training before it
        assert float(row["flops_proportional_with_before"]) == pytest.approx(on_g + on_d + density * on_g + on_d)
    header = shown.table("FLOPs")[0]
    assert "Training FLOPs by layer, this run" in header
    assert "× dense, proportional" in header
    assert "gives no formula" in shown.markdown


def test_the_share_of_weights_that_were_ever_active(runs: Made, tmp_path: Path) -> None:
    """STU-GAN, in-time over-parametrization."""
    shown = Page(tmp_path, runs.sweep)
    for density in DENSITIES:
        folder = runs.sweep / f"stu-gan@density.G={density:g}"
        seen = over_seeds(folder, lambda lines: lines[-1]["ever_active"]["G"])
        found = float(shown.row("sparsity", folder.name)["ever_active_G"])
        assert found == pytest.approx(100 * fmean(seen))
        assert found > 100 * density  # it explores
        assert float(shown.row("sparsity", f"pf-uniform@density.G={density:g}")["ever_active_G"]) == 100 * density


# ----------------------------------------------------------------------------
# Several folders; the page itself.


def test_folders_side_by_side_have_two_rows_of_headings(runs: Made, tmp_path: Path) -> None:
    """STU-GAN, Table 1: models over sparsities. The heading of a folder spans its columns."""
    shown = Page(
        tmp_path, runs.sweep, runs.shares, "--columns", "folder,share", "--rows", "method,density.G", "--cells", "ri"
    )
    over, header, *rows = shown.table("#RI")
    assert over == ["", "", "sweep", "shares", ""]
    assert header == ["method", "density.G", "share –", "share 1", "share 0.1"]
    dense = next(row for row in rows if row[0] == "dense")
    assert "–" not in dense
    headings = Headings(shown.html)
    assert headings.rows[0] == [
        ("method", 1, 2), ("density.G", 1, 2), ("sweep", 1, 1), ("shares", 2, 1),
    ]  # text, colspan, rowspan  # fmt: skip
    assert [text for text, _, _ in headings.rows[1]] == ["share –", "share 1", "share 0.1"]


class Headings(HTMLParser):
    """Rows of headings of the first table of a page: (text, columns, rows) of each cell."""

    def __init__(self, page: str):
        super().__init__()
        self.rows: list[list[tuple[str, int, int]]] = []
        self._spans: tuple[int, int] | None = None
        self._is_over = False
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {k: str(v) for k, v in attributes}
        if tag == "tbody":
            self._is_over = True
        if self._is_over:
            return
        if tag == "tr":
            self.rows.append([])
        if tag == "th":
            self._spans = (int(found.get("colspan", "1")), int(found.get("rowspan", "1")))

    def handle_data(self, data: str) -> None:
        if self._spans is not None and not self._is_over:
            self.rows[-1].append((data, *self._spans))
            self._spans = None


DOCS = Path(__file__).parents[1] / "docs"
COMMAND = re.compile(r"(?m)(?:^    |`)rgplug report ([^`\n]+?)(?:  +#.*)?(?:`|$)")
PAGES = [(DOCS / f"{name}.md").read_text() for name in ("tables-and-figures", "protocols", "comparisons")]
COMMANDS = [command for page in PAGES for command in COMMAND.findall(page)]


def test_every_command_of_the_docs_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is understood, with keys and cells that there are; the folders are replaced by one with every key."""
    keys = {"share": 1.0, "subset": 1000, "length": 12, "class.G": "Generator", "exploration.every": 5}
    values = {name: {"at_best": 1.0, "best": 1.0, "final": 1.0} for name in ("fid", "is")}
    assert len(COMMANDS) > 15
    for number, command in enumerate(COMMANDS):
        words = shlex.split(command)
        options = [word for i, word in enumerate(words) if word.startswith("--") or (i and words[i - 1][:2] == "--")]
        several = len(words) - len(options) > 1 or "*" in command
        folders = [tmp_path / f"{number}" / name for name in ("a", "b")[: 1 + several]]
        for seed, folder in enumerate(folders):
            lines = [result(m, seed, 40.0, keys={**keys, "method": m}, metrics=values) for m in ("dense", "stu-gan")]
            write_results(folder, [line | {"metric": "fid"} for line in lines])
        replaced = [str(tmp_path / f"{number}.html") if w.endswith(".html") else w for w in options]
        replaced = [str(tmp_path / "figures") if w == "figures" else w for w in replaced]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Drawing, "png", lambda _: PIXEL)
            patch.setattr(Drawing, "write", lambda *_: [])
            status = main(["report", *map(str, folders), *replaced])
        said = capsys.readouterr().err
        assert status == 0, (command, said)

"""Which figures a report has, from which runs, and as files of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_runs import METRIC, result, write_history, write_results

from rgplug import sheet
from rgplug.cli import main
from rgplug.errors import RgplugError
from rgplug.report.comparison import Comparison
from rgplug.report.drawings import drawings_of, grid_keys, run_drawings
from rgplug.report.pictures import best_sheets, picture_of
from rgplug.report.results import read_all

GREY = np.full((4, 8, 8, 3), 90, np.uint8)


def comparison(folder: Path, *lines: dict[str, Any]) -> Comparison:
    write_results(folder, list(lines))
    return read_all([folder])


def names(c: Comparison) -> list[str]:
    return [d.name for d in drawings_of(c)]


def test_a_comparison_without_histories_has_its_costs(tmp_path: Path) -> None:
    c = comparison(tmp_path / "c", result("dense", 0, 40.0), result("rg-gan", 0, 44.0))
    assert names(c) == ["metric-over-epoch", "best-over-density", "best-over-flops"]


def test_parts_of_rg_gan_make_an_ablation(tmp_path: Path) -> None:
    c = comparison(
        tmp_path / "c", result("dense", 0, 40.0), result("rg-gan", 0, 44.0), result("rg-gan-dp-g", 0, None)
    )  # fmt: skip
    (found,) = [d for d in drawings_of(c) if d.name == "ablation"]
    assert found.alt == f"{METRIC} of parts of RG-GAN: dense 40.00, rg-gan 44.00, rg-gan-dp-g diverged"


def test_parts_of_rg_gan_on_a_grid_make_an_ablation_for_each_cell(tmp_path: Path) -> None:
    runs = [
        result(f"{m}@share={s}", 0, 44.0, run=f"{m}{s}/seed_0", keys={"method": m, "share": s})
        for m in ("rg-gan", "rg-gan-dp") for s in (0.1, 0.5)
    ]  # fmt: skip
    c = comparison(tmp_path / "c", *runs)
    assert [n for n in names(c) if n.startswith("ablation")] == ["ablation@share=0.1", "ablation@share=0.5"]


def swept(tmp_path: Path) -> Comparison:
    runs = [
        result(f"stu-gan@density.G={x}", seed, 40 - 10 * x + seed, run=f"{x}/seed_{seed}",
               keys={"method": "stu-gan", "density.G": x, "density.D": 0.5, "exploration.every": 100})
        for x in (0.1, 0.5) for seed in (0, 1)
    ]  # fmt: skip
    return comparison(tmp_path / "c", result("dense", 0, 30.0), *runs)


def test_a_grid_is_drawn_over_its_own_keys(tmp_path: Path) -> None:
    c = swept(tmp_path)
    assert grid_keys(c) == ("density.G", None)
    (found,) = [d for d in drawings_of(c) if d.name.startswith("sweep")]
    assert found.alt == f"{METRIC} over density.G. stu-gan: 0.1 39.50, 0.5 35.50"
    assert "rings mark equal density" in found.caption  # at 0.5


def test_any_key_can_be_asked_for(tmp_path: Path) -> None:
    c = swept(tmp_path)
    (found,) = [d for d in drawings_of(c, ("exploration.every", "density.G")) if d.name.startswith("sweep")]
    assert found.name == "sweep-exploration.every-by-density.G"
    assert found.alt.endswith("density.G = 0.1: 100 39.50; density.G = 0.5: 100 35.50")
    with pytest.raises(RgplugError, match=r"no run of this report has a key 'density\.Q'; did you mean"):
        drawings_of(c, ("density.Q", None))


def test_curves_over_costs_begin_after_what_was_trained_before(tmp_path: Path) -> None:
    c = comparison(tmp_path / "c", result("pf", 0, 40.0, before={"real_images": 1000, "flops": None}))
    lines = [
        {"epoch": e, "metric": 50.0 - 5 * e, "metric_name": METRIC, "real_images": 100 * e, "flops": 1e9 * e}
        for e in (1, 2)
    ]  # fmt: skip
    folder = tmp_path / "c" / "pf" / "seed_0"
    folder.mkdir(parents=True)
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    c = read_all([tmp_path / "c"])
    found = names(c)
    assert "metric-over-real-images" in found
    assert "metric-over-flops" not in found  # what was trained before is not known


def test_ever_active_is_drawn_where_something_never_was(tmp_path: Path) -> None:
    comparison(tmp_path / "c", result("stu-gan", 0, 40.0), result("dense", 0, 40.0))
    folder = tmp_path / "c" / "stu-gan" / "seed_0"
    folder.mkdir(parents=True)
    lines = [{"epoch": e, "metric": 42.0 - e, "ever_active": {"G": 0.2 * e, "D": 1.0}} for e in (1, 2)]
    write_history(tmp_path / "c" / "dense" / "seed_0", 40.0)
    with (tmp_path / "c" / "dense" / "seed_0" / "history.jsonl").open("w") as file:
        file.write(json.dumps({"epoch": 1, "metric": 40.0, "ever_active": {"G": 1.0, "D": 1.0}}) + "\n")
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    c = read_all([tmp_path / "c"])
    (found,) = [d for d in drawings_of(c) if d.name.startswith("ever")]
    assert found.name == "ever-active-G"
    assert found.alt.endswith("ever active: stu-gan")
    assert found.caption.endswith("All of them from the beginning on: dense.")


def test_layers_are_drawn_where_something_happened() -> None:
    line = {"epoch": 1, "metric": 3.0, "density": {"G": 1.0}, "layer_counts": {"G": {"a": [0, 0, 0]}}}
    assert [d.name for d in run_drawings([line], None, "run")] == ["training"]
    line["layer_counts"] = {"G": {"a": [3, 0, 0]}}
    assert [d.name for d in run_drawings([line], None, "run")] == ["training", "layers"]


# ---- samples -------------------------------------------------------------------------------------------------------


def run_folder(tmp_path: Path, **changes: Any) -> Path:
    write_results(tmp_path / "c", [result("rg-gan", 0, 40.0, **changes)])
    folder = tmp_path / "c" / "rg-gan" / "seed_0"
    write_history(folder, 50.0, 40.0)
    return folder


def picture(tmp_path: Path) -> Any:
    (run,) = read_all([tmp_path / "c"]).runs
    return picture_of(run)


def test_the_best_picture_is_that_of_the_best_evaluation(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    sheet.write(GREY, folder / "best.png", sheet.Evaluated(2, METRIC, 40.0))
    found = picture(tmp_path)
    assert (found.of_best, found.words) == (True, "images that the best value was measured on")
    (own,) = best_sheets(read_all([tmp_path / "c"]))
    assert own.name == "rg-gan"
    assert own.beneath == f"{METRIC} 40.00\ntraining 1.00e15 FLOPs\none image 3.00e9 FLOPs"
    assert own.picture.size == (18, 18)


@pytest.mark.parametrize("of", [(1, 40.0), (2, 41.0)])
def test_a_picture_of_another_evaluation_is_not_shown_for_the_best(tmp_path: Path, of: tuple[int, float]) -> None:
    folder = run_folder(tmp_path)
    sheet.write(GREY, folder / "best.png", sheet.Evaluated(of[0], METRIC, of[1]))
    assert picture(tmp_path) is None
    Image.new("RGB", (8, 8)).save(folder / "samples.png")
    assert picture(tmp_path).words == "last grid, not necessarily that of the best value"
    assert best_sheets(read_all([tmp_path / "c"])) == []


def test_a_best_picture_outside_of_the_folder_is_not_read(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    sheet.write(GREY, tmp_path / "secret.png", sheet.Evaluated(2, METRIC, 40.0))
    (folder / "best.png").symlink_to(tmp_path / "secret.png")
    assert picture(tmp_path) is None


def test_stylegan2_ada_draws_its_own_grid_where_it_measures(tmp_path: Path) -> None:
    """The best value after 1,000,000 real images; a run that began from a checkpoint counts them anew."""
    folder = run_folder(tmp_path)
    Image.new("RGB", (8, 8)).save(folder / "fakes001000.png")
    assert picture(tmp_path) is None  # whose file that is cannot be told
    (folder / "training_options.json").write_text("{}")
    found = picture(tmp_path)
    assert (found.of_best, found.words) == (True, "the training script's own grid at 1,000 kimg")
    rows = (folder / "history.jsonl").read_text().splitlines()
    (folder / "history.jsonl").write_text(rows[1] + "\n")
    assert picture(tmp_path) is None


def test_stylegan2_ada_in_a_comparison_has_a_folder_of_its_own_for_each_start(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    for number in (0, 1):
        own = folder / f"0000{number}-robots"
        own.mkdir()
        Image.new("RGB", (8, 8)).save(own / "fakes001000.png")
        (own / "training_options.json").write_text("{}")
        assert (picture(tmp_path) is not None) == (number == 0)


# ---- files ---------------------------------------------------------------------------------------------------------


def test_each_figure_as_files_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_folder(tmp_path)
    sheet.write(GREY, folder / "best.png", sheet.Evaluated(2, METRIC, 40.0))
    assert main(["report", str(tmp_path / "c"), "--figures", str(tmp_path / "f"), "--sweep", "seed"]) == 0
    found = sorted(p.relative_to(tmp_path / "f").as_posix() for p in (tmp_path / "f").rglob("*.p*"))
    figures = ["best-over-density", "best-over-flops", "metric-over-epoch", "runs/rg-gan-seed-0-training", "samples",
               "sweep-seed"]  # fmt: skip
    assert found == sorted(f"{name}{suffix}" for name in figures for suffix in (".png", ".pdf"))
    first = (tmp_path / "f" / "samples.pdf").read_bytes()
    assert first.startswith(b"%PDF")
    assert main(["report", str(tmp_path / "c"), "--figures", str(tmp_path / "f")]) == 0
    assert (tmp_path / "f" / "samples.pdf").read_bytes() == first


def test_the_figures_of_a_single_run(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    sheet.write(GREY, folder / "best.png", sheet.Evaluated(2, METRIC, 40.0))
    assert main(["report", str(folder), "--figures", str(tmp_path / "f")]) == 0
    assert sorted(p.name for p in (tmp_path / "f" / "runs").iterdir()) == ["seed_0-training.pdf", "seed_0-training.png"]
    assert f"{METRIC} 40.00, epoch 2" in (folder / "report.html").read_text()


def test_bad_options_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_folder(tmp_path)
    (tmp_path / "file").write_text("")
    for more, message in (
        (["--by", "seed"], "give --sweep KEY too"),
        (["--sweep", "nonsense"], "no run of this report has a key 'nonsense'"),
        (["--figures", str(tmp_path / "file")], "cannot write into"),
    ):
        assert main(["report", str(tmp_path / "c"), *more]) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert message in error[-1]
        assert len(error) == 1

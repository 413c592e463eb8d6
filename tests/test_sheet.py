"""best.png: images of the best evaluation so far, whenever a run is killed and goes on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_evaluation import run  # noqa: F401  # a small run that measures itself

from rgplug.history import Record, append
from rgplug.sheet import SHEET, BestSheet, Evaluated, evaluated, tiled


def record(epoch: int, value: float | None) -> Record:
    return Record(epoch, {}, value, "fid", None, "sparse", "sparse", {}, {}, {}, {})


def images(level: int) -> torch.Tensor:
    return torch.full((4, 3, 2, 2), level, dtype=torch.uint8)


def level(path: Path) -> int:
    """Of the picture's first image."""
    with Image.open(path) as picture:
        return int(np.asarray(picture)[0, 0, 0])


def evaluate(sheet: BestSheet, folder: Path, epoch: int, value: float | None, *, higher: bool = False) -> None:
    sheet.add(folder, record(epoch, value), images(epoch), higher)
    append(folder / "history.jsonl", record(epoch, value))


def test_the_picture_is_that_of_the_best_so_far(tmp_path: Path) -> None:
    sheet = BestSheet()
    sheet.begin(tmp_path, False)
    shown = []
    for epoch, value in enumerate((5.0, 6.0, 4.0, None, float("nan"), 4.0, 4.5), start=1):
        evaluate(sheet, tmp_path, epoch, value)
        shown.append(level(tmp_path / SHEET))
    assert shown == [1, 1, 3, 3, 3, 3, 3]
    assert evaluated(tmp_path / SHEET) == Evaluated(3, "fid", 4.0)


def test_higher_is_better(tmp_path: Path) -> None:
    sheet = BestSheet()
    sheet.begin(tmp_path, True)
    for epoch, value in enumerate((5.0, 6.0, 4.0), start=1):
        evaluate(sheet, tmp_path, epoch, value, higher=True)
    assert level(tmp_path / SHEET) == 2


def test_a_resumed_run_knows_the_best_value_of_before(tmp_path: Path) -> None:
    sheet = BestSheet()
    sheet.begin(tmp_path, False)
    evaluate(sheet, tmp_path, 1, 3.0)
    again = BestSheet()
    again.begin(tmp_path, False)
    evaluate(again, tmp_path, 2, 4.0)
    assert level(tmp_path / SHEET) == 1


def test_a_picture_of_an_evaluation_that_is_made_again_gives_way(tmp_path: Path) -> None:
    """Killed between the picture of evaluation 2 and its record; the second time its value is another one."""
    sheet = BestSheet()
    sheet.begin(tmp_path, False)
    evaluate(sheet, tmp_path, 1, 3.0)
    sheet.add(tmp_path, record(2, 2.0), images(2), False)
    assert level(tmp_path / SHEET) == 2
    again = BestSheet()
    again.begin(tmp_path, False)
    assert (level(tmp_path / SHEET), evaluated(tmp_path / SHEET)) == (1, Evaluated(1, "fid", 3.0))
    evaluate(again, tmp_path, 2, 3.5)
    assert level(tmp_path / SHEET) == 1


def test_a_full_disk_ends_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rgplug.files.write_whole", full)
    sheet = BestSheet()
    with pytest.warns(UserWarning, match=r"best\.png could not be written \(No space left"):
        sheet.add(tmp_path, record(1, 1.0), images(1), False)


def test_other_files_say_no_evaluation(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    assert [evaluated(tmp_path / name) for name in ("a.png", "b.png", "c.png")] == [None, None, None]


def test_tiles_are_in_reading_order() -> None:
    grid = tiled(np.arange(3, dtype=np.uint8)[:, None, None, None].repeat(3, 3), columns=2, gap=1)
    assert grid[..., 0].tolist() == [[0, 255, 1], [255, 255, 255], [2, 255, 255]]


def test_an_evaluation_of_a_run_leaves_the_images_that_it_measured(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    """12 samples in batches of 6: the sheet holds all of them, and they are the generator's under its mask."""
    _, _, rg = run
    first = rg.end_epoch()
    kept = rg._evaluation.images
    assert kept.shape == (12, 3, 16, 16)
    assert evaluated(tmp_path / "run" / SHEET) == Evaluated(1, first.metric_name, first.metric)
    with Image.open(tmp_path / "run" / SHEET) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (3 * 18 - 2, 4 * 18 - 2, 3)
    assert (pixels[18:34, 18:34] == kept[5].permute(1, 2, 0).numpy()).all()
    rg.evaluate()
    assert torch.equal(rg._evaluation.images, kept)  # the same latents
    line = json.loads((tmp_path / "run" / "history.jsonl").read_text())
    assert line["metric"] == first.metric


def test_an_earlier_run_in_the_folder_keeps_its_picture(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    _, _, rg = run
    rg.end_epoch()
    picture = (tmp_path / "run" / SHEET).read_bytes()
    rg.epoch, rg.records = 0, []
    with pytest.warns(UserWarning, match="holds an earlier run"):
        rg.end_epoch()
    assert (tmp_path / "run" / "best-1.png").read_bytes() == picture

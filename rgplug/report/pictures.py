"""Pictures that runs left: samples of their best evaluation, where a file can be told to be of it, or the last ones."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

from PIL import Image

from rgplug.report.cells import metric_text, metric_title, power
from rgplug.report.comparison import Comparison, Run
from rgplug.report.figure_sheets import Sheet
from rgplug.report.markup import embedded
from rgplug.report.results import SAMPLES
from rgplug.sheet import SHEET, evaluated

STYLEGAN2_ADA = "training_options.json"  # in every run folder of it


@dataclass(frozen=True)
class Picture:
    """A grid of samples as PNG. of_best: it is of the evaluation that gave the run's best value."""

    png: bytes
    of_best: bool
    words: str  # where it comes from


def picture_of(run: Run) -> Picture | None:
    """The samples of a run: those of its best evaluation if any file is of it, else the last grid; None without any."""
    best = run.result.best
    own = embedded(run.folder / SHEET, run.root)
    if own is not None and best is not None:
        found = evaluated(run.folder / SHEET)
        if found is not None and found.epoch == run.result.best_epoch and math.isclose(found.value, best):
            return Picture(own, True, "images that the best value was measured on")
    hosts = _snapshot(run)
    if hosts is not None:
        return hosts
    last = embedded(run.folder / SAMPLES, run.root)
    return None if last is None else Picture(last, False, "last grid, not necessarily that of the best value")


def _snapshot(run: Run) -> Picture | None:
    """StyleGAN2-ADA draws fakesNNNNNN.png in the tick in which it measures, after NNNNNN thousand real images: in the
    run's folder, or in a comparison in one below it. Where it went on from a checkpoint it has counted anew, in a
    further folder, and its pictures cannot be told apart."""
    shown = run.result.real_images
    found = [path.parent for pattern in (STYLEGAN2_ADA, f"*/{STYLEGAN2_ADA}") for path in run.folder.glob(pattern)]
    if len(found) != 1 or not run.lines or run.lines[0]["epoch"] != 1 or shown is None or run.result.best is None:
        return None
    kimg = int(shown) // 1000
    png = embedded(found[0] / f"fakes{kimg:06d}.png", run.root)
    return None if png is None else Picture(png, True, f"the training script's own grid at {kimg:,} kimg")


def beneath(c: Comparison, run: Run) -> str:
    """The value and the cost of a run, for the line below its samples."""
    r = run.result
    parts = ["diverged" if r.best is None else f"{metric_title(c.metric)} {metric_text(r.best)}"]
    if r.best is not None and r.flops_to_best is not None:
        parts.append(f"training {power(r.flops_to_best)} FLOPs")
    if r.best is not None and r.inference_flops is not None:
        parts.append(f"one image {power(r.inference_flops)} FLOPs")
    return "\n".join(parts)


def best_sheets(c: Comparison) -> list[Sheet]:
    """One per method: its best run that left samples of its best evaluation."""
    sheets = []
    for method in c.methods:
        valued = [(run.result.best, run) for run in method.runs if run.result.best is not None]
        for _, run in sorted(valued, key=lambda pair: -pair[0] if c.higher_is_better else pair[0]):
            picture = picture_of(run)
            if picture is not None and picture.of_best:
                with Image.open(io.BytesIO(picture.png)) as image:
                    sheets.append(Sheet(method.name, image.convert("RGB"), beneath(c, run)))
                break
    return sheets

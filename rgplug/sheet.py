"""best.png in a run's folder: generated images of its best evaluation so far (RG-GAN, Figure 1).

The picture says in itself which evaluation it is of, so that it is never shown for another one.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from rgplug import files
from rgplug.history import Record, history_of
from rgplug.warn import warn

SHEET = "best.png"
_KEY = "rgplug"  # of the text in the picture


@dataclass(frozen=True)
class Evaluated:
    """The evaluation that a picture is of."""

    epoch: int
    metric: str | None
    value: float


class BestSheet:
    """Writes a run's best.png. The best value so far comes from the run's history, which a resumed run goes on with."""

    def __init__(self) -> None:
        self._best: Evaluated | None = None

    def begin(self, folder: Path, higher_is_better: bool) -> None:
        """A run begins or goes on: look up the best record in its history, and put the picture of that back in place.
        A resumed run makes some evaluations again, and a picture of one of them may be there already."""
        self._best = None
        for line in history_of(folder):
            value = line.get("metric")
            if value is not None and (self._best is None or _better(value, self._best.value, higher_is_better)):
                self._best = Evaluated(line["epoch"], line.get("metric_name"), value)
        path, older = folder / SHEET, files.previous_of(folder / SHEET)
        if self._best is not None and evaluated(path) != self._best and evaluated(older) == self._best:
            files.rename(older, path)

    def add(self, folder: Path, record: Record, images: Tensor | None, higher_is_better: bool) -> None:
        """Before a record is added to the history: write its images, if it is the best so far and has any.

        images: uint8 [N, 3, H, W] on the CPU. A picture that cannot be written is no reason to end a training.
        """
        if record.metric is None or not math.isfinite(record.metric):
            return
        own = Evaluated(record.epoch, record.metric_name, record.metric)
        if self._best is not None and not _better(own.value, self._best.value, higher_is_better):
            return
        self._best = own
        if images is None or not len(images):
            return
        try:
            write(images.permute(0, 2, 3, 1).numpy(), folder / SHEET, own)
        except OSError as error:
            warn(f"{folder / SHEET} could not be written ({error.strerror or error}); the training goes on without it")


def write(images: np.ndarray, path: Path, evaluation: Evaluated) -> None:
    """Write images (uint8 [N, H, W, 3]) as a PNG, whole or not at all; the one before is kept as best.previous.png."""
    text = PngInfo()
    text.add_text(_KEY, json.dumps(asdict(evaluation)))
    picture = Image.fromarray(tiled(images, columns=math.ceil(math.sqrt(len(images)))))
    files.write_whole(path, lambda partial: picture.save(partial, "PNG", pnginfo=text), keep=True)


def evaluated(path: Path) -> Evaluated | None:
    """The evaluation that a picture says it is of; None for any other file."""
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            found = Evaluated(**json.loads(picture.text[_KEY]))
    except Exception:  # whatever the reader makes of a file that anybody may have put there
        return None
    kinds = isinstance(found.epoch, int) and isinstance(found.value, float | int)
    return found if kinds and isinstance(found.metric, str | None) else None


def tiled(images: np.ndarray, columns: int = 8, gap: int = 2) -> np.ndarray:
    """Images (uint8 [N, H, W, 3]) as one, row by row, `gap` white pixels apart: uint8 [height, width, 3]."""
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not len(images):
        raise ValueError(f"a grid needs uint8 [N, H, W, 3], not {images.dtype} {list(images.shape)}.")
    n, h, w, _ = images.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    canvas = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, 3), 255, dtype=np.uint8)
    for index, image in enumerate(images):
        y, x = index // columns * (h + gap), index % columns * (w + gap)
        canvas[y : y + h, x : x + w] = image
    return canvas


def _better(value: float, than: float, higher_is_better: bool) -> bool:
    return value > than if higher_is_better else value < than

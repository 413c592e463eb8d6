"""Records of a run: one per evaluation, one line each on screen and in history.jsonl."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rgplug import files
from rgplug.errors import RgplugError

HISTORY = "history.jsonl"
Line = dict[str, Any]  # one line of it


@dataclass(frozen=True)
class Record:
    """What `end_epoch` saw, and what it decided then.

    density, layers (shares kept), phase_before, real_images and flops are those of the networks that were measured;
    average and phase are the decision, and counts are since the record before, with what the decision itself brought
    back or pruned.
    """

    epoch: int
    steps: dict[str, int]
    metric: float | None
    metric_name: str | None
    average: float | None  # the weighted average that the metric was compared with
    phase_before: str  # in which the networks trained until now, and were measured
    phase: str  # in which they train on
    density: dict[str, float]
    layers: dict[str, dict[str, float]] = field(repr=False)
    regenerated: dict[str, int]  # came back one by one, by the method's rule (recurrent regeneration)
    pruned: dict[str, int]
    real_images: int | None = None
    flops: float | None = None
    written: dict[str, int] = field(default_factory=dict)  # non-zeros that the host wrote at pruned positions
    seconds: float = 0.0
    restored: dict[str, int] = field(default_factory=dict)  # came back all at once (augmented regeneration)
    # every value of this evaluation by its name, the deciding one (`metric`) first; {} where nothing was measured
    metrics: dict[str, float | None] = field(default_factory=dict)
    ever_active: dict[str, float] = field(default_factory=dict)  # share of weights that was kept at least once
    # network -> weight -> [pruned, regenerated, restored]
    layer_counts: dict[str, dict[str, list[int]]] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        parts = [f"epoch {self.epoch:>3}"]
        if self.metric is not None:
            parts.append(f"{self.metric_name or 'metric'} {self.metric:.3f}")
        further = list(self.metrics.items())[1:]
        parts += [f"{name} {value:.3f}" for name, value in further if value is not None]
        if self.average is not None:
            parts.append(f"average {self.average:.3f}")
        change = self.phase if self.phase == self.phase_before else f"{self.phase_before} -> {self.phase}"
        parts.append(change)
        parts.append("density " + " ".join(f"{n} {d:.3f}" for n, d in self.density.items()))
        parts.append("regenerated " + " ".join(f"{n} {c:,}" for n, c in self.regenerated.items()))
        if any(self.restored.values()):
            parts.append("restored " + " ".join(f"{n} {c:,}" for n, c in self.restored.items()))
        parts.append("pruned " + " ".join(f"{n} {c:,}" for n, c in self.pruned.items()))
        return " | ".join(parts)

    def to_json(self) -> str:
        return json.dumps({k: _finite(v) for k, v in asdict(self).items()})


def append(path: Path, record: Record) -> None:
    """Add a record to a history file as one line. What a kill or a full disk has left of a line before it is taken out
    first. Raises RgplugError, with the file as it was, where the line cannot be written."""
    line = (record.to_json() + "\n").encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        _mend_last_line(path)
        with path.open("ab") as file:
            before = file.tell()
            try:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.truncate(path, before)
                raise
        if is_new:
            files.force(path.parent)
    except OSError as error:
        raise RgplugError(
            f"the record of epoch {record.epoch} could not be added to {path}: {error}; the records before it are "
            "untouched, so make room and resume"
        ) from error


def _mend_last_line(path: Path) -> None:
    """A last line without its end gets one if it is whole, and goes if it is not."""
    if not path.is_file() or path.stat().st_size == 0:
        return
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
    whole, _, last = path.read_bytes().rpartition(b"\n")
    lines = whole + b"\n" if whole else b""
    if _epoch(last.decode("utf-8", "replace")) is not None:
        lines += last + b"\n"
    files.write_whole(path, lambda partial: partial.write_bytes(lines))


def read_history(history: str | os.PathLike[str] | Iterable[Mapping[str, Any]]) -> list[Line]:
    """The lines of a history.jsonl (a path, or the lines themselves) in the order of their epochs.

    A last line that a killed run left half written is dropped. If an epoch occurs twice (a run that was resumed
    from an older checkpoint), the later line counts.
    """
    if not isinstance(history, str | os.PathLike):
        return _by_epoch(history)
    path = Path(history)
    if not path.is_file():
        raise FileNotFoundError(f"There is no history file {path}.")
    rows = [row for row in path.read_text(encoding="utf-8", errors="replace").split("\n") if row.strip()]
    lines: list[Line] = []
    for number, row in enumerate(rows, start=1):
        try:
            line = json.loads(row)
            if not isinstance(line, dict) or "epoch" not in line:
                raise ValueError("not an object with an epoch")
        except ValueError as error:
            if number == len(rows):
                break
            raise ValueError(f"{path}: line {number} is not a line of a history ({error}).") from None
        lines.append(line)
    return _by_epoch(lines)


def _by_epoch(lines: Iterable[Mapping[str, Any]]) -> list[Line]:
    latest = {int(line["epoch"]): dict(line) for line in lines}
    return [latest[epoch] for epoch in sorted(latest)]


def history_of(folder: Path) -> list[Line]:
    """The lines of history.jsonl in a run's folder; [] where there is none. RgplugError for a corrupt line."""
    path = folder / HISTORY
    if not path.is_file():
        return []
    try:
        return read_history(path)
    except (ValueError, TypeError) as error:
        detail = str(error) if str(path) in str(error) else f"{path} is corrupt ({error})"
        raise RgplugError(f"{detail.rstrip('.')}; remove or restore that line") from None


def set_aside(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Rename what an earlier run left in the folder (history.jsonl -> history-1.jsonl), so that nothing is lost.

    Returns the old name -> the new name of each file that was there.
    """
    renamed: dict[str, str] = {}
    if any((folder / name).exists() for name in names):
        number = 1
        while any(_numbered(folder / name, number).exists() for name in names):
            number += 1
        for name in names:
            if (folder / name).exists():
                files.rename(folder / name, _numbered(folder / name, number))
                renamed[name] = _numbered(folder / name, number).name
    return renamed


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def truncate(path: Path, last_epoch: int) -> None:
    """Drop the records after `last_epoch`: a resumed run writes them again. A line cut off by a kill goes too."""
    if path.exists():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if (_epoch(line) or math.inf) <= last_epoch]
        if kept != lines:
            files.write_text(path, "".join(line + "\n" for line in kept))


def _epoch(line: str) -> int | None:
    try:
        return int(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value

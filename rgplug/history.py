"""Records of a run: one per evaluation, one line each on screen and in history.jsonl."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Record:
    """What `end_epoch` decided and saw. Counts are since the record before; densities are shares kept."""

    epoch: int
    steps: dict[str, int]
    metric: float | None
    metric_name: str | None
    average: float | None  # the weighted average that the metric was compared with
    phase_before: str
    phase: str
    density: dict[str, float]
    layers: dict[str, dict[str, float]] = field(repr=False)
    regenerated: dict[str, int]
    pruned: dict[str, int]
    real_images: int | None = None
    flops: float | None = None
    written: dict[str, int] = field(default_factory=dict)  # non-zeros that the host wrote at pruned positions
    seconds: float = 0.0

    def __str__(self) -> str:
        parts = [f"epoch {self.epoch:>3}"]
        if self.metric is not None:
            parts.append(f"{self.metric_name or 'metric'} {self.metric:.3f}")
        if self.average is not None:
            parts.append(f"average {self.average:.3f}")
        change = self.phase if self.phase == self.phase_before else f"{self.phase_before} -> {self.phase}"
        parts.append(change)
        parts.append("density " + " ".join(f"{n} {d:.3f}" for n, d in self.density.items()))
        parts.append("regenerated " + " ".join(f"{n} {c:,}" for n, c in self.regenerated.items()))
        parts.append("pruned " + " ".join(f"{n} {c:,}" for n, c in self.pruned.items()))
        return " | ".join(parts)

    def to_json(self) -> str:
        return json.dumps({k: _finite(v) for k, v in asdict(self).items()})


def append(path: Path, record: Record) -> None:
    """Add a record to a history file as one line, written in one call."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(record.to_json() + "\n")


def set_aside(folder: Path, names: tuple[str, ...]) -> None:
    """Rename what an earlier run left in the folder (history.jsonl -> history-1.jsonl), so that nothing is lost."""
    if any((folder / name).exists() for name in names):
        number = 1
        while any(_numbered(folder / name, number).exists() for name in names):
            number += 1
        for name in names:
            if (folder / name).exists():
                (folder / name).rename(_numbered(folder / name, number))


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def truncate(path: Path, last_epoch: int) -> None:
    """Drop the records after `last_epoch`: a resumed run writes them again. A line cut off by a kill goes too."""
    if path.exists():
        kept = [line for line in path.read_text().splitlines() if (_epoch(line) or math.inf) <= last_epoch]
        path.write_text("".join(line + "\n" for line in kept))


def _epoch(line: str) -> int | None:
    try:
        return int(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError):
        return None


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value

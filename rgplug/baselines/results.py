"""Results of finished runs: what one run says of itself, and the file that holds those of a comparison."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rgplug.errors import RgplugError
from rgplug.history import Record

RESULTS = "results.jsonl"
RESULT = "result.json"


@dataclass(frozen=True)
class Result:
    """One run. Costs are of the run alone; `before` is what was trained before it and needed by it."""

    method: str
    seed: int
    run: str  # folder with the history, relative to the comparison's
    metric: str | None
    samples: int | None
    higher_is_better: bool
    best: float | None
    best_epoch: int | None
    best_phase: str | None
    final: float | None
    evaluations: int
    not_finite: int
    real_images: int | None  # up to the best value
    flops: float | None
    real_images_total: int | None
    flops_total: float | None
    density: Mapping[str, float]  # at the best value
    inference_flops: float | None  # one image through G, at its densities then
    inference_flops_dense: float | None
    before: Mapping[str, float | None] = field(default_factory=lambda: {"real_images": 0, "flops": 0.0})
    rounds: tuple[Mapping[str, Any], ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def from_records(
    records: list[dict[str, Any]], method: str, seed: int, run: str, samples: int | None, higher_is_better: bool
) -> dict[str, Any]:
    """The fields of a Result that the lines of a history.jsonl say."""
    values = [r.get("metric") for r in records]
    known = [(v, i) for i, v in enumerate(values) if v is not None and math.isfinite(v)]
    at = (max if higher_is_better else min)(known, key=lambda p: (p[0], 0))[1] if known else None
    best = records[at] if at is not None else records[-1]
    return {
        "method": method,
        "seed": seed,
        "run": run,
        "metric": next((r["metric_name"] for r in records if r.get("metric_name")), None),
        "samples": samples,
        "higher_is_better": higher_is_better,
        "best": values[at] if at is not None else None,
        "best_epoch": best["epoch"] if at is not None else None,
        "best_phase": best["phase_before"] if at is not None else None,
        "final": values[-1],
        "evaluations": len(known),
        "not_finite": len(records) - len(known),
        "real_images": best["real_images"],
        "flops": best["flops"],
        "real_images_total": records[-1]["real_images"],
        "flops_total": records[-1]["flops"],
        "density": best["density"],
    }


def best_layers(records: list[dict[str, Any]], epoch: int | None) -> dict[str, float]:
    """Density of each weight of G at that epoch, or at the last one."""
    line = next((r for r in records if r["epoch"] == epoch), records[-1])
    layers: dict[str, float] = line["layers"].get("G", {})
    return layers


def read_history(path: Path) -> list[dict[str, Any]]:
    """Lines of a history.jsonl; one that a kill cut off is left out."""
    lines = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return [line for line in lines if set(Record.__dataclass_fields__) <= set(line)]


def read_results(folder: str | Path) -> list[Result]:
    """Finished runs of a comparison. Raises RgplugError where there are none."""
    path = Path(folder) / RESULTS
    if not path.is_file():
        raise RgplugError(f"there are no results in {folder}; run a comparison with --out {folder} first")
    try:
        return [Result(**json.loads(line)) for line in path.read_text().splitlines() if line.strip()]
    except (ValueError, TypeError) as error:
        raise RgplugError(
            f"{path} is corrupt ({error}); the next comparison into that folder writes it anew"
        ) from error


def write_whole(path: Path, text: str) -> None:
    """A file as a whole or not at all, whenever the process is killed. Raises RgplugError where the disk is full."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RgplugError(f"{path} could not be written: {error}; what was finished before is untouched") from error


def collect(folder: Path) -> None:
    """Every finished run's result into the one results file, in the order of method and seed."""
    found = [json.loads(p.read_text()) for p in folder.glob(f"*/seed_*/{RESULT}")]
    rows = sorted(found, key=lambda r: (r["method"], r["seed"]))
    write_whole(folder / RESULTS, "".join(json.dumps(r) + "\n" for r in rows))

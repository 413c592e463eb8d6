"""Results of finished runs: what one run says of itself, and the file that holds those of a comparison."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rgplug import files
from rgplug.errors import RgplugError

RESULTS = "results.jsonl"
RESULT = "result.json"


@dataclass(frozen=True)
class Round:
    """One round of a ticket: its density, its best value and what it alone cost up to there."""

    round: int
    run: str  # folder with its history, relative to the comparison's
    density: dict[str, float]
    best: float | None
    real_images: float | None
    flops: float | None


@dataclass(frozen=True)
class Result:
    """One finished run: a line of results.jsonl. None: not known; `best` is None where the metric was never finite.

    Costs are of the run alone; `before` is what was trained before it and needed by it.
    """

    method: str
    seed: int
    run: str  # folder with the history, relative to the comparison's
    metric: str | None
    samples: int | None  # generated images per evaluation
    higher_is_better: bool
    best: float | None
    best_epoch: int | None
    best_phase: str | None
    final: float | None
    evaluations: int  # with a finite value
    not_finite: int  # evaluations besides these
    real_images: float | None  # shown to D until the best value
    flops: float | None  # training FLOPs until the best value
    real_images_total: float | None
    flops_total: float | None
    density: dict[str, float]  # share kept at the best value
    inference_flops: float | None  # one image through G, at its densities then
    inference_flops_dense: float | None
    before: dict[str, float | None]  # real_images, flops
    rounds: tuple[Round, ...] = field(repr=False)

    @property
    def images_to_best(self) -> float | None:
        """#RI until the best value, with what was trained before."""
        return _total(self.real_images, self.before["real_images"])

    @property
    def flops_to_best(self) -> float | None:
        """Training FLOPs until the best value, with what was trained before."""
        return _total(self.flops, self.before["flops"])

    @property
    def flops_in_all(self) -> float | None:
        """Training FLOPs of the whole run, with what was trained before."""
        return _total(self.flops_total, self.before["flops"])


def _total(own: float | None, before: float | None) -> float | None:
    return None if own is None or before is None else own + before


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


def read_results(folder: str | Path) -> list[Result]:
    """Finished runs of a comparison, as in its results.jsonl. A last line that a kill cut off is dropped; of two lines
    for the same method and seed the later counts. Raises RgplugError for no file, corrupt lines and no runs."""
    folder = Path(folder)
    path = folder / RESULTS
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise RgplugError(
            f"there are no results in {folder} ({error.strerror}); run a comparison with --out {folder} first"
        ) from None
    rows = [(n, row) for n, row in enumerate(text.split("\n"), start=1) if row.strip()]
    results: dict[tuple[str, int], Result] = {}
    for number, row in rows:
        try:
            line = json.loads(row)
        except ValueError as error:
            if number == rows[-1][0]:
                break
            raise RgplugError(f"{path}: line {number} is no JSON ({error}); remove or restore that line") from None
        try:
            result = _result(line)
            _inside(folder, result.run)
        except ValueError as error:
            raise RgplugError(
                f"{path}: line {number} is no result of a run ({error}); remove or restore that line"
            ) from None
        results[result.method, result.seed] = result
    if not results:
        raise RgplugError(f"{path} holds no finished run yet; report when one is done")
    return list(results.values())


def write_whole(path: Path, text: str) -> None:
    """A file as a whole or not at all, whenever the process is killed. Raises RgplugError where the disk is full."""
    try:
        files.write_text(path, text)
    except OSError as error:
        raise RgplugError(f"{path} could not be written: {error}; what was finished before is untouched") from error


def collect(folder: Path) -> None:
    """Every finished run's result into the one results file, in the order of method and seed."""
    found = [json.loads(p.read_text()) for p in folder.glob(f"*/seed_*/{RESULT}")]
    rows = sorted(found, key=lambda r: (r["method"], r["seed"]))
    write_whole(folder / RESULTS, "".join(json.dumps(r) + "\n" for r in rows))


def _inside(folder: Path, run: str) -> None:
    """A run's folder has to lie below that of results.jsonl: a page must not embed files from elsewhere."""
    if not (folder / run).resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"its run {run!r} lies outside the folder")


def _result(line: Any) -> Result:
    """Check one line's fields. ValueError says which is wrong."""
    if not isinstance(line, dict):
        raise ValueError("it is not an object")
    before = line.get("before") or {"real_images": 0, "flops": 0}
    rounds = line.get("rounds") or []
    if not isinstance(before, dict) or not isinstance(rounds, list):
        raise ValueError("before has to be an object and rounds a list")
    seed, samples, epoch = (_number(line, key) for key in ("seed", "samples", "best_epoch"))
    if seed is None:
        raise ValueError("seed is missing")
    return Result(
        method=_word(line, "method"),
        seed=int(seed),
        run=_word(line, "run"),
        metric=line["metric"] if isinstance(line.get("metric"), str) else None,
        samples=None if samples is None else int(samples),
        higher_is_better=line.get("higher_is_better") is True,
        best=_number(line, "best"),
        best_epoch=None if epoch is None else int(epoch),
        best_phase=_word(line, "best_phase") if line.get("best_phase") is not None else None,
        final=_number(line, "final"),
        evaluations=int(_number(line, "evaluations") or 0),
        not_finite=int(_number(line, "not_finite") or 0),
        real_images=_number(line, "real_images"),
        flops=_number(line, "flops"),
        real_images_total=_number(line, "real_images_total"),
        flops_total=_number(line, "flops_total"),
        density=_densities(line),
        inference_flops=_number(line, "inference_flops"),
        inference_flops_dense=_number(line, "inference_flops_dense"),
        before={key: _number(before, key) for key in ("real_images", "flops")},
        rounds=tuple(_round(entry) for entry in rounds),
    )


def _round(entry: Any) -> Round:
    if not isinstance(entry, dict) or _number(entry, "round") is None:
        raise ValueError("each of its rounds has to be an object with a round")
    return Round(
        round=int(entry["round"]),
        run=_word(entry, "run"),
        density=_densities(entry),
        best=_number(entry, "best"),
        real_images=_number(entry, "real_images"),
        flops=_number(entry, "flops"),
    )


def _densities(line: Mapping[str, Any]) -> dict[str, float]:
    found = line.get("density") or {}
    if not isinstance(found, dict):
        raise ValueError("density has to be an object")
    numbers = {str(network): _number(found, network) for network in found}
    return {network: value for network, value in numbers.items() if value is not None}


def _word(line: Mapping[str, Any], key: str) -> str:
    value = line.get(key)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key} has to be text, not {value!r}")
    return value


def _number(line: Mapping[str, Any], key: str) -> float | None:
    """A finite number or None; NaN and infinity, which Python's JSON knows, are values that are not there."""
    value = line.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{key} has to be a number or null, not {value!r}")
    return float(value) if math.isfinite(value) else None

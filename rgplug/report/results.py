"""Reading what a comparison left: results.jsonl of the folder and history.jsonl of each run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rgplug.errors import RgplugError
from rgplug.report.comparison import DENSE, Comparison, Method, Round, Run
from rgplug.report.figures import Line, read_history

RESULTS, HISTORY, SAMPLES = "results.jsonl", "history.jsonl", "samples.png"


def read_results(folder: Path) -> Comparison:
    """Read results.jsonl of a folder. A last line that a kill cut off is dropped; of two lines for the same method
    and seed the later counts.

    Raises RgplugError for a corrupt line, a file without runs, and values that do not compare.
    """
    path = folder / RESULTS
    rows = [(n, row) for n, row in enumerate(_text(path).split("\n"), start=1) if row.strip()]
    runs: dict[tuple[str, int], Run] = {}
    for number, row in rows:
        try:
            line = json.loads(row)
        except ValueError as error:
            if number == rows[-1][0]:
                break
            raise RgplugError(f"{path}: line {number} is no JSON ({error}); remove or restore that line") from None
        try:
            run = _run(line)
            _inside(folder, run.run)
        except ValueError as error:
            raise RgplugError(
                f"{path}: line {number} is no result of a run ({error}); remove or restore that line"
            ) from None
        runs[run.method, run.seed] = run
    if not runs:
        raise RgplugError(f"{path} holds no finished run yet; report when one is done")
    return _compared(folder, path, list(runs.values()))


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


def _compared(folder: Path, path: Path, runs: list[Run]) -> Comparison:
    kinds = {(r.metric, r.samples, r.higher_is_better) for r in runs if r.metric is not None}
    if len(kinds) > 1:
        names = ", ".join(sorted(f"{metric} on {samples} samples" for metric, samples, _ in kinds))
        raise RgplugError(f"{path} mixes values that do not compare ({names}); report them from separate folders")
    metric, samples, higher = kinds.pop() if kinds else ("metric", None, False)
    names_in_order = sorted(dict.fromkeys(r.method for r in runs), key=lambda name: name != DENSE)
    methods = tuple(
        Method(name, tuple(sorted((r for r in runs if r.method == name), key=lambda r: r.seed)))
        for name in names_in_order
    )
    return Comparison(folder, methods, str(metric), samples, higher)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise RgplugError(f"cannot read {path} ({error.strerror}); give the folder of a comparison") from None


def _inside(folder: Path, run: str) -> None:
    """A run's folder has to lie below that of results.jsonl: a page must not embed files from elsewhere."""
    if not (folder / run).resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"its run {run!r} lies outside the folder")


def _run(line: Any) -> Run:
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
    return Run(
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
        flops_total=_number(line, "flops_total"),
        before_images=_number(before, "real_images"),
        before_flops=_number(before, "flops"),
        density=_densities(line),
        inference_flops=_number(line, "inference_flops"),
        inference_flops_dense=_number(line, "inference_flops_dense"),
        rounds=tuple(_round(entry) for entry in rounds),
    )


def _round(entry: Any) -> Round:
    if not isinstance(entry, dict) or _number(entry, "round") is None:
        raise ValueError("each of its rounds has to be an object with a round")
    return Round(
        round=int(entry["round"]),
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

"""Results of finished runs: what one run says of itself, and the file that holds those of a comparison."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from rgplug.baselines.claims import alone
from rgplug.baselines.names import is_run
from rgplug.checks import (
    LONGEST,
    amount,
    group,
    has,
    needed,
    number,
    printable,
    share,
    shown,
    whole,
    word,
    word_or_none,
)
from rgplug.errors import RgplugError
from rgplug.sealed import Damaged, NoJson, opened, parsed, read_json, sealed, write_whole

RESULTS = "results.jsonl"
RESULT = "result.json"
COLLECTING = "results.lock"
Scalar = str | float | int | bool | None


@dataclass(frozen=True)
class Round:
    """One round of a ticket: its density, its best value and what it alone cost, up to there and in all."""

    round: int
    run: str  # folder with its history, relative to the comparison's
    density: dict[str, float]
    best: float | None
    real_images: float | None  # until the best value
    flops: float | None
    real_images_total: float | None = None
    flops_total: float | None = None
    seconds: float | None = field(default=None, compare=False)  # until the best value
    seconds_total: float | None = field(default=None, compare=False)
    parameters_kept: dict[str, int] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class PhaseBest:
    """The best value among the evaluations of one phase (RG-GAN, Table 5: Sparse_RG, Dense_RG), and its cost."""

    best: float
    epoch: int
    real_images: float | None
    flops: float | None
    density: dict[str, float]
    seconds: float | None = field(default=None, compare=False)
    parameters_kept: dict[str, int] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class MetricValues:
    """One metric of a run: at the evaluation at which the deciding one was best, its own best, and its last value."""

    at_best: float | None
    best: float | None
    final: float | None


@dataclass(frozen=True)
class Result:
    """One finished run: a line of results.jsonl. None: not known; `best` is None where the metric was never finite.

    Costs are of the run alone; `before` is what was trained before it and needed by it. Fields with a default are not
    in files of earlier versions.
    """

    method: str  # with the grid's keys where there is one: stu-gan@density.G=0.1
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
    before: dict[str, float | None]  # real_images, flops, flops_proportional
    rounds: tuple[Round, ...] = field(repr=False)
    history: str | None = field(default=None, repr=False, compare=False)  # digest of the run's records, see records.py
    metrics: dict[str, MetricValues] = field(default_factory=dict, repr=False)  # by name, the deciding one first
    phases: dict[str, PhaseBest] = field(default_factory=dict, repr=False)  # "sparse", "dense": those that had values
    seconds: float | None = field(default=None, compare=False)  # of training and evaluations until the best value
    seconds_total: float | None = field(default=None, compare=False)
    seconds_before: float | None = field(default=None, compare=False)  # of what was trained before
    parameters: dict[str, int] = field(default_factory=dict, repr=False)  # of each network, dense
    parameters_kept: dict[str, int] = field(default_factory=dict, repr=False)  # that are not pruned at the best value
    ever_active: dict[str, float] = field(default_factory=dict, repr=False)  # share of weights active at least once
    flops_proportional: float | None = field(default=None, repr=False)  # flops_total, published convention: see below
    inference_flops_proportional: float | None = field(default=None, repr=False)  # dense FLOPs x density of G
    keys: dict[str, Scalar] = field(default_factory=dict, repr=False, compare=False)  # what a table can be sorted by

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

    @property
    def seconds_to_best(self) -> float | None:
        """Seconds until the best value, with what was trained before."""
        return _total(self.seconds, self.seconds_before)


def _total(own: float | None, before: float | None) -> float | None:
    return None if own is None or before is None else own + before


def read_results(folder: str | Path) -> list[Result]:
    """Finished runs of a comparison, as in its results.jsonl. A last line that a kill cut off is dropped; of two lines
    for the same method and seed the later counts. Raises RgplugError for no file, corrupt lines and no runs."""
    return results_and_notes(Path(folder))[0]


def results_and_notes(folder: Path) -> tuple[list[Result], list[str]]:
    """The results, and what whoever reads them has to know of the file: sentences."""
    path = folder / RESULTS
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        raise RgplugError(
            f"there are no results in {folder} ({error.strerror}); run a comparison with --out {folder} first"
        ) from None
    rows = [(n, row) for n, row in enumerate(text.split("\n"), start=1) if row.strip()]
    results: dict[tuple[str, int], Result] = {}
    notes = []
    for place, row in rows:
        try:
            line = parsed(row)
        except Damaged as error:
            if isinstance(error, NoJson) and place == rows[-1][0]:
                notes.append(f"The last line of {RESULTS} is cut off: the run in it is left out here.")
                break
            raise RgplugError(f"{path}: line {place} is damaged: {error}; remove or restore that line") from None
        try:
            result = to_result(opened(line))
            _inside(folder, result.run)
        except Damaged as error:
            raise RgplugError(
                f"{path}: line {place} is no result of a run: {error}; remove or restore that line"
            ) from None
        results[result.method, result.seed] = result
    if not results:
        raise RgplugError(f"{path} holds no finished run yet; report when one is done")
    missing = [p.parent for p in _finished(folder) if _name(p) not in {(m, f"seed_{s}") for m, s in results}]
    if missing:
        names = ", ".join(p.relative_to(folder).as_posix() for p in missing)
        notes.append(
            f"Finished runs that {RESULTS} does not have, and that are left out here: {names}. Run the comparison's "
            "command again to collect them."
        )
    return list(results.values()), notes


def read_result(path: Path, method: str, seed: int, root: Path) -> dict[str, Any]:
    """A run's result (or outcome) as it was written: all keys of a Result, of that method, seed and folder.

    root: the comparison's folder. Raises RgplugError for a damaged file, and for one that belongs to another run.
    """
    advice = "delete this file and run the same command again"
    content = read_json(path, advice)
    try:
        result = to_result(content)
    except Damaged as error:
        raise RgplugError(f"{path} is damaged: {error}; {advice}") from None
    folder = path.parent.relative_to(root).as_posix()
    is_here = result.run == folder or result.run.startswith(f"{folder}/")  # tickets name their last round
    if (result.method, result.seed) != (method, seed) or not is_here:
        raise RgplugError(f"{path} is of {result.method} seed {result.seed}, in {result.run}; {advice}")
    return content


def collect(folder: Path) -> None:
    """Every finished run's result into the one results file, in the order of method and seed.

    One process at a time: one that has read the results and not written them yet would otherwise put them over those of
    another that has finished a run since. Raises RgplugError where one of them is damaged.
    """
    with alone(folder / COLLECTING):
        rows = finished_results(folder)
        write_whole(folder / RESULTS, "".join(json.dumps(sealed(r)) + "\n" for r in rows))


def finished_results(folder: Path) -> list[dict[str, Any]]:
    """The results of all runs that are finished, in the order of method and seed."""
    rows = []
    for path in _finished(folder):
        method, seed = _name(path)
        rows.append(read_result(path, method, int(seed.removeprefix("seed_")), folder))
    return sorted(rows, key=lambda r: (r["method"], r["seed"]))


def _finished(folder: Path) -> list[Path]:
    """Files of results in METHOD/seed_N; other folders that look alike are nobody's."""
    found = folder.glob(f"*/seed_*/{RESULT}")
    return sorted(p for p in found if is_run(p.parent))


def _name(path: Path) -> tuple[str, str]:
    return path.parent.parent.name, path.parent.name


def _inside(folder: Path, run: str) -> None:
    """A run's folder has to lie below that of results.jsonl: a page must not embed files from elsewhere."""
    try:
        inside = (folder / run).resolve().is_relative_to(folder.resolve())
        (folder / run).is_dir()  # a name that no file system takes
    except (OSError, RuntimeError, ValueError):
        inside = False
    if not inside:
        raise Damaged(f"its run {run!r} lies outside the folder")


OPTIONAL = {"before", "rounds"} | {
    f.name for f in fields(Result) if f.default is not MISSING or f.default_factory is not MISSING
}
NEEDED = tuple(f.name for f in fields(Result) if f.name not in OPTIONAL)


def to_result(line: Mapping[str, Any]) -> Result:
    """A Result from what a file holds. Raises Damaged, which says what is wrong."""
    has(line, NEEDED)
    before = line.get("before")
    if before is None:
        before = {"real_images": 0, "flops": 0}
    rounds = line.get("rounds")
    if not isinstance(before, dict) or not isinstance(rounds, list | None):
        raise Damaged("before has to be an object and rounds a list")
    has(before, ("real_images", "flops"))
    if not all(printable(name) for name in before):
        raise Damaged("before has a name that cannot be printed")
    if not isinstance(line["higher_is_better"], bool):
        raise Damaged(f"higher_is_better has to be true or false, not {shown(line['higher_is_better'])}")
    result = Result(
        method=word(line, "method"),
        seed=needed(line, "seed", -(2**53)),
        run=word(line, "run"),
        metric=word_or_none(line, "metric"),
        samples=whole(line, "samples"),
        higher_is_better=line["higher_is_better"],
        best=number(line, "best"),
        best_epoch=whole(line, "best_epoch"),
        best_phase=word_or_none(line, "best_phase"),
        final=number(line, "final"),
        evaluations=needed(line, "evaluations"),
        not_finite=needed(line, "not_finite"),
        real_images=amount(line, "real_images"),
        flops=amount(line, "flops"),
        real_images_total=amount(line, "real_images_total"),
        flops_total=amount(line, "flops_total"),
        density=_densities(line),
        inference_flops=amount(line, "inference_flops"),
        inference_flops_dense=amount(line, "inference_flops_dense"),
        before={key: amount(before, key) for key in dict.fromkeys(("real_images", "flops", *before))},
        rounds=tuple(_round(entry) for entry in rounds or ()),
        history=word_or_none(line, "history"),
        metrics={name: _metric_values(name, v) for name, v in _object(line, "metrics").items()},
        phases={name: _phase_best(v) for name, v in _object(line, "phases").items()},
        seconds=amount(line, "seconds"),
        seconds_total=amount(line, "seconds_total"),
        seconds_before=amount(line, "seconds_before"),
        parameters=_counts(line, "parameters"),
        parameters_kept=_counts(line, "parameters_kept"),
        ever_active={k: v for k, v in group(line, "ever_active", share).items() if v is not None},
        flops_proportional=amount(line, "flops_proportional"),
        inference_flops_proportional=amount(line, "inference_flops_proportional"),
        keys={name: _scalar(name, v) for name, v in _object(line, "keys").items()},
    )
    if (result.best is None) != (result.evaluations == 0):
        raise Damaged(f"best is {result.best}, with {result.evaluations} evaluations that have a value")
    for part, all_ in (("real_images", "real_images_total"), ("flops", "flops_total")):
        until, total = getattr(result, part), getattr(result, all_)
        if until is not None and total is not None and until > total * (1 + 1e-9):
            raise Damaged(f"{part} until the best value is {until:g}, more than {all_} {total:g}")
    return result


def _round(entry: Any) -> Round:
    if not isinstance(entry, dict) or entry.get("round") is None:
        raise Damaged("each of its rounds has to be an object with a round")
    has(entry, ("run", "density", "best", "real_images", "flops"))
    return Round(
        round=needed(entry, "round"),
        run=word(entry, "run"),
        density=_densities(entry),
        best=number(entry, "best"),
        real_images=amount(entry, "real_images"),
        flops=amount(entry, "flops"),
        real_images_total=amount(entry, "real_images_total"),
        flops_total=amount(entry, "flops_total"),
        seconds=amount(entry, "seconds"),
        seconds_total=amount(entry, "seconds_total"),
        parameters_kept=_counts(entry, "parameters_kept"),
    )


def _object(line: Mapping[str, Any], key: str) -> dict[str, Any]:
    """An object, {} where it is missing. Raises Damaged for another kind of value, or names that cannot be shown."""
    found = {} if line.get(key) is None else line[key]
    if not isinstance(found, dict) or not all(printable(name) and 0 < len(name) <= LONGEST for name in found):
        raise Damaged(f"{key} has to be an object with names that can be printed, not {shown(found)}")
    return found


def _metric_values(name: str, found: Any) -> MetricValues:
    if not isinstance(found, dict):
        raise Damaged(f"metrics.{name} has to be an object, not {shown(found)}")
    return MetricValues(number(found, "at_best"), number(found, "best"), number(found, "final"))


def _phase_best(found: Any) -> PhaseBest:
    if not isinstance(found, dict) or number(found, "best") is None:
        raise Damaged("each of its phases has to be an object with a best value")
    return PhaseBest(
        best=float(found["best"]),
        epoch=needed(found, "epoch"),
        real_images=amount(found, "real_images"),
        flops=amount(found, "flops"),
        density=_densities(found),
        seconds=amount(found, "seconds"),
        parameters_kept=_counts(found, "parameters_kept"),
    )


def _counts(line: Mapping[str, Any], key: str) -> dict[str, int]:
    return {name: int(n) for name, n in group(line, key, whole).items() if n is not None}


def _scalar(name: str, value: Any) -> Scalar:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return word({name: value}, name) if value else value
    return number({name: value}, name)


def _densities(line: Mapping[str, Any]) -> dict[str, float]:
    return {network: value for network, value in group(line, "density", share).items() if value is not None}

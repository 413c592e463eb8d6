"""What trainings left, ready to be reported: their results as one Comparison, with the history of each run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rgplug.baselines.records import digest_of, records_of
from rgplug.baselines.results import RESULTS, Result, results_and_notes
from rgplug.errors import RgplugError
from rgplug.history import HISTORY, Line
from rgplug.report.comparison import DENSE, Comparison, Method, Run
from rgplug.report.grouping import grouped
from rgplug.report.sources import Source, is_within, sources_of
from rgplug.run_setup import SETUP, Setup

SAMPLES = "samples.png"


def read_results(folder: Path) -> Comparison:
    """The runs of a comparison's folder. Raises RgplugError for a corrupt file, one without runs, and values that do
    not compare."""
    results, notes = results_and_notes(folder)
    return compared([folder], [Source(folder, "", tuple(results))], notes)


def read_all(folders: Sequence[Path]) -> Comparison:
    """All runs below the folders: comparisons, and runs by themselves. Raises RgplugError, which names the folders,
    for one without runs, damaged files, and values that do not compare."""
    sources, notes = sources_of(folders)
    return compared(folders, sources, notes)


def compared(folders: Sequence[Path], sources: Sequence[Source], notes: Sequence[str] = ()) -> Comparison:
    """The Comparison of what was read."""
    metric, samples, higher = _metric(sources)
    runs = [_run(source, result) for source in sources for result in source.results]
    methods = grouped(runs)
    in_order = sorted(methods, key=lambda m: m.runs[0].base != DENSE)
    return Comparison(tuple(folders), tuple(in_order), metric, samples, higher, tuple(notes))


def _metric(sources: Sequence[Source]) -> tuple[str, int | None, bool]:
    """Name, number of samples and direction of the metric that all runs share."""
    kinds: dict[tuple[str, int | None, bool], Source] = {}
    for source in sources:
        for r in source.results:
            if r.metric is not None:
                kinds.setdefault((r.metric, r.samples, r.higher_is_better), source)
    if len(kinds) > 1:
        (one, first), (other, second) = list(kinds.items())[:2]
        if first.folder == second.folder:
            names = ", ".join(sorted(map(_kind, kinds)))
            raise RgplugError(
                f"{first.folder / RESULTS} mixes values that do not compare ({names}); report them from separate "
                "folders"
            )
        raise RgplugError(
            f"{first.folder} holds {_kind(one)} and {second.folder} holds {_kind(other)}, which do not compare; "
            "report them apart"
        )
    return next(iter(kinds), ("metric", None, False))


def _kind(kind: tuple[str, int | None, bool]) -> str:
    metric, samples, higher = kind
    measured = f"{metric} as the host measured it" if samples is None else f"{metric} on {samples} samples"
    return measured + (" (higher is better)" if higher else "")


def _run(source: Source, result: Result) -> Run:
    folder = source.folder / result.run
    lines: list[Line] = []
    is_changed = False
    if is_within(folder / HISTORY, source.folder):  # results may have been copied without their runs
        lines = records_of(folder)
        is_changed = not _fits(lines, result)
    setup = Setup.read(folder) if is_within(folder / SETUP, source.folder) else None
    kept = () if is_changed else tuple(lines)
    return Run(result, folder, source.folder, kept, setup, is_changed, source.place, source.given)


def _fits(lines: list[Line], result: Result) -> bool:
    """Whether a history belongs to a result. A result carries the digest of its history; one of an earlier version
    does not, and its best value is looked up."""
    if result.history is not None:
        return digest_of(lines) == result.history
    return not lines or result.best is None or any(line.get("metric") == result.best for line in lines)


__all__ = ["SAMPLES", "Comparison", "Method", "Run", "compared", "read_all", "read_results"]

"""What a comparison left, ready to be reported: its results as one Comparison, and the history of each run."""

from __future__ import annotations

from pathlib import Path

from rgplug.baselines.results import RESULTS, Result, results_and_notes
from rgplug.errors import RgplugError
from rgplug.report.comparison import DENSE, Comparison, Method

SAMPLES = "samples.png"


def read_results(folder: Path) -> Comparison:
    """The runs of a folder. Raises RgplugError for a corrupt file, one without runs, and values that do not compare."""
    runs, notes = results_and_notes(folder)
    return _compared(folder, folder / RESULTS, runs, tuple(notes))


def _compared(folder: Path, path: Path, runs: list[Result], notes: tuple[str, ...]) -> Comparison:
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
    return Comparison(folder, methods, str(metric), samples, higher, notes)

"""What is done, running, failed or broken off in a comparison's folder, for whoever waits for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rgplug.baselines.claims import LOCK, holder
from rgplug.baselines.names import is_run
from rgplug.baselines.outcome import best_index
from rgplug.baselines.procedures import Task
from rgplug.baselines.records import records_of
from rgplug.baselines.results import RESULT, read_result
from rgplug.baselines.run import FAILED, SPEC
from rgplug.errors import RgplugError
from rgplug.history import HISTORY
from rgplug.run_setup import Setup
from rgplug.sealed import read_json

State = Literal["done", "running", "failed", "broken off", "damaged", "not begun"]


@dataclass(frozen=True)
class Status:
    """One run: how far it is. detail: who trains it, what went wrong."""

    method: str
    seed: int
    state: State
    evaluations: int
    best: float | None
    detail: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        best = "" if self.best is None else f"{self.best:.4g}"
        return self.method, str(self.seed), self.state, str(self.evaluations or ""), best, self.detail


def status_of(root: Path, tasks: Iterable[Task] = ()) -> list[Status]:
    """All runs in a folder, and those of `tasks` that are not begun. Nothing is written, and no run is disturbed.

    Raises RgplugError where the folder is none.
    """
    if not root.is_dir():
        raise RgplugError(f"there is no folder {root}; give the --out of a comparison")
    there = sorted(p for p in root.glob("*/seed_*") if is_run(p))
    found = {(p.parent.name, int(p.name.removeprefix("seed_"))): _status(root, p) for p in there}
    for task in tasks:
        found.setdefault((task.name, task.seed), Status(task.name, task.seed, "not begun", 0, None))
    return [found[key] for key in sorted(found)]


def _status(root: Path, folder: Path) -> Status:
    method, seed = folder.parent.name, int(folder.name.removeprefix("seed_"))
    try:
        evaluations, best = _progress(folder)
        if (folder / RESULT).is_file():
            held = read_result(folder / RESULT, method, seed, root)
            return Status(method, seed, "done", evaluations, held["best"])
        held_by = holder(folder) if (folder / LOCK).is_file() else ""
        if held_by:
            return Status(method, seed, "running", evaluations, best, held_by)
        if (folder / FAILED).is_file():
            error = str(read_json(folder / FAILED, "delete this file").get("error", ""))
            return Status(method, seed, "failed", evaluations, best, error)
        begun = next(folder.rglob(SPEC), None) is not None
        return Status(method, seed, "broken off" if begun else "not begun", evaluations, best)
    except RgplugError as error:
        return Status(method, seed, "damaged", 0, None, str(error))


def _progress(folder: Path) -> tuple[int, float | None]:
    """Evaluations in all trainings of a run, and the best value of the last one."""
    histories = sorted(p.parent for p in folder.rglob(HISTORY))
    count, best = 0, None
    for training in histories:
        lines = records_of(training)
        setup = Setup.read(training)
        at = best_index(lines, setup is not None and setup.higher_is_better)
        count += len(lines)
        best = None if at is None else lines[at]["metric"]
    return count, best


def table(rows: Iterable[Status]) -> str:
    """The runs as lines of text, with a sum of states at the end."""
    found = list(rows)
    if not found:
        return "no run has begun"
    head = ("method", "seed", "state", "evaluations", "best", "")
    lines = [head, *(row.cells for row in found)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head) - 1)]
    text = ["  ".join([*(cell.ljust(w) for cell, w in zip(line, widths)), line[-1]]).rstrip() for line in lines]
    states = dict.fromkeys(row.state for row in found)
    counts = ", ".join(f"{sum(r.state == state for r in found)} {state}" for state in states)
    return "\n".join([*text, f"{len(found)} run{'' if len(found) == 1 else 's'}: {counts}"])

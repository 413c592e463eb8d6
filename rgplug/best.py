"""The best evaluation of each phase so far, and the snapshots of the networks that were measured then.

A file says which evaluation it is of, and the controller's state says which evaluation was the best. A run that was
killed between writing the two, and goes on from its state, finds the file that belongs to it: the present one, or the
one before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rgplug import expected, files, snapshot
from rgplug.warn import warn

PHASES = ("sparse", "dense")


class BestOfPhases:
    """phase -> (epoch, value) of the best evaluation in it; the first one where several are equal."""

    def __init__(self, folder: Path, higher_is_better: bool):
        self._folder = folder
        self._sign = -1.0 if higher_is_better else 1.0
        self.found: dict[str, tuple[int, float]] = {}
        self._compared = False  # the files with what is known of the run

    def path(self, phase: str) -> Path:
        return self._folder / f"best_{phase}.safetensors"

    def add(self, phase: str, epoch: int, value: float | None) -> bool:
        """Whether an evaluation is the best of its phase so far, so that a snapshot has to be written."""
        if value is None or not math.isfinite(value):
            return False
        before = self.found.get(phase)
        if before is not None and self._sign * value >= self._sign * before[1]:
            return False
        self.found[phase] = (epoch, value)
        return True

    def keep_files(self) -> None:
        """Once, before the first evaluation of a run that begins or goes on: make the files those of `found`.

        What an earlier run left in the folder goes. Where the files are of evaluations that a resumed run makes again,
        and the one that it knows is there no more, the best of that phase is looked for anew.
        """
        if self._compared:
            return
        self._compared = True
        for phase in PHASES:
            path, known = self.path(phase), self.found.get(phase)
            older = files.previous_of(path)
            if known is None:
                path.unlink(missing_ok=True)
                older.unlink(missing_ok=True)
            elif snapshot.epoch_of(path) == known[0]:
                continue
            elif snapshot.epoch_of(older) == known[0]:
                files.rename(older, path)
            else:
                del self.found[phase]
                warn(
                    f"{path} is not the snapshot of epoch {known[0]}, the best {phase} one of the state that was "
                    f"loaded; the best {phase} evaluation from here on takes its place"
                )

    def state_dict(self) -> dict[str, dict[str, Any]]:
        return {phase: {"epoch": epoch, "value": value} for phase, (epoch, value) in self.found.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]] | None) -> None:
        """Take over a state that `misfit` finds nothing wrong with; None is one from before there were any."""
        self.found = {phase: (int(own["epoch"]), float(own["value"])) for phase, own in (state or {}).items()}
        self._compared = False


def misfit(state: Any) -> str:
    """What is wrong with a state, as half a sentence; "" if nothing is. States of runs without it have none."""

    def entry(value: Any) -> str:
        return expected.keys(value, {"epoch": expected.whole(1), "value": expected.number()})

    return "" if state is None else expected.keys(state, {}, dict.fromkeys(PHASES, entry))

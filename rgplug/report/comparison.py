"""Runs to compare, and what several seeds of a method give together."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rgplug.baselines.results import Result

DENSE = "dense"  # the method whose runs are 1 where FLOPs are given as multiples


@dataclass(frozen=True)
class Spread:
    """Mean over `n` seeds, and the sample standard deviation (ddof = 1), which one seed does not have."""

    mean: float
    sd: float | None
    n: int


def spread(values: Iterable[float | None]) -> Spread | None:
    """Mean and standard deviation of the values that are known; None if none is."""
    known = [v for v in values if v is not None]
    if not known:
        return None
    return Spread(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))


@dataclass(frozen=True)
class Method:
    """The runs of one method, by seed."""

    name: str
    runs: tuple[Result, ...]

    @property
    def valued(self) -> tuple[Result, ...]:
        """The runs that have a best value."""
        return tuple(run for run in self.runs if run.best is not None)

    @property
    def diverged(self) -> int:
        """Number of runs in which the metric was never finite."""
        return len(self.runs) - len(self.valued)

    def over_seeds(self, value: Callable[[Result], float | None]) -> Spread | None:
        """Mean of a quantity of a run over the seeds in which it is known."""
        return spread(value(run) for run in self.runs)


@dataclass(frozen=True)
class Comparison:
    """All runs of one folder; they share one metric, measured on equally many samples."""

    folder: Path
    methods: tuple[Method, ...]  # dense first, then as in the file
    metric: str
    samples: int | None
    higher_is_better: bool
    notes: tuple[str, ...] = ()  # what has to be known of the folder's files

    @cached_property
    def runs(self) -> tuple[Result, ...]:
        return tuple(run for method in self.methods for run in method.runs)

    @property
    def dense(self) -> Method | None:
        return next((m for m in self.methods if m.name == DENSE), None)

    def training_multiple(self, method: Method, with_before: bool) -> Spread | None:
        """Training FLOPs of whole runs over those of the dense run with the same seed; None where none has one."""
        if self.dense is None:
            return None
        dense = {run.seed: run.flops_total for run in self.dense.runs}

        def multiple(run: Result) -> float | None:
            return _ratio(run.flops_in_all if with_before else run.flops_total, dense.get(run.seed))

        return method.over_seeds(multiple)

    @staticmethod
    def inference_multiple(run: Result) -> float | None:
        """FLOPs of one image through G over those of a dense G."""
        return _ratio(run.inference_flops, run.inference_flops_dense)


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole

"""Runs to compare, and what several seeds of a method give together."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

DENSE = "dense"  # the method whose runs are 1 where FLOPs are given as multiples


@dataclass(frozen=True)
class Round:
    """One round of a ticket: its density, its best value and what it alone cost up to there."""

    round: int
    density: dict[str, float]
    best: float | None
    real_images: float | None
    flops: float | None


@dataclass(frozen=True)
class Run:
    """One line of results.jsonl. None: not known; `best` is None where the metric was never finite."""

    method: str
    seed: int
    run: str  # folder, relative to that of results.jsonl
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
    flops_total: float | None  # of the whole run
    before_images: float | None  # what had to be trained before this run
    before_flops: float | None
    density: dict[str, float]  # share kept at the best value
    inference_flops: float | None  # one image through G
    inference_flops_dense: float | None
    rounds: tuple[Round, ...] = field(repr=False)

    @property
    def images_to_best(self) -> float | None:
        """#RI until the best value, with what was trained before."""
        return _total(self.real_images, self.before_images)

    @property
    def flops_to_best(self) -> float | None:
        """Training FLOPs until the best value, with what was trained before."""
        return _total(self.flops, self.before_flops)

    @property
    def flops_in_all(self) -> float | None:
        """Training FLOPs of the whole run, with what was trained before."""
        return _total(self.flops_total, self.before_flops)


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
    runs: tuple[Run, ...]

    @property
    def valued(self) -> tuple[Run, ...]:
        """The runs that have a best value."""
        return tuple(run for run in self.runs if run.best is not None)

    @property
    def diverged(self) -> int:
        """Number of runs in which the metric was never finite."""
        return len(self.runs) - len(self.valued)

    def over_seeds(self, value: Callable[[Run], float | None]) -> Spread | None:
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

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        return tuple(run for method in self.methods for run in method.runs)

    @property
    def dense(self) -> Method | None:
        return next((m for m in self.methods if m.name == DENSE), None)

    def training_multiple(self, method: Method, with_before: bool) -> Spread | None:
        """Training FLOPs of whole runs over those of the dense run with the same seed; None where none has one."""
        if self.dense is None:
            return None
        dense = {run.seed: run.flops_total for run in self.dense.runs}

        def multiple(run: Run) -> float | None:
            return _ratio(run.flops_in_all if with_before else run.flops_total, dense.get(run.seed))

        return method.over_seeds(multiple)

    @staticmethod
    def inference_multiple(run: Run) -> float | None:
        """FLOPs of one image through G over those of a dense G."""
        return _ratio(run.inference_flops, run.inference_flops_dense)


def _total(own: float | None, before: float | None) -> float | None:
    return None if own is None or before is None else own + before


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole

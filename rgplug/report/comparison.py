"""Runs to compare, and what several seeds of a method give together."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from rgplug.baselines.results import Result, Scalar
from rgplug.history import Line
from rgplug.run_setup import Setup

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
class Run:
    """One run of a report: its result, its folder, and what the training left there."""

    result: Result
    folder: Path  # with its history.jsonl and samples.png
    root: Path  # the folder of the comparison, or of the run itself; nothing outside of it is read
    lines: tuple[Line, ...] = field(default=(), repr=False)  # of history.jsonl; () where it left none, or a wrong one
    setup: Setup | None = field(default=None, repr=False)
    is_changed: bool = False  # history.jsonl is not the one that belongs to the result: lines is ()
    place: str = ""  # what tells its comparison from others in the report; "" where there is one
    given: str = ""  # the folder that it was found in, by name, where several were given

    @property
    def method(self) -> str:
        """The method as results name it: stu-gan, and stu-gan@density.G=0.1 in a sweep."""
        return self.result.method

    @property
    def base(self) -> str:
        """The method without a sweep's keys."""
        said = self.result.keys.get("method")
        return said if isinstance(said, str) and said else self.result.method.partition("@")[0]

    @property
    def seed(self) -> int:
        return self.result.seed

    @property
    def best(self) -> float | None:
        return self.result.best

    @property
    def label(self) -> str:
        """How a message or a caption names it."""
        return f"{self.method}, seed {self.seed}" + (f" ({self.place})" if self.place else "")

    @property
    def keys(self) -> Mapping[str, Scalar]:
        """All that a table can have rows and columns by: the result's keys, method, seed and folder."""
        folder = self.given or self.place or self.root.resolve().name
        return {**self.result.keys, "method": self.base, "seed": self.seed, "folder": folder}


@dataclass(frozen=True)
class Method:
    """The runs of one row: one method under one set of keys, by seed."""

    name: str
    runs: tuple[Run, ...]

    @property
    def results(self) -> tuple[Result, ...]:
        return tuple(run.result for run in self.runs)

    @property
    def valued(self) -> tuple[Result, ...]:
        """The results that have a best value."""
        return tuple(result for result in self.results if result.best is not None)

    @property
    def diverged(self) -> int:
        """Number of runs in which the metric was never finite."""
        return len(self.runs) - len(self.valued)

    def over_seeds(self, value: Callable[[Result], float | None]) -> Spread | None:
        """Mean of a quantity of a run over the seeds in which it is known."""
        return spread(value(result) for result in self.results)


@dataclass(frozen=True)
class Comparison:
    """All runs of a report, out of one folder or several; they share one metric, measured on equally many samples."""

    folders: tuple[Path, ...]  # that were given
    methods: tuple[Method, ...]  # dense first, then as in the files
    metric: str
    samples: int | None
    higher_is_better: bool
    notes: tuple[str, ...] = ()  # what has to be known of the folders' files

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        return tuple(run for method in self.methods for run in method.runs)

    @property
    def title(self) -> str:
        return ", ".join(folder.resolve().name for folder in self.folders)

    @property
    def dense(self) -> Method | None:
        return next((m for m in self.methods if m.name == DENSE), None)

    def dense_of(self, run: Run) -> Run | None:
        """The dense run that a run is measured by: of its seed, in its comparison if there is one, and alike in all
        keys in which dense runs differ. None where there is none, or more than one."""
        known = [r for r in self.runs if r.base == DENSE and r.seed == run.seed]
        known = [r for r in known if r.root == run.root] or known
        differ = {k for r in known for k in r.result.keys if len({repr(o.result.keys.get(k)) for o in known}) > 1}
        alike = [r for r in known if all(r.keys.get(k) == run.keys.get(k) for k in differ)]
        return alike[0] if len(alike) == 1 else None

    @property
    def has_dense(self) -> bool:
        return any(run.base == DENSE for run in self.runs)

    def multiple(
        self, method: Method, cost: Callable[[Result], float | None], of_dense: Callable[[Result], float | None]
    ) -> Spread | None:
        """A cost of a method's runs over that of the dense run each is measured by; None where none has one."""
        found = []
        for run in method.runs:
            dense = self.dense_of(run)
            found.append(None if dense is None else ratio(cost(run.result), of_dense(dense.result)))
        return spread(found)

    @staticmethod
    def inference_multiple(run: Result) -> float | None:
        """FLOPs of one image through G over those of a dense G."""
        return ratio(run.inference_flops, run.inference_flops_dense)


def ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole

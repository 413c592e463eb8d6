"""Columns and cells that the tables of a report share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from rgplug.baselines.results import Result
from rgplug.report.cells import (
    UNKNOWN,
    Cell,
    Column,
    count,
    metric_cell,
    metric_title,
    seed_cell,
    spread_cell,
)
from rgplug.report.comparison import Comparison, Method, spread

SPARSITY = (Column("Sparsity D, %", ("sparsity_D",)), Column("Sparsity G, %", ("sparsity_G",)))


def metric_column(c: Comparison) -> Column:
    direction = "higher" if c.higher_is_better else "lower"
    title = f"{metric_title(c.metric)} ({direction} is better)"
    return Column(title, ("metric_mean", "metric_sd"), max if c.higher_is_better else min)


def metric(m: Method) -> Cell:
    return metric_cell(m.over_seeds(lambda run: run.best))


def mean(value: Callable[[Result], float | None], write: Callable[[float], str], runs: Sequence[Result]) -> Cell:
    return spread_cell(spread(map(value, runs)), write, len(runs))


def at_best(m: Method) -> tuple[Result, ...]:
    """The runs that say what a method's density is: those with a value, or all where none has one."""
    return m.valued or m.results


def density(m: Method, network: str) -> Cell:
    return mean(lambda run: run.density.get(network), "{:.3f}".format, at_best(m))


def sparsity(m: Method, network: str) -> Cell:
    def sparsity(run: Result) -> float | None:
        return 100 * (1 - run.density[network]) if network in run.density else None

    return mean(sparsity, "{:.1f}".format, at_best(m))


def phases(m: Method) -> str:
    """The phases in which a method's seeds had their best values."""
    counts = Counter(phase for run in m.valued if (phase := _phase(run)))
    if len(counts) < 2:
        return next(iter(counts), UNKNOWN)
    return ", ".join(f"{phase} ({n})" for phase, n in counts.most_common())


def _phase(run: Result) -> str | None:
    """The phase of the best value. Re-GAN's phases follow its steps and not the metric, so its records say "sparse"
    throughout; in its warm-up and its dense phases the networks that it prunes have all their weights."""
    if run.keys.get("method") == "re-gan" and run.best_phase is not None:
        pruned = str(run.keys.get("cycle.networks", "G")).split(",")
        return "dense" if all(run.density.get(network, 1.0) == 1.0 for network in pruned) else "sparse"
    return run.best_phase


def evaluations_of(m: Method) -> Cell:
    counts = [run.evaluations for run in m.valued]
    if not any(counts):  # those of a ticket's earlier round are not in its result
        return Cell(UNKNOWN, (None, None))
    low, high = min(counts), max(counts)
    return Cell(str(low) if low == high else f"{low}–{high}", (low, high))


def seeds(m: Method) -> Cell:
    return seed_cell(len(m.runs), m.diverged)


def parameters(m: Method, network: str = "G") -> Cell:
    """Parameters of a network that are not pruned at the best value, of all that it has."""
    kept = spread(run.parameters_kept.get(network) for run in at_best(m))
    dense = spread(run.parameters.get(network) for run in at_best(m))
    if kept is None or dense is None:
        return Cell(UNKNOWN, (None, None))
    return Cell(f"{count(kept.mean)} of {count(dense.mean)}", (kept.mean, dense.mean), kept.mean, count(kept.mean))


PARAMETERS = Column("Parameters G, kept", ("parameters_kept_G", "parameters_G"), min)
SECONDS = Column("Seconds", ("seconds",), min)


def knows_seconds(c: Comparison) -> bool:
    """Whether there is anything to fill a column of seconds with."""
    return any(run.result.seconds_to_best is not None for run in c.runs)


def knows_parameters(c: Comparison) -> bool:
    return any("G" in run.result.parameters_kept and "G" in run.result.parameters for run in c.runs)

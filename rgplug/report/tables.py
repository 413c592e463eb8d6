"""The tables of a comparison, as cells that the page, Markdown and CSV write in their own way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from rgplug.baselines.results import Result, Round
from rgplug.report.cells import (
    UNKNOWN,
    Cell,
    Column,
    Table,
    metric_cell,
    metric_text,
    metric_title,
    millions,
    power,
    seed_cell,
    spread_cell,
    text_cell,
)
from rgplug.report.comparison import Comparison, Method, spread


def tables_of(comparison: Comparison) -> list[Table]:
    """All tables that the runs can fill: cost, sparsity, FLOPs, and rounds where there are tickets."""
    made = [cost_table(comparison), sparsity_table(comparison), flops_table(comparison)]
    if any(run.result.rounds for run in comparison.runs):
        made.append(rounds_table(comparison))
    return made


def cost_table(c: Comparison) -> Table:
    """Density, cost until the best value, metric, phase and number of evaluations (form of RG-GAN, Table 5)."""
    columns = (
        Column("Method", ("method",)),
        Column("Density G", ("density_G",)),
        Column("Density D", ("density_D",)),
        Column("#RI, million", ("real_images",), min),
        Column("Training FLOPs", ("training_flops",), min),
        _metric_column(c),
        Column("Last value", ("last_mean",), max if c.higher_is_better else min),
        Column("Best in phase", ("phase",)),
        Column("N", ("evaluations_min", "evaluations_max")),
        Column("Seeds", ("seeds", "diverged")),
    )
    rows = tuple(
        (
            text_cell(m.name),
            _density(m, "G"),
            _density(m, "D"),
            _mean(lambda run: run.images_to_best, millions, m.valued),
            _mean(lambda run: run.flops_to_best, power, m.valued),
            _metric(m),
            _mean(lambda run: run.final, metric_text, m.valued),
            text_cell(_phases(m)),
            _evaluations(m),
            _seeds(m),
        )
        for m in c.methods
    )
    notes = [
        "#RI (real images shown to D) and training FLOPs count until the best value, and include what was trained "
        "before.",
        *_notes_on_evaluations(c),
        *_notes_on_divergence(c),
    ]
    return Table("cost", "Cost until the best value", "in the form of RG-GAN, Table 5", columns, rows, tuple(notes))


def sparsity_table(c: Comparison) -> Table:
    """Metric by sparsity of D and of G (form of STU-GAN, Table 1)."""
    columns = (Column("Method", ("method",)), *_SPARSITY, _metric_column(c), Column("Seeds", ("seeds", "diverged")))
    rows = tuple((text_cell(m.name), _sparsity(m, "D"), _sparsity(m, "G"), _metric(m), _seeds(m)) for m in c.methods)
    note = "Sparsity is the share of the managed weights that is zero at the best value."
    return Table("sparsity", "Metric by sparsity", "in the form of STU-GAN, Table 1", columns, rows, (note,))


def flops_table(c: Comparison) -> Table:
    """FLOPs of whole runs and of one generated image, absolute and over dense (form of STU-GAN, Table 2)."""
    multiples = c.has_dense
    columns = (
        Column("Method", ("method",)),
        *_SPARSITY,
        Column("Training FLOPs, this run", ("flops_total",), min),
        Column("with what came before", ("flops_total_with_before",), min),
        *((Column("× dense, this run", ("training_multiple",), min),) if multiples else ()),
        *((Column("× dense, with before", ("training_multiple_with_before",), min),) if multiples else ()),
        Column("FLOPs of one image", ("inference_flops",), min),
        Column("× dense G", ("inference_multiple",), min),
        Column("Seeds", ("seeds", "diverged")),
    )
    rows = []
    for m in c.methods:
        training = (
            [
                c.multiple(m, cost, lambda dense: dense.flops_total)
                for cost in (lambda run: run.flops_total, lambda run: run.flops_in_all)
            ]
            if multiples
            else []
        )
        rows.append(
            (
                text_cell(m.name),
                _sparsity(m, "D"),
                _sparsity(m, "G"),
                _mean(lambda run: run.flops_total, power, m.results),
                _mean(lambda run: run.flops_in_all, power, m.results),
                *(spread_cell(multiple, "{:.2f}".format, len(m.runs)) for multiple in training),
                _mean(lambda run: run.inference_flops, power, _at_best(m)),
                _mean(c.inference_multiple, "{:.2f}".format, _at_best(m)),
                _seeds(m),
            )
        )
    notes = [
        "Training FLOPs are those of whole runs, not only until the best value; those of diverged runs count.",
        "Training multiples divide by the dense run of the same seed."
        if multiples
        else "There is no dense run among these: training FLOPs are absolute values only.",
        "D's dense training is charged to prune-and-fine-tune, and all rounds (both networks) to tickets. STU-GAN's "
        "published figures, as far as they can be recomputed, leave D's share of both out; so these are higher.",
    ]
    return Table("flops", "FLOPs", "in the form of STU-GAN, Table 2", columns, tuple(rows), tuple(notes))


def rounds_table(c: Comparison) -> Table:
    """Density, metric and cost of each round of the tickets."""
    columns = (
        Column("Method", ("method",)),
        Column("Round", ("round",)),
        Column("Density G", ("density_G",)),
        Column("Density D", ("density_D",)),
        _metric_column(c),
        Column("#RI of the round, million", ("round_real_images",)),
        Column("Training FLOPs of the round", ("round_training_flops",)),
        Column("Seeds", ("seeds", "diverged")),
    )
    rows = []
    for m in c.methods:
        for number in sorted({r.round for run in m.results for r in run.rounds}):
            rounds = [r for run in m.results for r in run.rounds if r.round == number]
            rows.append((text_cell(m.name), Cell(str(number), (number,)), *_round_cells(rounds)))
    note = "Round 0 trains dense. What is counted is each round alone, until its best value."
    return Table("rounds", "Tickets by round", "", columns, tuple(rows), (note,))


def _round_cells(rounds: Sequence[Round]) -> tuple[Cell, ...]:
    valued = [r for r in rounds if r.best is not None]
    shown = valued or rounds

    def density(network: str) -> Cell:
        return spread_cell(spread(r.density.get(network) for r in shown), "{:.3f}".format, len(shown))

    return (
        density("G"),
        density("D"),
        metric_cell(spread(r.best for r in valued)),
        spread_cell(spread(r.real_images for r in valued), millions, len(valued)),
        spread_cell(spread(r.flops for r in valued), power, len(valued)),
        seed_cell(len(rounds), len(rounds) - len(valued)),
    )


_SPARSITY = (Column("Sparsity D, %", ("sparsity_D",)), Column("Sparsity G, %", ("sparsity_G",)))


def _metric_column(c: Comparison) -> Column:
    direction = "higher" if c.higher_is_better else "lower"
    title = f"{metric_title(c.metric)} ({direction} is better)"
    return Column(title, ("metric_mean", "metric_sd"), max if c.higher_is_better else min)


def _metric(m: Method) -> Cell:
    return metric_cell(m.over_seeds(lambda run: run.best))


def _mean(value: Callable[[Result], float | None], write: Callable[[float], str], runs: Sequence[Result]) -> Cell:
    return spread_cell(spread(map(value, runs)), write, len(runs))


def _at_best(m: Method) -> tuple[Result, ...]:
    """The runs that say what a method's density is: those with a value, or all where none has one."""
    return m.valued or m.results


def _density(m: Method, network: str) -> Cell:
    return _mean(lambda run: run.density.get(network), "{:.3f}".format, _at_best(m))


def _sparsity(m: Method, network: str) -> Cell:
    def sparsity(run: Result) -> float | None:
        return 100 * (1 - run.density[network]) if network in run.density else None

    return _mean(sparsity, "{:.1f}".format, _at_best(m))


def _phases(m: Method) -> str:
    counts = Counter(run.best_phase for run in m.valued if run.best_phase)
    if len(counts) < 2:
        return next(iter(counts), UNKNOWN)
    return ", ".join(f"{phase} ({n})" for phase, n in counts.most_common())


def _evaluations(m: Method) -> Cell:
    counts = [run.evaluations for run in m.valued]
    if not counts:
        return Cell(UNKNOWN, (None, None))
    low, high = min(counts), max(counts)
    return Cell(str(low) if low == high else f"{low}–{high}", (low, high))


def _seeds(m: Method) -> Cell:
    return seed_cell(len(m.runs), m.diverged)


def _notes_on_evaluations(c: Comparison) -> list[str]:
    notes = ["Each value is the best of N evaluations, those without a finite value not counted."]
    if len({run.evaluations for m in c.methods for run in m.valued}) > 1:
        notes[0] += (
            " N differs here: a method with more evaluations has an advantage, because the best of more noisy values "
            "is better even without progress. The last value has no such advantage."
        )
    return notes


def _notes_on_divergence(c: Comparison) -> list[str]:
    notes = []
    for m in c.methods:
        if m.diverged:
            seeds = ", ".join(str(run.seed) for run in m.results if run.best is None)
            notes.append(
                f"{m.name} diverged in {m.diverged} of {len(m.runs)} runs (seed {seeds}: the metric was never finite). "
                "Means are over the seeds that have a value."
            )
        notes += [
            f"{m.name}, seed {run.seed}: further evaluations without a finite value: {run.not_finite}."
            for run in m.valued
            if run.not_finite
        ]
    return notes

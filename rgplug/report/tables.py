"""The tables of a report, as cells that the page, Markdown and CSV write in their own way."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rgplug.baselines.results import Round
from rgplug.report.cells import (
    UNKNOWN,
    Cell,
    Column,
    Table,
    count,
    duration,
    metric_cell,
    metric_text,
    metric_title,
    power,
    seed_cell,
    spread_cell,
    text_cell,
)
from rgplug.report.comparison import Comparison, spread
from rgplug.report.flops import flops_table
from rgplug.report.parts import (
    PARAMETERS,
    SECONDS,
    SPARSITY,
    at_best,
    density,
    evaluations_of,
    knows_parameters,
    knows_seconds,
    mean,
    metric,
    metric_column,
    parameters,
    phases,
    seeds,
    sparsity,
)
from rgplug.report.quantities import images_unit, other_metrics, percent
from rgplug.report.rows import rows_of, total

__all__ = ["cost_table", "flops_table", "rounds_table", "sparsity_table", "tables_of"]


def tables_of(comparison: Comparison) -> list[Table]:
    """All tables that the runs can fill: cost, sparsity, FLOPs, and rounds where there are tickets."""
    made = [cost_table(comparison), sparsity_table(comparison), flops_table(comparison)]
    if any(run.result.rounds for run in comparison.runs):
        made.append(rounds_table(comparison))
    return made


def cost_table(c: Comparison) -> Table:
    """Density, cost until the best value, metric, phase and number of evaluations (form of RG-GAN, Table 5).

    Methods that regenerate have a row for the best value of each phase, tickets one for each round.
    """
    has_seconds, has_parameters = knows_seconds(c), knows_parameters(c)
    shown = [row for m in c.methods for row in rows_of(m)]
    unit, write_images = images_unit(run.images_to_best for m in shown for run in m.valued)
    columns = (
        Column("Method", ("method",)),
        Column("Density G", ("density_G",)),
        Column("Density D", ("density_D",)),
        Column(f"#RI, {unit}", ("real_images",), min),
        Column("Training FLOPs", ("training_flops",), min),
        *((SECONDS,) if has_seconds else ()),
        *((PARAMETERS,) if has_parameters else ()),
        metric_column(c),
        Column("Last value", ("last_mean",), max if c.higher_is_better else min),
        Column("Best in phase", ("phase",)),
        Column("N", ("evaluations_min", "evaluations_max")),
        Column("Seeds", ("seeds", "diverged")),
    )
    rows = tuple(
        (
            text_cell(m.name),
            density(m, "G"),
            density(m, "D"),
            mean(lambda run: run.images_to_best, write_images, m.valued),
            mean(lambda run: run.flops_to_best, power, m.valued),
            *((mean(lambda run: run.seconds_to_best, duration, m.valued),) if has_seconds else ()),
            *((parameters(m),) if has_parameters else ()),
            metric(m),
            mean(lambda run: run.final, metric_text, m.valued),
            text_cell(phases(m)),
            evaluations_of(m),
            seeds(m),
        )
        for m in shown
    )
    notes = [
        "#RI (real images shown to D) and training FLOPs count until the best value, and include what was trained "
        "before.",
        *_notes_on_rows([m.name for m in shown], c),
        *_notes_on_evaluations(c),
        *_notes_on_divergence(c),
    ]
    return Table("cost", "Cost until the best value", "in the form of RG-GAN, Table 5", columns, rows, tuple(notes))


def sparsity_table(c: Comparison) -> Table:
    """Metric by sparsity of D and of G (form of STU-GAN, Table 1), with the other metrics of the runs, and the share of
    weights that were ever active (in-time over-parametrization)."""
    others = other_metrics(c)
    active = [net for net in ("G", "D") if any(net in run.result.ever_active for run in c.runs)]
    columns = (
        Column("Method", ("method",)),
        *SPARSITY,
        metric_column(c),
        *(Column(q.title, (f"{q.key}_mean", f"{q.key}_sd"), q.best) for q in others),
        *(Column(f"Ever active {net}, %", (f"ever_active_{net}",)) for net in active),
        Column("Seeds", ("seeds", "diverged")),
    )
    rows = []
    for m in c.methods:
        measured = [spread(map(q.value, m.valued)) for q in others]
        explored = [
            mean(lambda run, net=net: percent(run.ever_active.get(net)), "{:.1f}".format, at_best(m))  # type: ignore[misc]
            for net in active
        ]
        rows.append(
            (
                text_cell(m.name),
                sparsity(m, "D"),
                sparsity(m, "G"),
                metric(m),
                *(metric_cell(found) if found or not m.valued else Cell(UNKNOWN, (None, None)) for found in measured),
                *explored,
                seeds(m),
            )
        )
    notes = ["Sparsity is the share of the managed weights that is zero at the best value."]
    if others:
        notes.append(f"{', '.join(q.title for q in others)}: at the evaluation of the best {metric_title(c.metric)}.")
    if active:
        notes.append(
            "Ever active is the share of the managed weights that were kept at least once in the run (in-time "
            "over-parametrization: how much of the dense network the training has explored)."
        )
    return Table(
        "sparsity", "Metric by sparsity", "in the form of STU-GAN, Table 1", columns, tuple(rows), tuple(notes)
    )


def rounds_table(c: Comparison) -> Table:
    """Density, metric and cost of each round of the tickets, alone and with all rounds before."""
    known = [r for run in c.runs for r in run.result.rounds]
    has_totals = any(r.real_images_total is not None and r.flops_total is not None for r in known)
    has_seconds, has_parameters = any(r.seconds is not None for r in known), any(r.parameters_kept for r in known)
    chains = {
        (m.name, number): [(r, run.rounds) for run in m.results for r in run.rounds if r.round == number]
        for m in c.methods
        for number in sorted({r.round for run in m.results for r in run.rounds})
    }
    images = [i for own in chains.values() for r, chain in own for i in (r.real_images, _with_before(r, chain))]
    unit, write_images = images_unit(images)
    columns = (
        Column("Method", ("method",)),
        Column("Round", ("round",)),
        Column("Density G", ("density_G",)),
        Column("Density D", ("density_D",)),
        metric_column(c),
        Column(f"#RI of the round, {unit}", ("round_real_images",)),
        Column("Training FLOPs of the round", ("round_training_flops",)),
        *((Column("Seconds of the round", ("round_seconds",)),) if has_seconds else ()),
        *((Column(f"#RI with all before, {unit}", ("real_images",)),) if has_totals else ()),
        *((Column("Training FLOPs with all before", ("training_flops",)),) if has_totals else ()),
        *((Column("Parameters G, kept", ("parameters_kept_G",)),) if has_parameters else ()),
        Column("Seeds", ("seeds", "diverged")),
    )
    rows = [
        (
            text_cell(name),
            Cell(str(number), (number,)),
            *_round_cells(own, has_seconds, has_totals, has_parameters, write_images),
        )
        for (name, number), own in chains.items()
    ]
    notes = ["Round 0 trains dense. What is counted is each round alone, until its best value."]
    if has_totals:
        notes.append("With all before: all earlier rounds whole, and this one until its best value.")
    return Table("rounds", "Tickets by round", "", columns, tuple(rows), tuple(notes))


def _round_cells(
    rounds: Sequence[tuple[Round, Sequence[Round]]],
    has_seconds: bool,
    has_totals: bool,
    has_parameters: bool,
    write_images: Callable[[float], str],
) -> tuple[Cell, ...]:
    """rounds: one of each seed, and all rounds of that seed."""
    valued = [(r, chain) for r, chain in rounds if r.best is not None]
    own = [r for r, _ in valued]
    shown = own or [r for r, _ in rounds]

    def density(network: str) -> Cell:
        return spread_cell(spread(r.density.get(network) for r in shown), "{:.3f}".format, len(shown))

    images = [_with_before(r, chain) for r, chain in valued]
    kept = spread(r.parameters_kept.get("G") for r in shown)
    flops = [total([r.flops, *(b.flops_total for b in chain if b.round < r.round)]) for r, chain in valued]
    return (
        density("G"),
        density("D"),
        metric_cell(spread(r.best for r in own)),
        spread_cell(spread(r.real_images for r in own), write_images, len(own)),
        spread_cell(spread(r.flops for r in own), power, len(own)),
        *((spread_cell(spread(r.seconds for r in own), duration, len(own)),) if has_seconds else ()),
        *((spread_cell(spread(images), write_images, len(own)),) if has_totals else ()),
        *((spread_cell(spread(flops), power, len(own)),) if has_totals else ()),
        *((spread_cell(kept, count, len(shown)),) if has_parameters else ()),
        seed_cell(len(rounds), len(rounds) - len(own)),
    )


def _with_before(r: Round, chain: Sequence[Round]) -> float | None:
    """Real images shown in a round until its best value, and in all rounds before it; None where one is not known."""
    return total([r.real_images, *(b.real_images_total for b in chain if b.round < r.round)])


def _notes_on_rows(names: Sequence[str], c: Comparison) -> list[str]:
    """What the names of further rows mean."""
    notes = []
    own = {m.name for m in c.methods}
    if any(name.startswith(("Sparse_", "Dense_")) and name not in own for name in names):
        notes.append("Sparse_ and Dense_ are the best values of the same runs among the evaluations of one phase.")
    if any("@" in name and name.rpartition("@")[0] in own for name in names):
        notes.append(
            "@20% is the round of a ticket in which 20 % of G are pruned; its cost is cumulative: all rounds before it "
            "whole, and its own until its best value."
        )
    return notes


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

"""FLOPs of whole runs and of one generated image, in two conventions (form of STU-GAN, Table 2)."""

from __future__ import annotations

from collections.abc import Callable

from rgplug.baselines.results import Result
from rgplug.report.cells import Cell, Column, Table, duration, power, spread_cell, text_cell
from rgplug.report.comparison import Comparison, Method, ratio
from rgplug.report.parts import (
    PARAMETERS,
    SPARSITY,
    at_best,
    knows_parameters,
    mean,
    parameters,
    seeds,
    sparsity,
)

Cost = Callable[[Result], float | None]
Part = tuple[Column, Callable[[Method], Cell]]


def flops_table(c: Comparison) -> Table:
    """Training and test FLOPs, absolute and over dense: by the density of each layer, and proportional, which is the
    published convention."""
    parts = [part for part in _parts(c) if part is not None]
    columns = (
        Column("Method", ("method",)),
        *SPARSITY,
        *(column for column, _ in parts),
        Column("Seeds", ("seeds", "diverged")),
    )
    rows = tuple(
        (text_cell(m.name), sparsity(m, "D"), sparsity(m, "G"), *(cell(m) for _, cell in parts), seeds(m))
        for m in c.methods
    )
    return Table("flops", "FLOPs", "in the form of STU-GAN, Table 2", columns, rows, tuple(_notes(c)))


def proportional_in_all(run: Result) -> float | None:
    """Training FLOPs of the whole run and of what was trained before, by the published convention."""
    before = run.before.get("flops_proportional")
    if before is None and run.before["flops"] == 0:
        before = 0.0
    return None if before is None or run.flops_proportional is None else run.flops_proportional + before


def seconds_in_all(run: Result) -> float | None:
    known = run.seconds_total is not None and run.seconds_before is not None
    return run.seconds_total + run.seconds_before if known else None  # type: ignore[operator]


def _parts(c: Comparison) -> list[Part | None]:
    """Columns and how their cells are made; None for one that nothing is known for."""

    def whole(title: str, key: str, cost: Cost, write: Callable[[float], str] = power) -> Part:
        return Column(title, (key,), min), lambda m: mean(cost, write, m.results)

    def over_dense(title: str, key: str, cost: Cost, of_dense: Cost) -> Part | None:
        if not c.has_dense:
            return None
        return Column(title, (key,), min), lambda m: spread_cell(
            c.multiple(m, cost, of_dense), "{:.2f}".format, len(m.runs)
        )

    def of_image(title: str, key: str, cost: Cost, write: Callable[[float], str]) -> Part:
        return Column(title, (key,), min), lambda m: mean(cost, write, at_best(m))

    is_proportional = any(proportional_in_all(run.result) is not None for run in c.runs)
    has_seconds = any(seconds_in_all(run.result) is not None for run in c.runs)
    return [
        whole("Training FLOPs by layer, this run", "flops_total", lambda r: r.flops_total),
        whole("with what came before", "flops_total_with_before", lambda r: r.flops_in_all),
        over_dense("× dense, this run", "training_multiple", lambda r: r.flops_total, lambda r: r.flops_total),
        over_dense("× dense, with before", "training_multiple_with_before", lambda r: r.flops_in_all,
                   lambda r: r.flops_total),
        of_image("FLOPs of one image", "inference_flops", lambda r: r.inference_flops, power),
        of_image("× dense G", "inference_multiple", c.inference_multiple, "{:.2f}".format),
        *((
            whole("Training FLOPs proportional, with before", "flops_proportional_with_before", proportional_in_all),
            over_dense("× dense, proportional", "training_multiple_proportional", proportional_in_all,
                       lambda r: r.flops_proportional),
            of_image("× dense G, proportional", "inference_multiple_proportional",
                     lambda r: ratio(r.inference_flops_proportional, r.inference_flops_dense), "{:.2f}".format),
        ) if is_proportional else ()),
        whole("Seconds, with before", "seconds_total_with_before", seconds_in_all, duration) if has_seconds else None,
        (PARAMETERS, parameters) if knows_parameters(c) else None,
    ]  # fmt: skip


def _notes(c: Comparison) -> list[str]:
    notes = [
        "Training FLOPs are those of whole runs, not only until the best value; those of diverged runs count.",
        "Training multiples divide by the dense run of the same seed."
        if c.has_dense
        else "There is no dense run among these: training FLOPs are absolute values only.",
    ]
    charged = any(run.result.before["real_images"] != 0 for run in c.runs)  # for what was trained before
    if charged:
        notes.append(
            "D's dense training is charged to prune-and-fine-tune, and all rounds (both networks) to tickets. "
            "STU-GAN's published figures, as far as they can be recomputed, leave D's share of both out; so these are "
            "higher."
        )
    if any(proportional_in_all(run.result) is not None for run in c.runs):
        notes.append(
            "By layer: each layer costs its dense FLOPs times its own density. Proportional, as published: each "
            "network costs its dense FLOPs times the density of its managed weights together."
        )
        if charged:
            notes.append(
                "What the paper charges to prune-and-fine-tune and tickets is not computed here: it gives no formula, "
                "and its numbers follow no single one. 1 + density of G fits its figures for prune-and-fine-tune "
                "(within 0.01); the sum of G's densities over all rounds fits one of its two figures for tickets "
                "(4.16), and the other (4.57) only with a round more than its density has."
            )
    return notes

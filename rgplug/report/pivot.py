"""A table with rows and columns by any key of a run, and cells of any of its values (RG-GAN, Tables 1 to 4; STU-GAN,
Tables 1, 3 and 4)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rgplug.errors import RgplugError
from rgplug.report.cells import UNKNOWN, Cell, Column, Table, Value, metric_cell, spread_cell, text_cell
from rgplug.report.comparison import DENSE, Comparison, Run, spread
from rgplug.report.grouping import settings_of
from rgplug.report.quantities import Quantity, quantities
from rgplug.report.run_keys import EVERY, check_keys, differing, heading_of, in_order, reached, text_of, value_of

SPECIAL = ("table", "metric", "samples", "cell", "mean", "sd", "runs", "diverged")
NEAR = 0.02  # a density that is further from the one asked for is said


@dataclass(frozen=True)
class Wanted:
    """What a table is to have: keys of rows, keys of columns, and what is in its cells."""

    rows: tuple[str, ...] = ("method",)
    columns: tuple[str, ...] = ()
    cells: tuple[str, ...] = ("best",)


def pivot_table(c: Comparison, wanted: Wanted) -> Table:
    """The table that is asked for. Raises RgplugError for a key or a value that there is not, and for keys that leave
    several runs of one seed in a cell."""
    keys = (*wanted.rows, *wanted.columns)
    check_keys(c, keys)
    if not wanted.rows or len(set(keys)) < len(keys):
        raise RgplugError(f"a table needs keys for its rows, and each key once, not {', '.join(keys) or 'none'}")
    shown = quantities(c, wanted.cells)
    placed = [(run, {k: value_of(c, m, run, k) for k in keys}) for m in c.methods for run in m.runs]
    rows = _combinations(placed, wanted.rows, in_rows=True)
    columns = _combinations(placed, wanted.columns)
    made: list[tuple[Cell, ...]] = []
    long: list[dict[str, Value]] = []
    notes: list[str] = []
    for row in rows:
        cells = [text_cell(text_of(k, v)) for k, v in zip(wanted.rows, row)]
        for column in columns:
            runs = [run for run, at in placed if _is_at(at, wanted.rows, row) and _is_at(at, wanted.columns, column)]
            notes += _check_cell(runs, ", ".join(f"{k} {text_of(k, v)}" for k, v in zip(keys, (*row, *column))))
            cells += [_cell(runs, together) for together in shown]
            where = {_csv_key(k): _plain(v) for k, v in zip(keys, (*row, *column))}
            long += [{**where, **_line(runs, q)} for together in shown for q in together if runs]
        made.append(tuple(cells))
    heads = [Column(key, ()) for key in wanted.rows]
    notes = [
        *_explained(wanted, shown, any(run.base == DENSE for run, _ in placed)),
        *notes,
        *_other_densities(c, keys),
    ]
    what = "; ".join(_title(together) for together in shown)
    by = f"rows by {', '.join(wanted.rows)}" + (f", columns by {', '.join(wanted.columns)}" if wanted.columns else "")
    return Table(
        "asked", what, by, (*heads, *_columns(wanted, columns, shown)), tuple(made), tuple(notes), len(heads),
        tuple(long),
    )  # fmt: skip


def _combinations(
    placed: Sequence[tuple[Run, dict[str, Any]]], keys: Sequence[str], in_rows: bool = False
) -> list[tuple[Any, ...]]:
    """The combinations of values that occur, in order. A run that stands in all columns makes none, where others do; in
    rows it has one of its own."""
    for key in keys:
        if in_rows or all(at[key] is EVERY for _, at in placed):
            for _, at in placed:
                at[key] = _alone(key, at[key])
    found = dict.fromkeys(values for _, at in placed if EVERY not in (values := tuple(at[key] for key in keys)))
    for _, at in placed:
        if not any(_is_at(at, keys, values) for values in found):
            at.update({key: _alone(key, at[key]) for key in keys})
            found.setdefault(tuple(at[key] for key in keys))
    orders = []
    for number, key in enumerate(keys):
        in_line = in_order(key, (combination[number] for combination in found))
        orders.append({value: place for place, value in enumerate(in_line)})
    return sorted(found, key=lambda combination: [order[v] for order, v in zip(orders, combination)])


def _alone(key: str, value: Any) -> Any:
    """What EVERY is where it needs a place of its own: a dense run's density, or nothing."""
    if value is not EVERY:
        return value
    return {"density": 1.0, "sparsity": 0.0}.get(key.partition(".")[0])


def _is_at(at: dict[str, Any], keys: Sequence[str], values: Sequence[Any]) -> bool:
    return all(at[key] is EVERY or at[key] == value for key, value in zip(keys, values))


def _check_cell(runs: Sequence[Run], where: str) -> list[str]:
    """Raise RgplugError where runs of one cell are not seeds of the same; a note where they differ in more."""
    settings = [dict(settings_of(run)) for run in runs]
    for (a, one), (b, other) in itertools.combinations(zip(runs, settings), 2):
        if a.seed == b.seed:
            keys = differing([a, b], [one, other])
            raise RgplugError(
                f"the cell {where} would hold {a.label} and {b.label}, which differ in {', '.join(keys[:3])}; add "
                f"{keys[0]} to the rows or columns"
            )
    if len({repr(sorted(s.items(), key=str)) for s in settings}) > 1:
        return [f"The cell {where} is a mean over runs that differ in {', '.join(differing(runs, settings)[:4])}."]
    return []


def _cell(runs: Sequence[Run], together: tuple[Quantity, ...]) -> Cell:
    if not runs:
        return Cell(UNKNOWN, ())
    parts = [_part(runs, q) for q in together]
    if len(parts) == 1:
        return parts[0]
    if all(part.rank is None for part in parts):
        return Cell(parts[0].text, ())
    return Cell(f"({', '.join(part.text for part in parts)})", (), parts[0].rank, parts[0].shown)


def _part(runs: Sequence[Run], q: Quantity) -> Cell:
    valued = [run.result for run in runs if run.result.best is not None]
    found = spread(q.value(r) for r in valued)
    if q.is_metric:
        return metric_cell(found) if found is not None or not valued else Cell(UNKNOWN, ())
    return spread_cell(found, q.write, len(valued))


def _line(runs: Sequence[Run], q: Quantity) -> dict[str, Value]:
    """A line of the CSV: one value of one cell."""
    valued = [run.result for run in runs if run.result.best is not None]
    found = spread(q.value(r) for r in valued)
    mean, sd = (None, None) if found is None else (found.mean, found.sd)
    return {"cell": q.key, "mean": mean, "sd": sd, "runs": len(runs), "diverged": len(runs) - len(valued)}


def _columns(wanted: Wanted, columns: Sequence[tuple[Any, ...]], shown: Sequence[tuple[Quantity, ...]]) -> list[Column]:
    """One for each combination of values and each quantity; the quantity is a heading where there are several."""
    found = []
    for values in columns:
        for together in shown:
            headings = [heading_of(key, value) for key, value in zip(wanted.columns, values)]
            if len(shown) > 1 or not headings:
                headings.append(_title(together))
            found.append(Column(headings[-1], (), together[0].best, tuple(headings[:-1])))
    return found


def _title(together: tuple[Quantity, ...]) -> str:
    names = ", ".join(q.title for q in together)
    return names if len(together) == 1 else f"({names})"


def _explained(wanted: Wanted, shown: Sequence[tuple[Quantity, ...]], has_dense: bool) -> list[str]:
    notes = []
    known = {q.key for together in shown for q in together}
    if known & {"ri", "flops", "seconds"}:
        notes.append("#RI (real images shown to D), FLOPs and seconds count until the best value, with what was "
                     "trained before.")  # fmt: skip
    if any(len(together) > 1 for together in shown):
        notes.append("Values in brackets are those of one evaluation: of the best value of the first.")
    if has_dense and any(key.startswith(("density.", "sparsity.")) for key in wanted.columns):
        notes.append("Dense runs have no density that could be asked for: their values stand in every column.")
    return notes


def _other_densities(c: Comparison, keys: Sequence[str]) -> list[str]:
    """Which methods reached another density than the one they stand under."""
    found = []
    for method in c.methods:
        for network in ("G", "D"):
            if not {f"density.{network}", f"sparsity.{network}"} & set(keys):
                continue
            asked, got = method.runs[0].keys.get(f"density.{network}"), reached(method, network)
            if isinstance(asked, int | float) and got is not None and abs(got - asked) > NEAR:
                found.append(f"{method.name}: density {got:g} of {network} at the best value, {asked:g} was asked for.")
    return found


def _csv_key(key: str) -> str:
    return f"key.{key}" if key in SPECIAL else key


def _plain(value: Any) -> Value:
    return value if isinstance(value, str | int | float | None) else str(value)


def wanted_of(rows: str | None, columns: str | None, cells: str | None) -> Wanted | None:
    """From texts with commas, as in a command; None where nothing is asked for."""

    def names(text: str | None, otherwise: tuple[str, ...]) -> tuple[str, ...]:
        return otherwise if text is None else tuple(name.strip() for name in text.split(",") if name.strip())

    if rows is None and columns is None and cells is None:
        return None
    return Wanted(names(rows, ("method",)), names(columns, ()), names(cells, ("best",)))

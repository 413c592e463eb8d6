"""Tables as text for other programs: Markdown and CSV."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterable, Sequence

from rgplug.report.cells import Table, Value
from rgplug.report.comparison import Comparison

FORMULA = re.compile(r"(^|[;\t\r\n|])(\s*)(?=[=+\-@\t\r\n＝＋－＠])")  # what spreadsheets take for the start of one
SAME_IN_ALL = ("table", "metric", "samples")


def markdown(tables: Sequence[Table]) -> str:
    """Every table with its title and notes; the best value of a column in bold."""
    return "\n".join(_markdown(table) for table in tables)


def csv_text(comparison: Comparison, tables: Sequence[Table]) -> str:
    """One CSV with the rows of all tables; the column `table` tells them apart, and what a table lacks is empty.

    Numbers have full precision and plain units: images, FLOPs, shares (density), per cent (sparsity). `seeds` counts
    all runs and `diverged` those without a value. A text that a spreadsheet would take for a formula has a ' before it.
    """
    keys = dict.fromkeys(key for table in tables for column in table.columns for key in column.keys)
    target = io.StringIO()
    writer = csv.DictWriter(target, [*SAME_IN_ALL, *keys], restval="", lineterminator="\n")
    writer.writeheader()
    for table in tables:
        for row in table.rows:
            values: dict[str, Value] = {
                "table": table.key, "metric": comparison.metric, "samples": comparison.samples,
            }  # fmt: skip
            for column, cell in zip(table.columns, row):
                values.update(zip(column.keys, cell.values))
            writer.writerow({key: as_text(value) if isinstance(value, str) else value for key, value in values.items()})
    return target.getvalue()


def as_text(value: str) -> str:
    """Text that no spreadsheet runs as a formula (OWASP, CSV injection): a quote before = + - @, tab, carriage return
    where a cell begins, or begins for a program that separates by something else than commas. Numbers stay numbers."""
    try:
        float(value)
    except ValueError:
        return FORMULA.sub(r"\1'\2", value)
    return value


def _markdown(table: Table) -> str:
    lines = [f"## {table.title}" + (f" ({table.source})" if table.source else ""), ""]
    lines.append(_line(_plain(column.title) for column in table.columns))
    lines.append(_line("---" for _ in table.columns))
    for number, row in enumerate(table.rows):
        texts = [_plain(cell.text) for cell in row]
        lines.append(_line(f"**{t}**" if table.is_best(number, i) else t for i, t in enumerate(texts)))
    lines += ["", *(f"- {_plain(note)}" for note in table.notes), ""]
    return "\n".join(lines)


def _line(texts: Iterable[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: a name from a file makes no column, link or HTML."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*~\[\]|]|(?<!\w)_|_(?!\w))", r"\\\1", escaped)

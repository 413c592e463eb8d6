"""Tables as text for other programs: Markdown and CSV."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence

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
    keys = dict.fromkeys(key for table in tables for line in _lines(table) for key in line)
    target = io.StringIO()
    writer = csv.DictWriter(target, [*SAME_IN_ALL, *keys], restval="", lineterminator="\n")
    writer.writerow({key: as_text(key) for key in writer.fieldnames})
    for table in tables:
        for line in _lines(table):
            values: dict[str, Value] = {
                "table": table.key, "metric": comparison.metric, "samples": comparison.samples, **line,
            }  # fmt: skip
            writer.writerow({key: as_text(value) if isinstance(value, str) else value for key, value in values.items()})
    return target.getvalue()


def _lines(table: Table) -> list[Mapping[str, Value]]:
    """What the CSV has of a table: a line per row, or the table's own lines."""
    if table.long is not None:
        return list(table.long)
    return [
        {key: value for column, cell in zip(table.columns, row) for key, value in zip(column.keys, cell.values)}
        for row in table.rows
    ]


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
    for level, texts in enumerate(_headings(table)):
        lines.append(_line(map(_plain, texts)))
        if level == 0:  # Markdown knows one row of headings; further ones are the table's first rows
            lines.append(_line("---" for _ in table.columns))
    for number, row in enumerate(table.rows):
        texts = [_plain(cell.text) for cell in row]
        lines.append(_line(f"**{t}**" if table.is_best(number, i) else t for i, t in enumerate(texts)))
    lines += ["", *(f"- {_plain(note)}" for note in table.notes), ""]
    return "\n".join(lines)


def _headings(table: Table) -> list[list[str]]:
    """Rows of headings; one that spans several columns stands over the first."""
    found = []
    for level in range(table.levels):
        before: tuple[str, ...] = ()
        texts = []
        for column in table.columns:
            over = column.over[: level + 1]
            texts.append(over[-1] if over and over != before else "")
            before = over
        found.append(texts)
    return [*found, [column.title for column in table.columns]]


def _line(texts: Iterable[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: a name from a file makes no column, link or HTML."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*~\[\]|]|(?<!\w)_|_(?!\w))", r"\\\1", escaped)

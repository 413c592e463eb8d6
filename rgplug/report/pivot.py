"""A table with rows and columns by any key of a run, and cells of any of its values."""

from __future__ import annotations

from dataclasses import dataclass

from rgplug.report.cells import Table
from rgplug.report.comparison import Comparison


@dataclass(frozen=True)
class Wanted:
    """What a table is to have: keys of rows, keys of columns, and what is in its cells."""

    rows: tuple[str, ...] = ("method",)
    columns: tuple[str, ...] = ()
    cells: tuple[str, ...] = ("best",)


def pivot_table(c: Comparison, wanted: Wanted) -> Table:
    raise NotImplementedError

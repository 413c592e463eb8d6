"""Cells, columns and tables, and how numbers are written in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from rgplug.report.comparison import Spread

UNKNOWN = "–"
Value = str | float | int | None


@dataclass(frozen=True)
class Cell:
    """`text` as people read it; `values` for the CSV, one per key of the column."""

    text: str
    values: tuple[Value, ...]
    rank: float | None = None  # what the best cell of a column is found by
    shown: str = ""  # the rank as it is written: cells that read alike are equally good


@dataclass(frozen=True)
class Column:
    title: str
    keys: tuple[str, ...]  # columns of the CSV
    best: Callable[[Iterable[float]], float] | None = None  # min or max, where one value is better than another
    over: tuple[str, ...] = ()  # headings above the title, from the top; equal ones side by side are one


@dataclass(frozen=True)
class Table:
    """Rows of cells, one per column; `source` says whose form it has, `notes` what it cannot say itself."""

    key: str
    title: str
    source: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    heads: int = 1  # first columns that say what a row is
    long: tuple[Mapping[str, Value], ...] | None = None  # lines of the CSV, where they are not the rows

    @property
    def levels(self) -> int:
        """Rows of headings above the titles."""
        return max(len(column.over) for column in self.columns)

    def is_best(self, row: int, column: int) -> bool:
        """Whether a cell holds the best value of its column; never where all values of the column read alike."""
        choose = self.columns[column].best
        ranked = [r[column] for r in self.rows if r[column].rank is not None]
        if choose is None or len({cell.shown for cell in ranked}) < 2 or self.rows[row][column].rank is None:
            return False
        best = choose(cell.rank for cell in ranked if cell.rank is not None)
        return self.rows[row][column].shown in {cell.shown for cell in ranked if cell.rank == best}


def metric_title(metric: str) -> str:
    """A metric under its own name; FID is what is called `fid`, and nothing else."""
    return "FID" if metric == "fid" else metric


def metric_text(value: float) -> str:
    """43.2 -> 43.20, 0.01234 -> 0.0123."""
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.4f}"


def power(value: float) -> str:
    """1.06e17, without a sign or zeros in the exponent; 0 stays 0."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def three_digits(value: float) -> str:
    """Three significant digits, zeros at the end included, but no fewer than stand before the point.

    11.04 -> 11.0, 0.2 -> 0.200, 1234 -> 1234; 0 stays 0.
    """
    if value == 0 or abs(value) >= 99.5:
        return f"{value:.0f}"
    return f"{value:#.3g}"


def millions(value: float) -> str:
    """40000000 -> 40.00, 320 -> 0.000320."""
    return f"{value / 1e6:.2f}" if value >= 1e6 else three_digits(value / 1e6)


def thousands(value: float) -> str:
    """360000 -> 360, 1234 -> 1.23, 200 -> 0.200."""
    return f"{value / 1e3:.0f}" if value >= 1e5 else three_digits(value / 1e3)


def duration(value: float) -> str:
    """Seconds: 36000 -> 36000, 12.34 -> 12.3, 5 -> 5.00."""
    return f"{value:.0f}" if value >= 100 else three_digits(value)


def count(value: float) -> str:
    """Parameters: 4321000 -> 4.32M, 44000 -> 44.0k, 85 -> 85."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{three_digits(value / size)}{unit}"
    return f"{value:.0f}"


def text_cell(value: str) -> Cell:
    """A cell without a number."""
    return Cell(value, (value,))


def metric_cell(s: Spread | None) -> Cell:
    """Mean ± standard deviation; where no seed has a value, the word for that."""
    if s is None:
        return Cell("diverged", (None, None))
    shown = metric_text(s.mean)
    digits = len(shown.partition(".")[2])
    return Cell(shown if s.sd is None else f"{shown} ± {s.sd:.{digits}f}", (s.mean, s.sd), s.mean, shown)


def spread_cell(s: Spread | None, write: Callable[[float], str], of: int) -> Cell:
    """A mean; with the number of seeds where fewer than `of` have a value."""
    if s is None:
        return Cell(UNKNOWN, (None,))
    shown = write(s.mean)
    return Cell(shown if s.n >= of else f"{shown} ({s.n} of {of} seeds)", (s.mean,), s.mean, shown)


def seed_cell(runs: int, diverged: int) -> Cell:
    """How many runs there were, and how many of them have no value."""
    return Cell(f"{runs - diverged} of {runs}, {diverged} diverged" if diverged else str(runs), (runs, diverged))

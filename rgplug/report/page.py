"""`rgplug report`: one HTML page that opens anywhere, and its tables as CSV and Markdown."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from rgplug.baselines.records import records_of
from rgplug.baselines.results import RESULT, RESULTS
from rgplug.errors import RgplugError
from rgplug.history import HISTORY
from rgplug.report.cells import Table, metric_text, metric_title
from rgplug.report.comparison import Comparison, Run
from rgplug.report.drawings import Drawing, Sweep, drawings_of, run_drawings, write_figures
from rgplug.report.markup import Section, details, document, embedded, figure, gallery, listing, paragraph, table
from rgplug.report.pictures import beneath, picture_of
from rgplug.report.pivot import Wanted, pivot_table
from rgplug.report.results import SAMPLES, read_all
from rgplug.report.sources import is_within
from rgplug.report.tables import tables_of
from rgplug.report.texts import csv_text, markdown
from rgplug.run_setup import SETUP, Setup
from rgplug.sealed import write_all
from rgplug.sheet import SHEET, evaluated

BESIDE = ("table.csv", "table.md")
CHANGED = "does not belong to the result of its run, which is shown; the history is left out"


def write_report(
    runs: Path | Sequence[Path],
    out: Path | None = None,
    wanted: Wanted | None = None,
    figures: Path | None = None,
    swept: Sweep | None = None,
) -> Path:
    """Write the page of a comparison to RUNS/report.html, or `out`, and table.csv and table.md beside it.

    runs: a folder with results.jsonl, or that of a single run (history.jsonl), whose page has its figures and no
    tables; or one below which there are several, or several of any kind, which are reported together: for these
    `out` has to be given. wanted: a table by rows, columns and cells of the caller's choice, before the others.
    figures: a folder in which every figure is written as files of its own, too. swept: the key that the metric is drawn
    over, and the one that lines are by; None: those of the grid.
    Returns the page's path. Raises RgplugError for a folder without runs, runs that do not compare, corrupt files, and
    without matplotlib. All files are written whole or not at all; a link in their place is replaced, not followed.
    """
    folders = [Path(runs)] if isinstance(runs, str | Path) else [Path(folder) for folder in runs]
    folders = list(dict.fromkeys(folders))
    target = _target(folders, out)
    (first, *others) = folders
    drawings: list[Drawing] = []
    if (
        not others
        and wanted is None
        and swept is None
        and not (first / RESULTS).is_file()
        and is_within(first / HISTORY, first)
    ):
        files = {target.name: _single_page(first)}
        of_runs = [(first.resolve().name, _of_single(first))]
    else:
        comparison = read_all(folders)
        tables = tables_of(comparison)
        if wanted is not None:
            tables.insert(0, pivot_table(comparison, wanted))
        drawings = drawings_of(comparison, swept)
        files = {target.name: _comparison_page(comparison, tables, drawings)}
        files |= zip(BESIDE, (csv_text(comparison, tables), markdown(tables)))
        of_runs = [(run.label, run_drawings(run.lines, run.setup, run.label)) for run in comparison.runs if run.lines]
    try:
        write_all({target.parent / name: text for name, text in files.items()})
    except RgplugError as error:
        raise RgplugError(f"cannot write into {target.parent}: {error}; give another place to write to") from None
    if figures is not None:
        write_figures(Path(figures), drawings, of_runs)
    return target


def _target(folders: Sequence[Path], out: Path | None) -> Path:
    """Where the page goes. Raises RgplugError for a place that is taken, and for none where it cannot be guessed."""
    if not folders:
        raise RgplugError("there is no folder to report; give at least one")
    if out is None and len(folders) > 1:
        raise RgplugError(f"{len(folders)} folders are reported together; say with --out PAGE where the page goes")
    target = Path(out) if out is not None else folders[0] / "report.html"
    if target.is_dir():
        raise RgplugError(f"{target} is a folder; give the name of the page to write, such as {target / 'report.html'}")
    if target.name in (RESULTS, RESULT, HISTORY, SETUP, *BESIDE):
        raise RgplugError(f"{target} is the name of another file of a report or a run; give another name for the page")
    return target


def _comparison_page(c: Comparison, tables: list[Table], drawings: Sequence[Drawing]) -> str:
    name = metric_title(c.metric)
    seeds = sorted({run.seed for run in c.runs})
    samples = "" if c.samples is None else f" on {c.samples:,} generated images"
    summary = (
        f"{_counted(len(c.methods), 'method')}, {_counted(len(c.runs), 'run')}, "
        f"{_counted(len(seeds), 'seed')} ({', '.join(map(str, seeds))}). Metric: {name}{samples}, "
        f"{'higher' if c.higher_is_better else 'lower'} is better."
    )
    sections = [
        Section("how", "How to read this", listing([*c.notes, *_on_changed(c), *_notes(c, name)])),
        *(Section(t.key, t.title, table(t)) for t in tables),
        Section("curves", "Figures", _shown(drawings)),
        Section("samples", "Samples", _samples(c)),
        Section(
            "runs",
            "Single runs",
            "".join(_run_details(c, run) for run in c.runs),
        ),
    ]
    return document(f"Comparison: {c.title}", summary, sections)


def _on_changed(c: Comparison) -> list[str]:
    names = ", ".join(f"{run.method} seed {run.seed}" for run in c.runs if run.is_changed)
    return [f"Damaged: {HISTORY} of {names} {CHANGED}."] if names else []


def _single_page(folder: Path) -> str:
    lines = records_of(folder)
    name = folder.resolve().name
    sections = [Section("training", "Training", _shown(_of_single(folder)))]
    images = []
    for file in (SHEET, SAMPLES):
        png = embedded(folder / file, folder)
        of = evaluated(folder / file) if png is not None and file == SHEET else None
        if png is not None and (of is not None or file == SAMPLES):
            words = "last grid" if of is None else f"{of.metric or 'metric'} {metric_text(of.value)}, epoch {of.epoch}"
            images.append((png, f"Samples of {name}", words))
    if images:
        sections.append(Section("samples", "Samples", gallery(images)))
    return document(f"Run: {name}", f"{_counted(len(lines), 'evaluation')}.", sections)


def _of_single(folder: Path) -> list[Drawing]:
    lines = records_of(folder)
    if not lines:
        raise RgplugError(f"{folder / HISTORY} holds no evaluation yet; report when there is one")
    setup = Setup.read(folder) if is_within(folder / SETUP, folder) else None
    return run_drawings(lines, setup, folder.resolve().name)


def _notes(c: Comparison, name: str) -> list[str]:
    """What every reader has to know; what concerns one table is below it."""
    return [
        f"A value is called by its own name, {name}: it compares only with values of the same name, the same number of "
        "generated images and the same real images.",
        "Values are means over seeds ± the standard deviation (n − 1 in the denominator; one seed has none). In bold: "
        "the best value of a column, as far as it differs in the digits shown.",
        "Density is the share of the managed weights that is kept, sparsity the share that is zero; both are taken at "
        "the evaluation that gave the best value.",
        "FLOPs are theoretical: 2 × MAC × density, layer by layer, as a machine would need that skips zeros. Masks "
        "alone make nothing faster and nothing smaller.",
        "What a method needs to have been trained before is charged to it: the dense training of both networks to "
        "prune-and-fine-tune, all earlier rounds of both networks to tickets.",
        "A run whose metric was never finite is counted as diverged and has no part in the means of values. A "
        "dash stands for what is not known.",
    ]


def _samples(c: Comparison) -> str:
    images = []
    for run in c.runs:
        picture = picture_of(run)
        if picture is not None:
            said = f"{beneath(c, run)}, {picture.words}".replace("\n", ", ") if picture.of_best else picture.words
            images.append((picture.png, f"Grid of samples of {run.label}", f"{run.label}: {said}"))
    if not images:
        return paragraph("No run left a grid of samples.")
    return gallery(images)


def _run_details(c: Comparison, run: Run) -> str:
    found = run.result
    if found.best is None:
        result = "diverged"
    else:
        where = f" (epoch {found.best_epoch})" if found.best_epoch is not None else ""
        result = f"best {metric_title(c.metric)} {metric_text(found.best)}{where}"
    if run.is_changed:
        return details(
            f"{run.label}: {result} (its history is damaged)", paragraph(f"{found.run}/{HISTORY} {CHANGED}.")
        )
    if not run.lines:
        return details(f"{run.label}: {result}", paragraph("This run left no history."))
    body = _shown(run_drawings(run.lines, run.setup, run.label))
    return details(f"{run.label}: {result}", body)


def _shown(drawings: Sequence[Drawing]) -> str:
    """Wide figures below each other, and the others in pairs."""
    parts = [(d.wide, figure(_drawn(d), d.alt, d.caption, wide=d.wide)) for d in drawings]
    blocks = [(wide, "".join(body for _, body in own)) for wide, own in itertools.groupby(parts, lambda p: p[0])]
    return "".join(body if wide else f'<div class="pair">{body}</div>' for wide, body in blocks)


def _drawn(drawing: Drawing) -> bytes:
    return drawing.png()


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"

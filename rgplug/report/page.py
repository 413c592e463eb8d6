"""`rgplug report`: one HTML page that opens anywhere, and its tables as CSV and Markdown."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from rgplug.baselines.records import records_of
from rgplug.baselines.results import RESULT, RESULTS, Result
from rgplug.errors import RgplugError
from rgplug.history import HISTORY, Line
from rgplug.report.cells import Table, metric_text, metric_title
from rgplug.report.comparison import Comparison, Run
from rgplug.report.figures import training_figure
from rgplug.report.markup import Section, details, document, embedded, figure, gallery, listing, paragraph, table
from rgplug.report.panels import Points, metric_curves, trade_off
from rgplug.report.pivot import Wanted, pivot_table
from rgplug.report.results import SAMPLES, read_all
from rgplug.report.sources import is_within
from rgplug.report.tables import tables_of
from rgplug.report.texts import csv_text, markdown
from rgplug.run_setup import SETUP
from rgplug.sealed import write_all

BESIDE = ("table.csv", "table.md")
CHANGED = "does not belong to the result of its run, which is shown; the history is left out"


def write_report(runs: Path | Sequence[Path], out: Path | None = None, wanted: Wanted | None = None) -> Path:
    """Write the page of a comparison to RUNS/report.html, or `out`, and table.csv and table.md beside it.

    runs: a folder with results.jsonl, or that of a single run (history.jsonl), whose page has its figures and no
    tables; or one below which there are several, or several of any kind, which are reported together: for these
    `out` has to be given. wanted: a table by rows, columns and cells of the caller's choice, before the others.
    Returns the page's path. Raises RgplugError for a folder without runs, runs that do not compare, corrupt files, and
    without matplotlib. All files are written whole or not at all; a link in their place is replaced, not followed.
    """
    folders = [Path(runs)] if isinstance(runs, str | Path) else [Path(folder) for folder in runs]
    folders = list(dict.fromkeys(folders))
    target = _target(folders, out)
    (first, *others) = folders
    if not others and wanted is None and not (first / RESULTS).is_file() and is_within(first / HISTORY, first):
        files = {target.name: _single_page(first)}
    else:
        comparison = read_all(folders)
        tables = tables_of(comparison)
        if wanted is not None:
            tables.insert(0, pivot_table(comparison, wanted))
        files = {target.name: _comparison_page(comparison, tables)}
        files |= zip(BESIDE, (csv_text(comparison, tables), markdown(tables)))
    try:
        write_all({target.parent / name: text for name, text in files.items()})
    except RgplugError as error:
        raise RgplugError(f"cannot write into {target.parent}: {error}; give another place to write to") from None
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


def _comparison_page(c: Comparison, tables: list[Table]) -> str:
    name = metric_title(c.metric)
    seeds = sorted({run.seed for run in c.runs})
    samples = "" if c.samples is None else f" on {c.samples:,} generated images"
    summary = (
        f"{_counted(len(c.methods), 'method')}, {_counted(len(c.runs), 'run')}, "
        f"{_counted(len(seeds), 'seed')} ({', '.join(map(str, seeds))}). Metric: {name}{samples}, "
        f"{'higher' if c.higher_is_better else 'lower'} is better."
    )
    curves = {m.name: [list(run.lines) for run in m.runs] for m in c.methods}
    drawn = [figure(
        _drawn(lambda path: metric_curves(curves, path, metric=name, higher_is_better=c.higher_is_better)),
        f"{name} against epochs. {_best_values(c)}",
        f"{name} against epochs: every run thin, the mean of a method thick, where all its runs have a value.",
        wide=True,
    )]  # fmt: skip
    drawn.append(_trade_offs(c, name))
    sections = [
        Section("how", "How to read this", listing([*c.notes, *_on_changed(c), *_notes(c, name)])),
        *(Section(t.key, t.title, table(t)) for t in tables),
        Section("curves", "Figures", "".join(drawn)),
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
    if not lines:
        raise RgplugError(f"{folder / HISTORY} holds no evaluation yet; report when there is one")
    name = folder.resolve().name
    sections = [Section("training", "Training", _training(lines, name))]
    samples = embedded(folder / SAMPLES, folder)
    if samples is not None:
        sections.append(Section("samples", "Samples", gallery([(samples, f"Samples of {name}", "last grid")])))
    return document(f"Run: {name}", f"{_counted(len(lines), 'evaluation')}.", sections)


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


def _trade_offs(c: Comparison, name: str) -> str:
    """Metric against density of G, and against the training FLOPs of table 1."""

    def points(x: Callable[[Result], float | None]) -> list[Points]:
        found = []
        for m in c.methods:
            pairs = [(a, run.best) for run in m.results if (a := x(run)) is not None and run.best is not None]
            if pairs:
                found.append(Points(m.name, *zip(*pairs)))
        return found

    def panel(x: Callable[[Result], float | None], label: str, more: str = "", share: bool = False) -> str:
        found = points(x)
        if not found:
            return ""
        return figure(
            _drawn(lambda path: trade_off(found, path, x_label=label, y_label=name, share=share)),
            f"{name} against {label}: " + ", ".join(p.name for p in found),
            f"{name} against {label}{more}: a small point per seed, a large one for the mean.",
        )

    density = panel(lambda run: run.density.get("G"), "density of G at the best value", share=True)
    flops = panel(
        lambda run: run.flops_to_best, "training FLOPs until the best value", ", with what was trained before"
    )
    return f'<div class="pair">{density}{flops}</div>'


def _samples(c: Comparison) -> str:
    images = []
    for run in c.runs:
        data = embedded(run.folder / SAMPLES, run.root)
        if data is not None:
            images.append((data, f"Grid of samples of {run.label}", run.label))
    if not images:
        return paragraph("No run left a grid of samples.")
    return paragraph("The last grid that each run left, not necessarily that of its best value.") + gallery(images)


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
    body = _training(list(run.lines), run.label) if run.lines else paragraph("This run left no history.")
    return details(f"{run.label}: {result}", body)


def _training(lines: list[Line], name: str) -> str:
    return figure(
        _drawn(lambda path: training_figure(lines, path)),
        f"Metric, densities, densities of every layer, and weights regenerated, restored and pruned, by epoch, of "
        f"{name}",
        f"{name}: metric (dense phases shaded), density of the networks and of their layers, weights regenerated "
        "(by the rule), restored (all at once, for a dense phase) and pruned.",
        wide=True,
    )


def _best_values(c: Comparison) -> str:
    """The curves' message in words, for who cannot see them."""
    best = ((m.name, m.over_seeds(lambda run: run.best)) for m in c.methods)
    return "Best values: " + ", ".join(f"{n} {metric_text(s.mean) if s else 'diverged'}" for n, s in best) + "."


def _drawn(draw: Callable[[Path], object]) -> bytes:
    """What `draw(path)` writes as PNG."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.png"
        try:
            draw(path)
            return path.read_bytes()
        except ImportError as error:
            raise RgplugError(str(error)) from None
        except OSError as error:
            raise RgplugError(f"no figure can be written into {folder}: {error.strerror}; make room there") from None


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"

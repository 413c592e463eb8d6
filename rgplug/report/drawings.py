"""The figures of a report: what each shows, for the page and for files of their own."""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rgplug import files
from rgplug.baselines.results import Result
from rgplug.errors import RgplugError
from rgplug.history import Line
from rgplug.report.cells import metric_text, metric_title
from rgplug.report.comparison import DENSE, Comparison, Run
from rgplug.report.figure_ablation import BARS, ablation_figure
from rgplug.report.figure_curves import EPOCHS, FLOPS, IMAGES, SECONDS, Against, Curve, curve, curves_figure
from rgplug.report.figure_layers import layer_events, layers_figure, titles_of
from rgplug.report.figure_sheets import sheets_figure
from rgplug.report.figure_sweep import FEWEST, Swept, sweep, sweep_figure, value_text
from rgplug.report.figures import training_figure
from rgplug.report.panels import Points, trade_off
from rgplug.report.pictures import best_sheets
from rgplug.report.run_keys import EVERY, OFF, check_keys, value_of
from rgplug.run_setup import Setup

FORMATS = (".png", ".pdf")
Sweep = tuple[str, str | None]  # the key that is swept, and the one that lines are by


@dataclass(frozen=True)
class Drawing:
    """One figure. draw(path) writes it; the path's suffix says as what."""

    name: str  # of its file
    caption: str
    alt: str  # what it says, for who cannot see it
    draw: Callable[[Path], object]
    wide: bool = False
    _made: dict[str, bytes] = field(default_factory=dict, repr=False, compare=False)  # by suffix

    def png(self) -> bytes:
        """The figure as PNG. Raises RgplugError without matplotlib, and where there is no room."""
        return self._written(".png")

    def write(self, folder: Path) -> list[Path]:
        """Write it as a file of each of FORMATS, whole or not at all. Returns the paths."""
        contents = {folder / f"{self.name}{suffix}": self._written(suffix) for suffix in FORMATS}
        try:
            files.write_together({path: _writer(content) for path, content in contents.items()})
        except OSError as error:
            raise RgplugError(f"cannot write into {folder}: {error.strerror}; give another folder") from None
        return list(contents)

    def _written(self, suffix: str) -> bytes:
        if suffix in self._made:  # the page and a file of its own show the same picture
            return self._made[suffix]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"figure{suffix}"
            try:
                self.draw(path)
                self._made[suffix] = path.read_bytes()
                return self._made[suffix]
            except ImportError as error:
                raise RgplugError(str(error)) from None
            except OSError as error:
                raise RgplugError(
                    f"no figure can be written into {folder}: {error.strerror}; make room there"
                ) from None


def drawings_of(c: Comparison, swept: Sweep | None = None) -> list[Drawing]:
    """The figures that compare methods, as far as the runs can fill them.

    swept: a key to draw the metric over; None: the grid's own keys, where the runs come from a grid. Raises RgplugError
    for a key that no run has.
    """
    found = [*_metric_curves(c), *_trade_offs(c), *_ablations(c)]
    if swept is not None:
        found.append(_sweep(c, swept))
    elif (keys := grid_keys(c)) is not None:
        found.append(_sweep(c, keys))
    found += _ever_active(c)
    if sheets := best_sheets(c):
        name = metric_title(c.metric)
        found.append(
            Drawing(
                "samples",
                f"Samples of the best evaluation of each method, with its {name}, the training FLOPs until then and "
                "the FLOPs of one image.",
                "Samples of " + "; ".join(f"{s.name}: {s.beneath}".replace("\n", ", ") for s in sheets),
                lambda path: sheets_figure(sheets, path),
                wide=True,
            )
        )
    return found


def run_drawings(lines: Sequence[Line], setup: Setup | None, name: str) -> list[Drawing]:
    """The figures of one run: its training, and what its layers pruned and got back. lines: at least one."""
    drawn = [
        Drawing(
            "training",
            f"{name}: metric (dense phases shaded), density of the networks and of their layers, weights regenerated "
            "(by the rule), restored (all at once, for a dense phase) and pruned.",
            "Metric, densities, densities of every layer, and weights regenerated, restored and pruned, by epoch, of "
            f"{name}",
            lambda path: training_figure(lines, path),
            wide=True,
        )
    ]
    sizes = {label: None if setup is None or label not in setup.networks else setup.networks[label].weights
             for label in ("G", "D")}  # fmt: skip
    events = [e for label in ("G", "D") if (e := layer_events(lines, label, sizes[label])) is not None]
    if any((e.counts > 0).any() for e in events):
        method = "rg-gan" if setup is None else str(setup.policy.get("method", "rg-gan"))
        titles = ", ".join(titles_of(method, events))
        drawn.append(
            Drawing(
                "layers",
                f"{name}: what happened to the weights of each layer between two evaluations ({titles}), in events per "
                "weight of the layer (white: none, grey: not known; evaluations trained dense have a yellow bar "
                "above).",
                f"Weights by layer and epoch, of {name}: {titles}",
                lambda path: layers_figure(events, path, method),
                wide=True,
            )
        )
    return drawn


def write_figures(
    folder: Path, drawings: Iterable[Drawing], runs: Iterable[tuple[str, Sequence[Drawing]]]
) -> list[Path]:
    """Each figure as files of its own, those of single runs in FOLDER/runs. Returns the paths."""
    written = [path for drawing in drawings for path in drawing.write(folder)]
    for name, own in runs:
        for drawing in own:
            named = Drawing(f"{_file_name(name)}-{drawing.name}", drawing.caption, drawing.alt, drawing.draw)
            written += named.write(folder / "runs")
    return written


def grid_keys(c: Comparison) -> Sweep | None:
    """The first two keys that the runs' names carry: stu-gan@density.G=0.1@density.D=0.3."""
    parts = [part.partition("=")[0] for run in c.runs for part in run.method.split("@")[1:] if "=" in part]
    keys = list(dict.fromkeys(parts))
    values = {k: {run.keys.get(k) for run in c.runs if run.keys.get(k) is not None} for k in keys}
    keys = [k for k in keys if len(values[k]) > 1]
    return None if not keys else (keys[0], keys[1] if len(keys) > 1 else None)


def _metric_curves(c: Comparison) -> Iterator[Drawing]:
    name, towards = metric_title(c.metric), "higher" if c.higher_is_better else "lower"
    more = ", with what was trained before; an evaluation's mean lies at its mean cost"
    for against, words in ((EPOCHS, ""), (IMAGES, more), (FLOPS, more), (SECONDS, more)):
        curves = {m.name: [_curve(run, against) for run in m.runs] for m in c.methods}
        places = [{x for x, _ in found.values()} for own in curves.values() for found in own]
        if against is not EPOCHS and not any(len(xs) > 1 for xs in places):  # not known: of earlier versions
            continue
        over = "epochs" if against is EPOCHS else against.label
        yield Drawing(
            f"metric-over-{against.key.replace('_', '-')}",
            f"{name} against {over}{words}: every run thin, the mean of a method thick, where all its runs have a "
            "value.",
            f"{name} against {over}. {_best_values(c)}",
            _draw_curves(c, curves, against.label, f"{name} ({towards} is better)", wide=against is EPOCHS),
            wide=against is EPOCHS,
        )


def _draw_curves(
    c: Comparison, curves: dict[str, list[Curve]], x_label: str, y_label: str, share: bool = False, wide: bool = False
) -> Callable[[Path], object]:
    keys: dict[str, Any] = {"x_label": x_label, "y_label": y_label, "share": share, "width": 7.2 if wide else 4.9}
    return lambda path: curves_figure(curves, path, order=_order(c), **keys)


def _order(c: Comparison) -> list[str]:
    return [m.name for m in c.methods]


def _curve(run: Run, against: Against) -> Curve:
    """That of a run, after what was trained before it; none where that is not known."""
    r = run.result
    before = {"epoch": 0.0, "seconds": r.seconds_before, **r.before}.get(against.key)
    if against is SECONDS and before is None and not r.before["real_images"]:
        before = 0.0  # results of earlier versions say no seconds
    return {} if before is None else curve(run.lines, against, before)


def _trade_offs(c: Comparison) -> Iterator[Drawing]:
    """Metric against density of G, and against the training FLOPs until the best value."""
    name = metric_title(c.metric)

    def panel(key: str, x: Callable[[Result], float | None], label: str, more: str = "") -> Iterator[Drawing]:
        points = []
        for m in c.methods:
            pairs = [(a, run.best) for run in m.results if (a := x(run)) is not None and run.best is not None]
            if pairs:
                points.append(Points(m.name, *zip(*pairs)))
        if points:
            yield Drawing(
                f"best-over-{key}",
                f"{name} against {label}{more}: a small point per seed, a large one for the mean.",
                f"{name} against {label}: " + ", ".join(p.name for p in points),
                lambda path: trade_off(
                    points, path, x_label=label, y_label=name, share=key == "density", order=_order(c)
                ),
            )

    yield from panel("density", lambda run: run.density.get("G"), "density of G at the best value")
    label = "training FLOPs until the best value"
    yield from panel("flops", lambda run: run.flops_to_best, label, ", with what was trained before")


def _ablations(c: Comparison) -> Iterator[Drawing]:
    """One figure for each set of keys under which two or more parts of RG-GAN were trained."""
    rest = dict.fromkeys(_beside(m.name, m.runs[0].base) for m in c.methods if m.runs[0].base in BARS)
    for beside in rest:
        own = [m for m in c.methods if _beside(m.name, m.runs[0].base) in (beside, "")]
        values = {m.runs[0].base: [r.best for r in m.results] for m in own if m.runs[0].base in (*BARS, "dense")}
        if len(set(values) & set(BARS)) < 2:
            continue
        name = metric_title(c.metric)
        under = f" under {beside.lstrip('@').replace('@', ', ')}" if beside else ""
        yield Drawing(
            f"ablation{_file_name(beside)}",
            f"Parts of RG-GAN on G, on D and on both{under}: dynamic pruning (DP), recurrent (RR) and augmented "
            f"regeneration (AR). Bars: mean {name} of the best values; points: seeds; whiskers: 95 % t-interval of the "
            "mean, cut at the edge.",
            f"{name} of parts of RG-GAN{under}: "
            + ", ".join(f"{m.name} {_mean_text([r.best for r in m.results])}" for m in own),
            _draw_ablation(values, name),
        )


def _draw_ablation(values: dict[str, list[float | None]], name: str) -> Callable[[Path], object]:
    return lambda path: ablation_figure(values, path, y_label=name)


def _beside(name: str, base: str) -> str:
    """What a row's name says besides its method."""
    return name.removeprefix(base)


def _sweep(c: Comparison, swept: Sweep) -> Drawing:
    key, by = swept
    wanted = [k for k in swept if k is not None]
    check_keys(c, wanted)
    runs = []
    for m in c.methods:
        for run in m.runs:
            values = {k: value_of(c, m, run, k) for k in wanted}
            unsaid = {
                k for k, v in values.items() if v is EVERY or v == OFF or (run.base == DENSE and k not in run.keys)
            }
            known = {k: None if k in unsaid else v for k, v in values.items()}
            runs.append(Swept(run.base, {**run.keys, **known}, run.result.best))
    found = sweep(runs, key, by)
    if not found.lines:
        raise RgplugError(
            f"no run of this report says {key}, so nothing can be drawn over it; give --sweep another key"
        )
    name = metric_title(c.metric)
    lines = "; ".join(
        f"{line.name}: " + ", ".join(f"{value_text(x)} {metric_text(i.mean)}" for x, i in zip(line.at, line.intervals))
        for line in found.lines
    )
    return Drawing(
        f"sweep-{_file_name(key)}" + (f"-by-{_file_name(by)}" if by else ""),
        f"{name} over {key}" + (f", by {by}" if by else "") + ": a point per seed, the mean as a line, its 95 % "
        f"t-interval as a band ({FEWEST} seeds or more)"
        + ("; rings mark equal density of G and D." if any(line.balanced for line in found.lines) else "."),
        f"{name} over {key}. {lines}",
        lambda path: sweep_figure(found, path, y_label=name),
    )


def _ever_active(c: Comparison) -> Iterator[Drawing]:
    """In-time over-parametrization: the share of weights that were active at least once (STU-GAN)."""
    for network in ("G", "D"):
        ever = functools.partial(_of_network, "ever_active", network)
        curves: dict[str, list[Curve]] = {m.name: [curve(r.lines, value=ever) for r in m.runs] for m in c.methods}
        curves = {name: own for name, own in curves.items() if any(own)}
        always = [name for name, own in curves.items() if not any(y < 1 for found in own for _, y in found.values())]
        curves = {name: own for name, own in curves.items() if name not in always}
        if curves:
            yield Drawing(
                f"ever-active-{network}",
                f"Share of the managed weights of {network} that were active at least once, over the epochs (in-time "
                "over-parametrization)."
                + (f" All of them from the beginning on: {', '.join(always)}." if always else ""),
                f"Share of weights of {network} ever active: " + ", ".join(curves),
                _draw_curves(c, curves, EPOCHS.label, f"ever active, {network}", share=True),
            )


def _of_network(field: str, network: str, line: Line) -> float | None:
    found: float | None = (line.get(field) or {}).get(network)
    return found


def _best_values(c: Comparison) -> str:
    """The curves' message in words, for who cannot see them."""
    return "Best values: " + ", ".join(f"{m.name} {_mean_text([r.best for r in m.results])}" for m in c.methods) + "."


def _mean_text(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    return metric_text(sum(known) / len(known)) if known else "diverged"


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._@=+-]+", "-", text).strip("-")


def _writer(content: bytes) -> Callable[[Path], object]:
    return lambda partial: partial.write_bytes(content)

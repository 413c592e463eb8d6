"""Figures of a training run, drawn from its history.jsonl.

matplotlib is not needed for training and comes with `pip install rgplug[demo]`; it is imported when a figure is asked
for. Nothing here opens a window, and no setting of the caller's matplotlib is touched.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rgplug.history import Line, read_history
from rgplug.sheet import tiled

__all__ = ["image_grid", "training_figure"]

BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#aa4499"  # Okabe & Ito 2008; Tol: colour-blind safe
GREY, SHADE, INK = "#8a8f98", "#f6e3b4", "#22252a"
NETWORK_COLOURS = {"G": BLUE, "D": ORANGE}
LEGEND = {"handlelength": 1.5, "columnspacing": 1.4, "handletextpad": 0.5}  # one row, beside the panel's title
MOST_LABELS = 24  # rows of a heat map that can carry their layer's name


def training_figure(
    history: str | os.PathLike[str] | Iterable[Mapping[str, Any]],  # history.jsonl, or its lines
    path: str | os.PathLike[str],  # what to write; the suffix decides: .png, .pdf, .svg
    *,
    title: str | None = None,  # written above the figure
) -> Path:
    """Draw one run: its metric, density of the networks and of every layer, and what was pruned and regenerated.

    Metric and densities of an epoch are of the networks as they were measured, and so is its shading: dense ones are
    shaded. All panels share the epochs as their horizontal axis. Returns the path.
    Raises ValueError if the history holds no epoch, ImportError if matplotlib is not installed.
    """
    lines = read_history(history)
    if not lines:
        raise ValueError("The history holds no epoch yet: there is nothing to draw.")
    networks = [n for n in ("G", "D") if any(n in _of(line, "density") for line in lines)] or ["G"]

    maps = [n for n in networks if _layer_names(lines, n)]
    heights = [2.1, 1.2, *(_map_height(len(_layer_names(lines, n))) for n in maps), 1.3]
    target = Path(path)
    with _figure(heights, title) as figure:
        quality, density, *layers, counts = figure.axes
        _draw_metric(quality, lines)
        _draw_density(density, lines, networks)
        images = [_draw_layers(axis, lines, network) for axis, network in zip(layers, maps)]
        if images:
            bar = figure.colorbar(images[0], ax=layers, aspect=30, pad=0.02, fraction=0.03)
            bar.set_label("density of the layer")
            bar.outline.set_visible(False)
        _draw_counts(counts, lines, networks)
        _finish_axes([quality, density, *layers, counts], lines)
        target.parent.mkdir(parents=True, exist_ok=True)
        save(figure, target)
    return target


def image_grid(images: np.ndarray, path: str | os.PathLike[str], columns: int = 8, gap: int = 2) -> Path:
    """Write images (uint8 [N, H, W, 3]) as one PNG, row by row, `gap` white pixels apart. Returns the path."""
    canvas = tiled(images, columns, gap)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(canvas).save(target)
    return target


@contextmanager
def blank_figure(width: float, height: float, title: str | None = None) -> Iterator[Any]:
    """An empty figure (inches) in this module's style; the style holds inside the with block.

    It is made without pyplot: no window, no backend is chosen, and the caller's settings come back afterwards.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("Figures need matplotlib: pip install rgplug[demo]") from None
    style: dict[Any, Any] = {
        "font.family": "DejaVu Sans", "font.size": 8, "axes.titlesize": 8.5, "axes.labelsize": 8,
        "legend.fontsize": 7.5, "xtick.labelsize": 7.5, "ytick.labelsize": 7.5, "axes.edgecolor": GREY,
        "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK, "axes.linewidth": 0.7,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": False, "legend.frameon": False,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), dpi=160, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        if title:
            figure.suptitle(title, fontsize=10, fontweight="bold", color=INK)
        yield figure


def few_labels(axis: Any) -> None:
    """On a logarithmic x axis, between powers of ten only 2 and 5 are named: all names would overlap."""

    def name(value: float, _: object) -> str:
        digit, power = f"{value:.0e}".split("e")
        return rf"${digit}\times10^{{{int(power)}}}$" if digit in ("2", "5") else ""

    axis.xaxis.set_minor_formatter(name)


def legend_below(figure: Any, axis: Any, most: int = 4) -> None:
    """The legend of a panel below it, in as many columns as its names have room for; the figure grows by its rows."""
    handles, names = axis.get_legend_handles_labels()
    if not handles:
        return
    width, height = figure.get_size_inches()
    each = 0.55 + 0.068 * max(map(len, names))  # inches of a column
    columns = max(1, min(most, len(names), int((width - 0.2) / each)))
    rows = -(-len(names) // columns)
    figure.set_size_inches(width, height + 0.16 * max(rows - 2, 0))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, handlelength=2.4)


def save(figure: Any, path: Path) -> None:
    """Write a figure; the same figure makes the same bytes."""
    figure.savefig(path, metadata={"CreationDate": None} if path.suffix == ".pdf" else None)


@contextmanager
def _figure(heights: list[float], title: str | None) -> Iterator[Any]:
    """A figure with one panel per height (inches) below each other."""
    with blank_figure(7.2, sum(heights) + 0.9, title) as figure:
        figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
        yield figure


def wants_log(values: np.ndarray) -> bool:
    """Whether an axis should be logarithmic: a first value far above the rest must not flatten what follows."""
    known = values[~np.isnan(values)]
    return bool(known.size and known.min() > 0 and known.max() > 8 * known.min())


def _of(line: Line, field: str) -> dict[str, Any]:
    """A field with one entry per network; {} where it is missing or null."""
    return line.get(field) or {}


def _values(lines: list[Line], field: str, network: str | None = None) -> np.ndarray:
    """One number per line, NaN where there is none: float [epochs]."""
    found = [line.get(field) if network is None else _of(line, field).get(network) for line in lines]
    return np.array([np.nan if value is None else float(value) for value in found])


def _epochs(lines: list[Line]) -> np.ndarray:
    return np.array([line["epoch"] for line in lines], dtype=float)


def _layer_names(lines: list[Line], network: str) -> list[str]:
    """Names of all layers of a network, in the order in which the history names them."""
    return list(dict.fromkeys(name for line in lines for name in _of(line, "layers").get(network, {})))


def _map_height(layers: int) -> float:
    """Inches for a heat map: enough to read the names if there are few, and never more than a quarter of a page."""
    return min(max(0.13 * layers, 0.9), 2.2)


def _draw_metric(axis: Any, lines: list[Line]) -> None:
    epochs, metric, average = _epochs(lines), _values(lines, "metric"), _values(lines, "average")
    name = next((line["metric_name"] for line in reversed(lines) if line.get("metric_name")), None)
    axis.set_title("quality", loc="left")
    higher = name is not None and (name == "is" or name.startswith("is_"))  # the inception score only
    axis.set_ylabel(f"{plain(name or 'metric')}\n({'higher' if higher else 'lower'} is better)")
    known = ~np.isnan(metric)
    if not known.any():
        axis.text(0.5, 0.5, "no metric was measured", transform=axis.transAxes, ha="center", va="center", color=GREY)
        axis.set_yticks([])
        return
    axis.plot(epochs[known], metric[known], "-o", color=BLUE, ms=3.2, lw=1.5, label="measured", zorder=3)
    if not np.isnan(average).all():
        seen = ~np.isnan(average)
        axis.plot(epochs[seen], average[seen], color=INK, lw=0.8, ls=(0, (4, 2)), label="weighted average", zorder=2)
    best = int(np.nanargmax(metric) if higher else np.nanargmin(metric))
    axis.plot(
        epochs[best], metric[best], "*", color=ORANGE, ms=11, mec="white", mew=0.6, zorder=4,
        label=f"best: {metric[best]:.4g} (epoch {epochs[best]:.0f})",
    )  # fmt: skip
    if wants_log(metric):
        axis.set_yscale("log")


def _draw_density(axis: Any, lines: list[Line], networks: list[str]) -> None:
    epochs = _epochs(lines)
    axis.set_title("density", loc="left")
    axis.set_ylabel("share kept")
    for network in networks:
        values = _values(lines, "density", network)
        seen = ~np.isnan(values)
        axis.plot(
            epochs[seen], values[seen], "-o", color=NETWORK_COLOURS[network], ms=2.8, lw=1.5, label=network, zorder=3
        )
    axis.set_ylim(0, 1.05)
    axis.set_yticks([0, 0.5, 1])


def _draw_layers(axis: Any, lines: list[Line], network: str) -> Any:
    """Heat map, layers x epochs. Returns the image, for the colour bar."""
    names = _layer_names(lines, network)
    table = np.array([[_of(line, "layers").get(network, {}).get(n, np.nan) for line in lines] for n in names], float)
    axis.set_title(f"density of the layers of {network}, input on top", loc="left")
    edges = epoch_edges(_epochs(lines))
    rows = np.arange(len(names) + 1) - 0.5
    image = axis.pcolormesh(edges, rows, np.ma.masked_invalid(table), cmap="cividis", vmin=0, vmax=1, rasterized=True)
    axis.invert_yaxis()
    if len(names) <= MOST_LABELS:
        axis.set_yticks(range(len(names)), [short_name(name) for name in names], fontsize=6)
    else:
        axis.set_yticks([0, len(names) - 1], ["1", str(len(names))])
        axis.set_ylabel("layer")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return image


def epoch_edges(epochs: np.ndarray) -> np.ndarray:
    """Where the columns of a heat map over the epochs end: [epochs] -> [epochs + 1]."""
    return np.concatenate([[epochs[0] - 0.5], (epochs[1:] + epochs[:-1]) / 2, [epochs[-1] + 0.5]])


def short_name(name: str, most: int = 26) -> str:
    """A parameter's name without what every name says; the end of it if it is long."""
    for ending in (".parametrizations.weight.original", ".weight_orig", ".weight"):
        name = name.removesuffix(ending)
    return plain(name if len(name) <= most else "…" + name[-(most - 1) :])


def plain(text: str) -> str:
    """Text from a file, kept from being read as a formula."""
    return text.replace("$", r"\$")


def _draw_counts(axis: Any, lines: list[Line], networks: list[str]) -> None:
    """Bars per epoch: regenerated one by one and, hatched, restored all at once upwards, pruned downwards; the networks
    stacked."""
    epochs = _epochs(lines)
    restores = any(any(_of(line, "restored").values()) for line in lines)
    up_words = "regenerated and, hatched, restored (up)" if restores else "regenerated (up)"
    axis.set_title(f"weights {up_words} and pruned (down) per epoch", loc="left")
    axis.set_ylabel("weights")
    up, down = np.zeros(len(lines)), np.zeros(len(lines))
    for network in networks:
        colour = NETWORK_COLOURS[network]
        regenerated = np.nan_to_num(_values(lines, "regenerated", network))
        restored = np.nan_to_num(_values(lines, "restored", network))  # not in histories from before it was counted
        pruned = np.nan_to_num(_values(lines, "pruned", network))
        axis.bar(epochs, regenerated, 0.7, bottom=up, color=colour, label=network, zorder=3)
        if restored.any():
            axis.bar(
                epochs, restored, 0.7, bottom=up + regenerated, facecolor="white", edgecolor=colour, hatch="////",
                lw=0.5, zorder=3,
            )  # fmt: skip
        axis.bar(epochs, -pruned, 0.7, bottom=-down, color=colour, alpha=0.55, zorder=3)
        up, down = up + regenerated + restored, down + pruned
    axis.axhline(0, color=INK, lw=0.7, zorder=4)
    axis.yaxis.set_major_formatter(lambda value, _: _count(abs(value)))
    axis.locator_params(axis="y", nbins=5)


def _count(value: float) -> str:
    """12000 -> 12k."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _finish_axes(axes: Iterable[Any], lines: list[Line]) -> None:
    """Shading of the dense phases, legends, and the common horizontal axis."""
    epochs = _epochs(lines)
    dense = [e for e, line in zip(epochs, lines) if line.get("phase_before", line.get("phase")) == "dense"]
    panels = list(axes)
    for axis in panels:
        if axis.collections:  # a heat map fills its panel
            continue
        for number, epoch in enumerate(dense):
            label = "trained dense" if number == 0 and axis is panels[0] else None
            axis.axvspan(epoch - 0.5, epoch + 0.5, color=SHADE, lw=0, zorder=0, label=label)
        handles, _ = axis.get_legend_handles_labels()
        if handles:
            axis.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.1, ncols=len(handles), **LEGEND)
    last = panels[-1]
    last.set_xlabel("epoch")
    last.set_xlim(epochs[0] - 0.6, epochs[-1] + 0.6)
    last.locator_params(axis="x", integer=True, min_n_ticks=1)

"""Which layers a run prunes, and which come back, and how (RG-GAN, Figure 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rgplug.history import Line
from rgplug.report.figures import INK, MOST_LABELS, blank_figure, epoch_edges, plain, save, short_name, wants_log

EVENTS = ("pruned", "regenerated one by one (RR)", "restored all at once (AR)")  # under thresholds (RG-GAN)
GROWN = {"re-gan": "grown in dense phases", "sparse": "grown"}  # what other methods do in place of RR
NONE, UNKNOWN, DENSE = "white", "#d9dbdf", "#e0a800"


@dataclass(frozen=True)
class LayerEvents:
    """What happened in each layer of a network between evaluations."""

    network: str
    names: tuple[str, ...]  # of the weights, input first
    epochs: tuple[int, ...]
    counts: np.ndarray  # [3, layers, epochs]: pruned, regenerated, restored; NaN where not known
    entries: np.ndarray | None  # [layers], weights of each layer; None where not known
    dense: tuple[bool, ...]  # by epoch: trained dense until then

    @property
    def shares(self) -> np.ndarray:
        """Counts per weight of the layer, [3, layers, epochs]; the counts themselves where sizes are not known."""
        return self.counts if self.entries is None else self.counts / self.entries[None, :, None]


def layer_events(
    lines: Sequence[Line], network: str, entries: Mapping[str, int] | None = None
) -> LayerEvents | None:  # fmt: skip
    """The events of one network from a history; None for one from before they were counted by layer.

    entries: weight -> how many it has, as setup.json says.
    """
    own = [(line.get("layer_counts") or {}).get(network, {}) for line in lines]
    names = tuple(dict.fromkeys(name for found in own for name in found))
    if not names:
        return None
    unknown = (np.nan, np.nan, np.nan)
    counts = np.array([[found.get(name, unknown) for found in own] for name in names], dtype=float)
    sizes = None if entries is None or not all(entries.get(n) for n in names) else [entries[n] for n in names]
    return LayerEvents(
        network,
        names,
        tuple(int(line["epoch"]) for line in lines),
        np.moveaxis(counts, 2, 0),
        None if sizes is None else np.array(sizes, dtype=float),
        tuple(line.get("phase_before") == "dense" for line in lines),
    )


def titles_of(method: str, networks: Sequence[LayerEvents]) -> tuple[str, ...]:
    """What the heat maps of a run show. method: the policy's; AR is left out where another method has none of it."""
    if method not in GROWN:
        return EVENTS
    restored = any((events.counts[2] > 0).any() for events in networks)
    return (EVENTS[0], GROWN[method], *EVENTS[2:]) if restored else (EVENTS[0], GROWN[method])


def layers_figure(networks: Sequence[LayerEvents], path: Path, method: str = "rg-gan") -> Path:
    """Heat maps, layers by evaluations: pruned, regenerated one by one, and restored all at once, apart.

    method: the policy's, which says how the maps are called.

    Colours are events per weight of the layer since the evaluation before (a weight that goes and comes several times
    counts each time); white is none, grey not known, and a yellow bar above marks evaluations trained dense.
    """
    titles = titles_of(method, networks)
    heights = [min(max(0.16 * len(events.names), 0.9), 2.6) for events in networks]
    with blank_figure(7.6, sum(heights) + 0.6 * len(networks) + 0.35) as figure:
        axes = figure.subplots(len(networks), len(titles), sharex=True, height_ratios=heights, squeeze=False)
        for row, events in zip(axes, networks):
            images = [_draw(axis, table, events, _norm(events.shares)) for axis, table in zip(row, events.shares)]
            for axis, title in zip(row, titles):
                axis.set_title(f"{events.network}: {title}", loc="left", pad=12)
                axis.set_yticks([])
            _name_layers(row[0], events)
            _colour_bar(figure, row, images[0], events)
        for axis in axes[-1]:
            axis.set_xlabel("epoch")
            axis.locator_params(axis="x", integer=True, min_n_ticks=1)
        save(figure, path)
    return path


def _norm(shares: np.ndarray) -> Any:
    """One scale for all events of a network; logarithmic where they differ much."""
    from matplotlib.colors import LogNorm, Normalize

    known = shares[shares > 0]
    if not known.size:
        return Normalize(0, 1)
    low, high = float(known.min()), float(known.max())
    return LogNorm(max(low, high / 1e4), high) if wants_log(known) else Normalize(0, high)


def _draw(axis: Any, table: np.ndarray, events: LayerEvents, norm: Any) -> Any:
    """One heat map. Returns its image, for the colour bar."""
    from matplotlib.colors import ListedColormap

    edges, rows = epoch_edges(np.array(events.epochs, dtype=float)), np.arange(len(events.names) + 1) - 0.5
    axis.set_facecolor(NONE)
    unknown = np.ma.masked_where(~np.isnan(table), np.ones_like(table))
    axis.pcolormesh(edges, rows, unknown, cmap=ListedColormap([UNKNOWN]), rasterized=True)
    happened = np.ma.masked_where(~(table > 0), table)  # NaN too
    image = axis.pcolormesh(edges, rows, happened, cmap="viridis_r", norm=norm, rasterized=True)
    if happened.mask.all():
        words = "none" if np.any(table == 0) else "not known"
        axis.text(0.5, 0.5, words, transform=axis.transAxes, ha="center", va="center", color=INK)
    for left, right, is_dense in zip(edges, edges[1:], events.dense):
        if is_dense:
            axis.axvspan(left, right, ymin=1.015, ymax=1.045, color=DENSE, lw=0, clip_on=False)
    axis.set_ylim(len(events.names) - 0.5, -0.5)  # the input on top
    axis.set_xlim(edges[0], edges[-1])
    return image


def _colour_bar(figure: Any, axes: Any, image: Any, events: LayerEvents) -> None:
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import LogLocator

    bar = figure.colorbar(image, ax=list(axes), aspect=20, pad=0.02, fraction=0.03)
    bar.outline.set_visible(False)
    if isinstance(image.norm, LogNorm):
        bar.set_ticks(LogLocator(subs=(1.0, 2.0, 5.0)))
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    bar.ax.yaxis.set_minor_formatter(lambda value, _: "")
    bar.ax.tick_params(labelsize=6.5)
    bar.set_label("weights" if events.entries is None else "events per weight", fontsize=7)


def _name_layers(axis: Any, events: LayerEvents) -> None:
    if len(events.names) <= MOST_LABELS:
        axis.set_yticks(range(len(events.names)), [plain(short_name(name, 18)) for name in events.names], fontsize=6)
    else:
        axis.set_yticks([0, len(events.names) - 1], ["1", str(len(events.names))])
        axis.set_ylabel("layer, input on top")
    axis.tick_params(axis="y", length=0)

"""What the parts of RG-GAN add, on G, on D and on both (RG-GAN, Figure 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rgplug.report.figures import BLUE, GREEN, GREY, INK, ORANGE, blank_figure, legend_below, plain, save
from rgplug.report.intervals import Interval, interval

GROUPS = ("G", "D", "both")
PARTS = ("DP", "DP + RR", "DP + RR + AR")
COLOURS = dict(zip(PARTS, (BLUE, ORANGE, GREEN)))
HATCHES = dict(zip(PARTS, ("", "////", "....")))  # told apart without colours, too
BARS = {
    "rg-gan-dp-g": ("G", "DP"), "rg-gan-dp-d": ("D", "DP"), "rg-gan-dp": ("both", "DP"),
    "rg-gan-rr-g": ("G", "DP + RR"), "rg-gan-rr-d": ("D", "DP + RR"), "rg-gan-rr": ("both", "DP + RR"),
    "rg-gan-ar-g": ("G", "DP + RR + AR"), "rg-gan-ar-d": ("D", "DP + RR + AR"), "rg-gan": ("both", "DP + RR + AR"),
}  # fmt: skip
Values = Mapping[str, Sequence[float | None]]  # method -> best value of each seed; None: diverged


def ablation(values: Values) -> dict[tuple[str, str], Interval]:
    """(networks, parts) -> interval over the seeds that have a value, for the bars that the methods fill."""
    found = {}
    for method, place in BARS.items():
        known = [v for v in values.get(method, ()) if v is not None]
        if known:
            found[place] = interval(known)
    return found


def ablation_figure(values: Values, path: Path, *, y_label: str) -> Path:
    """Bars of the mean over seeds, a point for each seed, and the 95 % t-interval of the mean (two seeds or more).

    The dense run, where there is one, is a line; diverged seeds are counted below their bar. An interval that reaches
    out of the panel ends at its edge: with two seeds it is 9 standard deviations wide on each side.
    """
    bars = ablation(values)
    diverged = {place: sum(v is None for v in values.get(method, ())) for method, place in BARS.items()}
    groups = [g for g in GROUPS if any((g, p) in bars or diverged[g, p] for p in PARTS)]
    dense = [v for v in values.get("dense", ()) if v is not None]
    with blank_figure(max(3.4, 1.1 + 1.3 * len(groups)), 3.2) as figure:
        axis = figure.subplots()
        labelled = set()
        for at, group in enumerate(groups):
            for number, part in enumerate(PARTS):
                x, found = at + (number - 1) * 0.27, bars.get((group, part))
                if diverged[group, part]:
                    text = "diverged" if found is None else f"{diverged[group, part]} diverged"
                    axis.annotate(
                        text, (x, 0), xytext=(0, 3), textcoords="offset points", rotation=90, ha="center", va="bottom",
                        fontsize=6, color=INK, zorder=6, bbox={"fc": "white", "ec": "none", "pad": 0.6, "alpha": 0.85},
                    )  # fmt: skip
                if found is None:
                    continue
                axis.bar(
                    x, found.mean, 0.24, facecolor=COLOURS[part], edgecolor="white", hatch=HATCHES[part], lw=0,
                    alpha=0.8, label=None if part in labelled else part, zorder=2,
                )  # fmt: skip
                labelled.add(part)
                if found.low is not None and found.high is not None:
                    axis.errorbar(
                        x, found.mean, [[found.mean - found.low], [found.high - found.mean]], color=INK, capsize=3,
                        lw=1, zorder=4,
                    )  # fmt: skip
                spots = [x + 0.05 * (i - (len(found.values) - 1) / 2) for i in range(len(found.values))]
                axis.plot(spots, found.values, "o", color="white", mec=INK, mew=0.7, ms=3, zorder=5)
        if dense:
            mean = interval(dense).mean
            axis.axhline(mean, color=INK, lw=1, ls=(0, (4, 2)), zorder=3, label=f"dense ({mean:.4g})")
        seen = [0.0, *(v for found in bars.values() for v in found.values), *dense]  # KID may be below 0
        if any(seen):
            axis.set_ylim(1.25 * min(seen), 1.25 * max(seen))
        axis.set_xlim(-0.6, len(groups) - 0.4)
        axis.set_xticks(range(len(groups)), [f"on {g}" for g in groups])
        axis.tick_params(axis="x", length=0)
        axis.set_ylabel(plain(y_label))
        axis.grid(axis="y", color=GREY, lw=0.3, alpha=0.5)
        axis.set_axisbelow(True)
        legend_below(figure, axis)
        save(figure, path)
    return path

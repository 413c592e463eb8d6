"""Which layers prune and regenerate (RG-GAN, Figure 3): what is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from figures_drawn import Axes, drawn  # noqa: F401

from rgplug.report.figure_layers import layer_events, layers_figure

LINES: list[dict[str, Any]] = [
    {"epoch": 1, "phase_before": "sparse", "layer_counts": {"G": {"a": [4, 1, 0], "b": [0, 0, 0]}}},
    {"epoch": 2, "phase_before": "sparse", "layer_counts": {"G": {"a": [2, 0, 5], "b": [0, 0, 0]}}},
    {"epoch": 3, "phase_before": "dense"},  # from before there were counts, or after an older state
]


def test_events_are_shares_of_the_layer() -> None:
    events = layer_events(LINES, "G", {"a": 10, "b": 20})
    assert events is not None
    assert events.names == ("a", "b")
    assert events.dense == (False, False, True)
    pruned, regenerated, restored = events.shares
    assert np.array_equal(pruned, [[0.4, 0.2, np.nan], [0, 0, np.nan]], equal_nan=True)
    assert np.array_equal(regenerated, [[0.1, 0, np.nan], [0, 0, np.nan]], equal_nan=True)
    assert np.array_equal(restored, [[0, 0.5, np.nan], [0, 0, np.nan]], equal_nan=True)


def test_without_sizes_they_are_counts() -> None:
    events = layer_events(LINES, "G", {"a": 10})
    assert events is not None
    assert events.shares[0][0].tolist()[:2] == [4, 2]


def test_histories_without_counts_by_layer_have_no_events() -> None:
    assert layer_events([{"epoch": 1}, {"epoch": 2, "layer_counts": {"D": {"a": [1, 0, 0]}}}], "G") is None


def test_pruned_regenerated_and_restored_are_three_panels(drawn: list[Axes], tmp_path: Path) -> None:  # noqa: F811
    events = layer_events(LINES, "G", {"a": 10, "b": 20})
    assert events is not None
    layers_figure([events], tmp_path / "a.png")
    panels = [axis for axis in drawn if axis.title]
    assert [p.title for p in panels] == [
        "G: pruned", "G: regenerated one by one (RR)", "G: restored all at once (AR)"
    ]  # fmt: skip
    for panel, share in zip(panels, events.shares):
        unknown, happened = (np.ma.asarray(c.get_array()).reshape(2, 3) for c in panel.raw.collections)
        assert unknown.mask.tolist() == (~np.isnan(share)).tolist()
        assert happened.filled(0).tolist() == np.nan_to_num(share).tolist()
    assert [tick.get_text() for tick in panels[0].raw.get_yticklabels()] == ["a", "b"]


def test_a_run_that_regenerates_nothing_says_so(drawn: list[Axes], tmp_path: Path) -> None:  # noqa: F811
    events = layer_events([{"epoch": 1, "layer_counts": {"G": {"a": [4, 0, 0]}}}], "G")
    assert events is not None
    layers_figure([events], tmp_path / "a.pdf")
    assert [axis.texts for axis in drawn if axis.title] == [[], ["none"], ["none"]]


@pytest.mark.parametrize(("method", "second"), [("re-gan", "grown in dense phases"), ("sparse", "grown")])
def test_what_grows_by_another_method_is_not_called_by_rg_gans_words(
    method: str,
    second: str,
    drawn: list[Axes],  # noqa: F811
    tmp_path: Path,
) -> None:
    events = layer_events([{"epoch": 1, "layer_counts": {"G": {"a": [4, 4, 0]}}}], "G", {"a": 10})
    assert events is not None
    layers_figure([events], tmp_path / "a.png", method)
    assert [axis.title for axis in drawn if axis.title] == ["G: pruned", f"G: {second}"]

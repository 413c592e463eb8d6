"""The papers' figures from small runs, through the command: which there are, and what is in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from common import Host
from figures_drawn import Axes, drawn  # noqa: F401
from PIL import Image
from published_runs import BATCHES, COMMON, EVERY, ITERATIONS, REGENERATION, Images, build, train
from tiny import Z

from rgplug.baselines import compare
from rgplug.baselines.results import read_results
from rgplug.cli import main
from rgplug.metrics import register_features
from rgplug.metrics.features import CallableFeatures

PART = {"sparsity_weight": 1e-2, "threshold": {"init": 0.05}}
DENSITIES = (0.1, 0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ablation: parts of RG-GAN, two seeds. sweep: density of G by that of D. sheets: rgplug measures."""
    found = tmp_path_factory.mktemp("figures")
    parts = {name: {"base": name, **PART} for name in ("rg-gan-dp", "rg-gan-dp-g", "rg-gan-rr")}
    full = {"base": "rg-gan", **PART, "regeneration": REGENERATION}
    methods: dict[str, Any] = {"dense": None, **parts, "rg-gan": full}
    compare(methods, train, build, out=found / "ablation", seeds=2, policy=COMMON)
    grid = {"density.G": list(DENSITIES), "density.D": list(DENSITIES)}
    compare(
        ["dense", "stu-gan"], train, build, out=found / "sweep", seeds=2, policy=COMMON, grid=grid, length=ITERATIONS
    )
    (found / "real").mkdir()
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(found / "real" / f"{i}.png")
    register_features("means", lambda device: CallableFeatures(lambda x: x.float().mean((2, 3)), "means", "1"))
    metric = {"real": str(found / "real"), "features": "means", "samples": 16, "batch": 8, "sheet": 4}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RGPLUG_CACHE", str(found / "cache"))
        compare(["dense", "stu-gan"], measured, build, out=found / "sheets", policy={**COMMON, "metric": metric})
    return found


def measured(build: Any, attach: Any, seed: int, run_dir: Path) -> None:
    """A training in which rgplug measures."""
    torch.manual_seed(seed)
    host = Host(seed=seed)
    host.G, host.D = build()
    nets = {"G": host.G, "D": host.D}
    host.opt = {name: torch.optim.Adam(net.parameters(), 1e-2, (0.5, 0.999)) for name, net in nets.items()}
    host.data = Images(BATCHES)
    rg = attach(host.G, host.D)
    for _ in range(ITERATIONS // EVERY):
        host.run(EVERY)
        rg.end_epoch(sample_fn=lambda n: host.G(torch.randn(n, Z)))


def report(folder: Path, out: Path, *more: str) -> set[str]:
    """Names of the figures that the command writes."""
    assert main(["report", str(folder), "--figures", str(out), *more]) == 0
    return {path.relative_to(out).with_suffix("").as_posix() for path in out.rglob("*.pdf")}


def test_the_figures_of_an_ablation(folder: Path, drawn: list[Axes], tmp_path: Path) -> None:  # noqa: F811
    """RG-GAN, Figures 3, 4 and 5; the bars are the means of the best values in the results file."""
    found = report(folder / "ablation", tmp_path)
    assert {"ablation", "metric-over-epoch", "metric-over-real-images", "metric-over-flops", "metric-over-seconds",
            "runs/rg-gan-seed-0-layers", "runs/rg-gan-dp-seed-1-layers"} <= found  # fmt: skip
    assert "runs/dense-seed-0-layers" not in found
    best: dict[str, list[float]] = {}
    for r in read_results(folder / "ablation"):
        best.setdefault(r.method, []).append(float(r.best or 0))
    bars = next(axis for axis in drawn if axis.ticks == ["on G", "on both"]).bars
    order = ("rg-gan-dp-g", "rg-gan-dp", "rg-gan-rr", "rg-gan")
    assert [bars[x] for x in (-0.27, 0.73, 1.0, 1.27)] == pytest.approx([sum(best[m]) / 2 for m in order])


def test_layers_of_a_run_are_those_of_its_history(folder: Path, drawn: list[Axes], tmp_path: Path) -> None:  # noqa: F811
    run = folder / "ablation" / "rg-gan" / "seed_0"
    report(run, tmp_path)
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    sizes = json.loads((run / "setup.json").read_text())["networks"]["G"]["weights"]
    panel = next(axis for axis in drawn if axis.title == "G: restored all at once (AR)")
    shown = np.ma.asarray(panel.raw.collections[1].get_array()).filled(0).reshape(len(sizes), len(lines))
    for row, (name, entries) in zip(shown, sizes.items()):
        assert row.tolist() == pytest.approx([line["layer_counts"]["G"][name][2] / entries for line in lines])
    assert shown.any()


def test_the_density_of_g_by_that_of_d(folder: Path, drawn: list[Axes]) -> None:  # noqa: F811
    """STU-GAN's sweeps: a line per density of D, a ring where both are equal; the same as asked for by hand."""
    assert main(["report", str(folder / "sweep")]) == 0
    axis = next(axis for axis in drawn if axis.x_label == "density.G")
    assert axis.labels == ["density.D = 0.1", "density.D = 0.3", "dense", "equal density of G and D"]
    best = {(r.keys["density.G"], r.keys["density.D"], r.seed): r.best for r in read_results(folder / "sweep")
            if r.method != "dense"}  # fmt: skip
    for D in DENSITIES:
        means = [sum(best[G, D, seed] or 0 for seed in (0, 1)) / 2 for G in DENSITIES]
        assert any(xs == list(DENSITIES) and ys == pytest.approx(means) for xs, ys in axis.lines)
    assert main(["report", str(folder / "sweep"), "--sweep", "density.D", "--by", "density.G"]) == 0
    other = next(axis for axis in drawn if axis.x_label == "density.D")
    assert other.labels == ["density.G = 0.1", "density.G = 0.3", "dense", "equal density of G and D"]


def test_samples_of_the_best_with_value_and_flops(folder: Path, drawn: list[Axes], tmp_path: Path) -> None:  # noqa: F811
    assert "samples" in report(folder / "sheets", tmp_path)
    results = {r.method: r for r in read_results(folder / "sheets")}
    sheets = {axis.title: axis for axis in drawn if axis.raw.images}
    assert set(sheets) == {"dense", "stu-gan"}
    for method, axis in sheets.items():
        assert axis.x_label.startswith(
            f"fd_means {results[method].best:.{2 if (results[method].best or 0) >= 1 else 4}f}"
        )
        assert "FLOPs" in axis.x_label
        assert axis.raw.images[0].get_array().shape == (18, 18, 3)  # two by two images of 8 pixels
    assert "images that the best value was measured on" in (folder / "sheets" / "report.html").read_text()

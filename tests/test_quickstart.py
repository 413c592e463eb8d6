"""quickstart.py is train_gan.py plus an import, two lines and one for resuming; the demo runs it."""

from __future__ import annotations

import difflib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rgplug
from rgplug import state as state_file
from rgplug.cli import main
from rgplug.examples import quickstart, train_gan

EXAMPLES = Path(quickstart.__file__).parent


def test_the_difference_is_the_import_two_lines_and_one_for_resuming() -> None:
    plain, attached = ((EXAMPLES / f"{name}.py").read_text().splitlines() for name in ("train_gan", "quickstart"))
    changes = [line for line in difflib.ndiff(plain, attached) if line[0] in "+-"]
    added = [line[2:].strip() for line in changes if line.startswith("+ ") and line[2:].strip()]
    removed = [line[2:].strip() for line in changes if line.startswith("- ") and line[2:].strip()]
    assert removed == ["with torch.no_grad():"]  # around what is drawn of the average
    drawing = [line for line in added if line.startswith("with torch.no_grad(), rg.masked(G_ema):")]
    assert len(drawing) == 1
    added.remove(drawing[0])
    assert len(added) == 4
    assert added[0] == "import rgplug"
    assert added[1].startswith("rg = rgplug.attach(G, D, ")
    assert added[2].startswith('modules["rg"] = rg')
    assert "rg.end_epoch(ema=G_ema)" in added[3]
    assert "rgplug" not in (EXAMPLES / "train_gan.py").read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(8):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(tmp_path / "images" / f"{i}.png")
    return tmp_path / "images"


def test_demo_leaves_what_it_promises(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RGPLUG_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "run"
    argv = ["demo", "--data", str(folder), "--out", str(out), "--iterations", "4", "--epoch-iterations", "2"]
    assert main(argv) == 0
    for name in ("samples.png", "training.png", "history.jsonl", "checkpoint.pt", "rgplug.safetensors"):
        assert (out / name).stat().st_size > 100, name
    records = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in records] == [1, 2]
    assert all(r["metric"] > 0 and r["metric_name"] for r in records)
    assert [r["steps"] for r in records] == [{"G": 2, "D": 2}, {"G": 4, "D": 4}]
    assert records[-1]["density"]["G"] < 1
    assert records[-1]["real_images"] == 4 * 16
    assert records[-1]["flops"] > 0

    # the checkpoint knows nothing of rgplug; its average goes on unmasked, and under the mask has the density measured
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    G, G_ema = train_gan.Generator(64), train_gan.Generator(64)
    G.load_state_dict(state["G"])
    G_ema.load_state_dict(state["G_ema"])
    assert all(p.all() for p in G_ema.parameters() if p.dim() >= 2)
    rg = rgplug.attach(G, None, {"base": "rg-gan", "threshold.units": "layer_std"})
    held = state_file.load(out / "rgplug.safetensors")
    for part in ("networks", "last_counts", "last_restored", "last_layers"):
        held[part].pop("D")
    rg.load_state_dict(held)
    with rg.masked(G_ema):
        kept = sum(int(p.count_nonzero()) for p in G_ema.parameters() if p.dim() >= 2)
        total = sum(p.numel() for p in G_ema.parameters() if p.dim() >= 2)
        assert kept / total == pytest.approx(records[-1]["density"]["G"], abs=1e-3)


def test_inspect_prints_the_attach_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(EXAMPLES / "train_gan.py"), "--check"]) == 0
    report = capsys.readouterr().out
    assert "to_rgb.weight" in report
    assert "parametrizations.weight.original" in report
    assert "managed" in report


def test_bad_input_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "o")]) == 2
    assert main(["inspect", str(tmp_path / "nothing.py")]) == 2
    assert main(["inspect", str(EXAMPLES / "train_gan.py"), "--G", "Unknown()"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 3
    assert "nowhere" in lines[0]
    assert "nothing.py" in lines[1]
    assert "--G 'Generator(64)'" in lines[2]


def test_the_policy_of_the_quickstart_is_valid() -> None:
    policy = rgplug.Policy.load({"base": EXAMPLES / "quickstart.yaml", "metric.real": "x", "run_dir": "y"})
    assert policy.target is not None
    assert policy.metric is not None
    assert policy.metric.real == "x"

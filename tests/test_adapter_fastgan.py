"""FastGAN: its own train.py with the two lines, on a CPU.

Eight iterations, each evaluated by rgplug; the last value is forced up (dense). Then two more from there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from host_runs import HostRun, Story, folder, history, shapes

from rgplug import state

pytestmark = pytest.mark.host
METRIC = {"features": "efficientnet_lite0", "samples": 4, "batch": 4}
POLICY = {
    "threshold": {"units": "layer_std"},
    "target": {"G": 0.5, "D": 0.6, "by": 4},
    "networks": {"G": {"exclude": ["to_*"]}},
}
DRAW = """
import sys, numpy as np, torch, models
G = models.Generator(ngf=64, nz=256, im_size=256)
G.load_state_dict({k.replace("module.", ""): v for k, v in torch.load(sys.argv[1])["g"].items()})
torch.manual_seed(3)
with torch.no_grad():
    np.save(sys.argv[2], G(torch.randn(2, 256))[0].numpy())
"""


def models(story: Story) -> Path:
    return story.run.where / "out" / "train_results" / "t" / "models"


def train(run: HostRun, script: Path, data: Path, *more: str, **environment: str) -> str:
    return run(
        script, f"--path={data}", "--output_path=out", "--name=t", "--batch_size=4", "--im_size=256", "--workers=0",
        "--save_interval=1", *more, **environment,
    ).stdout  # fmt: skip


def policy(data: Path, **more: Any) -> dict[str, Any]:
    return {**POLICY, "metric": {"real": str(data), **METRIC}, **more}


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder("fastgan")
    where = tmp_path_factory.mktemp("fastgan")
    data = shapes(where, 256)
    run = HostRun("fastgan", where / "run")
    script = run.script("train.py", policy(data), every=1)
    (where / "up.txt").write_text("1 1 1 1 1 1 1 9")
    (where / "down.txt").write_text("0.1")
    story = Story(run, where / "first", where / "second")
    saved = models(story)
    for witness, values, options in (
        (story.first, "up", ["--iter=8"]),
        (story.second, "down", ["--iter=9", f"--ckpt={saved / 'all_8.pth'}"]),
    ):
        witness.mkdir()
        environment = {"RGPLUG_TEST_FID": str(where / f"{values}.txt"), "RGPLUG_TEST_WITNESS": str(witness)}
        (witness / "stdout.txt").write_text(train(run, script, data, *options, **environment))
        for kept in [*saved.iterdir(), saved.parent / "history.jsonl"]:
            (witness / kept.name).write_bytes(kept.read_bytes())
    return story


def managed(held: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(name, mask, dormant) of G's weights in a sidecar."""
    return [(n, w["mask"], w["dormant"]) for n, w in held["networks"]["G"]["weights"].items()]


def test_it_trains_sparse_and_measures_itself(story: Story) -> None:
    text = (story.first / "stdout.txt").read_text()
    assert text.count("rgplug: FastGAN 1a848e5: hooked networks") == 1
    records = history(story.first)
    assert [r["metric"] for r in records] == [1, 1, 1, 1, 1, 1, 1, 9]
    assert {r["metric_name"] for r in records} == {"fd_efficientnet_lite0"}
    assert [r["phase"] for r in records] == ["sparse"] * 7 + ["dense"]
    assert records[-1]["steps"] == {"G": 9, "D": 9}  # iterations 0 to 8
    for record in records[4:7]:
        assert record["density"] == {"G": pytest.approx(0.5, abs=0.005), "D": pytest.approx(0.6, abs=0.005)}
    assert not any(r["written"] for r in records)  # the host never writes where weights are pruned
    assert records[-1]["real_images"] == 36
    assert not any(name.startswith("to_") for name in records[0]["layers"]["G"])


def test_resume_goes_on_from_the_decision(story: Story) -> None:
    held = state.load(story.first / "all_8.rgplug.safetensors")
    resumed = state.load(story.second / "resumed.safetensors")
    saved = torch.load(story.first / "all_8.pth", weights_only=True)
    assert held["regeneration"]["sparse"] is False
    assert resumed["epoch"] == 8
    names = [n for n in saved["g"]]
    for name, mask, dormant in managed(held):
        pruned = ~mask
        assert pruned.any()
        assert f"module.{name}" in names
        assert not saved["g"][f"module.{name}"][pruned].any()
        assert torch.equal(resumed["networks"]["G"]["weights"][name]["mask"], mask)
        assert torch.equal(resumed["networks"]["G"]["weights"][name]["dormant"], dormant)
    records = history(story.second)
    assert [r["epoch"] for r in records] == list(range(1, 11))
    assert records[8]["phase_before"] == "dense"
    assert records[8]["phase"] == "sparse"
    assert records[8]["steps"] == {"G": 10, "D": 10}  # the host repeats the iteration it saved at


def test_snapshots_are_what_was_evaluated(story: Story) -> None:
    script, out = story.run.where / "draw.py", story.run.where / "drawn.npy"
    script.write_text(DRAW)
    story.run(script, story.first / "8.pth", out, plain=True)
    np.testing.assert_array_equal(np.load(out), np.load(story.first / "evaluated.npy"))
    held = state.load(story.first / "all_8.rgplug.safetensors")
    drawn = torch.load(story.first / "8.pth", weights_only=True)["g"]
    every = torch.load(story.first / "all_8.pth", weights_only=True)
    order = [k for k in every["g"] if not any(x in k for x in ("running_", "num_batches", "_u", "_v"))]
    averages = dict(zip(order, every["g_ema"]))
    assert len(order) == len(every["g_ema"])
    for name, mask, _ in managed(held):
        for values in (drawn[f"module.{name}"], averages[f"module.{name}"]):
            assert not values[~mask].any()
            assert values[mask].abs().min() > 0
        assert held["ema"][name].numel() == int((~mask).sum())


def test_the_hosts_eval_py_draws(story: Story) -> None:
    script = folder("fastgan") / "eval.py"
    story.run(
        script, f"--artifacts={models(story).parent}", "--start_iter=8", "--end_iter=8", "--multiplier=1",
        "--n_sample=2", "--batch=2", "--im_size=256", plain=True,
    )  # fmt: skip
    assert len(list((story.run.where / "eval_8" / "img").iterdir())) == 2


def test_evaluating_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    """policy="dense", measured at every iteration: every tensor the host saves equals the run without rgplug."""
    data = shapes(tmp_path, 256)
    found = []
    dense = {"method": "dense", "regeneration": {"recurrent": True}, "metric": {"real": str(data), **METRIC}}
    for name, given in (("stock", None), ("dense", dense)):
        run = HostRun("fastgan", tmp_path / name)
        script = run.script("train.py", given, **({} if given is None else {"every": 1}))
        train(run, script, data, "--iter=2")
        saved = run.where / "out" / "train_results" / "t" / "models"
        found.append([torch.load(saved / f"{n}.pth", weights_only=True) for n in ("2", "all_2")])
        if given is not None:
            assert len(history(saved.parent)) == 2
    same(found[0], found[1], "")


def same(ours: Any, theirs: Any, path: str) -> None:
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), path
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            same(ours[key], theirs[key], f"{path}/{key}")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs)
        for i, (a, b) in enumerate(zip(ours, theirs)):
            same(a, b, f"{path}/{i}")
    else:
        assert ours == theirs, path


def test_a_checkpoint_without_sidecar(story: Story, tmp_path: Path) -> None:
    run = HostRun("fastgan", tmp_path)
    data = story.run.where.parent / "shapes256"
    lone = tmp_path / "all_8.pth"
    lone.write_bytes((story.first / "all_8.pth").read_bytes())
    text = train(run, run.script("train.py", policy(data), every=1), data, "--iter=8", f"--ckpt={lone}")
    assert "has no sidecar (all_8.rgplug.safetensors): sparse training starts here" in text


def test_an_lmdb_needs_a_folder_in_the_policy(tmp_path: Path) -> None:
    run = HostRun("fastgan", tmp_path)
    script = run.script("train.py", "rg-gan")
    source = script.read_text().replace("def train(args):", "def train(args):\n    get_dir(args)\n    return")
    script.write_text(source)
    done = run(script, "--path=an_lmdb", "--output_path=out", check=False)
    assert done.returncode
    assert "an_lmdb is an lmdb, which rgplug does not read" in done.stderr.strip().splitlines()[-1]

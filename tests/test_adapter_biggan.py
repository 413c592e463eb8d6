"""DiffAugment-BigGAN: its own train.py with the two lines, on a CPU.

Eight iterations of two D steps each, evaluated before, between and after; the last evaluation is forced up (dense).
Then eight more from there, with evaluations forced down.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from host_runs import HostRun, Story, cifar, folder, history

from rgplug import state

pytestmark = pytest.mark.host
POLICY = {
    "threshold": {"units": "layer_std"},
    "target": {"G": 0.5, "D": 0.6, "by": 4},
    "networks": {"G": {"exclude": ["*.bn*"]}},
}
OPTIONS = [
    "--experiment_name=t", "--DiffAugment=translation,cutout", "--mirror_augment", "--use_multiepoch_sampler",
    "--which_best=FID", "--num_inception_images=32", "--shuffle", "--batch_size=4", "--num_samples=32",
    "--num_D_steps=2", "--num_D_accumulations=1", "--G_lr=2e-4", "--D_lr=2e-4", "--dataset=C10", "--G_ortho=1e-4",
    "--D_ortho=0.0", "--G_attn=0", "--D_attn=0", "--G_init=N02", "--D_init=N02", "--G_ch=8", "--D_ch=8", "--ema",
    "--use_ema", "--ema_start=2", "--test_every=2", "--save_every=4", "--num_workers=0", "--no_pin_memory",
    "--seed=0", "--num_best_copies=5",
]  # fmt: skip
DRAW = """
import sys, numpy as np, torch, BigGAN
common = dict(G_shared=False, skip_init=True, no_optim=True, resolution=32, n_classes=10)
G = BigGAN.Generator(G_ch=8, G_attn="0", G_init="N02", **common)
G.load_state_dict(torch.load(sys.argv[1]), strict=True)
G.eval()
z = torch.from_numpy(np.random.RandomState(3).randn(4, G.dim_z)).float()
with torch.no_grad():
    np.save(sys.argv[2], G(z, G.shared(torch.arange(4))).numpy())
"""


def weights(story: Story) -> Path:
    return story.run.where / "base" / "weights" / "t"


def logs(story: Story) -> Path:
    return story.run.where / "base" / "logs" / "t"


def train(run: HostRun, script: Path, data: Path, *more: str, **environment: str) -> str:
    (run.where / "base").mkdir(exist_ok=True)
    if not (run.where / "base" / "data").exists():
        (run.where / "base" / "data").symlink_to(data)  # the host looks nowhere else
    return run(script, "--base_root=base", *OPTIONS, *more, **environment).stdout


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder("biggan")
    where = tmp_path_factory.mktemp("biggan")
    run = HostRun("biggan", where / "run")
    script, data = run.script("train.py", POLICY), cifar(where)
    (where / "up.txt").write_text("1 1 1 1 9")
    (where / "down.txt").write_text("0.1")
    story = Story(run, where / "first", where / "second")
    for witness, values, options in (
        (story.first, "up", ["--num_epochs=2"]),
        (story.second, "down", ["--num_epochs=4", "--resume"]),
    ):
        witness.mkdir()
        environment = {"RGPLUG_TEST_FID": str(where / f"{values}.txt"), "RGPLUG_TEST_WITNESS": str(witness)}
        (witness / "stdout.txt").write_text(train(run, script, data, *options, **environment))
        for kept in [
            *weights(story).glob("*.pth"),
            *weights(story).glob("*.safetensors"),
            logs(story) / "history.jsonl",
        ]:
            (witness / kept.name).write_bytes(kept.read_bytes())
    return story


def test_it_trains_sparse_with_the_hosts_fid(story: Story) -> None:
    text = (story.first / "stdout.txt").read_text()
    assert text.count("rgplug: DiffAugment-BigGAN 0b63395: hooked networks") == 1
    records = history(story.first)
    assert [r["metric"] for r in records] == [1, 1, 1, 1, 9]
    assert {r["metric_name"] for r in records} == {"FID"}
    logged = [json.loads(x) for x in (logs(story).parent / "t_log.jsonl").read_text().splitlines()]
    for record, line in zip(records, logged):
        assert list(record["metrics"].items()) == [(name, line[name]) for name in ("FID", "IS_mean", "IS_std")]
    assert [r["phase"] for r in records] == ["sparse"] * 4 + ["dense"]
    assert records[-1]["steps"] == {"G": 8, "D": 16}
    assert records[-1]["real_images"] == 64
    for record in records[3:4]:
        assert record["density"] == {"G": pytest.approx(0.5, abs=0.005), "D": pytest.approx(0.6, abs=0.005)}
    assert not any(r["written"] for r in records)  # the host never writes where weights are pruned
    layers = records[0]["layers"]["G"]
    assert "linear.weight" in layers
    assert not any("shared" in name or ".bn" in name for name in layers)


def test_numbers_in_the_hosts_log(story: Story) -> None:
    lines = [json.loads(x) for x in (logs(story).parent / "t_log.jsonl").read_text().splitlines()]
    assert lines[3]["rgplug_density_G"] == pytest.approx(0.5, abs=0.005)
    assert lines[3]["rgplug_sparse"] == 1


def test_resume_goes_on_from_the_decision(story: Story) -> None:
    held = state.load(story.first / "rgplug.rgplug.safetensors")
    resumed = state.load(story.second / "resumed.safetensors")
    saved = torch.load(story.first / "G.pth", weights_only=True)
    assert resumed["epoch"] == 5
    assert all(net["sparse"] is False for net in resumed["networks"].values())
    with np.load(story.second / "resumed.npz") as live:
        for name, w in held["networks"]["G"]["weights"].items():
            pruned = ~w["mask"].numpy()
            assert pruned.any()
            assert not saved[name].numpy()[pruned].any()
            np.testing.assert_array_equal(live[name][pruned], w["dormant"].numpy()[pruned])
            np.testing.assert_array_equal(live[name][~pruned], saved[name].numpy()[~pruned])
    records = history(story.second)
    assert [r["epoch"] for r in records] == list(range(1, 6 + 5))
    assert {r["phase"] for r in records[5:]} == {"sparse"}
    assert records[-1]["steps"] == {"G": 16, "D": 32}


def test_snapshots_are_what_was_evaluated(story: Story) -> None:
    """The stock generator, where rgplug cannot be imported, draws the evaluated pictures from the best weights."""
    script = story.run.where / "draw.py"
    script.write_text(DRAW)
    out = story.run.where / "drawn.npy"
    story.run(script, story.first / "G_ema_best0.pth", out, plain=True)
    np.testing.assert_array_equal(np.load(out), np.load(story.first / "evaluated-0.npy"))
    held = state.load(story.first / "rgplug_best0.rgplug.safetensors")
    saved = torch.load(story.first / "G_ema_best0.pth", weights_only=True)
    kept = total = 0
    for name, w in held["networks"]["G"]["weights"].items():
        assert not saved[name][~w["mask"]].any()
        kept, total = kept + int((saved[name] != 0).sum()), total + w["mask"].numel()
    assert kept / total == pytest.approx(history(story.first)[0]["density"]["G"], abs=1e-3)


def test_the_hosts_eval_py_loads_the_snapshots(story: Story) -> None:
    network = weights(story) / "G_ema_best0.pth"
    story.run(
        folder("biggan") / "eval.py", "--base_root=base", f"--network={network}", "--repeat=1", *OPTIONS, plain=True
    )

"""BigGAN-PyTorch: its own train.py with the two lines, on a CPU, under STU-GAN.

Eight iterations of two D steps each, measured by the host (its own moments of the training images, its own FID) at
every fourth; then eight more from there through the host's --resume.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from host_runs import HostRun, Story, cifar, folder, history
from test_host_compare import checkout, example

from rgplug import state
from rgplug.baselines import read_results

pytestmark = pytest.mark.host
POLICIES = Path(__file__).parent.parent / "examples" / "policies"
POLICY = {"base": str(POLICIES / "diffaugment_biggan_stu_gan.yaml"), "exploration": {"every": 3}}
OPTIONS = [
    "--experiment_name=t", "--which_best=FID", "--num_inception_images=32", "--shuffle", "--batch_size=4",
    "--num_D_steps=2", "--G_lr=2e-4", "--D_lr=2e-4", "--dataset=C10", "--G_ortho=0.0", "--G_attn=0", "--D_attn=0",
    "--G_init=N02", "--D_init=N02", "--G_ch=8", "--D_ch=8", "--ema", "--use_ema", "--ema_start=2", "--test_every=4",
    "--save_every=4", "--num_best_copies=5", "--num_save_copies=0", "--num_workers=0", "--no_pin_memory", "--seed=0",
]  # fmt: skip


def weights(story: Story) -> Path:
    return story.run.where / "base" / "weights" / "t"


def train(run: HostRun, script: Path, data: Path, *more: str, **environment: str) -> str:
    base = run.where / "base"
    if not base.exists():
        base.mkdir()
        (base / "data").symlink_to(data)  # the host looks nowhere else
    if not (run.where / "C10_inception_moments.npz").exists():  # the host reads them in the current folder
        moments = folder(run.host) / "calculate_inception_moments.py"
        run(moments, "--dataset=C10", "--data_root=base/data", "--batch_size=32", "--num_workers=0")
    return run(script, "--base_root=base", *OPTIONS, *more, **environment).stdout


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder("biggan-pytorch")
    where = tmp_path_factory.mktemp("biggan-pytorch")
    run = HostRun("biggan-pytorch", where / "run")
    script, data = run.script("train.py", POLICY), cifar(where)
    story = Story(run, where / "first", where / "second")
    for witness, options in ((story.first, []), (story.second, ["--resume"])):
        witness.mkdir()
        environment = {"RGPLUG_TEST_WITNESS": str(witness)}
        text = train(run, script, data, "--num_epochs=1", *options, **environment)
        (witness / "stdout.txt").write_text(text)
        for kept in weights(story).iterdir():
            shutil.copy(kept, witness)
        shutil.copy(run.where / "base" / "logs" / "t" / "history.jsonl", witness)
        shutil.copy(run.where / "base" / "logs" / "t_log.jsonl", witness)
    return story


def test_it_trains_sparse_and_the_host_measures(story: Story) -> None:
    text = (story.first / "stdout.txt").read_text()
    assert text.count("rgplug: BigGAN-PyTorch 9845943: hooked networks") == 1
    assert "not STU-GAN's" not in text
    records = history(story.first)
    logged = [json.loads(line) for line in (story.first / "t_log.jsonl").read_text().splitlines()]
    assert [r["steps"] for r in records] == [{"G": 4, "D": 8}, {"G": 8, "D": 16}]
    assert [r["metric"] for r in records] == [line["FID"] for line in logged]
    assert all(np.isfinite(r["metric"]) and r["metric"] > 0 for r in records)
    for record, line in zip(records, logged):
        assert record["metrics"] == {name: line[name] for name in ("FID", "IS_mean", "IS_std")}
        assert record["metric_name"] == "FID"
        assert record["density"] == {"G": pytest.approx(0.1, abs=0.005), "D": pytest.approx(0.3, abs=0.005)}
        assert line["rgplug_density_G"] == record["density"]["G"]
    assert not any(r["written"] for r in records)  # the host never writes where weights are pruned
    assert "linear.weight" in records[0]["layers"]["G"]
    assert not any("shared" in name or ".bn" in name for name in records[0]["layers"]["G"])


def test_resume_goes_on(story: Story) -> None:
    held = state.load(story.first / "rgplug.rgplug.safetensors")
    saved = torch.load(story.first / "G.pth", weights_only=True)
    resumed = state.load(story.second / "resumed.safetensors")
    with np.load(story.second / "resumed.npz") as live:
        for name, w in held["networks"]["G"]["weights"].items():
            assert torch.equal(resumed["networks"]["G"]["weights"][name]["mask"], w["mask"])
            assert not saved[name][~w["mask"]].any()
            np.testing.assert_array_equal(live[name], saved[name].numpy())
    records = history(story.second)
    assert [r["epoch"] for r in records] == [1, 2, 3, 4]
    assert records[-1]["steps"] == {"G": 16, "D": 32}
    first, last = (state.load(where / "rgplug.rgplug.safetensors") for where in (story.first, story.second))
    masks = [s["networks"]["G"]["weights"]["blocks.0.0.conv1.weight"]["mask"] for s in (first, last)]
    assert not torch.equal(*masks)  # explored on
    assert masks[0].sum() == masks[1].sum()


def test_the_average_in_the_hosts_files_is_sparse(story: Story) -> None:
    held = state.load(story.second / "rgplug.rgplug.safetensors")
    saved = torch.load(story.second / "G_ema.pth", weights_only=True)
    for name, w in held["networks"]["G"]["weights"].items():
        assert not saved[name][~w["mask"]].any()
        assert not held["ema"][name].any()  # the mask hides nothing: the average itself is 0 there


def test_the_hosts_sample_py_reads_the_weights(story: Story) -> None:
    script = folder("biggan-pytorch") / "sample.py"
    story.run(script, "--base_root=base", "--sample_random", "--sample_num_npz=0", *OPTIONS, plain=True)
    assert (story.run.where / "base" / "samples" / "t" / "random_samples.jpg").is_file()


def test_the_deep_model(story: Story, tmp_path: Path) -> None:
    run = HostRun("biggan-pytorch", tmp_path / "run")
    script = run.script("train.py", POLICY)
    model = ["--model=BigGANdeep", "--hier", "--G_shared", "--shared_dim=16", "--dim_z=16"]  # needs shared embeddings
    text = train(run, script, story.run.where.parent / "data", "--num_epochs=1", *model)
    assert "not STU-GAN's" not in text
    (*_, record) = history(run.where / "base" / "logs" / "t")
    assert record["density"] == {"G": pytest.approx(0.1, abs=0.005), "D": pytest.approx(0.3, abs=0.005)}
    assert any("conv4" in name for name in record["layers"]["G"])


def test_methods_are_compared_by_one_command(story: Story, tmp_path: Path) -> None:
    run, out = HostRun("biggan-pytorch", tmp_path), tmp_path / "runs"
    copy = checkout("biggan-pytorch", tmp_path)
    shutil.copy(story.run.where / "C10_inception_moments.npz", copy)
    options = [o for o in OPTIONS if not o.startswith(("--seed", "--experiment_name"))]
    data = f"--data_root={story.run.where.parent / 'data'}"
    done = run(
        example(tmp_path, "biggan_patch"), copy, "--compare", "dense,stu-gan", "--density=0.5", "--seeds=1",
        "--length=8", f"--out={out}", "--", *options, data, "--num_epochs=1",
    )  # fmt: skip
    results = {r.method: r for r in read_results(out)}
    assert {name: r.density["G"] for name, r in results.items()} == {
        "dense": 1,
        "stu-gan": pytest.approx(0.5, abs=0.01),
    }
    assert {r.metric for r in results.values()} == {"FID"}
    assert all(r.best > 0 for r in results.values())
    assert "report: " in done.stdout
    assert (out / "stu-gan" / "seed_0" / "weights" / "run" / "G_ema.pth").is_file()

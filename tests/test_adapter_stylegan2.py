"""StyleGAN2-ADA and DiffAugment-StyleGAN2: their own train.py with the two lines, as a user starts it, on a CPU.

A run of 21 iterations ends in an evaluation that is forced up (dense); it is resumed with evaluations forced down
(sparse again) and a second time, to look at what a resume brings back.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from host_runs import HostRun, folder, history, shapes, tree
from numpy.typing import NDArray
from PIL import Image

from rgplug import state

pytestmark = pytest.mark.host
HOSTS = ("stylegan2-ada", "diffaugment-stylegan2")
POLICY = {
    "threshold": {"units": "layer_std"},
    "target": {"G": 0.5, "D": 0.6, "by": 10},
    "networks": {"G": {"exclude": ["*torgb.weight"]}},
}
DUMP = """
import pickle, sys, numpy as np
with open(sys.argv[1], "rb") as file:
    data = pickle.load(file)
arrays = {f"{n}/{k}": v.numpy() for n in ("G", "D", "G_ema") for k, v in data[n].state_dict().items()}
np.savez(sys.argv[2], **arrays)
"""


def train(run: HostRun, script: Path, data: Path, *more: str, check: bool = True, **environment: str):
    cfg = ("--cfg=auto",) if run.host != "stylegan2-ada" else ()
    return run(
        script, "--outdir=out", f"--data={data}", "--gpus=1", "--batch=4", "--snap=1", "--metrics=fid50k_full",
        *cfg, *more, check=check, **environment,
    )  # fmt: skip


def last_folder(run: HostRun) -> Path:
    return max(p for p in (run.where / "out").iterdir() if p.is_dir())


def snapshot(where: Path) -> Path:
    return max(where.glob("network-snapshot-*.pkl"))


def weights(run: HostRun, pkl: Path) -> dict[str, NDArray[np.generic]]:
    """Parameters and buffers of a snapshot, read where rgplug cannot be imported."""
    script, out = run.where / "dump.py", run.where / "weights.npz"
    script.write_text(DUMP)
    run(script, pkl, out, plain=True)
    with np.load(out) as held:
        return {k: held[k] for k in held.files}


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The error's last line. The host sends what goes to stderr to its log and stdout."""
    return next(x for x in reversed((done.stderr + done.stdout).splitlines()) if "RgplugError" in x)


def values(path: Path, *numbers: float) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(str, numbers)))
    return str(path)


@dataclass
class Story:
    """The three runs of one host, and what they left."""

    run: HostRun
    data: Path
    first: Path
    second: Path
    witness: dict[str, Path]


@pytest.fixture(scope="module", params=HOSTS)
def story(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Story:
    host = request.param
    folder(host)
    where = tmp_path_factory.mktemp(host)
    data = shapes(where, 32)
    run = HostRun(host, where / "run", {"RGPLUG_TEST_TICK": "4"})
    script = run.script("train.py", POLICY)
    witness = {name: where / name for name in ("first", "second", "third")}
    for path in witness.values():
        path.mkdir()
    up = values(where / "up.txt", 1, 1, 1, 1, 1, 9)
    down = values(where / "down.txt", 0.1)
    common = {"RGPLUG_TEST_FID": up, "RGPLUG_TEST_WITNESS": str(witness["first"])}
    done = train(run, script, data, RGPLUG_TEST_ITERATIONS="21", **common)
    first = last_folder(run)
    (first / "stdout.txt").write_text(done.stdout)
    common = {"RGPLUG_TEST_FID": down, "RGPLUG_TEST_WITNESS": str(witness["second"])}
    train(run, script, data, f"--resume={snapshot(first)}", RGPLUG_TEST_ITERATIONS="5", **common)
    second = last_folder(run)
    common["RGPLUG_TEST_WITNESS"] = str(witness["third"])
    train(run, script, data, f"--resume={snapshot(second)}", RGPLUG_TEST_ITERATIONS="1", **common)
    return Story(run, data, first, second, witness)


def test_it_trains_sparse_and_says_what_it_does(story: Story) -> None:
    text = (story.first / "stdout.txt").read_text()
    known = "StyleGAN2-ADA d72cc7d" if story.run.host == "stylegan2-ada" else "DiffAugment-StyleGAN2 0b63395"
    assert text.count(f"rgplug: {known}: hooked networks") == 1
    assert "attached (rg-gan); managed weights G" in text
    records = history(story.first)
    assert [r["epoch"] for r in records] == [1, 2, 3, 4, 5, 6]
    assert records[-1]["steps"] == {"G": 21, "D": 21}  # reg phases are no iterations of their own
    for record in records[3:5]:  # 13 and 17 iterations: the target was due at 10
        assert record["density"]["G"] == pytest.approx(0.5, abs=0.005)
        assert record["density"]["D"] == pytest.approx(0.6, abs=0.005)
    assert not any("torgb.weight" in name for name in records[0]["layers"]["G"])
    assert any("torgb.affine" in name for name in records[0]["layers"]["G"])
    assert all(0 < d < 1 for name, d in records[4]["layers"]["G"].items() if "mapping" in name)
    assert records[-1]["real_images"] == 84
    assert records[-1]["flops"] > 0
    assert not any(r["written"] for r in records)  # the host never writes where weights are pruned


def test_the_hosts_own_metric_decides(story: Story) -> None:
    first, second = history(story.first), history(story.second)
    assert [r["phase"] for r in first] == ["sparse"] * 5 + ["dense"]
    assert [r["metric"] for r in first] == [1, 1, 1, 1, 1, 9]
    assert {r["metric_name"] for r in first} == {"fid50k_full"}
    # the value of a sparse pair, which then went dense; the next value is of the dense pair
    assert first[-1]["density"] == {"G": pytest.approx(0.5, abs=0.005), "D": pytest.approx(0.6, abs=0.005)}
    assert first[-1]["restored"]["G"] > 0
    assert second[0]["density"] == {"G": 1.0, "D": 1.0}
    assert [(r["epoch"], r["phase"]) for r in second] == [(7, "sparse"), (8, "sparse")]
    assert second[-1]["density"]["G"] == pytest.approx(0.5, abs=0.005)


def test_going_dense_brings_back_the_old_values(story: Story) -> None:
    """After the resume of a run that ended in a decision to go dense: what was dormant is live, bit for bit."""
    held = state.load(story.first / "network-snapshot-000000.rgplug.safetensors")
    resumed = state.load(story.witness["second"] / "resumed.safetensors")
    assert held["regeneration"]["sparse"] is False
    assert all(net["sparse"] is False for net in resumed["networks"].values())
    saved = weights(story.run, snapshot(story.first))
    with np.load(story.witness["second"] / "resumed.npz") as live:
        for name, w in held["networks"]["G"]["weights"].items():
            pruned = ~w["mask"].numpy()
            assert pruned.any()
            assert not saved[f"G/{name}"][pruned].any()  # the snapshot holds the sparse generator
            np.testing.assert_array_equal(live[name][pruned], w["dormant"].numpy()[pruned])
            np.testing.assert_array_equal(live[name][~pruned], saved[f"G/{name}"][~pruned])


def test_a_resume_is_exact(story: Story) -> None:
    """Masks, thresholds, dormant values, units, phase and history, from the sidecar beside the host's snapshot."""
    end = state.load(story.second / "rgplug.safetensors")
    resumed = state.load(story.witness["third"] / "resumed.safetensors")
    assert resumed["epoch"] == end["epoch"] == 8
    assert resumed["regeneration"] == end["regeneration"]
    for label, net in end["networks"].items():
        assert resumed["networks"][label]["sparse"] is net["sparse"] is True
        for name, w in net["weights"].items():
            ours = resumed["networks"][label]["weights"][name]
            assert ours.keys() == w.keys()
            for key, value in w.items():
                same = torch.equal(ours[key], value) if isinstance(value, torch.Tensor) else ours[key] == value
                assert same, f"{label}.{name}: {key}"


def test_the_snapshot_is_what_was_evaluated(story: Story) -> None:
    """The host's generate.py, where rgplug cannot be imported, draws the evaluated generator's picture."""
    pkl = snapshot(story.second)
    story.run(
        folder(story.run.host) / "generate.py", "--outdir=drawn", "--seeds=3", f"--network={pkl}", plain=True
    )  # fmt: skip
    drawn = np.asarray(Image.open(story.run.where / "drawn" / "seed0003.png"))
    np.testing.assert_array_equal(drawn, np.load(story.witness["second"] / "evaluated.npy"))
    held = state.load(Path(str(pkl).replace(".pkl", ".rgplug.safetensors")))
    saved = weights(story.run, pkl)
    for name, w in held["networks"]["G"]["weights"].items():
        pruned = ~w["mask"].numpy()
        assert pruned.any()
        for network in ("G", "G_ema"):
            assert not saved[f"{network}/{name}"][pruned].any()
            assert (saved[f"{network}/{name}"] != 0).mean() == pytest.approx(1 - pruned.mean(), abs=1e-3)
        assert held["ema"][name].abs().max() > 0  # what the mask hides of the average is in the sidecar


def test_numbers_in_the_hosts_log(story: Story) -> None:
    lines = [json.loads(line) for line in (story.first / "stats.jsonl").read_text().splitlines()]
    assert lines[4]["rgplug/density_G"]["mean"] == pytest.approx(0.5, abs=0.005)
    assert [line["rgplug/sparse"]["mean"] for line in lines] == [1] * 6  # as measured; the decision came after
    assert lines[5]["rgplug/density_G"]["mean"] == pytest.approx(0.5, abs=0.005)
    assert lines[5]["rgplug/restored_G"]["mean"] == history(story.first)[5]["restored"]["G"]
    assert lines[4]["rgplug/pruned_D"]["mean"] == history(story.first)[4]["pruned"]["D"]


@pytest.mark.parametrize("host", HOSTS)
def test_dense_changes_nothing(host: str, tmp_path: Path) -> None:
    """policy="dense": weights, buffers and averages of the host's snapshot are bit-identical to the run without."""
    found = []
    for policy in (None, "dense"):
        run = HostRun(host, tmp_path / str(policy), {"RGPLUG_TEST_TICK": "4", "RGPLUG_TEST_ITERATIONS": "9"})
        train(run, run.script("train.py", policy), shapes(tmp_path, 32))
        found.append(weights(run, snapshot(last_folder(run))))
        found[-1] = {k: v for k, v in found[-1].items() if not k.endswith("w_avg")}  # uninitialized in the host
        metric = (last_folder(run) / "metric-fid50k_full.jsonl").read_text().splitlines()
        found[-1]["fid"] = np.array([json.loads(line)["results"]["fid50k_full"] for line in metric])
    stock, ours = found
    assert stock.keys() == ours.keys()
    assert all(np.array_equal(stock[k], ours[k]) for k in stock), [
        k for k in stock if not np.array_equal(stock[k], ours[k])
    ]


def test_two_processes(tmp_path: Path) -> None:
    """--gpus=2 with gloo: the host's own check_ddp_consistency, and masks and thresholds equal bit for bit."""
    run = HostRun("stylegan2-ada", tmp_path / "run", {"RGPLUG_TEST_TICK": "2", "RGPLUG_TEST_ITERATIONS": "7"})
    policy = {**POLICY, "threshold": {"units": "spectral", "init": 0.001}}  # masks from the start, units from weights
    script = run.script("train.py", policy)
    witness = tmp_path / "witness"
    witness.mkdir()
    done = train(run, script, shapes(tmp_path, 32), "--gpus=2", RGPLUG_TEST_WITNESS=str(witness))
    ranks = [(witness / f"rank{r}.txt").read_text().splitlines() for r in (0, 1)]
    assert ranks[0] == ranks[1]
    assert len(ranks[0]) == len(set(ranks[0])) == 4
    assert done.stdout.count("rgplug: ") == 2 + 4  # hooked, attached, one line per evaluation: the first rank's only
    assert history(last_folder(run))[-1]["density"]["G"] < 0.8


def test_frozen_layers_of_d_are_left_out(tmp_path: Path) -> None:
    """Freeze-D makes weights buffers; they are none of rgplug's."""
    run = HostRun("stylegan2-ada", tmp_path / "run", {"RGPLUG_TEST_TICK": "2", "RGPLUG_TEST_ITERATIONS": "2"})
    script = run.script("train.py", {"target": {"D": 0.5, "by": 2}})
    train(run, script, shapes(tmp_path, 32), "--freezed=2")
    layers = history(last_folder(run))[-1]["layers"]["D"]
    assert not {"b32.fromrgb.weight", "b32.conv0.weight"} & set(layers)
    assert {"b32.conv1.weight", "b32.skip.weight", "b16.conv0.weight", "b4.out.weight"} <= set(layers)


@pytest.mark.parametrize(
    ("chosen", "order"),
    [
        (None, ["fid50k_full", "is50k_mean", "is50k_std", "kid50k_full"]),
        ("kid50k_full", ["kid50k_full", "fid50k_full", "is50k_mean", "is50k_std"]),
        ("is50k_std", ["is50k_std", "fid50k_full", "is50k_mean", "kid50k_full"]),
    ],
)
def test_any_metric_of_the_host_can_decide(chosen: str | None, order: list[str], tmp_path: Path) -> None:
    """All values of one evaluation are recorded, the one that decides first, as the host's own files have them."""
    run = HostRun("stylegan2-ada", tmp_path / "run", {"RGPLUG_TEST_TICK": "2", "RGPLUG_TEST_ITERATIONS": "1"})
    script = run.script("train.py", "rg-gan", metric=chosen)
    train(run, script, shapes(tmp_path, 32), "--metrics=fid50k_full,is50k,kid50k_full")
    (record,) = history(last_folder(run))
    measured = {}
    for path in last_folder(run).glob("metric-*.jsonl"):
        measured |= json.loads(path.read_text().splitlines()[-1])["results"]
    assert record["metric_name"] == order[0]
    assert record["metric"] == measured[order[0]]
    assert list(record["metrics"]) == order
    assert record["metrics"] == measured


@pytest.mark.parametrize(
    ("metric", "complaint"),
    [
        ("pr50k3_full_recall", "names none of the host's metrics (fid50k_full); add it to --metrics"),
        ("fid50k_full_best", "names nothing that the host measured; name one of fid50k_full"),
    ],
)
def test_a_metric_that_the_host_does_not_measure(metric: str, complaint: str, tmp_path: Path) -> None:
    run = HostRun("stylegan2-ada", tmp_path / "run", {"RGPLUG_TEST_TICK": "2", "RGPLUG_TEST_ITERATIONS": "3"})
    script = run.script("train.py", "rg-gan", metric=metric)
    done = train(run, script, shapes(tmp_path, 32), check=False)
    assert done.returncode
    assert f"install(metric='{metric}') {complaint}" in sentence(done)


def test_a_dense_checkpoint_starts_sparse_training(tmp_path: Path) -> None:
    run = HostRun("stylegan2-ada", tmp_path / "run", {"RGPLUG_TEST_TICK": "2", "RGPLUG_TEST_ITERATIONS": "3"})
    data = shapes(tmp_path, 32)
    train(run, run.script("train.py", None), data, "--metrics=none")
    pkl = snapshot(last_folder(run))
    before = weights(run, pkl)
    done = train(run, run.script("train.py", {"target": {"G": 0.5, "by": 2}}), data, f"--resume={pkl}")
    assert "has no sidecar (network-snapshot-000000.rgplug.safetensors): sparse training starts here" in done.stdout
    assert history(last_folder(run))[-1]["density"]["G"] == pytest.approx(0.5, abs=0.005)
    after = weights(run, snapshot(last_folder(run)))
    name = "G/synthesis.b4.conv1.weight"
    assert np.corrcoef(before[name].ravel(), after[name].ravel())[0, 1] > 0.5  # from there, not from scratch


def test_a_corrupt_sidecar(story: Story) -> None:
    sidecar = story.first / "network-snapshot-000000.rgplug.safetensors"
    intact = sidecar.read_bytes()
    sidecar.write_bytes(intact[: len(intact) // 2])
    script = story.run.where / "train.py"
    try:
        before = tree(story.first)
        done = train(story.run, script, story.data, f"--resume={snapshot(story.first)}", check=False)
        assert done.returncode
        last = sentence(done)
        assert "RgplugError" in last
        assert "network-snapshot-000000.rgplug.safetensors is truncated or corrupt" in last
        assert tree(story.first) == before
    finally:
        sidecar.write_bytes(intact)


def test_patterns_that_match_nothing(tmp_path: Path) -> None:
    run = HostRun("stylegan2-ada", tmp_path / "run")
    script = run.script("train.py", {"networks": {"G": {"include": ["blocks.*"]}}})
    done = train(run, script, shapes(tmp_path, 32), check=False)
    assert done.returncode
    assert "blocks.*" in sentence(done)


def test_rgplug_measures_where_the_host_does_not(tmp_path: Path) -> None:
    """--metrics=none and a metric in the policy: against other images than the training set."""
    run = HostRun("stylegan2-ada", tmp_path / "run", {"RGPLUG_TEST_TICK": "2", "RGPLUG_TEST_ITERATIONS": "3"})
    others = shapes(tmp_path / "others", 32, 16)
    metric = {"real": str(others), "features": "efficientnet_lite0", "samples": 8, "batch": 8}
    train(run, run.script("train.py", {**POLICY, "metric": metric}), shapes(tmp_path, 32), "--metrics=none")
    records = history(last_folder(run))
    assert {r["metric_name"] for r in records} == {"fd_efficientnet_lite0"}
    assert len({r["metric"] for r in records}) == len(records) == 2
    assert all(r["metric"] > 0 for r in records)


def test_stu_gan_from_start_to_resume(tmp_path: Path) -> None:
    """The example policy with short intervals: the mask explores, the average is sparse by itself, the host's snapshot
    is what was evaluated, and a resume goes on exactly from there."""
    run = HostRun("stylegan2-ada", tmp_path / "run", {"RGPLUG_TEST_TICK": "4", "RGPLUG_TEST_ITERATIONS": "9"})
    file = Path(__file__).parent.parent / "examples" / "policies" / "stylegan2_ada_stu_gan.yaml"
    script = run.script("train.py", {"base": str(file), "exploration": {"every": 3}})
    data, witness = shapes(tmp_path, 32), [tmp_path / "first", tmp_path / "second"]
    (tmp_path / "fids.txt").write_text("3 2 1")
    for folder_of_run, options in zip(witness, ([], ["--resume={}"])):
        folder_of_run.mkdir()
        environment = {"RGPLUG_TEST_WITNESS": str(folder_of_run), "RGPLUG_TEST_FID": str(tmp_path / "fids.txt")}
        pkl = [o.format(snapshot(last_folder(run))) for o in options]
        done = train(run, script, data, *pkl, **environment)
        assert "not STU-GAN's" not in done.stdout
        records = history(last_folder(run))
        for record in records:
            assert record["density"] == {"G": pytest.approx(0.1, abs=0.01), "D": pytest.approx(0.3, abs=0.01)}
            assert record["metrics"] == {"fid50k_full": record["metric"]}
            assert not record["written"]
    assert [r["epoch"] for r in records] == [4, 5, 6]
    first = last_folder(run).parent / "00000-shapes32-auto1-batch4"
    held = state.load(first / "network-snapshot-000000.rgplug.safetensors")
    resumed = state.load(witness[1] / "resumed.safetensors")
    saved, explored = weights(run, snapshot(first)), 0
    last = state.load(last_folder(run) / "network-snapshot-000000.rgplug.safetensors")
    for name, w in held["networks"]["G"]["weights"].items():
        assert torch.equal(resumed["networks"]["G"]["weights"][name]["mask"], w["mask"])
        for network in ("G", "G_ema"):
            assert not saved[f"{network}/{name}"][~w["mask"].numpy()].any()
        assert not held["ema"][name].any()  # the mask hides nothing
        now = last["networks"]["G"]["weights"][name]["mask"]
        assert now.sum() == w["mask"].sum()
        explored += int((now & ~w["mask"]).sum())
    assert explored > 100
    run(folder(run.host) / "generate.py", "--outdir=drawn", "--seeds=3", f"--network={snapshot(first)}", plain=True)
    drawn = np.asarray(Image.open(run.where / "drawn" / "seed0003.png"))
    np.testing.assert_array_equal(drawn, np.load(witness[0] / "evaluated.npy"))

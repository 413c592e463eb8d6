"""The official examples against a ticket: one command, on the real repositories and on a stand-in for one."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from host_runs import HostRun, folder, shapes

from rgplug.baselines import read_results
from rgplug.snapshot import read

EXAMPLES = Path(__file__).parent.parent / "examples"
METHODS = {"dense", "rg-gan", "tickets"}


def checkout(host: str, where: Path) -> Path:
    """A copy of a repository: the example writes its patched train.py beside the original."""
    copy = where / "checkout"
    shutil.copytree(folder(host), copy, ignore=shutil.ignore_patterns(".git", "__pycache__", "*.png", "*.gif"))
    return copy


def example(where: Path, name: str) -> Path:
    """The example's command line, on a machine without the GPU that it asks for."""
    path = where / "example.py"
    path.write_text(
        "import runpy, sys\n"
        "from rgplug.examples import stylegan2_ada_patch as example\n"
        "example._needs_cuda = lambda: ''\n"
        f"sys.exit(example.main()) if {name == 'stylegan2_ada_patch'} else None\n"
        f"runpy.run_path({str(EXAMPLES / name) + '.py'!r}, run_name='__main__')\n"
    )
    return path


def few_samples(where: Path, data: Path) -> Path:
    """The example's policy for FastGAN, measured on fewer images than anybody would."""
    policy = {"base": str(EXAMPLES / "policies" / "fastgan.yaml")}
    metric = {"real": str(data), "samples": 4, "batch": 4, "features": "efficientnet_lite0"}
    (where / "policy.yaml").write_text(yaml.safe_dump({**policy, "metric": metric}))
    return where / "policy.yaml"


def check(out: Path, *, rounds: int = 3) -> dict[str, Any]:
    """What the command leaves: equal densities, costs over all rounds, and a report."""
    results = {r.method: r for r in read_results(out)}
    assert set(results) == METHODS
    dense, ticket = results["dense"], results["tickets"]
    share = 0.8**rounds
    for network in ("G", "D"):
        assert ticket.density[network] == pytest.approx(share, abs=0.01)
        assert results["rg-gan"].density[network] == pytest.approx(share, abs=0.03)
    assert dense.density == {"G": 1.0, "D": 1.0}
    assert len(ticket.rounds) == rounds + 1
    assert ticket.before["real_images"] == rounds * dense.real_images_total > 0
    assert ticket.before["flops"] == pytest.approx(sum(r.flops_total for r in ticket.rounds[:-1]))
    assert ticket.flops_to_best > dense.flops_to_best
    masks = [read(out / f"tickets/seed_0/round_0{n}/masks.safetensors", "masks")["masks"]["G"] for n in (1, 2, 3)]
    assert all(not (later[k] & ~earlier[k]).any() for earlier, later in itertools.pairwise(masks) for k in later)
    began = read(out / "tickets/seed_0/round_03/initial.safetensors")["pair"]["G"]
    first = read(out / "dense/seed_0/initial.safetensors")["pair"]["G"]
    for name, weights in first.items():
        kept = masks[2].get(name, torch.ones_like(weights, dtype=torch.bool))
        assert torch.equal(began[name][kept], weights[kept]) or "w_avg" in name, name  # which the host leaves to chance
    page = (out / "report.html").read_text()
    assert all(name in page for name in METHODS)
    assert "tickets" in (out / "table.md").read_text()
    return results


@pytest.mark.host
def test_stylegan2_ada_against_a_ticket(tmp_path: Path) -> None:
    run = HostRun("stylegan2-ada", tmp_path, {"RGPLUG_TEST_ITERATIONS": "24", "RGPLUG_TEST_TICK": "6"})
    data, out = shapes(tmp_path, 32), tmp_path / "runs"
    done = run(
        example(tmp_path, "stylegan2_ada_patch"), checkout("stylegan2-ada", tmp_path),
        "--compare", "dense,rg-gan,tickets", "--rounds", "3", "--seeds", "1", "--out", out, "--length", "18",
        "--", f"--data={data}", "--gpus=1", "--batch=4", "--snap=1", "--metrics=fid50k_full",
    )  # fmt: skip
    results = check(out)
    assert {r.metric for r in results.values()} == {"fid50k_full"}
    assert "report: " in done.stdout
    assert "over 4 trainings" in done.stdout
    assert next((out / "rg-gan/seed_0").glob("00000-*/network-snapshot-*.pkl"), None) is not None
    assert not list(folder("stylegan2-ada").glob("train_rgplug.py"))


@pytest.mark.host
def test_fastgan_against_a_ticket(tmp_path: Path) -> None:
    run = HostRun("fastgan", tmp_path)
    data, out = shapes(tmp_path, 256, count=4), tmp_path / "runs"
    policy = few_samples(tmp_path, data)
    run(
        example(tmp_path, "fastgan_patch"), checkout("fastgan", tmp_path), "--compare", "dense,rg-gan,tickets",
        "--rounds", "3", "--seeds", "1", "--out", out, "--policy", policy, "--install", "every=2",
        "--", f"--path={data}", "--batch_size=4", "--im_size=256", "--workers=0", "--save_interval=1", "--iter=4",
    )  # fmt: skip
    results = check(out)
    assert {r.metric for r in results.values()} == {"fd_efficientnet_lite0"}
    assert (out / "rg-gan/seed_0/train_results/seed_0/models/all_4.pth").is_file()


@pytest.mark.host
def test_fastgan_is_seeded_by_the_comparison(tmp_path: Path) -> None:
    """The host has no option for it: the same seed gives the same records in another folder, another seed others."""
    run, repository = HostRun("fastgan", tmp_path), checkout("fastgan", tmp_path)
    data = shapes(tmp_path, 256, count=8)
    found = []
    for name, seeds in (("a", "1"), ("b", "2")):
        run(
            example(tmp_path, "fastgan_patch"), repository, "--compare", "dense", "--seeds", seeds,
            "--policy", few_samples(tmp_path, data), "--out", tmp_path / name, "--install", "every=3",
            "--", f"--path={data}", "--batch_size=4", "--im_size=256", "--workers=0", "--save_interval=1", "--iter=5",
        )  # fmt: skip
        found.append({r.seed: r.final for r in read_results(tmp_path / name)})
    assert found[0][0] == found[1][0]
    assert found[1][0] != found[1][1]


# ----------------------------------------------------------------------------
# A stand-in for a repository, in the ordinary suite.

SCRIPT = """
import sys

from rgplug.adapters import patching  # stands for the host's imports
sys.path.insert(0, {tests!r})
import command_host

sys.argv = [sys.argv[0], "--out", [a for a in sys.argv if a.startswith("--outdir=")][0][9:],
            "--seed", [a for a in sys.argv if a.startswith("--seed=")][0][7:]]
command_host.main()
"""


def test_one_command_on_a_stand_in(tmp_path: Path) -> None:
    repository = tmp_path / "checkout"
    (repository / "metrics").mkdir(parents=True)
    (repository / "training").mkdir()
    (repository / "dnnlib").mkdir()
    for name in ("training/training_loop.py", "dnnlib/util.py", "metrics/metric_main.py"):
        (repository / name).write_text("")
    source = SCRIPT.format(tests=str(Path(__file__).parent)).replace("from rgplug.adapters import patching  #", "#")
    (repository / "train.py").write_text(source)
    out = tmp_path / "runs"
    command = [sys.executable, str(tmp_path / "example.py"), str(repository), "--compare", "dense,rg-gan,tickets"]
    (tmp_path / "example.py").write_text(
        "import sys\n"
        "from rgplug.adapters import patching\n"
        "from rgplug.examples import stylegan2_ada_patch as example\n"
        "example._needs_cuda = lambda: ''\n"
        "patching.two_lines = lambda *a, **k: ['import rgplug', '']\n"  # the stand-in has its own two lines
        "sys.exit(example.main())\n"
    )
    options = ["--rounds", "3", "--seeds", "1", "--out", str(out), "--", "--batch=4", "--kimg=0.04"]
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    check(out)
    assert len([line for line in done.stdout.splitlines() if " seed 0: " in line]) == 3
    assert "FLOPs" in done.stdout
    again = subprocess.run(
        [*command, *options], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert again.stdout == done.stdout
    refused = subprocess.run([*command, *options, "--outdir=x"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr == "--outdir is given for each run by the comparison; leave it out of the host's options\n"

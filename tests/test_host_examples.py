"""The examples and policies for the real repositories."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from host_runs import folder, tree
from test_hosts import host

import rgplug

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = [
    ("stylegan2_ada_patch.py", "stylegan2-ada", "stylegan2_ada", "stylegan2_ada.yaml"),
    ("diffaugment_patch.py", "diffaugment-stylegan2", "diffaugment", "stylegan2_ada.yaml"),
    ("diffaugment_patch.py", "biggan", "diffaugment", "diffaugment_biggan.yaml"),
    ("biggan_patch.py", "biggan-pytorch", "biggan", "diffaugment_biggan_stu_gan.yaml"),
    ("fastgan_patch.py", "fastgan", "fastgan", "fastgan.yaml"),
]


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / script), *map(str, arguments)], capture_output=True, text=True, timeout=120
    )


@pytest.mark.host
@pytest.mark.parametrize(("script", "name", "adapter", "policy"), SCRIPTS)
def test_the_diff_is_the_two_lines(script: str, name: str, adapter: str, policy: str) -> None:
    before = tree(folder(name))
    done = run(script, folder(name))
    assert done.returncode == 0, done.stderr
    added = [x[1:] for x in done.stdout.splitlines() if x.startswith("+") and not x.startswith("+++")]
    assert added[0] == f"from rgplug.adapters import {adapter}"
    assert added[1].startswith(f"{adapter}.install(policy=")
    assert policy in added[1]
    assert len(added) == 2
    assert not [x for x in done.stdout.splitlines() if x.startswith("-") and not x.startswith("---")]
    dry = run(script, folder(name), "--dry-run")
    compile(dry.stdout, "train.py", "exec")
    assert added[0] in dry.stdout
    assert tree(folder(name)) == before


@pytest.mark.host
@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here, so --run would start the host")
def test_run_says_what_the_host_needs() -> None:
    before = tree(folder("stylegan2-ada"))
    done = run("stylegan2_ada_patch.py", folder("stylegan2-ada"), "--run", "--", "--outdir=out")
    assert done.returncode == 2
    assert "the host trains on CUDA only" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert tree(folder("stylegan2-ada")) == before


def test_run_starts_the_patched_copy_with_the_hosts_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from rgplug.examples import stylegan2_ada_patch as example

    (tmp_path / "train.py").write_text("import sys\n\nprint('started', sys.argv)\n")
    monkeypatch.setattr(example, "_needs_cuda", lambda: "")
    monkeypatch.setattr(
        sys, "argv", ["patch", str(tmp_path), "--run", "--policy=dense", "--", "--outdir=x", "--gpus=1"]
    )
    monkeypatch.setattr(example.patching, "two_lines", lambda *a, **k: ["x = 1"])
    assert example.main(known=()) == 0
    assert "started ['train_rgplug.py', '--outdir=x', '--gpus=1']" in capfd.readouterr().out
    assert (tmp_path / "train_rgplug.py").read_text() == "import sys\nx = 1\n\nprint('started', sys.argv)\n"


def test_another_folder(tmp_path: Path) -> None:
    done = run("stylegan2_ada_patch.py", tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"{tmp_path} has no train.py; give the folder of the repository\n"


@pytest.mark.parametrize("policy", sorted((EXAMPLES / "policies").glob("*.yaml")), ids=lambda p: p.stem)
def test_policies_can_be_read(policy: Path) -> None:
    loaded, written = rgplug.Policy.load(policy), yaml.safe_load(policy.read_text())
    if loaded.method == "rg-gan":
        assert loaded.target is not None
        assert set(written) >= {"base", "threshold", "networks", "regeneration"}
        return
    beside = rgplug.Policy.load(policy.with_name(policy.name.replace("_stu_gan", "").replace("_re_gan", "")))
    assert beside.method == "rg-gan"
    assert loaded.networks["G"] == beside.networks["G"]  # a density means the same weights under each method
    if loaded.method == "sparse":
        assert loaded.networks == beside.networks
        assert set(written) >= {"base", "masks", "exploration", "networks"}
    else:
        assert loaded.cycle.networks == ("G",)
        assert set(written) >= {"base", "cycle", "networks"}


@pytest.mark.host
def test_what_the_policies_leave_out() -> None:
    import importlib

    with host("stylegan2-ada"):
        networks = importlib.import_module("training.networks")
        common = {"c_dim": 0, "img_resolution": 32, "img_channels": 3}
        blocks = {"channel_base": 512, "channel_max": 16}
        G = networks.Generator(z_dim=8, w_dim=8, mapping_kwargs={"num_layers": 2}, synthesis_kwargs=blocks, **common)
        D = networks.Discriminator(**common, **blocks, epilogue_kwargs={"mbstd_group_size": 2})
        rg = rgplug.attach(G, D, EXAMPLES / "policies" / "stylegan2_ada.yaml")
        names = {w.name for w in rg.weights("G")}
        assert {"mapping.fc0.weight", "synthesis.b32.conv0.weight", "synthesis.b32.torgb.affine.weight"} <= names
        assert "synthesis.b32.torgb.weight" not in names
        left = {n for n, p in D.named_parameters() if n.endswith("weight")} - {w.name for w in rg.weights("D")}
        assert left == {"b32.fromrgb.weight", "b4.out.weight"}
        rg.detach()
    with host("biggan"):
        BigGAN = importlib.import_module("BigGAN")
        common = {"resolution": 32, "n_classes": 10, "skip_init": True}
        for shared in (True, False):
            G = BigGAN.Generator(G_ch=8, dim_z=16, G_attn="0", no_optim=True, G_shared=shared, **common)
            D = BigGAN.Discriminator(D_ch=8, D_attn="0", **common)
            rg = rgplug.attach(G, D, EXAMPLES / "policies" / "diffaugment_biggan.yaml")
            left = {w.name for w in rg.weights("G") if ".conv" not in w.name}
            assert left == {"linear.weight", "output_layer.2.weight"}
            assert {w.name.rpartition(".")[2] for w in rg.weights("D")} == {"weight"}
            assert not {"linear.weight", "embed.weight"} & {w.name for w in rg.weights("D")}
            rg.detach()
    with host("fastgan"):
        models = importlib.import_module("models")
        G, D = models.Generator(ngf=4, nz=16, im_size=256), models.Discriminator(ndf=4, im_size=256)
        policy = {"base": str(EXAMPLES / "policies" / "fastgan.yaml"), "metric": None}
        rg = rgplug.attach(G, D, policy)
        assert not [w.name for w in rg.weights("G") if w.name.startswith("to_")]
        assert not [w.name for w in rg.weights("D") if w.name.startswith(("rf_", "decoder_"))]
        assert len(rg.weights("D")) > 8

"""`rgplug tickets`: iterative magnitude pruning over a host's own command line."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import oracle_magnitude as oracle
import pytest
import torch
from common import adam
from host_runs import HostRun, shapes
from test_sparse import batches, loss_of
from test_sparse import network as build

import rgplug
from rgplug import RgplugError
from rgplug.baselines import drive_tickets, next_masks
from rgplug.cli import main
from rgplug.snapshot import read, save_masks

SCRIPT = """
import os, sys
sys.path.insert(0, {tests!r})
import torch
from common import Host
import rgplug

host = Host(seed=3)
rg = rgplug.attach(host.G, host.D, {{"base": "rg-gan", "networks": {{"G": {{"exclude": ["0.*"]}}}}, "batch_size": 4}})
for epoch in range(2):
    host.run(4)
    if os.environ.get("DIE_IN") == sys.argv[1]:
        os._exit(9)
    rg.end_epoch(10.0 - epoch)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    return path


def command(script: Path) -> list[str]:
    return [sys.executable, str(script), "{round}", "{out}"]


def folder(out: Path, number: int) -> Path:
    """Of a round; round 0 is the dense run."""
    method = next(p.name for p in out.iterdir() if p.name.startswith("tickets"))
    return out / method / "seed_0" / f"round_{number:02d}" if number else out / "dense" / "seed_0"


def pair(out: Path, number: int, name: str) -> dict[str, Any]:
    return read(folder(out, number) / f"{name}.safetensors")["pair"]


def masks(out: Path, number: int) -> dict[str, Any]:
    return read(folder(out, number) / "masks.safetensors", "masks")["masks"]


@pytest.mark.parametrize("rewind", ["init", "early", "none"])
def test_rounds(script: Path, tmp_path: Path, rewind: Any) -> None:
    """Densities, masks that only shrink, and what each round starts from, bit for bit."""
    out = tmp_path / "tickets"
    rows = drive_tickets(command(script), out, rounds=3, rewind=rewind, early=2 if rewind == "early" else None)
    assert [r["density"]["D"] for r in rows] == pytest.approx([1, 0.8, 0.64, 0.512], abs=2e-3)
    assert [r["best"] for r in rows] == [9.0] * 4
    assert rows[1]["real_images"] == 32
    for number in (1, 2, 3):
        held = masks(out, number)
        assert set(held["G"]) == {"5.weight", "7.weight"}  # the script's own policy leaves the first layer out
        first = {"init": pair(out, 0, "initial"), "none": pair(out, number - 1, "trained")}
        start = first[rewind] if rewind != "early" else pair(out, 0, "early")
        began, ended = pair(out, number, "initial"), pair(out, number, "trained")
        for network in ("G", "D"):
            for name, tensor in began[network].items():
                kept = held[network].get(name, torch.ones_like(tensor))
                assert torch.equal(tensor, start[network][name] * kept), (number, name)
            for name, mask in held[network].items():
                assert not ended[network][name][~mask].any()
                assert number == 1 or not (mask & ~masks(out, number - 1)[network][name]).any()


def test_a_round_that_is_broken_off_is_done_again(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tickets"
    arguments = ["tickets", "--rounds", "2", "--out", str(out), "--", *command(script)]
    monkeypatch.setenv("DIE_IN", "2")
    assert main(arguments) == 2
    said = capfd.readouterr().err
    assert "1 of 2 runs failed, the first was tickets seed 0: the command ended with status 9" in said
    assert f"its output is in {folder(out, 2) / 'output.txt'}" in said
    finished = {p: p.stat().st_mtime_ns for p in folder(out, 1).iterdir()}
    finished |= {p: p.stat().st_mtime_ns for p in folder(out, 0).iterdir()}
    monkeypatch.delenv("DIE_IN")
    assert main(arguments) == 0
    assert finished == {p: p.stat().st_mtime_ns for p in finished}
    alone = tmp_path / "alone"
    drive_tickets(command(script), alone, rounds=2)
    for network in ("G", "D"):
        a, b = pair(out, 2, "trained")[network], pair(alone, 2, "trained")[network]
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_rounds_equal_the_oracle(tmp_path: Path) -> None:
    """Masks of each round, and 100 steps of training in it, against numpy."""
    steps, seen = batches(100), []
    reference = oracle.Tickets(build, 0.2, "init", 0, 1e-2, (0.5, 0.999))
    rounds = reference.run(3, 100, [lambda net, x=x: loss_of(net, x) for x in steps])
    before: Path | None = None
    start: Path | None = None
    for number, theirs in enumerate(rounds):
        net = build(seed=0 if start is None else 9)
        policy: dict[str, Any] = {"base": "dense" if before is None else "sparse"}
        policy["snapshots"] = {"folder": tmp_path / str(number)}
        if before is not None:
            policy |= {"masks.file": before, "start.weights": start}
        rg = rgplug.attach(net, None, policy)
        optimizer = adam(net)
        for x in steps:
            optimizer.zero_grad()
            loss_of(net, x).backward()
            optimizer.step()
        managed = {"G": [w.name for w in rg.weights("G")]}
        rg.detach()
        for name, value in net.named_parameters():
            torch.testing.assert_close(value.detach(), torch.from_numpy(theirs.trained[name]), rtol=0, atol=1e-9)
        new = next_masks(tmp_path / str(number) / "trained.safetensors", before, 0.2, ["G"], managed)
        for name, mask in new["G"].items():
            assert mask.numpy().tolist() == theirs.next_masks[name].tolist()
        before, start = tmp_path / f"masks{number}.safetensors", tmp_path / "0" / "initial.safetensors"
        save_masks(before, new)
        seen.append(sum(int(m.sum()) for m in new["G"].values()) / sum(m.numel() for m in new["G"].values()))
    assert seen == pytest.approx([0.8, 0.64, 0.512], abs=1e-3)


def test_weights_that_the_host_loads_after_attach_are_the_first_ones(tmp_path: Path) -> None:
    net, pretrained = build(), build(seed=8)
    rg = rgplug.attach(net, None, {"base": "dense", "snapshots.folder": tmp_path})
    net.load_state_dict(pretrained.state_dict())
    optimizer = adam(net)
    loss_of(net, batches(1)[0]).backward()
    optimizer.step()
    held = read(tmp_path / "initial.safetensors")["pair"]["G"]
    assert all(torch.equal(held[name], value) for name, value in pretrained.state_dict().items())
    assert not (tmp_path / "trained.safetensors").exists()
    rg.detach()
    assert (tmp_path / "trained.safetensors").exists()


def test_the_early_snapshot_is_that_of_its_iteration(tmp_path: Path) -> None:
    """A lazy regularization's step after it is no iteration, and does not write it again."""
    net = build()
    rg = rgplug.attach(net, None, {"base": "dense", "snapshots": {"folder": tmp_path, "early": 2}})
    optimizer = adam(net)
    for x in batches(2):
        loss_of(net, x).backward()
        optimizer.step()
    weights = {name: p.clone() for name, p in net.state_dict().items()}
    with rg.auxiliary_step("G"):
        optimizer.step()
    held = read(tmp_path / "early.safetensors")["pair"]["G"]
    assert all(torch.equal(held[name], value) for name, value in weights.items())
    assert not torch.equal(net[0].weight, weights["0.weight"])


def test_statistics_of_batch_norm_are_rewound_too(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    rgplug.attach(net, None, {"base": "dense", "snapshots.folder": tmp_path})
    optimizer = adam(net)
    net(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    held = read(tmp_path / "initial.safetensors")["pair"]["G"]
    assert not held["1.running_mean"].any()
    assert net[1].running_mean.any()


@pytest.mark.parametrize(
    ("code", "keys", "sentence"),
    [
        ("pass", {}, "dense seed 0: the command ended and has attached nothing: put the two lines"),
        ("raise SystemExit(3)", {}, "dense seed 0: the command ended with status 3"),
        ("pass", {"rewind": "early"}, "rewind early needs --early N"),
        ("pass", {"rounds": 0}, "rounds is 0"),
        ("pass", {"ratio": 1.0}, "ratio is 1.0"),
    ],
)
def test_what_cannot_be_driven(tmp_path: Path, code: str, keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RgplugError, match=sentence):
        drive_tickets([sys.executable, "-c", code, "{out}"], tmp_path / "out", **keys)


def test_no_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tickets", "--out", str(tmp_path)]) == 2
    assert "there is no command to run" in capsys.readouterr().err
    with pytest.raises(RgplugError, match="'nowhere/train' cannot be run: No such file"):
        drive_tickets(["nowhere/train", "{out}"], tmp_path / "out")


def test_other_settings_in_the_same_folder(script: Path, tmp_path: Path) -> None:
    drive_tickets(command(script), tmp_path / "out", rounds=1)
    with pytest.raises(RgplugError, match=r"other settings \(ratio was 0.2, now it is 0.5\); give another --out"):
        drive_tickets(command(script), tmp_path / "out", rounds=1, ratio=0.5)
    assert len(drive_tickets(command(script), tmp_path / "out", rounds=2)) == 3  # more rounds are no other setting


@pytest.mark.host
def test_fastgan_round_by_round(tmp_path: Path) -> None:
    """The adapted train.py as it is, driven by the command line."""
    run = HostRun("fastgan", tmp_path / "run")
    data = shapes(tmp_path, 256, count=4)
    policy = {
        "base": "rg-gan",
        "metric": {"real": str(data), "samples": 4, "batch": 4, "features": "efficientnet_lite0"},
    }
    train = run.script("train.py", policy, every=1)
    options = [f"--path={data}", "--output_path={out}", "--name=t", "--batch_size=4", "--im_size=256", "--workers=0"]
    out = tmp_path / "tickets"
    done = run(
        "-m", "rgplug.cli", "tickets", "--rounds", "1", "--ratio", "0.3", "--networks", "G", "--out", out, "--",
        sys.executable, train, *options, "--save_interval=1", "--iter=2",
    )  # fmt: skip
    assert "round 1: density G 0.700 D 1.000 | fd_efficientnet_lite0" in done.stdout
    held, began = masks(out, 1)["G"], pair(out, 1, "initial")["G"]
    first = pair(out, 0, "initial")["G"]
    assert all(torch.equal(began[n], first[n] * held.get(n, torch.ones(()))) for n in first)
    assert (folder(out, 1) / "train_results" / "t" / "models" / "all_2.pth").is_file()
    lines = [json.loads(line) for line in (folder(out, 1) / "history.jsonl").read_text().splitlines()]
    assert {line["phase"] for line in lines} == {"sparse"}
    assert os.environ.get("RGPLUG_POLICY") is None

"""Comparisons whose host is a command: equal to those of functions, kills, several writers, bad commands."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hosts_of_comparisons import LENGTH, POLICY, build, train

from rgplug import RgplugError
from rgplug.baselines import compare, read_results
from rgplug.baselines.claims import Claim, alone
from rgplug.baselines.command import filled
from rgplug.baselines.compare import plan
from rgplug.baselines.driven import drive_tickets
from rgplug.baselines.grid import Cell
from rgplug.baselines.host import Functions
from rgplug.baselines.methods import Scale
from rgplug.baselines.results import collect
from rgplug.baselines.run import policy_of
from rgplug.baselines.status import status_of
from rgplug.cli import main
from rgplug.data import robots
from rgplug.snapshot import read

HERE = Path(__file__).parent
COMMAND = [sys.executable, str(HERE / "command_host.py"), "--out", "{out}", "--seed", "{seed}"]
EVERYTHING: dict[str, Any] = {"policy": POLICY, **LENGTH}
FOUR = ["dense", "rg-gan", "stu-gan", "tickets"]
BY_TAYLOR = {"base": "tickets", "granularity": "filter", "masks.criterion": "torch-pruning:TaylorImportance"}
MORE: dict[str, Any] = {"pf-global": None, "small-dense": None, "pf-taylor": None, "tickets-taylor": BY_TAYLOR}
KILLS = int(os.environ.get("RGPLUG_KILLS", "20"))
ARGUMENTS = ["--density", "0.5", "--length", "12", "--rounds", "2", "--set", "batch_size=4"]


def rows(out: Path) -> dict[str, Any]:
    return {f"{r.method}:{r.seed}": r for r in read_results(out)}


# ----------------------------------------------------------------------------
# The same results as functions.


@pytest.fixture(scope="module")
def by_command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("command")
    methods = {**dict.fromkeys(FOUR), **MORE, "tickets-random-init": None}
    compare(methods, command=COMMAND, out=out, **EVERYTHING)
    return out


def test_a_command_gives_what_functions_give(by_command: Path, tmp_path: Path) -> None:
    compare({**dict.fromkeys(FOUR), **MORE}, train, build, out=tmp_path, **EVERYTHING)
    functions, commands = rows(tmp_path), rows(by_command)
    for name, result in functions.items():
        assert commands[name] == result, name
        folder = result.run
        for file in ("trained.safetensors", "masks.safetensors"):
            if (tmp_path / folder / file).is_file():
                kind = "pair" if file.startswith("trained") else "masks"
                a, b = (read(root / folder / file, kind)[kind] for root in (tmp_path, by_command))
                assert all(torch.equal(a[net][k], b[net][k]) for net in a for k in a[net]), (name, file)


def test_the_control_has_other_first_weights_under_the_ticket_s_masks(by_command: Path) -> None:
    folder = by_command / "tickets-random-init" / "seed_0"
    first = read(folder / "first_weights" / "initial.safetensors")["pair"]
    assert not torch.equal(
        first["G"]["5.weight"], read(by_command / "dense/seed_0/initial.safetensors")["pair"]["G"]["5.weight"]
    )
    masks = read(by_command / "tickets/seed_0/round_02/masks.safetensors", "masks")["masks"]["G"]
    policy = yaml.safe_load((folder / "policy.yaml").read_text())
    assert policy["start"]["weights"] == str(folder / "first_weights" / "initial.safetensors")
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    for line in history:  # the ticket's masks in every layer, from the first evaluation to the last
        assert line["layers"]["G"] == {name: pytest.approx(float(m.float().mean())) for name, m in masks.items()}


def test_sngan_as_functions_and_as_a_command(tmp_path: Path) -> None:
    """Four methods on examples/sngan.py, measured by rgplug: bit for bit."""
    images = tmp_path / "robots"
    images.mkdir()
    from PIL import Image

    for number, pixels in enumerate(robots()[:24]):
        Image.fromarray(pixels).save(images / f"{number}.png")
    words = ["--data", str(images), "--width", "8", "--iterations", "4", "--eval-every", "2", "--batch", "4"]
    words += ["--batch-g", "4", "--n-critic", "2"]
    keys = ["--methods", ",".join(FOUR), "--density", "0.5", "--length", "4", "--n-critic", "2", "--rounds", "2"]
    keys += ["--set", f"metric.real={images}", "--set", "metric.samples=8", "--set", "metric.batch=8"]
    keys += ["--set", "metric.features=efficientnet_lite0"]
    example = HERE.parent / "examples"
    as_functions = ["--host", str(example / "sngan.py"), "--set", "batch_size=4", "--out", str(tmp_path / "functions")]
    assert main(["compare", *keys, *as_functions, "--", *words]) == 0
    script = [sys.executable, str(example / "sngan_command.py"), *words, "--out", "{out}", "--seed", "{seed}"]
    assert main(["compare", *keys, "--out", str(tmp_path / "command"), "--", *script]) == 0
    functions, commands = rows(tmp_path / "functions"), rows(tmp_path / "command")
    assert set(functions) == {f"{m}:0" for m in FOUR}
    for name, result in functions.items():
        assert result.best is not None
        assert commands[name] == result, name
        assert commands[name].history == result.history, name  # all records, but for what clocks say


# ----------------------------------------------------------------------------
# Kills.


def start(out: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "rgplug.cli", "compare", "--methods", "dense,stu-gan,tickets", *ARGUMENTS]
    return subprocess.Popen(
        [*command, "--out", str(out), "--", *COMMAND, *more],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    """SIGKILL at random moments: of the comparison alone, so that the command it runs goes on by itself, or of both."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    began = time.monotonic()
    assert start(whole).wait() == 0
    seconds = time.monotonic() - began
    chance = random.Random(7)
    kills = 0
    while kills < KILLS:
        child = start(broken)
        try:
            child.wait(chance.uniform(0.3, max(0.4 * seconds, 4.0)))
        except subprocess.TimeoutExpired:
            if chance.random() < 0.5:
                for process in _children(child.pid):
                    os.kill(process, signal.SIGKILL)
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            kills += 1
            continue
        if child.returncode == 0 and kills < KILLS:  # done before the last kill: the next round begins anew
            _equal(whole, broken)
            broken = tmp_path / f"broken_{kills}"
    assert start(broken).wait() == 0
    _equal(whole, broken)


def _children(process: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True).stdout
    return [int(word) for word in found.split()]


def _equal(whole: Path, broken: Path) -> None:
    expected, found = rows(whole), rows(broken)
    assert found == expected
    for name, result in expected.items():
        assert found[name].history == result.history, name


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_comparison_that_is_ended_ends_its_commands(tmp_path: Path, jobs: str) -> None:
    """SIGTERM, as batch systems send it; the command is a shell script that starts the training."""
    shell = f'{sys.executable} {HERE / "command_host.py"} --out "$0" --seed "$1" --pause 30'
    arguments = ["compare", "--methods", "dense,set", "--jobs", jobs, "--out", str(tmp_path), *ARGUMENTS]
    child = subprocess.Popen(
        [sys.executable, "-m", "rgplug.cli", *arguments, "--", "bash", "-c", shell, "{out}", "{seed}"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(tmp_path.rglob("history.jsonl")):
        assert child.poll() is None
        time.sleep(0.1)
    child.terminate()
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130
    assert said.rstrip().endswith("rgplug: interrupted")
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(tmp_path) not in left
    assert {s.state for s in status_of(tmp_path)} <= {"broken off", "not begun"}


# ----------------------------------------------------------------------------
# Several writers, single runs, what is done.


def test_two_processes_share_a_comparison(tmp_path: Path) -> None:
    """Each run is trained by one of them; both end with all results."""
    both = [start(tmp_path / "shared", "--pause", "0.05") for _ in range(2)]
    assert [child.wait() for child in both] == [0, 0]
    trained = list((tmp_path / "shared").rglob("output.txt"))
    assert len(trained) == 4  # dense, stu-gan, two rounds
    assert all(path.read_text().count("training with seed") == 1 for path in trained)
    assert set(rows(tmp_path / "shared")) == {"dense:0", "stu-gan:0", "tickets:0"}


def test_single_runs_make_the_same_results_file(by_command: Path, tmp_path: Path) -> None:
    for only in ("stu-gan:0", "tickets:0", "rg-gan:0"):
        found = compare(FOUR, command=COMMAND, out=tmp_path, only=[only], **EVERYTHING)
        assert only in {f"{r.method}:{r.seed}" for r in found}
    assert set(rows(tmp_path)) == {f"{m}:0" for m in FOUR}  # dense, because tickets build on it
    assert {k: r for k, r in rows(by_command).items() if r.method in FOUR} == rows(tmp_path)
    with pytest.raises(RgplugError, match=r"--only 'tickets:3' is none of the comparison's runs; there are dense:0"):
        compare(FOUR, command=COMMAND, out=tmp_path, only=["tickets:3"], **EVERYTHING)


def test_results_are_collected_by_one_process_at_a_time(by_command: Path, tmp_path: Path) -> None:
    """Who reads the finished runs while another one writes them could put fewer in their place."""
    out = tmp_path / "out"
    shutil.copytree(by_command, out)
    (out / "results.jsonl").unlink()
    with alone(out / "results.lock"):
        late = threading.Thread(target=collect, args=(out,))
        late.start()
        late.join(0.5)
        assert late.is_alive()
        assert not (out / "results.jsonl").exists()
    late.join(60)
    assert set(rows(out)) == set(rows(by_command))


def test_networks_of_tickets_are_known_before_anything_runs(tmp_path: Path) -> None:
    for networks in ("X", "G,", ""):
        with pytest.raises(RgplugError, match="tickets prune G, D, or both"):
            drive_tickets(COMMAND, tmp_path / "out", rounds=1, networks=networks.split(","))
    assert not (tmp_path / "out").exists()


def test_tickets_rewound_to_an_early_iteration_are_told_which(tmp_path: Path) -> None:
    with pytest.raises(RgplugError, match="tickets-early is rewound to an early iteration, and nothing says which"):
        compare(["tickets-early"], command=COMMAND, out=tmp_path / "out", rounds=1)
    assert not (tmp_path / "out").exists()


def test_a_run_without_its_seed_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--only", "sparse", "--out", str(tmp_path), "--", *COMMAND]) == 2
    assert "--only 'sparse' is none of the comparison's runs; there are sparse:0" in capsys.readouterr().err


def test_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare(["dense"], command=COMMAND, out=tmp_path, **EVERYTHING)
    with pytest.raises(RgplugError, match="the loader found no images"):
        compare(["set"], command=[*COMMAND, "--fault", "ends with an error"], out=tmp_path, **EVERYTHING)
    (tmp_path / "rigl" / "seed_0").mkdir(parents=True)
    with Claim(tmp_path / "rigl" / "seed_0") as claim:
        assert claim.take()
        states = {s.method: s.state for s in status_of(tmp_path)}
        assert states == {"dense": "done", "set": "failed", "rigl": "running"}
        arguments = ["compare", "--status", "--methods", "dense,stu-gan", *ARGUMENTS, "--out", str(tmp_path)]
        assert main([*arguments, "--", *COMMAND]) == 0
    said = capsys.readouterr().out
    assert "stu-gan  0     not begun" in said
    assert f"process {os.getpid()} on " in said
    assert "4 runs: 1 done, 1 running, 1 failed, 1 not begun" in said
    assert {s.method: s.state for s in status_of(tmp_path)}["rigl"] == "not begun"
    assert main(["compare", "--status", "--methods", "dense", "--out", str(tmp_path)]) == 0  # of what is there
    assert "1 run: 1 done" in capsys.readouterr().out
    assert main(["compare", "--status", "--out", str(tmp_path / "nowhere")]) == 2


def test_a_run_that_was_killed_is_broken_off(tmp_path: Path) -> None:
    with pytest.raises(RgplugError, match="the command was ended by SIGKILL"):
        compare(["dense"], command=[*COMMAND, "--fault", "killed"], out=tmp_path, **EVERYTHING)
    assert [(s.state, s.evaluations) for s in status_of(tmp_path)] == [("failed", 2)]
    (tmp_path / "dense/seed_0/failed.json").unlink()  # as if the comparison had been killed too
    assert [(s.state, s.evaluations) for s in status_of(tmp_path)] == [("broken off", 2)]


# ----------------------------------------------------------------------------
# Sweeps.


def test_a_grid_has_one_run_for_each_thing_that_differs(tmp_path: Path) -> None:
    grid = {"density.G": [0.3, 0.5], "density.D": [0.4, 0.6]}
    keys = {**EVERYTHING, "density": None}
    compare(["dense", "sparse", "pf-global"], command=COMMAND, out=tmp_path, grid=grid, **keys)
    found = rows(tmp_path)
    assert set(found) == {"dense:0"} | {
        f"sparse@density.G={g}@density.D={d}:0" for g in (0.3, 0.5) for d in (0.4, 0.6)
    } | {f"pf-global@density.G={g}:0" for g in (0.3, 0.5)}
    one = found["sparse@density.G=0.3@density.D=0.6:0"]
    assert one.density == {"G": pytest.approx(0.3, abs=0.02), "D": pytest.approx(0.6, abs=0.02)}
    assert (one.keys["method"], one.keys["density.G"], one.keys["density.D"]) == ("sparse", 0.3, 0.6)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file() and p.name != "results.jsonl"}
    grid["density.G"] = [0.3, 0.5, 0.7]
    compare(["dense", "sparse"], command=COMMAND, out=tmp_path, grid=grid, **keys)  # only what is new
    assert before == {p: p.stat().st_mtime_ns for p in before}
    assert len(rows(tmp_path)) == 9


def test_keys_of_the_command_make_dense_runs_too(tmp_path: Path) -> None:
    command = [*COMMAND, "--share", "{share}"]
    compare(["dense", "pf-global"], command=command, out=tmp_path, grid={"share": [0.1, 1.0]}, **EVERYTHING)
    found = rows(tmp_path)
    assert set(found) == {f"{m}@share={s}:0" for m in ("dense", "pf-global") for s in ("0.1", "1")}
    assert found["dense@share=0.1:0"].keys["share"] == 0.1
    assert "seed" not in found["dense@share=0.1:0"].keys  # a placeholder is no value
    assert found["pf-global@share=0.1:0"].before["real_images"] == 48


def test_a_sweep_over_criteria_shares_one_dense_run(tmp_path: Path) -> None:
    """The dense run leaves the scores of all of them; a colon in a value is no letter of a folder's name."""
    criteria = ["torch-pruning:TaylorImportance", "torch-pruning:FPGMImportance"]
    policy = {**POLICY, "granularity": "filter"}
    compare(["tickets"], train, build, out=tmp_path, policy=policy, rounds=1, grid={"masks.criterion": criteria})
    found = rows(tmp_path)
    names = [f"tickets@masks.criterion={name.replace(':', '-')}:0" for name in criteria]
    assert set(found) == {"dense:0", *names}
    assert [found[name].keys["masks.criterion"] for name in names] == criteria


def test_tickets_by_criterion_over_single_weights_are_refused(tmp_path: Path) -> None:
    policy = {**POLICY, "masks.criterion": "torch-pruning:TaylorImportance"}
    with pytest.raises(
        RgplugError, match=r"tickets ranks whole filters .*, and G is pruned under granularity weight; gi"
    ):
        compare(["tickets"], train, build, out=tmp_path, policy=policy, rounds=1)


def test_the_best_of_each_phase_is_kept_on_request(tmp_path: Path) -> None:
    """In the folder of each run, which nobody has to name."""
    keys = {**EVERYTHING, "policy": {**POLICY, "snapshots.best": True}}
    compare(["dense", "sparse"], train, build, out=tmp_path, **keys)
    assert (tmp_path / "dense" / "seed_0" / "best_dense.safetensors").is_file()
    assert (tmp_path / "sparse" / "seed_0" / "best_sparse.safetensors").is_file()


def test_short_names_of_metrics(tmp_path: Path) -> None:
    short = {**POLICY, "metric": ["fid", "is"], "metric.real": "images"}
    (task,) = plan(["dense"], Functions(build, train), tmp_path, 1, short, Scale(), 1, 0.2, None, 1, {}, None)
    (training,) = task.trainings()
    assert policy_of(training.common, training.policy).metric.distances == ("frechet", "is")  # type: ignore[union-attr]


def test_values_reach_the_command_as_they_are_typed() -> None:
    words = ["--mirror={mirror}", "--lr", "{lr}", "--cond", "{cond}"]
    assert filled(words, {"mirror": True, "lr": 1e-4, "cond": None}) == [
        "--mirror=true",
        "--lr",
        "0.0001",
        "--cond",
        "null",
    ]
    assert Cell({"mirror": False}).name("dense") == "dense@mirror=false"


@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        ({"share": [0.1, 0.2]}, r"the grid has 'share', which stands as {share} nowhere in the host's command"),
        ({"exploration.evry": [1, 2]}, "did you mean 'every'"),
        ({"density.G": []}, "give a list of values"),
        ({"density.G": [0.1, 0.1]}, "has a value of 'density.G' twice"),
        ({"density.G": [2.0]}, "the density is 2"),
        ({"seed": [1, 2]}, "the grid has 'seed', which each run has its own of; give --seeds N"),
        ({"out": ["a", "b"]}, "the grid has 'out', which each run has its own of; give one --out for all runs"),
    ],
)
def test_bad_grids(tmp_path: Path, grid: Any, sentence: str) -> None:
    with pytest.raises(RgplugError, match=sentence):
        compare(["dense", "stu-gan"], command=COMMAND, out=tmp_path / "out", grid=grid, **EVERYTHING)
    assert not (tmp_path / "out").exists()


def test_doubled_braces_are_the_command_s_own(tmp_path: Path) -> None:
    shell = ["bash", "-c", f'NAME=$0; exec {sys.executable} {HERE / "command_host.py"} --out "${{{{NAME}}}}"', "{out}"]
    assert "${{NAME}}" in shell[2]
    compare(["dense"], command=shell, out=tmp_path, **EVERYTHING)
    assert set(rows(tmp_path)) == {"dense:0"}


def test_one_density_alone_leaves_the_other_as_published(tmp_path: Path) -> None:
    keys = {**EVERYTHING, "density": {"G": 0.5}}
    compare(["sparse", "stu-gan"], command=COMMAND, out=tmp_path, **keys)
    assert rows(tmp_path)["sparse:0"].density == {"G": pytest.approx(0.5, abs=0.02), "D": pytest.approx(0.1, abs=0.05)}
    assert rows(tmp_path)["stu-gan:0"].density["D"] == pytest.approx(0.3, abs=0.05)


def test_a_broken_run_is_not_finished_by_a_command_that_attaches_nothing(tmp_path: Path) -> None:
    command = [*COMMAND, "--fault", "killed, then nothing"]
    with pytest.raises(RgplugError, match="SIGKILL"):
        compare(["dense"], command=command, out=tmp_path, **EVERYTHING)
    with pytest.raises(
        RgplugError, match=r"attached nothing, while the training in its folder was broken off .*delete"
    ):
        compare(["dense"], command=command, out=tmp_path, **EVERYTHING)


# ----------------------------------------------------------------------------
# Commands that cannot be compared: one sentence, and finished runs stay.


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("never attaches", r"the command ended and has attached nothing: put the two lines into the script"),
        ("no history", r"the command ended without an evaluation: rg.end_epoch\(...\) was never called"),
        (
            "ends with an error",
            r"the command ended with status 1 \(ValueError: the loader found no images\); its output",
        ),
        ("empties its folder", r"the command has emptied or removed its folder .*; give it a folder below, {out}/run"),
    ],
)
def test_commands_that_leave_nothing(tmp_path: Path, fault: str, sentence: str) -> None:
    compare(["dense"], command=COMMAND, out=tmp_path, **EVERYTHING)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(RgplugError, match=rf"1 of 1 runs failed, the first was stu-gan seed 0: {sentence}"):
        compare(["stu-gan"], command=[*COMMAND, "--fault", fault], out=tmp_path, **EVERYTHING)
    assert before == {p: p.stat().st_mtime_ns for p in before if p.name != "results.jsonl"} | {
        p: t for p, t in before.items() if p.name == "results.jsonl"
    }
    assert set(rows(tmp_path)) == {"dense:0"}


def test_a_command_that_writes_files_called_as_ours(tmp_path: Path) -> None:
    command = [*COMMAND, "--fault", "writes run.json"]
    compare(["dense"], command=command, out=tmp_path, **EVERYTHING)
    first = (tmp_path / "dense" / "seed_0" / "result.json").stat().st_mtime_ns
    compare(["dense", "sparse"], command=command, out=tmp_path, **EVERYTHING)
    assert set(rows(tmp_path)) == {"dense:0", "sparse:0"}
    assert (tmp_path / "dense" / "seed_0" / "result.json").stat().st_mtime_ns == first


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    """A script that was killed while it wrote its checkpoint cannot go on from that file, whoever starts it."""
    words: dict[str, Any] = {"checkpoint": "all_*.pth", "resume": ["--fault", "ends with an error"], **EVERYTHING}
    with pytest.raises(RgplugError, match=r"was ended by SIGKILL \(training with seed 0\); its output"):
        compare(["dense"], command=[*COMMAND, "--fault", "killed"], out=tmp_path, **words)
    (tmp_path / "dense" / "seed_0" / "all_9.pth").touch()
    (tmp_path / "dense" / "seed_0" / "all_10.pth").touch()
    with pytest.raises(RgplugError, match=r"begun at .*all_10\.pth; delete that file if it is damaged"):
        compare(["dense"], command=[*COMMAND, "--fault", "killed"], out=tmp_path, **words)


@pytest.mark.parametrize(
    ("command", "seeds", "sentence"),
    [
        ([], 1, "there is no command to run"),
        (["python", "train.py"], 1, r"has no {out} in it, so all runs would write into the same folder"),
        (["python", "train.py", "{out}"], 2, r"has no {seed} in it, so its 2 seeds would be the same run"),
        (["python", "train.py", "{out}", "{sed}"], 1, r"has {sed} in it, which nothing fills in"),
        (["nowhere/python", "{out}"], 1, "'nowhere/python' cannot be run: No such file"),
    ],
)
def test_commands_that_cannot_be_run(tmp_path: Path, command: list[str], seeds: int, sentence: str) -> None:
    with pytest.raises(RgplugError, match=sentence):
        compare(["dense"], command=command, out=tmp_path, seeds=seeds, **EVERYTHING)


def test_a_run_that_failed_before_it_trained_may_be_asked_for_otherwise(tmp_path: Path) -> None:
    """A mistyped command is mended and given again; what trained, if only for a while, is kept apart as ever."""
    mistyped = [COMMAND[0], COMMAND[1] + "x", *COMMAND[2:]]
    with pytest.raises(RgplugError, match="ended with status 2"):
        compare(["dense"], command=mistyped, out=tmp_path, **EVERYTHING)
    compare(["dense"], command=COMMAND, out=tmp_path, **EVERYTHING)
    assert "dense:0" in rows(tmp_path)
    with pytest.raises(RgplugError, match="with other settings"):
        compare(["dense"], command=[*COMMAND, "--round", "3"], out=tmp_path, **EVERYTHING)


def test_a_comparison_has_one_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RgplugError, match="a command and functions"):
        compare(["dense"], train, build, command=COMMAND, out=tmp_path)
    with pytest.raises(RgplugError, match="needs a host"):
        compare(["dense"], out=tmp_path)
    with pytest.raises(RgplugError, match="give a list of words"):
        compare(["dense"], command="python train.py {out}", out=tmp_path)
    assert main(["compare", "--methods", "dense", "--out", str(tmp_path)]) == 2
    assert "there is no command to run" in capsys.readouterr().err


def test_tickets_reach_the_density_that_is_asked_for(tmp_path: Path) -> None:
    """46 % in two rounds, which no number of rounds of 20 % gives."""
    keys = {**EVERYTHING, "density": {"G": 0.46, "D": 0.6}}
    compare(["tickets"], command=COMMAND, out=tmp_path, ratio="density", **keys)
    result = rows(tmp_path)["tickets:0"]
    assert result.density == {"G": pytest.approx(0.46, abs=2e-3), "D": pytest.approx(0.6, abs=5e-3)}
    with pytest.raises(RgplugError, match=r"none is asked for; give --density"):
        compare(["tickets"], command=COMMAND, out=tmp_path / "no", ratio="density", rounds=2, policy=POLICY)

"""Comparisons: every method on one host, resumable, one file of results."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hosts_of_comparisons as hosts
import pytest
import torch
from hosts_of_comparisons import LENGTH, POLICY, build, train

from rgplug import RgplugError
from rgplug.baselines import METHODS, compare, read_results
from rgplug.baselines.methods import Scale, find
from rgplug.policy import Policy
from rgplug.snapshot import read

EVERYTHING = {"policy": POLICY, **LENGTH}
SOME = ["dense", "stu-gan", "tickets", "pf-global"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All methods, one seed."""
    out = tmp_path_factory.mktemp("comparison")
    compare(list(METHODS), train, build, out=out, **EVERYTHING)
    return out


def test_every_method_has_a_result(finished: Path) -> None:
    results = {r.method: r for r in read_results(finished)}
    assert set(results) == set(METHODS)
    for r in results.values():
        assert r.evaluations == 3
        assert r.metric == "size"
        assert math.isfinite(r.best)
        assert r.real_images_total == 12 * 4
        assert 0 < r.flops <= r.flops_total
        assert 0 < r.inference_flops <= r.inference_flops_dense
    for name in ("sparse", "sparse-er", "sparse-uniform", "sparse-global", "stu-gan", "set", "rigl"):
        assert results[name].density["G"] == pytest.approx(0.5, abs=0.02), name
        assert results[name].flops_total < results["dense"].flops_total
    assert results["pf-global"].density == {"G": pytest.approx(0.5, abs=1e-3), "D": 1.0}
    assert results["rg-gan-dp-g"].density["D"] == 1.0 > results["rg-gan-dp-g"].density["G"]


def test_what_was_trained_before_is_charged(finished: Path) -> None:
    results = {r.method: r for r in read_results(finished)}
    dense, tickets = results["dense"], results["tickets"]
    assert dense.before == {"real_images": 0, "flops": 0, "flops_proportional": 0}
    proportional = dense.flops_proportional
    assert results["pf-global"].before == {
        "real_images": 48,
        "flops": dense.flops_total,
        "flops_proportional": proportional,
    }
    assert tickets.before["real_images"] == 2 * 48
    first = json.loads((finished / "tickets/seed_0/round_01/outcome.json").read_text())
    assert tickets.before["flops"] == pytest.approx(dense.flops_total + first["flops_total"])
    assert results["tickets-random-mask"].before["real_images"] == 3 * 48


def test_the_rounds_of_tickets(finished: Path) -> None:
    """Rewound weights are the first ones bit for bit; densities .8, .64; masks only shrink, and stay in a round."""
    first = read(finished / "dense/seed_0/initial.safetensors")["pair"]
    masks: dict[str, Any] = {}
    for number, density in ((1, 0.8), (2, 0.64)):
        folder = finished / f"tickets/seed_0/round_0{number}"
        new = read(folder / "masks.safetensors", "masks")["masks"]
        began, ended = read(folder / "initial.safetensors")["pair"], read(folder / "trained.safetensors")["pair"]
        for network, layers in new.items():
            kept = sum(int(m.sum()) for m in layers.values())
            total = sum(m.numel() for m in layers.values())
            assert kept == pytest.approx(density * total, abs=number)
            for name, tensor in began[network].items():
                expected = first[network][name] * layers.get(name, 1)
                assert torch.equal(tensor, expected), name
            for name, mask in layers.items():
                assert not ended[network][name][~mask].any()
                assert ended[network][name][mask].all()
                if masks:
                    assert not (mask & ~masks[network][name]).any()
        masks = new
    lines = [json.loads(line) for line in (finished / "tickets/seed_0/round_02/history.jsonl").read_text().splitlines()]
    assert all(line["regenerated"] == {"G": 0, "D": 0} for line in lines)
    assert [row.density["G"] for row in results_of(finished, "tickets").rounds] == pytest.approx(
        [1.0, 0.8, 0.64], abs=2e-3
    )


def results_of(out: Path, method: str) -> Any:
    return next(r for r in read_results(out) if r.method == method)


def test_what_the_other_tickets_start_from(finished: Path) -> None:
    dense = {n: read(finished / f"dense/seed_0/{n}.safetensors")["pair"] for n in ("initial", "early", "trained")}

    def start(method: str, number: int) -> dict[str, Any]:
        return read(finished / f"{method}/seed_0/round_0{number}/initial.safetensors")["pair"]

    assert not any(map(torch.equal, dense["early"]["G"].values(), dense["initial"]["G"].values()))
    assert torch.equal(start("tickets-early", 2)["G"]["0.bias"], dense["early"]["G"]["0.bias"])
    last = read(finished / "tickets-finetune/seed_0/round_01/trained.safetensors")["pair"]
    assert torch.equal(start("tickets-finetune", 1)["G"]["0.bias"], dense["trained"]["G"]["0.bias"])
    assert torch.equal(start("tickets-finetune", 2)["G"]["0.bias"], last["G"]["0.bias"])
    only = read(finished / "tickets-g/seed_0/round_02/masks.safetensors", "masks")["masks"]
    assert set(only) == {"G"}
    assert results_of(finished, "tickets-g").density["D"] == 1.0


def test_a_method_of_one_s_own_is_trained_as_its_base(finished: Path, tmp_path: Path) -> None:
    both = {"base": "pf-global", "masks.density": {"G": 0.4, "D": 0.6}}
    results = compare({"pf-both": both}, train, build, out=tmp_path, policy=POLICY)
    found = next(r for r in results if r.method == "pf-both")
    assert found.density == {"G": pytest.approx(0.4, abs=1e-3), "D": pytest.approx(0.6, abs=1e-2)}
    assert found.before["real_images"] == 48
    assert results_of(finished, "pf-global").best != found.best


def test_controls(finished: Path) -> None:
    ticket = read(finished / "tickets/seed_0/round_02/masks.safetensors", "masks")["masks"]["G"]
    drawn = read(finished / "tickets-random-mask/seed_0/masks.safetensors", "masks")["masks"]["G"]
    assert {k: int(m.sum()) for k, m in drawn.items()} == {k: int(m.sum()) for k, m in ticket.items()}
    assert not all(torch.equal(drawn[k], ticket[k]) for k in ticket)
    assert results_of(finished, "tickets-random-init").density == results_of(finished, "tickets").density


def test_nothing_finished_is_run_again(finished: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.name != "results.jsonl"}
    text = (finished / "results.jsonl").read_text()
    compare(SOME, train, build, out=finished, **EVERYTHING)
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.name != "results.jsonl"}
    assert (finished / "results.jsonl").read_text() == text


def test_two_processes_and_two_seeds(finished: Path, tmp_path: Path) -> None:
    compare(["stu-gan", "tickets"], train, build, out=tmp_path, seeds=2, jobs=2, **EVERYTHING)
    assert [(r.method, r.seed) for r in read_results(tmp_path)] == [
        (m, s) for m in ("dense", "stu-gan", "tickets") for s in (0, 1)
    ]
    alone = {r.method: r for r in read_results(finished)}
    for r in read_results(tmp_path):
        if r.seed == 0:
            assert r == alone[r.method]
        else:
            assert r.best != alone[r.method].best


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import hosts_of_comparisons as hosts
from rgplug.baselines import compare
if __name__ == "__main__":
    compare({methods!r}, hosts.killed_train, hosts.build, out={out!r}, **{keys!r})
"""


@pytest.mark.parametrize("where", ["stu-gan", "round_02", "dense"])
def test_a_kill_changes_nothing(finished: Path, tmp_path: Path, where: str) -> None:
    """SIGKILL between an evaluation and the host's checkpoint; the same command again gives the same file."""
    out = tmp_path / "out"
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), methods=SOME, out=str(out), keys=EVERYTHING))
    env = {**os.environ, "KILL_FLAG": str(tmp_path / "flag"), "KILL_IN": where, "OMP_NUM_THREADS": "1"}
    first = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True)
    assert first.returncode == -9, first.stderr
    second = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    uninterrupted = [r for r in read_results(finished) if r.method in SOME]
    assert read_results(out) == uninterrupted
    for method in SOME:
        run = next(r.run for r in uninterrupted if r.method == method)
        assert histories(out / run) == histories(finished / run)


def histories(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def test_a_metric_that_is_not_finite(tmp_path: Path) -> None:
    def diverges(build: Any, attach: Any, seed: int, run_dir: Path) -> None:
        rg = attach(*build())
        for _ in range(3):
            rg.end_epoch(float("nan"), metric_name="fid")

    with pytest.warns(UserWarning, match="the metric of epoch 1 is nan"):
        results = compare(["dense"], diverges, build, out=tmp_path)
    assert (results[0].best, results[0].not_finite, results[0].evaluations) == (None, 3, 0)


def failing(where: str, error: Exception) -> Any:
    def train(build: Any, attach: Any, seed: int, run_dir: Path) -> None:
        def fail(rg: Any, host: Any) -> None:
            if where in str(run_dir) and host.iteration > hosts.EVERY:
                raise error

        hosts.run(build, attach, seed, run_dir, before_end=fail)

    train.__module__, train.__qualname__ = hosts.train.__module__, hosts.train.__qualname__
    return train


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), ValueError("shapes")])
def test_a_run_that_fails_leaves_the_others(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(
        RgplugError, match=r"1 of 3 runs failed, the first was stu-gan seed 0: the host failed: \w+Error"
    ):
        compare(["dense", "stu-gan", "set"], failing("stu-gan", error), build, out=tmp_path, **EVERYTHING)
    assert [r.method for r in read_results(tmp_path)] == ["dense", "set"]
    compare(["dense", "stu-gan", "set"], train, build, out=tmp_path, **EVERYTHING)
    assert [r.method for r in read_results(tmp_path)] == ["dense", "set", "stu-gan"]


def test_a_full_disk_leaves_what_was_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(["dense"], train, build, out=tmp_path, **EVERYTHING)
    text = (tmp_path / "results.jsonl").read_text()
    real = os.replace

    def full(source: Any, target: Any) -> None:
        if str(target).endswith("result.json"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RgplugError, match=r"set seed 0: .*result.json could not be written: .*No space left"):
        compare(["dense", "set"], train, build, out=tmp_path, **EVERYTHING)
    assert (tmp_path / "results.jsonl").read_text() == text
    assert not list(tmp_path.rglob("*.partial"))
    monkeypatch.undo()
    assert len(compare(["dense", "set"], train, build, out=tmp_path, **EVERYTHING)) == 2


def no_networks() -> Any:
    return None


def never_attaches(build: Any, attach: Any, seed: int, run_dir: Path) -> None:
    build()


def never_evaluates(build: Any, attach: Any, seed: int, run_dir: Path) -> None:
    attach(*build())


def measures_nothing(build: Any, attach: Any, seed: int, run_dir: Path) -> None:
    attach(*build()).end_epoch()


def attaches_twice(build: Any, attach: Any, seed: int, run_dir: Path) -> None:
    attach(*build())
    attach(*build())


@pytest.mark.parametrize(
    ("methods", "train", "build", "keys", "sentence"),
    [
        (["dense"], train, no_networks, {}, r"build\(\) returned NoneType and no networks"),
        (["dense"], never_attaches, build, {}, "never called attach"),
        (["dense"], never_evaluates, build, {}, "never called end_epoch"),
        (["dense"], attaches_twice, build, {}, "called attach twice"),
        (["dense"], measures_nothing, build, {}, r"no evaluation of the run has.*script's policy.*metric.real"),
        (["dens"], train, build, {}, "there is no method 'dens'; did you mean 'dense'?"),
        ([], train, build, {}, "there is nothing to compare"),
        (["dense"], train, build, {"policy": {"metric.reel": "x"}}, "policy.metric.reel is not a key"),
        (["sparse"], train, build, {"density": 0.001}, "leaves .* none of its"),
        (["tickets"], train, build, {"rounds": 1, "ratio": 1.5}, "ratio is 1.5"),
        (["tickets-early"], train, build, {"rounds": 1}, "nothing says which; give --early N"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared(
    tmp_path: Path, methods: list[str], train: Any, build: Any, keys: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(RgplugError, match=sentence):
        compare(methods, train, build, out=tmp_path, **keys)


def test_other_settings_in_the_same_folder(finished: Path) -> None:
    other = {**EVERYTHING, "density": {"G": 0.4, "D": 0.5}}
    (finished / "stu-gan/seed_0/result.json").rename(finished / "aside")
    with pytest.raises(RgplugError, match=r"with other settings \(policy.masks.density.G was 0.5, now it is 0.4\)"):
        compare(["stu-gan"], train, build, out=finished, **other)
    (finished / "aside").rename(finished / "stu-gan/seed_0/result.json")


def test_every_method_s_policy_is_valid_at_any_scale() -> None:
    for name in METHODS:
        for scale in (Scale(), Scale(0.2, 50_000, 5), Scale({"G": 0.1, "D": 0.5}, 10)):
            Policy.load(scale.policy(find(name)))


def test_published_schedules_scale_to_themselves() -> None:
    stu = Policy.load(Scale(length=50_000, n_critic=5).policy(find("stu-gan"))).exploration
    assert stu is not None
    assert (stu.every["G"], stu.end["G"], stu.end["D"]) == (1000, 50_000, 250_000)
    regan = Policy.load(Scale(length=150_000).policy(find("re-gan"))).cycle
    assert (regan.warm_up, regan.period) == (30_000, 15_000)
    adapt = Policy.load(Scale(length=100_000, n_critic=5).policy(find("adapt")))
    assert (adapt.balance.every, adapt.balance.measure, adapt.balance.window) == (1000, 10, 100)
    assert adapt.exploration.every["G"] == 500


@pytest.mark.parametrize(
    ("method", "by_density", "asked"),
    [
        ("stu-gan", False, {"G": 0.1, "D": 0.3}),
        ("pf-uniform", False, {"G": 0.1, "D": 1.0}),  # D is fine-tuned dense, whatever is asked of others
        ("rg-gan", False, {"G": 0.1, "D": 0.3}),
        ("re-gan", False, {"G": 0.1, "D": 1.0}),
        ("dense", False, {}),
        ("tickets", False, {}),  # the ratio of its rounds decides
        ("tickets", True, {"G": 0.1, "D": 0.3}),
        ("tickets-g", True, {"G": 0.1, "D": 1.0}),
    ],
)
def test_a_result_is_known_by_the_densities_that_its_method_can_be_asked_for(
    method: str, by_density: bool, asked: dict[str, float]
) -> None:
    scale = Scale({"G": 0.1, "D": 0.3})
    assert scale.asked(METHODS[method], by_density) == pytest.approx(asked)


@pytest.mark.parametrize("finish", ["sparse", "dense"])
def test_finish_and_the_best_of_each_phase_in_a_comparison(tmp_path: Path, finish: str) -> None:
    """What a run leaves for others is as the policy's finish says; the best snapshots are as they were measured."""
    policy = {**POLICY, "finish": finish, "snapshots.best": True}
    (result,) = compare(["rg-gan"], train, build, out=tmp_path, **{**EVERYTHING, "policy": policy})
    folder = tmp_path / result.run
    best = read(folder / "best_sparse.safetensors")
    assert best["evaluation"]["metric"] == result.phases["sparse"].best == result.best

    def zeros(pair: dict[str, Any]) -> float:
        weights = [t for name, t in pair["G"].items() if name.endswith("weight") and t.dim() > 1]
        return sum(int((t == 0).sum()) for t in weights) / sum(t.numel() for t in weights)

    assert zeros(best["pair"]) == pytest.approx(1 - result.density["G"], abs=1e-3)
    assert (zeros(read(folder / "trained.safetensors")["pair"]) > 0.4) == (finish == "sparse")

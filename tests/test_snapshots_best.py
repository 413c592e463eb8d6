"""The networks of the best evaluation of each phase in files; what `finish` leaves of the trained pair."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from common import MILD, Host, adam
from torch import Tensor, nn

import rgplug
from rgplug import snapshot
from rgplug.baselines.tickets import next_masks
from rgplug.best import BestOfPhases
from rgplug.errors import RgplugError
from rgplug.files import previous_of
from rgplug.snapshot import read

pytestmark = pytest.mark.filterwarnings("ignore:rgplug. densities have drifted apart")
# dense where a value is higher than the one before it
TURNS: dict[str, Any] = {
    **MILD,
    "regeneration.augmented": {"window": 1, "weights": [1.0], "include_current": False},
    "snapshots.best": True,
}
# phases in which these are measured: sparse sparse dense sparse sparse dense dense
VALUES = (5.0, 6.0, 4.0, 3.0, 7.0, 8.0, 2.0)
Pairs = dict[int, dict[str, dict[str, Tensor]]]


def tensors(host: Host) -> dict[str, dict[str, Tensor]]:
    return {name: {k: v.clone() for k, v in net.state_dict().items()} for name, net in host.nets.items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)


def run(folder: Path, values: tuple[float, ...] = VALUES, **more: Any) -> tuple[Host, rgplug.Controller, Pairs]:
    """What was measured at each evaluation, before it decided."""
    host = Host()
    rg = rgplug.attach(host.G, host.D, {**TURNS, "snapshots.folder": str(folder), **more})
    return host, rg, go_on(host, rg, values)


def go_on(host: Host, rg: rgplug.Controller, values: tuple[float, ...], **given: Any) -> Pairs:
    seen: Pairs = {}
    for value in values:
        host.run(2)
        measured = tensors(host)
        seen[rg.end_epoch(value, **given).epoch] = measured
    return seen


def test_they_hold_the_networks_that_were_measured_in_each_phase(tmp_path: Path) -> None:
    _, rg, seen = run(tmp_path)
    assert [r.phase_before for r in rg.records] == ["sparse", "sparse", "dense", "sparse", "sparse", "dense", "dense"]
    for phase, epoch, value in (("sparse", 4, 3.0), ("dense", 7, 2.0)):
        held = read(tmp_path / f"best_{phase}.safetensors")
        assert held["evaluation"] == {"epoch": epoch, "metric": value, "metric_name": None, "phase": phase}
        for network in "GD":
            assert equal(held["pair"][network], seen[epoch][network])
            zeros = sum(int((held["pair"][network][w.name] == 0).sum()) for w in rg.weights(network))
            assert (zeros > 0) is (phase == "sparse")
        assert "exp_avg" in next(iter(held["optimizers"]["G"].values()))  # as in trained.safetensors


def test_where_higher_is_better_and_of_equal_ones_the_first(tmp_path: Path) -> None:
    more = {"regeneration.augmented.higher_is_better": True, "snapshots.optimizers": False}
    _, rg, seen = run(tmp_path, (5.0, 6.0, 6.0, float("nan"), 5.5), **more)
    held = read(tmp_path / "best_sparse.safetensors")
    assert [r.phase_before for r in rg.records] == ["sparse"] * 5
    assert held["evaluation"]["epoch"] == 2
    assert equal(held["pair"]["G"], seen[2]["G"])
    assert not any(held["optimizers"].values())
    assert not (tmp_path / "best_dense.safetensors").exists()


def test_nothing_is_left_where_nobody_asks(tmp_path: Path) -> None:
    run(tmp_path, **{"snapshots.best": False})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["initial.safetensors", "trained.safetensors"]


@pytest.mark.parametrize("kind", ["module", "state dict", "list"])
def test_the_average_that_was_measured_is_in_it_under_the_mask(kind: str, tmp_path: Path) -> None:
    host = Host()
    rg = rgplug.attach(host.G, host.D, {**TURNS, "snapshots.folder": str(tmp_path)})
    average = copy.deepcopy(host.G)
    before = copy.deepcopy(average.state_dict())
    given = {"module": average, "state dict": average.state_dict(), "list": list(average.parameters())}[kind]
    go_on(host, rg, (5.0,), ema=given)
    held = read(tmp_path / "best_sparse.safetensors")
    expected = {k: before[k] for k in (dict(average.named_parameters()) if kind == "list" else before)}
    for w in rg.weights("G"):
        expected[w.name] = expected[w.name] * w.mask
        assert not w.mask.all()
    assert equal(held["pair"][snapshot.AVERAGE], expected)
    assert equal(average.state_dict(), before)
    fresh = Host(seed=5).G  # how it is loaded
    fresh.load_state_dict(held["pair"]["G_ema"], strict=False)
    assert all(torch.equal(p, expected[k]) for k, p in fresh.named_parameters())
    go_on(host, rg, (4.0,))  # no average at the next best
    assert set(read(tmp_path / "best_sparse.safetensors")["pair"]) == {"G", "D"}


def test_a_run_starts_from_one(tmp_path: Path) -> None:
    host, rg, _ = run(tmp_path / "first")
    seen = go_on(host, rg, (1.0,), ema=copy.deepcopy(host.G))
    assert set(read(tmp_path / "first/best_sparse.safetensors")["pair"]) == {"G", "D", "G_ema"}
    rg.detach()
    other = Host(seed=4)
    start = {"weights": str(tmp_path / "first/best_sparse.safetensors"), "optimizers": True}
    again = rgplug.attach(other.G, other.D, {"base": "dense", "start": start})
    assert equal(tensors(other)["G"], seen[8]["G"])
    other.run(1)
    assert other.opt["G"].state[next(other.G.parameters())]["step"] > 1
    again.detach()


class Run:
    """A training script that checkpoints, is killed, and goes on from its checkpoint in another process."""

    def __init__(self, folder: Path):
        self.policy = {**TURNS, "snapshots.folder": str(folder)}
        self.host = Host()
        self.rg = rgplug.attach(self.host.G, self.host.D, self.policy)
        self.checkpoint()

    def checkpoint(self) -> None:
        self.held = copy.deepcopy((self.host.state_dict(), self.rg.state_dict()))

    def killed_and_restarted(self) -> None:
        self.rg.hooks.remove()
        weights, state = copy.deepcopy(self.held)
        self.host = Host(seed=9)
        self.rg = rgplug.attach(self.host.G, self.host.D, self.policy)
        self.host.load_state_dict(weights)
        self.rg.load_state_dict(state)


def contents(folder: Path) -> dict[str, Any]:
    return {phase: read(folder / f"best_{phase}.safetensors") for phase in ("sparse", "dense")}


@pytest.mark.parametrize("saved", range(len(VALUES)))
@pytest.mark.parametrize("killed", [1, 2, 4])
def test_a_run_that_is_killed_and_goes_on_leaves_what_one_without_a_stop_does(
    saved: int, killed: int, tmp_path: Path
) -> None:
    run(tmp_path / "straight")
    straight = contents(tmp_path / "straight")
    script = Run(tmp_path / "killed")
    go_on(script.host, script.rg, VALUES[:saved])
    script.checkpoint()
    go_on(script.host, script.rg, VALUES[saved : saved + killed])
    script.killed_and_restarted()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rgplug.best.warn", lambda text: None)
        go_on(script.host, script.rg, VALUES[saved:])
    for phase, held in contents(tmp_path / "killed").items():
        assert held["evaluation"] == straight[phase]["evaluation"]
        for network in "GD":
            assert equal(held["pair"][network], straight[phase]["pair"][network])


def test_a_file_of_an_evaluation_that_is_taken_back_gives_way_to_the_one_before(tmp_path: Path) -> None:
    """Killed between the snapshot of epoch 2 and the checkpoint after it; made again, epoch 2 is worse than epoch 1."""
    script = Run(tmp_path)
    seen = go_on(script.host, script.rg, (5.0,))
    script.checkpoint()
    go_on(script.host, script.rg, (3.0,))
    assert snapshot.epoch_of(tmp_path / "best_sparse.safetensors") == 2
    script.killed_and_restarted()
    go_on(script.host, script.rg, (6.0,))
    held = read(tmp_path / "best_sparse.safetensors")
    assert held["evaluation"]["epoch"] == 1
    assert equal(held["pair"]["G"], seen[1]["G"])


def test_where_neither_file_is_the_best_one_of_the_state_that_is_said_and_the_search_begins_anew(
    tmp_path: Path,
) -> None:
    script = Run(tmp_path)
    go_on(script.host, script.rg, (5.0,))
    script.checkpoint()
    go_on(script.host, script.rg, (4.0, 3.0, 2.0))
    script.killed_and_restarted()
    with pytest.warns(UserWarning, match=r"is not the snapshot of epoch 1, the best sparse one of the state"):
        seen = go_on(script.host, script.rg, (6.0,))
    held = read(tmp_path / "best_sparse.safetensors")
    assert (held["evaluation"]["epoch"], held["evaluation"]["metric"]) == (2, 6.0)
    assert equal(held["pair"]["G"], seen[2]["G"])


def test_a_run_from_the_beginning_does_not_take_an_earlier_run_s_for_its_own(tmp_path: Path) -> None:
    run(tmp_path)[1].detach()
    assert (tmp_path / "best_dense.safetensors").exists()
    assert previous_of(tmp_path / "best_sparse.safetensors").exists()
    _, rg, seen = run(tmp_path, (9.0,))
    assert [p.name for p in tmp_path.glob("best_*")] == ["best_sparse.safetensors"]
    assert equal(read(tmp_path / "best_sparse.safetensors")["pair"]["G"], seen[1]["G"])
    rg.detach()


def test_a_state_of_a_run_that_kept_none_is_read_and_a_wrong_one_refused(tmp_path: Path) -> None:
    host, rg, _ = run(tmp_path, (5.0, 4.0))
    good = rg.state_dict()
    assert good["best"] == {"sparse": {"epoch": 2, "value": 4.0}}
    for wrong in ({"warm": {"epoch": 1, "value": 1.0}}, {"sparse": {"epoch": 0, "value": 1.0}}, {"sparse": 3.0}, [1]):
        with pytest.raises(RgplugError, match="the state's best"):
            rg.load_state_dict({**good, "best": wrong})
    old = {k: v for k, v in good.items() if k != "best"}
    rg.load_state_dict(old)
    go_on(host, rg, (4.5,))
    assert read(tmp_path / "best_sparse.safetensors")["evaluation"]["metric"] == 4.5
    rg.detach()
    other = Host()
    without = rgplug.attach(other.G, other.D, {**TURNS, "snapshots.folder": str(tmp_path), "snapshots.best": False})
    without.load_state_dict(good)
    assert without.state_dict()["best"] is None


def test_best_by_hand() -> None:
    best = BestOfPhases(Path("nowhere"), higher_is_better=False)
    given = [
        ("sparse", 5.0),
        ("dense", 9.0),
        ("sparse", 5.0),
        ("sparse", None),
        ("dense", float("inf")),
        ("sparse", 4.0),
    ]
    assert [best.add(phase, i, value) for i, (phase, value) in enumerate(given)] == [True, True, *[False] * 3, True]
    assert best.found == {"sparse": (5, 4.0), "dense": (1, 9.0)}


# ---- finish ----------------------------------------------------------------------------------------------------------


def train(G: nn.Module, D: nn.Module, policy: dict[str, Any], evaluations: int = 2) -> rgplug.Controller:
    """A training script that is a function: its optimizers are gone when it returns."""
    host = Host()
    host.G, host.D = G, D
    host.opt = {"G": adam(G), "D": adam(D)}
    rg = rgplug.attach(G, D, policy)
    for value in range(evaluations):
        host.run(2)
        rg.end_epoch(5.0 - value)
    return rg


def networks() -> tuple[nn.Module, nn.Module]:
    host = Host()
    return host.G, host.D


@pytest.mark.parametrize("steps_after", [0, 2])
def test_finish_dense_brings_the_dormant_values_into_the_trained_pair(steps_after: int, tmp_path: Path) -> None:
    G, D = networks()
    rg = train(G, D, {**MILD, "finish": "dense", "snapshots.folder": str(tmp_path)})
    if steps_after:
        optimizer = adam(G)
        for _ in range(steps_after):
            optimizer.zero_grad()
            G(torch.randn(4, next(p for p in G.parameters()).shape[1])).square().sum().backward()
            optimizer.step()
    before = read(tmp_path / "trained.safetensors")
    theta = {n: {w.name: w.theta.clone() for w in rg.weights(n)} for n in "GD"}
    assert rg.density("G") < 1
    assert rg.records[-1].density["G"] < 1  # records stay those of the phases
    rg.detach()
    held = read(tmp_path / "trained.safetensors")
    for n, module in (("G", G), ("D", D)):
        assert all(torch.equal(held["pair"][n][name], value) for name, value in theta[n].items())
        assert all((held["pair"][n][name] != 0).all() for name in theta[n])  # density 1
        assert equal(held["pair"][n], dict(module.state_dict()))
        if not steps_after:
            assert any((before["pair"][n][name] == 0).any() for name in theta[n])
            moments, last = before["optimizers"][n], held["optimizers"][n]
            assert set(moments) == set(last) != set()
            assert all(torch.equal(moments[k]["exp_avg"], last[k]["exp_avg"]) for k in moments)
    ticket = next_masks(tmp_path / "trained.safetensors", None, 0.5, ["G"], {"G": list(theta["G"])})["G"]
    sizes = torch.cat([value.abs().flatten() for value in theta["G"].values()])
    half = sizes.sort(descending=True).values[sizes.numel() // 2 - 1]  # of theta: all of it counts, dormant or not
    assert all(torch.equal(ticket[name], value.abs() >= half) for name, value in theta["G"].items())
    other = Host(seed=3)
    start = {"weights": str(tmp_path / "trained.safetensors"), "optimizers": True}
    again = rgplug.attach(other.G, other.D, {"base": "dense", "start": start})
    assert equal(tensors(other)["G"], dict(G.state_dict()))
    other.run(1)
    again.detach()


def test_finish_sparse_prunes_the_trained_pair_of_a_dense_phase(tmp_path: Path) -> None:
    G, D = networks()
    policy = {**TURNS, "finish": "sparse", "snapshots.folder": str(tmp_path)}
    rg = train(G, D, {**policy, "regeneration.augmented.higher_is_better": True})  # 5, then 4: worse, so dense
    assert rg.phase == "dense"
    assert all((read(tmp_path / "trained.safetensors")["pair"]["G"][w.name] != 0).all() for w in rg.weights("G"))
    rg.detach()
    held = read(tmp_path / "trained.safetensors")["pair"]
    for n, module in (("G", G), ("D", D)):
        assert equal(held[n], dict(module.state_dict()))
        for w in rg.weights(n):
            assert torch.equal(held[n][w.name] == 0, ~w.mask)
        assert not all(w.mask.all() for w in rg.weights(n))


def test_finish_as_is_leaves_the_file_of_the_last_evaluation(tmp_path: Path) -> None:
    rg = train(*networks(), {**MILD, "snapshots.folder": str(tmp_path)})
    before = (tmp_path / "trained.safetensors").stat()
    rg.detach()
    after = (tmp_path / "trained.safetensors").stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)


def test_what_detach_is_told_goes_before_the_policy(tmp_path: Path) -> None:
    rg = train(*networks(), {**MILD, "finish": "dense", "snapshots.folder": str(tmp_path)})
    rg.detach(finish="as-is")
    assert any((read(tmp_path / "trained.safetensors")["pair"]["G"][w.name] == 0).any() for w in rg.weights("G"))

"""The controller: end_epoch, phases, ablations, the regularizer in either place, copies, detach."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from common import RAMP, Host, adam, linear, set_grad, sgd
from torch import nn

import rgplug
from rgplug.errors import RgplugError

POLICY = {"sparsity_weight": 1e-2, "threshold": {"init": 0.05}}
pytestmark = pytest.mark.filterwarnings("ignore:rgplug. densities have drifted apart")


def attached(policy: dict[str, Any] | None = None, steps: int = 1) -> tuple[Host, rgplug.Controller]:
    host = Host()
    rg = rgplug.attach(host.G, host.D, POLICY if policy is None else policy)
    host.run(steps)
    return host, rg


# ---- end_epoch ---------------------------------------------------------------------------------------------------


def test_the_record_says_what_was_decided_and_seen() -> None:
    host, rg = attached({**POLICY, "batch_size": 4}, steps=3)
    first = rg.end_epoch(9.0, metric_name="fid")
    assert (first.epoch, first.metric, first.metric_name, first.average) == (1, 9.0, "fid", None)
    assert (first.phase_before, first.phase) == ("sparse", "sparse")
    assert first.steps == {"G": 3, "D": 3}
    assert first.real_images == 12
    assert first.density == rg.density()
    assert set(first.layers["G"]) == {w.name for w in rg.weights("G")}
    for n in "GD":
        missing = sum(int((~w.mask).sum()) for w in rg.weights(n))
        assert first.density[n] < 1
        # attach itself pruned what lies below 0.05, before the first record
        assert first.pruned[n] - first.regenerated[n] == missing
    host.run(2)
    before = [int(w.mask.sum()) for w in rg.weights("G")]
    second = rg.end_epoch(9.0)
    assert second.epoch == 2
    third = rg.end_epoch(9.0)
    assert third.pruned == third.regenerated == {"G": 0, "D": 0}  # counts are since the record before
    assert before == [int(w.mask.sum()) for w in rg.weights("G")]
    assert "\n" not in str(third)
    assert rg.records == [first, second, third]


def test_five_rising_values_go_dense_and_a_fall_goes_back(tmp_path: Path) -> None:
    host, rg = attached({**POLICY, "run_dir": str(tmp_path)}, steps=3)
    thetas = {n: [w.theta for w in rg.weights(n)] for n in "GD"}
    missing = {n: sum(int((~w.mask).sum()) for w in rg.weights(n)) for n in "GD"}
    for metric in (5, 6, 7, 8):
        assert rg.end_epoch(metric).phase == "sparse"
    record = rg.end_epoch(9)
    assert (record.phase_before, record.phase, rg.phase) == ("sparse", "dense", "dense")
    assert record.average == pytest.approx(7.7)
    assert record.density == {"G": 1.0, "D": 1.0}
    assert record.regenerated == missing
    assert "sparse -> dense" in str(record)
    for n in "GD":
        assert all(torch.equal(w.param, t) for w, t in zip(rg.weights(n), thetas[n]))  # the old values are back
    thresholds = [w.threshold.clone() for w in rg.weights("G")]
    host.run(3)
    assert all(torch.equal(w.threshold, t) for w, t in zip(rg.weights("G"), thresholds))
    assert rg.end_epoch(1).phase == "sparse"
    assert rg.density("G") < 1
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["phase"] for line in lines] == ["sparse"] * 4 + ["dense", "sparse"]


@pytest.mark.parametrize("metric", [float("nan"), float("inf"), -float("inf"), torch.tensor(float("nan"))])
def test_a_metric_that_is_no_number_decides_nothing_and_loses_nothing(metric: Any) -> None:
    _, rg = attached()
    for value in (5, 6, 7, 8):
        rg.end_epoch(value)
    with pytest.warns(UserWarning, match="no decision"):
        record = rg.end_epoch(metric)
    assert record.phase == "sparse"
    assert record.epoch == 5
    assert rg.regeneration.history == [5, 6, 7, 8]
    assert rg.end_epoch(9).phase == "dense"


def test_no_metric_is_said_once_and_decides_nothing() -> None:
    _, rg = attached()
    with pytest.warns(UserWarning, match=r"augmented regeneration cannot decide"):
        assert rg.end_epoch().metric is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rg.end_epoch()
    assert rg.epoch == 2


def test_a_metric_of_the_wrong_type_changes_nothing() -> None:
    _, rg = attached()
    with pytest.raises((RgplugError, TypeError, ValueError)):
        rg.end_epoch("fid")  # type: ignore[arg-type]
    assert rg.epoch == 0
    assert rg.end_epoch(5.0).epoch == 1


@pytest.mark.parametrize("metric", [5, 5.0, torch.tensor(5.0), torch.tensor(5)])
def test_numbers_of_every_kind(metric: Any) -> None:
    _, rg = attached()
    assert rg.end_epoch(metric).metric == 5.0


def test_augmented_per_network() -> None:
    _, rg = attached({**POLICY, "regeneration": {"augmented": {"networks": ["G"]}}})
    for metric in (5, 6, 7, 8, 9):
        record = rg.end_epoch(metric)
    assert record.density["G"] == 1
    assert record.density["D"] < 1
    assert record.phase == "dense"


def test_without_augmented_regeneration_the_phase_stays_and_the_metric_is_recorded() -> None:
    _, rg = attached({**POLICY, "regeneration": {"augmented": False}})
    for metric in (5, 6, 7, 8, 9):
        record = rg.end_epoch(metric)
    assert (record.phase, record.metric, record.average) == ("sparse", 9, None)


ABLATION: dict[str, dict[str, Any]] = {
    "DP": {"recurrent": False, "augmented": False},
    "DP+RR": {"recurrent": True, "augmented": False},
    "DP+RR+AR": {"recurrent": True},
    "DP+AR on G": {"recurrent": False, "augmented": {"networks": ["G"]}},
}


@pytest.mark.parametrize(
    ("name", "grows_in_a_step", "goes_dense"),
    [("DP", "", ""), ("DP+RR", "GD", ""), ("DP+RR+AR", "GD", "GD"), ("DP+AR on G", "", "G")],
)
def test_the_ablation_table_is_a_policy(name: str, grows_in_a_step: str, goes_dense: str) -> None:
    _, rg = attached({**POLICY, "regeneration": ABLATION[name]}, steps=10)
    record = rg.end_epoch(5)
    assert {n for n in "GD" if record.regenerated[n]} == set(grows_in_a_step)
    for metric in (6, 7, 8, 9):
        record = rg.end_epoch(metric)
    assert {n for n in "GD" if record.density[n] == 1} == set(goes_dense)


def test_dense_counts_and_prunes_nothing() -> None:
    host = Host()
    before = Host()
    rg = rgplug.attach(host.G, host.D, "dense")
    host.run(3)
    before.run(3)
    for a, b in zip(host.G.parameters(), before.G.parameters()):
        assert torch.equal(a, b)
    record = rg.end_epoch(3.0)
    assert record.density == {"G": 1.0, "D": 1.0}
    assert (record.phase, record.steps["G"]) == ("dense", 3)
    assert rg.weights("G")[0].density == 1.0
    assert rg.weights("G")[0].mask.all()
    assert sum(w.mask.untyped_storage().nbytes() for w in rg.weights("G")) <= 8 * len(rg.weights("G"))


def test_a_network_nobody_steps_is_said_at_the_end_of_the_epoch() -> None:
    host = Host()
    rg = rgplug.attach(host.G, host.D, POLICY)
    host.opt["D"] = adam(copy.deepcopy(host.D))
    host.run(1)
    with pytest.warns(UserWarning, match="no optimizer step was seen for D"):
        rg.end_epoch(1.0)


def test_a_replaced_parameter_is_said_at_the_end_of_the_epoch() -> None:
    host, rg = attached()
    host.G[0].weight = nn.Parameter(torch.randn_like(host.G[0].weight))
    with pytest.warns(UserWarning, match=r"G\.0\.weight was replaced"):
        rg.end_epoch(1.0)


def test_warnings_point_to_the_line_of_the_host() -> None:
    _, rg = attached()
    with pytest.warns(UserWarning, match="cannot decide") as no_metric:
        rg.end_epoch()
    with pytest.warns(UserWarning, match="no decision") as not_finite:
        rg.end_epoch(float("nan"))
    assert [Path(w.filename).name for w in (*no_metric, *not_finite)] == ["test_controller.py"] * 2


@pytest.mark.filterwarnings("default")
def test_densities_that_drift_apart_are_said() -> None:
    _, rg = attached({"sparsity_weight": 0.0, "target": {"G": 0.2, "by": 0, "shape": "constant"}})
    with pytest.warns(UserWarning, match=r"drifted apart \(G 0\.20, D"):
        rg.end_epoch(1.0)


# ---- copies, looking, the end ------------------------------------------------------------------------------------


def test_apply_masks_gives_a_copy_the_live_mask() -> None:
    host, rg = attached(steps=2)
    ema = copy.deepcopy(host.G)
    for p in ema.parameters():
        p.data.fill_(1.0)
    assert rg.apply_masks(ema) is ema
    named = dict(ema.named_parameters())
    for w in rg.weights("G"):
        assert torch.equal(named[w.name] != 0, w.mask)
    assert host.G[0].bias is not None
    assert named["0.bias"].eq(1).all()
    d = copy.deepcopy(host.D)
    rg.apply_masks(d, "D")
    with pytest.raises(RgplugError, match=r"0\.weight.*shape"):
        rg.apply_masks(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize("kind", ["old_sn", "new_sn"])
def test_apply_masks_finds_weights_below_spectral_norm(kind: str) -> None:
    host = Host(kind)
    rg = rgplug.attach(host.G, host.D, POLICY)
    host.run(1)
    copied = copy.deepcopy(Host(kind, seed=3).D)
    rg.apply_masks(copied, "D")
    named = dict(copied.named_parameters())
    for w in rg.weights("D"):
        assert not named[w.name][~w.mask].any()
        assert named[w.name][w.mask].any()


def test_apply_masks_in_a_dense_phase_leaves_everything() -> None:
    host, rg = attached()
    rg.networks["G"].go_dense()
    ema = copy.deepcopy(host.G)
    rg.apply_masks(ema)
    assert all(torch.equal(a, b) for a, b in zip(ema.parameters(), host.G.parameters()))


def test_end_epoch_masks_the_average_it_is_given() -> None:
    host, rg = attached(steps=2)
    ema = copy.deepcopy(host.G)
    for p in ema.parameters():
        p.data.fill_(1.0)
    rg.end_epoch(3.0, ema=ema)
    assert not ema[0].weight[~rg.weights("G")[0].mask].any()


def test_weights_and_density() -> None:
    _, rg = attached(steps=2)
    for w in rg.weights("G"):
        assert w.density == pytest.approx(w.mask.double().mean().item())
        assert torch.equal(w.param.detach(), w.theta * w.mask)
    total = sum(w.numel for w in rg.weights("G"))
    assert rg.density("G") == pytest.approx(sum(w.density * w.numel for w in rg.weights("G")) / total)
    with pytest.raises(RgplugError, match=r"no managed network 'E'.*G, D"):
        rg.density("E")


@pytest.mark.parametrize("finish", ["sparse", "dense", "as-is"])
@pytest.mark.parametrize("phase", ["sparse", "dense"])
@pytest.mark.parametrize("by", ["argument", "policy"])
def test_detach(finish: str, phase: str, by: str) -> None:
    G = linear([[1.0, 0.05], [2.0, 0.02]])
    stock = type(G)
    rg = rgplug.attach(G, policy={**POLICY, **({"finish": finish} if by == "policy" else {})})
    rg.weights("G")[0].threshold.fill_(0.5)
    rg.networks["G"].refresh_all()
    if phase == "dense":
        rg.networks["G"].go_dense()
    rg.detach(**({"finish": finish} if by == "argument" else {}))
    dense = finish == "dense" or (finish == "as-is" and phase == "dense")
    weights = [[1, 0.05], [2, 0.02]] if dense else [[1, 0], [2, 0]]
    torch.testing.assert_close(G.weight.detach(), torch.tensor(weights, dtype=torch.float32))
    assert stock is not nn.Linear or type(G) is nn.Linear
    rg.detach()  # twice is once
    opt = sgd(G)
    set_grad(G, -1.0)
    opt.step()
    assert (G.weight.detach() >= 1).all()  # nobody masks any more
    with pytest.raises(RgplugError, match="detached"):
        rg.end_epoch(1.0)
    rgplug.attach(G).detach()


def test_an_unknown_finish_is_refused() -> None:
    rg = rgplug.attach(linear([[1.0, 0.05]]))
    with pytest.raises(RgplugError, match="sparse"):
        rg.detach(finish="desne")  # type: ignore[arg-type]


def test_context_manager() -> None:
    G = nn.Sequential(nn.Linear(2, 2))
    with rgplug.attach(G) as rg:
        assert type(G[0]) is not nn.Linear
    assert type(G[0]) is nn.Linear
    with pytest.raises(ZeroDivisionError), rgplug.attach(G):
        1 / 0  # noqa: B018
    assert type(G[0]) is nn.Linear
    with pytest.raises(RgplugError, match="detached"):
        rg.load_state_dict({})


def test_d_may_be_none_and_networks_may_be_left_out() -> None:
    host = Host()
    with rgplug.attach(host.G) as rg:
        assert set(rg.density()) == {"G"}
    with rgplug.attach(host.G, host.D, {"networks": {"G": None}}) as rg:
        assert set(rg.density()) == {"D"}
        host.run(1)
        assert set(rg.end_epoch(1.0).density) == {"D"}


def test_the_released_preset_is_a_ramp_of_equal_thresholds() -> None:
    """methods.md 1.4: per step lr * lambda / (lambda + eps) under Adam(0, .9), the same in every filter and layer."""
    host = Host(optimizer=lambda m: torch.optim.Adam(m.parameters(), lr=2e-4, betas=(0.0, 0.9)))
    rg = rgplug.attach(host.G, host.D, "rg-gan-released")
    host.run(5)
    ramp = 5 * 2e-4 * 1e-12 / (1e-12 + 1e-8)
    for n in "GD":
        for w in rg.weights(n):
            torch.testing.assert_close(w.threshold, torch.full_like(w.threshold, ramp), rtol=1e-3, atol=0)


def test_two_forwards_before_one_backward_with_masks_that_change_in_between() -> None:
    """The pattern that buffers break: D(real), D(fake), one backward, while G's step redraws masks."""
    host, rg = attached(steps=2)
    real = host.D(host.data.x(0))
    fake = host.D(host.G(host.data.z(0)).detach())
    host.opt["G"].zero_grad()
    host.D(host.G(host.data.z(1))).mean().backward()
    host.opt["D"].zero_grad()
    (real.mean() - fake.mean()).backward()
    host.opt["G"].step()
    host.opt["D"].step()
    assert rg.density("D") < 1


def test_ramp_policy_prunes() -> None:
    _, rg = attached(RAMP, steps=5)
    assert min(rg.density().values()) < 1


def test_a_copy_that_does_not_fit_stays_as_it_is() -> None:
    G = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    rg = rgplug.attach(G, None, {"threshold.init": 0.3})
    assert not rg.weights("G")[0].mask.all()
    other = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 5))
    before = other[0].weight.clone()
    with pytest.raises(RgplugError, match=r"1.weight of G has shape \[3, 4\] and is of shape \[5, 4\]"):
        rg.apply_masks(other)
    assert torch.equal(other[0].weight, before)

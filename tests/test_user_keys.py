"""What the user wrote counts over presets, over --length and --density; schedules know the run's length or say so."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import hosts_of_comparisons as hosts
import pytest
import torch
from common import adam, linear
from torch import nn

import rgplug
from rgplug import Policy, RgplugError
from rgplug.baselines import compare
from rgplug.baselines.methods import METHODS, Scale, applicable, find, with_common
from rgplug.methods import sparse
from rgplug.presets import PRESETS

SCALE = Scale(0.5, 10_000, 2)


@pytest.mark.parametrize(
    ("method", "own", "expected"),
    [
        (
            "stu-gan",
            {"exploration.every": 200},
            {"exploration.every": 200, "exploration.end": {"G": 10_000, "D": 20_000}},
        ),
        ("stu-gan", {"exploration.every": {"G": 200}}, {"exploration.every": {"G": 200, "D": 400}}),
        ("rigl", {"exploration.end": 123}, {"exploration.end": 123}),
        ("stu-gan", {"masks.density": 0.3}, {"masks.density": 0.3}),
        ("re-gan", {"cycle.period": 7}, {"cycle.period": 7, "cycle.warm_up": 2000}),
        ("re-gan", {"cycle.sparsity": 0.1}, {"cycle.sparsity": 0.1}),
        ("adapt", {"balance.every": 9}, {"balance.every": 9}),
        ("rg-gan", {"target.by": 77}, {"target.by": 77, "target.G": 0.5}),
        ("rg-gan-dp", {"regeneration.recurrent": True}, {"regeneration.recurrent": True}),
    ],
)
def test_the_user_s_keys_count_over_preset_length_and_density(
    method: str, own: dict[str, Any], expected: dict[str, Any]
) -> None:
    keys = rgplug.schema.resolve(own, {})
    policy = SCALE.policy(with_common(find(method), keys, SCALE))
    for key, value in expected.items():
        found: Any = policy
        for part in key.split("."):
            found = found[part]
        assert found == value, key


def test_published_shares_of_the_run() -> None:
    """RigL explores in three quarters of it (Evci et al. 2020, Sec. 3), STU-GAN and SET in all."""
    ends = {m: SCALE.policy(find(m))["exploration"]["end"] for m in ("rigl", "set", "stu-gan")}
    assert ends["rigl"] == {"G": 7500, "D": 15_000}
    assert ends["set"] == ends["stu-gan"] == {"G": 10_000, "D": 20_000}


def test_a_target_of_the_user_s_is_scaled_too() -> None:
    asked = with_common(find("rg-gan"), {"target": {"G": 0.3}}, Scale(length=1000))
    assert Policy.pooled({"target": {"G": 0.3}}, Scale(length=1000).policy(asked)).target.by == 600


@pytest.mark.parametrize("name", list(METHODS))
def test_keys_for_some_methods_leave_the_others_what_they_are(name: str) -> None:
    """`--set exploration.every` makes no static masks explore."""
    common = {
        "exploration": {"every": 3},
        "balance": {"every": 3},
        "threshold": {"units": "layer_std"},
        "cycle": {"period": 3},
        "regeneration": {"augmented": {"dwell": 2}},
        "masks": {"criterion": "magnitude"},
        "batch_size": 4,
    }
    method = Scale().policy(with_common(find(name), common, Scale()))
    policy, alone = Policy.pooled(applicable(common, method), method), Policy.pooled(Scale().policy(find(name)))
    assert policy.batch_size == 4
    for group in ("exploration", "balance"):
        assert (getattr(policy, group) is None) is (getattr(alone, group) is None)
        assert getattr(policy, group) is None or getattr(policy, group).every == 3
    assert (policy.regeneration.augmented is None) is (alone.regeneration.augmented is None)
    assert (policy.threshold != alone.threshold) is (policy.method == "rg-gan")
    assert (policy.masks != alone.masks) is (policy.method == "sparse" and alone.masks.criterion != "magnitude")


def test_in_a_comparison(tmp_path: Path) -> None:
    seen = []

    def train(build: Any, attach: Any, seed: int, run_dir: Path) -> None:
        def noted(G: nn.Module, D: nn.Module) -> rgplug.Controller:
            rg = attach(G, D, policy={"threshold.units": "layer_std"})  # the host's own, for a method that reads it
            seen.append(rg.policy)
            return rg

        hosts.train(build, noted, seed, run_dir)

    policy = {"batch_size": 4, "exploration.every": 5, "masks.density": 0.75}
    compare(["stu-gan", "sparse", "rg-gan"], train, hosts.build, out=tmp_path, policy=policy, density=0.5, length=12)
    stu, static, rg_gan = seen
    assert (stu.exploration.every, stu.exploration.end["G"], stu.masks.density) == (5, 12, 0.75)
    assert (static.exploration, static.masks.density) == (None, 0.75)
    assert rg_gan.threshold.units == "layer_std"
    assert rg_gan.target.G == 0.5


def test_a_key_that_no_method_of_a_comparison_reads(tmp_path: Path) -> None:
    keys = {"out": tmp_path, "policy": {"cycle.period": 5, "batch_size": 4}}
    with pytest.warns(UserWarning, match=r"policy\.cycle\.period has no effect in this comparison: no method of it"):
        compare(["dense"], hosts.train, hosts.build, **keys)
    with pytest.raises(RgplugError, match="did you mean 'period'"):
        compare(["dense"], hosts.train, hosts.build, out=tmp_path, policy={"cycle.perio": 5})


def explored(policy: dict[str, Any], steps: int) -> tuple[int, list[str]]:
    """The last step at which G's mask changed, and what was said."""
    torch.manual_seed(0)
    G = nn.Linear(8, 8)
    opt = adam(G)
    rg = rgplug.attach(G, policy={"base": "stu-gan", "masks.density": 0.5, "exploration.every": 2, **policy})
    last, said = 0, []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i in range(1, steps + 1):
            before = rg.weights("G")[0].mask.clone()
            opt.zero_grad()
            (G(torch.randn(4, 8)) ** 2).sum().backward()
            opt.step()
            last = last if torch.equal(before, rg.weights("G")[0].mask) else i
    said += [str(w.message) for w in caught]
    return last, said


def test_the_end_of_exploration_is_said_once_where_nobody_chose_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "END", 10)
    last, said = explored({}, 16)
    assert last == 8
    assert len(said) == 1
    assert "G's masks stay from here on, after 10 steps" in said[0]
    assert "exploration.end" in said[0]
    assert explored({}, 10) == (8, [])  # a run as long as that
    assert explored({"exploration.end": 6}, 16) == (4, [])  # asked for


def test_what_an_unsaid_end_is() -> None:
    """50,000, as published presets have always had it."""
    assert Policy.load("stu-gan").exploration.end is None
    rg = rgplug.attach(linear([[1.0, 2.0]] * 5), policy="stu-gan")
    assert rg.networks["G"].method.exploration.end == 50_000
    assert all("end" not in p.get("exploration", {}) for n, p in PRESETS.items() if not n.startswith("adapt"))

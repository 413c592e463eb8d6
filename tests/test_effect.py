"""Keys without effect are errors that say why; what a preset brings along, and what to_dict writes, is none."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
from common import Host, linear

import rgplug
from rgplug import Policy, RgplugError, effect
from rgplug.policy import BalancePolicy, ExplorationPolicy, MaskPolicy, MetricPolicy, TargetPolicy
from rgplug.presets import PRESETS


@pytest.mark.parametrize(
    ("policy", "parts"),
    [
        ({"masks": {"density": 0.1}}, ["masks.density", "method rg-gan does not read it", "target"]),
        ({"cycle.sparsity": 0.3}, ["cycle.sparsity", "rg-gan"]),
        ({"base": "stu-gan", "threshold.units": "layer_std"}, ["threshold.units", "sparse"]),
        ({"base": "stu-gan", "sparsity_weight": 1e-9}, ["sparsity_weight", "sparse"]),
        ({"base": "re-gan", "masks.density": 0.2}, ["masks.density", "cycle: {sparsity: ...}"]),
        ({"base": "dense", "target": {"G": 0.5, "by": 10}}, ["target", "dense"]),
        ({"base": "dense", "optimizer_state": "reset"}, ["optimizer_state", "dense"]),
        ({"base": "sparse", "regeneration.recurrent": ["G"]}, ["regeneration.recurrent", "sparse"]),
        ({"networks": {"D": None}, "target": {"D": 0.5, "by": 9}}, ["target.D", "left dense (networks: {D: null})"]),
        ({"networks": {"D": None}, "sparsity_weight": {"G": 1, "D": 1}}, ["sparsity_weight.D", "left dense"]),
        ({"threshold.networks": ["G"], "target": {"D": 0.5, "by": 9}}, ["target.D", "not among the networks"]),
        ({"base": "rg-gan-ar-g", "threshold.units": {"D": "spectral"}}, ["threshold.units.D", "(G)"]),
        ({"base": "stu-gan-d", "networks": {"D": None}}, ["exploration.networks is [D]", "left dense", "exchanged"]),
        ({"base": "rg-gan-dp-d", "networks": {"D": None}}, ["threshold.networks is [D]", "pruned"]),
        ({"base": "re-gan", "networks": {"G": None}}, ["cycle.networks is [G]", "left dense"]),
        (
            {"base": "pf-global", "method": "rg-gan"},
            ["masks.density", "comes from the base", "begin with base: rg-gan"],
        ),
        ({"base": "sparse", "masks.distribution": "global", "masks.sampling": "bernoulli"}, ["masks.sampling", "erk"]),
    ],
)
def test_a_key_without_effect_is_an_error_that_says_why(policy: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(RgplugError, match=r"policy\.") as error:
        Policy.load(policy)
    assert all(part in str(error.value) for part in parts), str(error.value)


@pytest.mark.parametrize(
    ("policy", "parts"),
    [
        ({"target": {"D": 0.5, "by": 10}}, ["target.D", "D is not attached"]),
        ({"networks": {"D": {"exclude": ["0.weight"]}}}, ["networks.D", "D is not attached"]),
        ({"base": "stu-gan", "masks.density": {"G": 0.5, "D": 0.5}}, ["masks.density.D", "D is not attached"]),
        ("stu-gan-d", ["exploration.networks is [D]", "D is not attached"]),
        ("rg-gan-rr-d", ["threshold.networks is [D]", "D is not attached"]),
        ({"base": "sparse", "masks": {"density": {"D": 0.5}}}, ["masks.density.D", "not attached"]),
    ],
)
def test_of_a_network_that_is_not_attached(policy: Any, parts: list[str]) -> None:
    G = linear([[1.0, 2.0]])
    with pytest.raises(RgplugError, match=r"policy\.") as error:
        rgplug.attach(G, policy=policy)
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert type(G).__name__ == "Linear"


def test_every_network_that_trains_sparse_needs_its_density() -> None:
    with pytest.raises(RgplugError, match=r"policy\.masks\.density has no value for D"):
        rgplug.attach(linear([[1.0, 2.0]]), linear([[1.0, 2.0]]), {"base": "sparse", "masks.density": {"G": 0.5}})


@pytest.mark.parametrize("preset", ["stu-gan", "stu-gan-b", "rg-gan-ar-g", "pf-global", "rg-gan-released"])
def test_what_a_preset_brings_along_may_be_more_than_a_run_reads(preset: str) -> None:
    rg = rgplug.attach(linear([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0], [9.0, 10.0]]), policy=preset)
    again = rg.policy
    rg.detach()
    for form in (again, again.to_dict()):
        rgplug.attach(linear([[1.0, 2.0]] * 5), policy=form).detach()


@pytest.mark.parametrize("preset", list(PRESETS))
def test_policies_that_to_dict_made_load_again(preset: str, tmp_path: Path) -> None:
    policy = Policy.load({"base": preset, "batch_size": 4})
    (tmp_path / "policy.yaml").write_text(policy.to_yaml())
    assert Policy.load(policy.to_dict()) == Policy.load(tmp_path / "policy.yaml") == Policy.load(policy) == policy
    assert Policy.load("rg-gan").changed(policy.to_dict()) == policy


def test_in_a_whole_dict_what_differs_from_the_default_counts() -> None:
    with pytest.raises(RgplugError, match=r"policy\.masks\.density has no effect"):
        Policy.load({**Policy().to_dict(), "masks": {**Policy().to_dict()["masks"], "density": 0.2}})
    with pytest.raises(RgplugError, match=r"policy\.masks\.density has no effect"):
        Policy.load(Policy(masks=MaskPolicy(density=0.2)))


def test_another_method_takes_none_of_the_old_one_s_keys_along(tmp_path: Path) -> None:
    """Rounds of tickets change the method under a script's own policy."""
    script = Policy.load({"threshold.units": "layer_std", "target": {"G": 0.5, "by": 10}, "batch_size": 4})
    file = tmp_path / "masks.safetensors"
    keys = {"method": "sparse", "regeneration": {"augmented": False}, "target": None, "masks": {"file": str(file)}}
    policy = script.changed(keys)
    assert (policy.threshold, policy.batch_size, policy.masks.file) == (Policy().threshold, 4, str(file))
    assert Policy.load(policy.to_dict()) == policy
    with pytest.raises(RgplugError, match=r"policy\.cycle\.sparsity has no effect"):
        script.changed({"cycle.sparsity": 0.2})


def test_the_table_names_keys_of_the_policy() -> None:
    whole = Policy(
        exploration=ExplorationPolicy(), balance=BalancePolicy(), target=TargetPolicy(), metric=MetricPolicy()
    )
    for key in [*effect.READ_BY, *effect.NETWORKS_OF, *(k for c in effect.COUNTS_IF for k in c.keys)]:
        value: Any = whole
        for part in key.split("."):
            assert part in {f.name for f in dataclasses.fields(value)}, key
            value = getattr(value, part)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ({"G": 0.5}, "G 0.5"),
        ({"G": 0.5, "D": 0.7}, "G 0.5, D 0.7"),
        ({"G": 0.5, "by": 20000}, ""),
        ({"G": 1, "by": 9}, ""),
    ],
)
def test_a_target_without_a_time_says_how_long_it_takes(target: dict[str, Any], says: str) -> None:
    host = Host()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rgplug.attach(host.G, host.D, {"target": target})
    lines = [str(w.message) for w in caught]
    assert len(lines) == bool(says)
    if says:
        assert f"({says}) is reached over the first 20,000 steps" in lines[0]
        assert "target.by" in lines[0]
        assert caught[0].filename == __file__


def test_what_an_adapter_adds_leaves_the_user_s_keys_known() -> None:
    """Adapters add the host's batch size with dataclasses.replace."""
    policy = dataclasses.replace(Policy.load({"target": {"G": 0.5, "by": 20000}}), batch_size=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rgplug.attach(linear([[1.0]]), policy=policy)
    assert policy.own_keys == {"target.G", "target.by"}
    assert "_own" not in policy.to_dict()

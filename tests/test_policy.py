"""Policies from YAML, dicts, presets; what is wrong in them is said with the path of the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from common import linear

import rgplug
from rgplug import Policy, RgplugError
from rgplug.policy import (
    AugmentedPolicy,
    MetricPolicy,
    RegenerationPolicy,
    TargetPolicy,
    ThresholdPolicy,
    keys_of_user,
)


def test_method_alone_is_a_whole_policy() -> None:
    assert Policy.load({"method": "rg-gan"}) == Policy.load("rg-gan") == Policy()


def test_the_presets_differ_in_what_they_are_named_for() -> None:
    paper, released, dense = (Policy.load(name) for name in ("rg-gan", "rg-gan-released", "dense"))
    assert paper.threshold.task_gradient
    assert not released.threshold.task_gradient
    assert released.of(released.threshold.units, "D") == "spectral"
    assert dense.method == "dense"
    assert dense.regeneration.augmented is None


def test_a_preset_is_a_base_to_start_from() -> None:
    by_method = Policy.load({"method": "rg-gan-released", "sparsity_weight": 3})
    by_base = Policy.load({"base": "rg-gan-released", "sparsity_weight": 3})
    assert by_method == by_base
    assert by_base.sparsity_weight == 3.0
    assert not by_base.threshold.task_gradient
    deeper = Policy.load({"base": "rg-gan-released", "threshold": {"min": 0.0}})
    assert not deeper.threshold.task_gradient
    assert deeper.threshold.min == 0.0


def test_yaml_and_back(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(
        "sparsity_weight: {G: 5e-12, D: 1e-3}\n"
        "threshold: {units: {G: layer_std, D: spectral}, optimizer: {lr: 1.0e-3}}\n"
        "networks: {D: {vectors: true}, G: {exclude: [rgb]}}\nregeneration: {recurrent: [G], augmented: false}\n"
        "target: {G: 0.5, by: 100}\n"
    )
    policy = Policy.load(path)
    assert policy.sparsity_weight == {"G": 5e-12, "D": 1e-3}  # YAML 1.1 reads 5e-12 as text
    assert policy.networks["D"].vectors
    assert policy.networks["G"].exclude == ("rgb",)
    assert policy.regeneration == RegenerationPolicy(recurrent=("G",), augmented=None)
    assert policy.target == TargetPolicy(G=0.5, by=100)
    path.write_text(policy.to_yaml())
    assert Policy.load(path) == policy
    assert Policy.load(policy.to_dict()) == policy


def test_per_network_values() -> None:
    policy = Policy.load({"sparsity_weight": {"G": 1, "D": 2}, "threshold": {"units": "spectral"}})
    assert [policy.of(policy.sparsity_weight, n) for n in "GD"] == [1.0, 2.0]
    assert [policy.of(policy.threshold.units, n) for n in "GD"] == ["spectral", "spectral"]
    assert RegenerationPolicy(recurrent=("G",)).recurs("G")
    assert not RegenerationPolicy(recurrent=("G",)).recurs("D")


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ({"treshold": {}}, ["policy.treshold", "'threshold'"]),
        ({"threshold": {"unit": "absolute"}}, ["policy.threshold.unit", "'units'"]),
        ({"threshold": {"units": "layer-std"}}, ["policy.threshold.units", "layer_std"]),
        ({"threshold": {"units": {"G": "layer-std"}}}, ["policy.threshold.units.G", "layer_std"]),
        ({"threshold": {"guard": 2}}, ["policy.threshold.guard", "0", "1"]),
        ({"threshold": {"guard": "1 %"}}, ["policy.threshold.guard", "a number"]),
        ({"threshold": {"task_gradient": "yes"}}, ["policy.threshold.task_gradient", "true or false"]),
        ({"threshold": 3}, ["policy.threshold", "group of keys"]),
        ({"method": "rg-gam"}, ["policy.method", "rg-gan"]),
        ({"method": None}, ["policy.method"]),
        ({"sparsity_weight": -1}, ["policy.sparsity_weight"]),
        ({"sparsity_weight": "much"}, ["policy.sparsity_weight", "number"]),
        ({"sparsity_weight": float("nan")}, ["policy.sparsity_weight"]),
        ({"networks": {"E": {}}}, ["policy.networks.E", "G and D"]),
        ({"networks": {"G": {"includes": ["*"]}}}, ["policy.networks.G.includes", "'include'"]),
        ({"networks": {"G": {"include": 3}}}, ["policy.networks.G.include", "list"]),
        ({"regeneration": {"recurent": True}}, ["policy.regeneration.recurent", "'recurrent'"]),
        ({"regeneration": {"augmented": {"window": 4}}}, ["policy.regeneration.augmented.weights", "5", "4"]),
        (
            {"regeneration": {"augmented": {"weights": [1, 1, 1, 1, 1]}}},
            ["policy.regeneration.augmented.weights", "sum"],
        ),
        ({"regeneration": {"augmented": {"weights": [0, 0, 0, 0, "x"]}}}, ["policy.regeneration.augmented.weights[4]"]),
        ({"regeneration": {"augmented": {"dwell": 0}}}, ["policy.regeneration.augmented.dwell"]),
        ({"target": {"G": 0}}, ["policy.target.G"]),
        ({"target": {"G": 1.5}}, ["policy.target.G"]),
        ({"target": {"G": 0.5, "start": 10, "by": 5}}, ["policy.target.by", "10"]),
        ({"target": {"G": 0.5, "by": 0.6}}, ["policy.target.by", "whole number"]),
        ({"target": {"by": 5}}, ["policy.target", "no density"]),
        ({"target": {"G": 0.5, "shape": "cubik"}}, ["policy.target.shape", "cubic"]),
        ({"target": 0.5}, ["policy.target", "group of keys"]),
        ({"metric": {"samples": 100}}, ["policy.metric.real"]),
        ({"finish": "sparce"}, ["policy.finish", "sparse"]),
        ({"optimizer_state": "resett"}, ["policy.optimizer_state", "reset"]),
        ({"batch_size": 0}, ["policy.batch_size"]),
        ({"base": "rg-gn"}, ["rg-gn", "rg-gan"]),
        # names of networks are keys too
        ({"sparsity_weight": {"g": 1e-3}}, ["policy.sparsity_weight", "g"]),
        ({"threshold": {"units": {"g": "spectral"}}}, ["policy.threshold.units", "g"]),
        ({"batch_size": {"generator": 4}}, ["policy.batch_size", "generator"]),
        ({"regeneration": {"recurrent": ["g"]}}, ["policy.regeneration.recurrent", "g"]),
        ({"regeneration": {"augmented": {"networks": ["X"]}}}, ["policy.regeneration.augmented.networks", "X"]),
        ({"method": ["rg-gan"]}, ["policy.method"]),
        ({"method": {"name": "rg-gan"}}, ["policy.method"]),
        ({3: 4}, ["policy.3"]),
        ("rg-gn", ["rg-gn", "'rg-gan'"]),
        ("no/such/file.yaml", ["no/such/file.yaml"]),
        (None, ["NoneType"]),
        (["rg-gan"], ["list"]),
        # what people write
        ({"target": {"generator": 0.5}}, ["policy.target.generator", "did you mean 'G'"]),
        ({"target": {"d": 0.5}}, ["policy.target.d", "did you mean 'D'"]),
        ({"masks": {"density": {"critic": 0.5}}}, ["policy.masks.density.critic", "did you mean 'D'"]),
        ({"networks": {"netG": None}}, ["policy.networks.netG", "did you mean 'G'"]),
        ({"regeneration": {"recurrent": "yes"}}, ["policy.regeneration.recurrent", "true or false: write true"]),
        ({"regeneration": {"recurrent": "False"}}, ["policy.regeneration.recurrent", "write false"]),
        ({"base": "sparse", "masks.density": 50}, ["policy.masks.density", "is 50", "did you mean 0.5?"]),
        ({"target": {"G": 70}}, ["policy.target.G", "did you mean 0.7?"]),
        ({"base": "re-gan", "cycle.sparsity": 30}, ["policy.cycle.sparsity is 30", "did you mean 0.3?"]),
        ({"base": 3}, ["policy.base is 3"]),
        ({"networks": {"G": {"filter_dim": {3: 1}}}}, ["policy.networks.G.filter_dim", "has the key 3"]),
    ],
)
def test_what_is_wrong_is_said_with_its_path_and_what_is_allowed(source: Any, parts: list[str]) -> None:
    with pytest.raises(RgplugError) as error:
        Policy.load(source)
    message = str(error.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message


@pytest.mark.parametrize(
    "content",
    [b"", b"- a\n- b\n", b"a: [1, 2\n", b"just text", b"\xff\xfe\x00\x81binary", b"method: !!python/object:os.x {}"],
)
def test_files_that_are_no_policy(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(content)
    with pytest.raises(RgplugError, match=r"policy\.yaml") as error:
        Policy.load(path)
    assert "\n" not in str(error.value)


def test_a_base_that_is_its_own_base(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(f"base: {path}\n")
    with pytest.raises(RgplugError, match="base"):
        Policy.load(path)


@pytest.mark.parametrize(
    "policy",
    [
        Policy(sparsity_weight=-1.0),
        Policy(threshold=ThresholdPolicy(guard=7.0)),
        Policy(regeneration=RegenerationPolicy(augmented=AugmentedPolicy(window=3))),
    ],
)
def test_a_policy_object_is_checked_as_a_file_is(policy: Policy) -> None:
    with pytest.raises(RgplugError, match=r"policy\."):
        rgplug.attach(linear([[1.0]]), policy=policy)


def test_dotted_keys_of_any_depth() -> None:
    policy = Policy.load({"base": "rg-gan", "regeneration.augmented.dwell": 3, "threshold.guard": 0.1})
    assert policy.regeneration.augmented is not None
    assert (policy.regeneration.augmented.dwell, policy.threshold.guard) == (3, 0.1)


def test_a_missing_file_with_the_name_of_a_preset() -> None:
    with pytest.raises(RgplugError, match="; the preset of that name is 'rg-gan'"):
        Policy.load("rg-gan.yaml")


SCORE = {"metric": {"real": "folder", "distance": "is"}}


@pytest.mark.parametrize(
    ("policy", "higher"),
    [
        ({}, False),
        (SCORE, True),
        ({"metric": {"real": "folder", "distance": "kid"}}, False),
        ({"metric": {"real": "folder"}}, False),
        ({**SCORE, "regeneration.augmented.higher_is_better": True}, True),
        ({"regeneration.augmented.higher_is_better": True}, True),
        ({"regeneration.augmented.higher_is_better": False}, False),
        ({"base": "stu-gan", **SCORE}, True),
    ],
)
def test_which_way_the_metric_goes(policy: dict[str, Any], higher: bool) -> None:
    loaded = Policy.load(policy)
    assert loaded.higher_is_better is higher
    assert Policy.load(loaded.to_dict()).higher_is_better is higher


@pytest.mark.parametrize(("distance", "value"), [("is", False), ("frechet", True), ("kid", True)])
def test_a_direction_against_the_metric_s_own(distance: str, value: bool) -> None:
    metric = {"real": "folder", "distance": distance}
    policy = {"metric": metric, "regeneration": {"augmented": {"higher_is_better": value}}}
    with pytest.raises(
        RgplugError, match=rf"higher_is_better is .*with metric\.distance: {distance} (higher|lower) is"
    ):
        Policy.load(policy)
    with pytest.raises(RgplugError, match="higher_is_better"):
        Policy.load("rg-gan").changed(policy)
    with pytest.raises(RgplugError, match="higher_is_better"):
        Policy.load(
            Policy(
                metric=MetricPolicy(real="folder", distance=distance),
                regeneration=RegenerationPolicy(augmented=AugmentedPolicy(higher_is_better=value)),
            )
        )


def test_the_old_default_beside_the_score_of_a_policy_that_was_written_out() -> None:
    """Before null was the default, every policy that to_dict wrote had `higher_is_better: false`."""
    old = Policy.load(SCORE).to_dict()
    old["regeneration"]["augmented"]["higher_is_better"] = False
    assert Policy.load(old).higher_is_better


@pytest.mark.parametrize(
    "metric",
    [
        {"metric": {"real": "folder", "distance": ["frechet", "is"]}},
        {"metric": {"real": "folder", "distance": ("fid", "is")}},
        {"metric.distance": ["fid", "is"], "metric.real": "folder"},
        {"metric": ["fid", "is"], "metric.real": "folder"},
        {"metric.real": "folder", "metric": ["frechet", "is"]},
    ],
)
def test_several_distances(metric: dict[str, Any], tmp_path: Path) -> None:
    policy = Policy.load({"base": "rg-gan", **metric})
    assert policy.metric is not None
    assert policy.metric.distances == policy.metric.distance == ("frechet", "is")
    assert not policy.higher_is_better
    assert Policy.load(policy.to_dict()) == policy
    (tmp_path / "policy.yaml").write_text(policy.to_yaml())
    assert Policy.load(tmp_path / "policy.yaml") == policy
    assert Policy.load("rg-gan").changed(metric) == policy
    assert Policy.pooled({"method": "rg-gan"}, keys_of_user(metric)) == policy


def test_a_list_of_distances_goes_under_and_over_the_other_keys_of_the_group(tmp_path: Path) -> None:
    (tmp_path / "short.yaml").write_text("base: rg-gan\nmetric: [is, fid]\n")
    policy = Policy.load({"base": str(tmp_path / "short.yaml"), "metric.real": "folder", "metric.samples": 100})
    assert policy.metric == MetricPolicy(real="folder", distance=("is", "frechet"), samples=100)
    assert policy.higher_is_better  # as the first of them
    assert policy.changed({"metric": ["kid"]}).metric == MetricPolicy(real="folder", distance="kid", samples=100)
    assert policy.changed({"metric": "fid"}).metric == MetricPolicy(real="folder", samples=100)
    assert Policy.pooled({"metric": {"real": "folder"}}, {"metric": ["is"]}).metric == MetricPolicy(
        "folder", "auto", "is"
    )
    with pytest.raises(RgplugError, match=r"metric\.real is missing"):
        Policy.load(tmp_path / "short.yaml")


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ({"metric": ["fid", "isc"]}, r"policy\.metric\.distance\[1\] is 'isc'; allowed: frechet \| kid \| is"),
        ({"metric": {"distance": "frechett"}}, r"policy\.metric\.distance is 'frechett'.*did you mean 'frechet'"),
        (
            {"metric": {"distance": "psnr"}},
            r"policy\.metric\.distance is 'psnr'; allowed: frechet \| kid \| is, or a list",
        ),
        ({"metric": []}, r"distance is an empty list"),
        ({"metric": ["fid", "frechet"]}, r"names frechet twice \(fid is another name of frechet\)"),
        ({"metric": [["fid"]]}, r"policy\.metric\.distance\[0\] is \['fid'\]"),
        ({"metric": [1, "fid"]}, r"policy\.metric\.distance\[0\] is 1"),
        ({"metric": "folder"}, r"policy\.metric is 'folder'; it has to be a group of keys"),
    ],
)
def test_distances_that_are_none(metric: dict[str, Any], said: str) -> None:
    with pytest.raises(RgplugError, match=said):
        Policy.load(metric)


def test_a_direction_against_the_first_of_several_distances() -> None:
    keys = {"metric.real": "folder", "regeneration.augmented.higher_is_better": True}
    assert Policy.load({"metric": ["is", "fid"], **keys}).higher_is_better
    with pytest.raises(RgplugError, match=r"with metric\.distance: frechet lower is"):
        Policy.load({"metric": ["fid", "is"], **keys})

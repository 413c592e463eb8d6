"""Mutated policies: each is refused with one RgplugError, the networks as they were, or attaches and trains a step.

500 cases in the suite, always the same; RGPLUG_FUZZ=2000 asks for as many new ones.
"""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import rgplug
from rgplug import Policy, RgplugError
from rgplug.controller import attached_networks
from rgplug.policy import (
    AugmentedPolicy,
    BalancePolicy,
    CyclePolicy,
    ExplorationPolicy,
    MaskPolicy,
    MetricPolicy,
    NetworkPolicy,
    SnapshotPolicy,
    StartPolicy,
    TargetPolicy,
    ThresholdPolicy,
)
from rgplug.presets import PRESETS
from rgplug.schema import leaves, plain

CASES, FIXED = int(os.environ.get("RGPLUG_FUZZ", "500")), "RGPLUG_FUZZ" not in os.environ

# every group, with what it has in it; the metric's images are a file of the test
GROUPS: dict[str, Any] = {
    "networks": {"G": plain(NetworkPolicy()), "D": plain(NetworkPolicy())},
    "threshold": {**plain(ThresholdPolicy()), "optimizer": {"lr": 0.01, "betas": [0.5, 0.9], "eps": 1e-8}},
    "regeneration": {"recurrent": True, "augmented": plain(AugmentedPolicy())},
    "masks": plain(MaskPolicy()),
    "exploration": plain(ExplorationPolicy()),
    "balance": plain(BalancePolicy()),
    "cycle": plain(CyclePolicy()),
    "target": {**plain(TargetPolicy()), "G": 0.5, "D": 0.5},
    "metric": {**plain(MetricPolicy()), "real": "{folder}/real.npz", "features": "efficientnet_lite0"},
    "start": {**plain(StartPolicy()), "weights": "{folder}/none.safetensors"},
    "snapshots": {**plain(SnapshotPolicy()), "folder": "{folder}/run"},
}
TOP = {k: v for k, v in Policy().to_dict().items() if k not in GROUPS}
OF_METHOD = {
    "rg-gan": ("networks", "threshold", "regeneration", "target", "metric", "snapshots"),
    "sparse": ("networks", "masks", "exploration", "balance", "metric", "snapshots"),
    "re-gan": ("networks", "cycle", "metric", "snapshots"),
    "dense": ("networks", "metric", "snapshots"),
}

NUMBERS = [
    *(0, 1, -1, 2, 3, 0.5, 1e-3, -0.5, 1e30, 1e308, -1e308, 5e-324, math.inf, -math.inf, math.nan),
    *(10**400, -(10**400), 2**53, 2**63, 2**64, 1e20, 50, 100, 0.999999, 1e-9),
]
TEXTS = [
    *(
        "{huge}",
        "",
        "yes",
        "no",
        "G",
        "D",
        "generator",
        "1e-3",
        ".inf",
        "nan",
        "*",
        "[",
        "0.weight",
        "{folder}/run",
        "{folder}/a",
    ),
    *("{folder}/real.npz", "a\0b", "\ud800", "é\n", "rg-gan", "filter", "kernel", "2:4", "weight", "layer_std"),
    *(
        "spectral",
        "global",
        "magnitude",
        "random",
        "torch-pruning:taylor",
        "momentum",
        "reset",
        "loss",
        "float16",
        "eager",
        "fused",
        "is",
    ),
    *("kid", "inception", "sparse", "linear", "constant", "x" * 5_000, "/proc/none/run", "tensorboard", "uniform"),
]
scalars = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.sampled_from([None, True, False, (), [], {}, [[]], {"G": {}}, 3j, b"x", object]),
    st.integers(),
    st.floats(),
    st.text(max_size=6),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["G", "D", "lr", "betas", "0.weight", "*"]), inner, max_size=3),
        st.dictionaries(scalars.filter(lambda k: not isinstance(k, (list, dict))), inner, max_size=2),
    ),
    max_leaves=6,
)
lawful = st.sampled_from(
    [0, 1, 2, 3, 5, 0.1, 0.25, 0.5, 0.75, 1.0, True, False, None, "G", "D", ["G"], ["D"], ["G", "D"]]
)
per_network = st.fixed_dictionaries({}, optional={"G": lawful, "D": lawful})


WHOLE = {  # keys without which a group is refused
    "metric": ("metric.real", "metric.features"),
    "snapshots": ("snapshots.folder",),
    "target": ("target.G", "target.by"),
}


def near(key: str, default: Any) -> st.SearchStrategy[Any]:
    """Values of the kind that a key has."""
    if isinstance(default, bool):
        return st.booleans()
    if isinstance(default, int):
        return st.sampled_from([default, 2 * default, 1, 2, 3, {"G": default}, {"G": 2, "D": 3}])
    if isinstance(default, float):
        return st.sampled_from([default, default / 2, 0.5, 0.25, 1.0, {"G": 0.5, "D": 0.25}])
    if isinstance(default, list):
        return st.sampled_from([["G"], ["G", "D"], default])
    words = [
        "absolute",
        "layer_std",
        "spectral",
        "weight",
        "kernel",
        "filter",
        "2:4",
        "random",
        "magnitude",
        "torch-pruning:taylor",
        "torch-pruning:lamp",
        "erk",
        "er",
    ]
    words += [
        "uniform",
        "global",
        "exact",
        "bernoulli",
        "gradient",
        "momentum",
        "keep",
        "reset",
        "hook",
        "loss",
        "auto",
    ]
    words += ["eager", "own", "float16", "sparse", "dense", "as-is", "cubic", "linear", "constant", "frechet", "kid"]
    return st.one_of(st.just(default), st.sampled_from([*words, {"G": "kernel"}, {"G": "layer_std"}]))


@st.composite
def policies(draw: Any) -> dict[str, Any]:
    """A preset with some keys of its method set, some of them to what they cannot be, or to what has no effect."""
    base = draw(st.sampled_from(sorted(PRESETS)))
    mine = OF_METHOD[PRESETS[base]["method"]]
    policy: dict[str, Any] = {"base": base}
    for group in draw(st.lists(st.sampled_from(mine), max_size=2, unique=True)):
        known = leaves(copy.deepcopy(GROUPS[group]), group)
        policy |= {key: known[key] for key in WHOLE.get(group, ())}
        for key in draw(st.lists(st.sampled_from(sorted(known)), max_size=3, unique=True)):
            policy[key] = draw(near(key, known[key]))
    for key in draw(st.lists(st.sampled_from(sorted(TOP)), max_size=1)):
        policy[key] = draw(near(key, TOP[key]))
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2]))):
        group = draw(st.sampled_from([*mine, "", draw(st.sampled_from(sorted(GROUPS)))]))
        keys = list(TOP) if not group else sorted(leaves(GROUPS[group], group))
        key = draw(st.one_of(st.sampled_from(keys), st.sampled_from([*GROUPS, "base", "nonsense", "threshold.x.y"])))
        policy[key] = draw(st.one_of(lawful, per_network, values))
    return policy


def filled(value: Any, folder: Path) -> Any:
    """The test's folder in the place of {folder}, and a number in that of {huge}."""
    if value == "{huge}":
        return 10**5000  # which cannot even be printed
    if isinstance(value, str):
        return value.replace("{folder}", str(folder))
    if isinstance(value, dict):
        return {filled(k, folder): filled(v, folder) for k, v in value.items()}
    return [filled(v, folder) for v in value] if isinstance(value, list) else value


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    G = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3 * 16), nn.Unflatten(1, (3, 4, 4)), nn.Tanh())
    D = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(32, 1))
    return G, D


def step(rg: rgplug.Controller, G: nn.Module, D: nn.Module, opts: list[torch.optim.Optimizer]) -> None:
    x, z = torch.rand(4, 3, 4, 4) * 2 - 1, torch.randn(4, 4)
    rg.observe(x, z)
    for _ in range(2):
        for opt, loss in zip(opts, (lambda: -D(G(z)).mean(), lambda: (D(G(z)) - D(x)).mean())):
            opt.zero_grad()
            loss = loss()
            for label in rg.networks if rg.policy.regularization == "loss" else ():
                loss = loss + rg.regularization_loss(label)
            loss.backward()
            opt.step()
    rg.end_epoch(1.0)


def refused(attempt: Any) -> tuple[Any, str]:
    """What a call returned, or None and the message of its RgplugError; any other exception fails the test."""
    try:
        return attempt(), ""
    except RgplugError as error:
        return None, str(error)


def survives(policy: Any, optimizer: type = torch.optim.Adam) -> bool:
    """Whether a policy is accepted; a refusal is one sentence and leaves everything as it was."""
    G, D = networks()
    opts = [optimizer(n.parameters(), lr=1e-2) for n in (G, D)]
    before, classes = copy.deepcopy([G.state_dict(), D.state_dict()]), [type(m) for n in (G, D) for m in n.modules()]
    known = len(attached_networks)
    rg, refusal = refused(lambda: rgplug.attach(G, D, policy, opts))
    if rg is None:
        assert "\n" not in refusal
        assert len(refusal) < 1500
        for now, then in zip([G.state_dict(), D.state_dict()], before):
            assert all(torch.equal(now[key], then[key]) for key in then)
        assert [type(m) for n in (G, D) for m in n.modules()] == classes
        assert len(attached_networks) == known
        return False
    try:
        step(rg, G, D, opts)
        Policy.load(rg.policy.to_dict())
    finally:
        rg.detach("as-is")
    return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a file and images in it, which is the present one too: a run_dir may be any word."""
    path = tmp_path_factory.mktemp("fuzz")
    (path / "a").write_text("a file")
    np.savez(path / "real.npz", images=np.random.default_rng(0).integers(0, 255, (8, 4, 4, 3), np.uint8))
    before = Path.cwd()
    os.chdir(path)
    yield path
    os.chdir(before)


ACCEPTED = [0, 0]  # refused, accepted


@settings(max_examples=CASES, deadline=None, derandomize=FIXED, suppress_health_check=list(HealthCheck))
@given(policy=policies())
def test_a_mutated_policy_is_refused_in_a_sentence_or_trains(policy: dict[str, Any], folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ACCEPTED[survives(filled(policy, folder))] += 1


def test_both_ends_of_the_fuzzer_were_reached() -> None:
    """A fuzzer all of whose policies are refused tests messages alone."""
    if sum(ACCEPTED) >= 100:
        assert min(ACCEPTED) >= 0.1 * sum(ACCEPTED)


def nearly_yaml() -> st.SearchStrategy[str]:
    """Lines as they stand in policies, with pieces of YAML in the place of values."""
    key = st.sampled_from([*TOP, *GROUPS, "base", "x", "<<", "? [a]", "1", "yes", "2020-01-01"])
    pieces = ["1e-3", ".inf", "-.inf", ".nan", "9" * 400, "9" * 5000, "0x1F", "010", "1_000", "2:4", "yes", "null", "~"]
    pieces += ["&a [1]", "*a", "&a {x: *a}", "[" * 500, "{", "!!int x", "!!float y", "!!timestamp z", "2020-13-45"]
    pieces += ["!!python/object:os.x {}", "!!binary '%'", "'text'", "rg-gan", "\t", "[G, D]", "{G: 0.5}", "!!set {a}"]
    line = st.tuples(key, st.sampled_from(pieces)).map(lambda pair: f"{pair[0]}: {pair[1]}")
    return st.lists(st.one_of(line, st.text(max_size=20)), max_size=6).map("\n".join)


@settings(max_examples=CASES, deadline=None, derandomize=FIXED, suppress_health_check=list(HealthCheck))
@given(text=nearly_yaml())
def test_a_mutated_file_is_a_policy_or_is_refused_in_a_sentence(text: str, folder: Path) -> None:
    path = folder / "policy.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert "\n" not in refused(lambda: Policy.load(path))[1]

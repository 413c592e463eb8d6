"""YAML of policies: numbers of YAML 1.2, bounded sizes, one sentence for what is none."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from rgplug import Policy, RgplugError
from rgplug.reading import dump, parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("5e-12", 5e-12),
        ("-2E3", -2000.0),
        (".5", 0.5),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("20_000", 20000),
        ("1.5e+2", 150.0),
        (".inf", float("inf")),
        ("-.INF", -float("inf")),
        ("2:4", "2:4"),
        ("'1e-3'", "1e-3"),
        ("1e", "1e"),
        ("yes", True),
        ("2024-01-02x", "2024-01-02x"),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    assert parse(text, "it") == value
    assert type(parse(text, "it")) is type(value)


@pytest.mark.parametrize(
    "value", [1e-3, 5e-12, 1e300, 124, "1e-3", "2:4", "10", "010", "yes", "1_0", ".5", "0o7", None]
)
def test_what_is_written_is_read_back(value: Any) -> None:
    assert parse(dump({"a": [value]}), "it") == {"a": [value]}


# nine times as large with each of 24 lines
BOMB = "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 25))])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "a: &a [x, x]\nb: &b [*a, *a]\n" + "".join(f"k{i}: &k{i} [*b, *b, *b]\n" for i in range(900)),
            "10,000 values",
        ),
        (
            "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 25))]),
            "10,000",
        ),
        ("&a [*a]", "alias of a group that contains"),
        ("a: " + "[" * 3000, "levels deep"),
        ("- 1\n" * 20_000, "10,000 values"),
        ("x" * 1_000_001, "characters"),
        ("a: 1\na: 2", "the key 'a' twice"),
        ("a: 2020-13-45", "no valid YAML"),
        ("a: [1", "no valid YAML"),
    ],
)
def test_what_is_refused_is_refused_soon(text: str, sentence: str) -> None:
    began = time.process_time()
    with pytest.raises(RgplugError, match=sentence) as error:
        parse(text, "it")
    assert time.process_time() - began < 5
    assert "\n" not in str(error.value)
    assert str(error.value).count("it ") >= 1


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("threshold: {guard: .inf}", ["policy.threshold.guard", "finite"]),
        ("sparsity_weight: .nan", ["policy.sparsity_weight", "finite"]),
        ("threshold: {min: -.inf}", ["policy.threshold.min", "finite"]),
        ("target: {G: 0.5, by: " + "9" * 400 + "}", ["policy.target.by", "9,007,199,254,740,992"]),
        ("target: {G: 0.5, by: " + "9" * 5000 + "}", ["policy.target.by", "whole number"]),
        ("sparsity_weight: " + "9" * 400, ["policy.sparsity_weight", "at most"]),
        ("networks: {G: {include: []}}", ["policy.networks.G.include is empty", "G: null"]),
        ("threshold: {optimizer: {lr: .inf}}", []),  # said at attach
    ],
)
def test_numbers_that_nothing_can_be_done_with(text: str, parts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    if not parts:
        Policy.load(path)
        return
    with pytest.raises(RgplugError, match=r"policy\.") as error:
        Policy.load(path)
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert len(str(error.value)) < 300


def test_numbers_reach_the_policy_as_numbers(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(
        "threshold: {optimizer: {lr: 1e-3, betas: [5e-1, 0.9]}}\ntarget: {G: 5e-1, by: 2e4}\ngranularity: 2:4\n"
    )
    with pytest.raises(RgplugError, match="granularity 2:4 keeps exactly one half"):
        Policy.load(path)
    path.write_text("threshold: {optimizer: {lr: 1e-3, betas: [5e-1, 0.9]}}\ntarget: {G: 5e-1, by: 2e4}\n")
    policy = Policy.load(path)
    assert policy.threshold.optimizer == {"lr": 1e-3, "betas": [0.5, 0.9]}
    assert (policy.target.G, policy.target.by) == (0.5, 20_000)
    assert Policy.load(policy.to_dict()) == policy

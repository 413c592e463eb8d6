"""Rounds of tickets in whole kernels, whole channels and 2:4: what a run leaves is enough to prune the next one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from structured import LEAVE_OUT, Run, channels, check, masks, pair

import rgplug
from rgplug import RgplugError
from rgplug.baselines import compare
from rgplug.baselines.tickets import check_rounds, next_masks, random_masks
from rgplug.policy import Policy
from rgplug.snapshot import read, save_masks


def trained(folder: Path, granularity: str, policy: dict[str, Any], more: dict[str, Any]) -> rgplug.Controller:
    """A run of some steps; leaves trained.safetensors."""
    G, D = pair()
    keys = {**policy, "granularity": granularity, "snapshots": {"folder": str(folder)}, **more}
    rg = rgplug.attach(G, D, keys)
    Run(G, D).run(3)
    rg.detach()
    return rg


def managed(rg: rgplug.Controller) -> dict[str, list[str]]:
    return {label: [w.name for w in rg.weights(label)] for label in ("G", "D")}


@pytest.mark.parametrize("granularity", ["kernel", "filter", "2:4"])
def test_rounds(granularity: str, tmp_path: Path) -> None:
    four = granularity == "2:4"
    more = LEAVE_OUT if four else {}
    dense = trained(tmp_path / "0", granularity, {"base": "dense"}, more)
    assert dense.density("G") == 1.0
    names, before, ratio = managed(dense), None, 0.5 if four else 0.3
    remaining = {label: None for label in names}
    for number in range(1, 2 if four else 3):
        last = tmp_path / str(number - 1) / "trained.safetensors"
        new = next_masks(last, before, ratio, ["G", "D"], names)
        before = tmp_path / f"masks{number}.safetensors"
        save_masks(before, new)
        rg = trained(tmp_path / str(number), granularity, {"base": "sparse", "masks.file": str(before)}, more)
        for label in ("G", "D"):
            check(rg, label, granularity)
            size = sum(w.numel for w in rg.weights(label))
            kept = sum(int(w.mask.sum()) for w in rg.weights(label))
            wanted = remaining[label] or size
            wanted -= round(ratio * wanted)
            assert wanted <= kept < wanted + {"kernel": 16, "filter": 128, "2:4": 1}[granularity]
            remaining[label] = kept
    drawn = random_masks(before, 1, tmp_path / str(1 if four else 2) / "trained.safetensors")
    save_masks(tmp_path / "random.safetensors", drawn)
    policy = {"base": "sparse", "masks.file": str(tmp_path / "random.safetensors")}
    other = trained(tmp_path / "random", granularity, policy, more)
    for label in ("G", "D"):
        check(other, label, granularity)
        a, b = masks(rg, label), masks(other, label)
        assert [int(m.sum()) for m in a.values()] == [int(m.sum()) for m in b.values()]
        assert any(not torch.equal(a[k], b[k]) for k in a)


def test_the_smallest_channels_go(tmp_path: Path) -> None:
    """By hand: of the channels that remain, those of the smallest mean over their member filters."""
    dense = trained(tmp_path, "filter", {"base": "dense"}, {})
    path = tmp_path / "trained.safetensors"
    weights = read(path)["pair"]["G"]
    linear = weights["linear.weight"].abs().view(8, 4, 4).mean(2).sum(1)
    tied = (linear + weights["residual.weight"].abs().mean((1, 2, 3))) / 5
    up = weights["up.weight"].abs().mean((0, 2, 3))
    size, entries = 128 + 576 + 1024, [*[16 + 72] * 8, *[128] * 8]
    order, kept, budget = torch.cat([tied, up]).argsort(descending=True).tolist(), set(), size - round(0.4 * size)
    kept |= {int(tied.argmax()), 8 + int(up.argmax())}
    total = sum(entries[i] for i in kept)
    for i in order:
        if i not in kept and total < budget:
            kept.add(i)
            total += entries[i]
    found = next_masks(path, None, 0.4, ["G"], managed(dense))["G"]
    rows = channels("G", {k.removesuffix(".weight"): m for k, m in found.items()})
    assert rows["residual"][:, 0].tolist() == [i in kept for i in range(8)]
    assert rows["up"][:, 0].tolist() == [8 + i in kept for i in range(8)]


def test_masks_of_another_granularity_are_an_error(tmp_path: Path) -> None:
    dense = trained(tmp_path, "weight", {"base": "dense"}, {})
    save_masks(
        tmp_path / "m.safetensors", next_masks(tmp_path / "trained.safetensors", None, 0.5, ["D"], managed(dense))
    )
    with pytest.raises(RgplugError, match=r"the mask of D\.first\.weight is not one of granularity kernel"):
        rgplug.attach(*pair(), {"base": "sparse", "masks.file": tmp_path / "m.safetensors", "granularity": "kernel"})


def test_two_of_four_is_one_round_of_a_half(tmp_path: Path) -> None:
    for rounds, ratio in ((1, 0.2), (2, 0.5)):
        with pytest.raises(RgplugError, match="2:4 prunes one half, once"):
            check_rounds(rounds, ratio, "2:4")
    with pytest.raises(RgplugError, match="2:4 prunes one half, once"):
        compare(["tickets"], lambda *_: None, pair, out=tmp_path, policy={"granularity": "2:4"}, rounds=3)
    trained(tmp_path, "2:4", {"base": "dense"}, LEAVE_OUT)
    path = tmp_path / "trained.safetensors"
    names = {"G": list(read(path)["units"]["G"].parts)}
    save_masks(tmp_path / "m.safetensors", next_masks(path, None, 0.5, ["G"], names))
    with pytest.raises(RgplugError, match="2:4 has one round"):
        next_masks(path, tmp_path / "m.safetensors", 0.5, ["G"], names)


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        ({"granularity": "2:4", "base": "sparse"}, r"masks\.density\.G is 0\.1, and granularity 2:4 .* set it to 0\.5"),
        ({"granularity": {"G": "2:4"}, "target": {"G": 0.5}}, r"target\.G is 0\.5, .* leave it out"),
        ({"granularity": "2:4", "base": "re-gan"}, r"cycle\.sparsity is 0\.3, .* set it to 0\.5"),
        ({"granularity": {"D": 124}, "base": "adapt"}, r"masks\.density\.D is 0\.1"),
        ({"granularity": {"D": 124}, "base": "adapt", "masks.density": 0.5}, r"balance\.delta .* leave balance out"),
        ({"granularity": "filter", "threshold.weight_gradient": "full"}, "full is not there for whole filters"),
        ({"granularity": "filters"}, r"granularity is 'filters'; allowed: weight \| kernel \| filter \| 2:4"),
        ({"granularity": {"E": "filter"}}, r"policy\.granularity\.E names no network"),
        ({"granularity": 125}, r"granularity is 125; allowed"),
    ],
)
def test_bad_policies(policy: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RgplugError, match=sentence):
        Policy.load(policy)


def test_yaml_reads_2_4_as_a_number(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    for text, expected in (
        ("granularity: 2:4", "2:4"),
        ("granularity: {G: 2:4, D: kernel}", {"G": "2:4", "D": "kernel"}),
    ):
        path.write_text(text)
        policy = Policy.load(path)
        assert policy.granularity == expected
        path.write_text(policy.to_yaml())
        assert Policy.load(path) == policy
    assert policy.changed({"granularity": 124}).granularity == "2:4"
    left_dense = {"granularity": "2:4", "base": "pf-global", "masks.density": {"G": 0.5}, "networks": {"D": None}}
    assert Policy.load(left_dense).granularity_of("D") == "2:4"

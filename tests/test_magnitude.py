"""One-shot magnitude pruning with fine-tuning, and the rounds of tickets, against an oracle in numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import oracle_magnitude as oracle
import pytest
import torch
from oracle_training import moments_of
from test_sparse import batches, loss_of, network
from torch import nn

import rgplug
from rgplug import RgplugError
from rgplug.methods.magnitude import add_largest, drop_smallest, keep_largest, prune_remaining
from rgplug.snapshot import save_masks

PF = {"base": "pf-global", "masks.density": 0.4}
BETAS = (0.5, 0.999)


def adam(net: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(net.parameters(), 1e-2, betas=BETAS)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, some: list[torch.Tensor]) -> None:
    for x in some:
        optimizer.zero_grad()
        loss_of(net, x).backward()
        optimizer.step()


def trained(path: Path, steps: int = 20) -> nn.Module:
    """A pair whose snapshot, moments included, lies at `path`."""
    net = network()
    optimizer = adam(net)
    rg = rgplug.attach(net, None, "dense", optimizers=[optimizer])
    train(net, optimizer, batches(steps))
    rg.snapshot(path)
    rg.detach()
    return net


@pytest.mark.parametrize("scope", ["global", "uniform"])
@pytest.mark.parametrize("kernels", ["auto", "eager"])
def test_prune_and_fine_tune_equals_the_oracle(tmp_path: Path, scope: str, kernels: str) -> None:
    start, steps = tmp_path / "trained.safetensors", batches(120)
    theirs = network()
    first = adam(theirs)
    train(theirs, first, steps[:20])
    reference = oracle.FineTune(theirs, moments_of(theirs, first), 0.4, scope, 1e-2, BETAS)
    trained(start)

    ours = network(seed=5)  # other weights: the snapshot brings the trained ones
    policy = {**PF, "masks.distribution": scope, "kernels": kernels}
    rg = rgplug.attach(ours, None, {**policy, "start": {"weights": start, "optimizers": True}})
    optimizer = adam(ours)
    for x in steps[20:]:
        train(ours, optimizer, [x])
        reference.step(lambda net, x=x: loss_of(net, x))
        for w in rg.weights("G"):
            assert np.array_equal(w.mask.numpy(), reference.masks[w.name])
        for (name, a), b in zip(ours.named_parameters(), theirs.parameters()):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9, msg=name)
            state = optimizer.state[a]
            for key, moments in (("exp_avg", reference.adam.m), ("exp_avg_sq", reference.adam.v)):
                np.testing.assert_allclose(state[key].numpy(), moments[name], rtol=0, atol=1e-9)
    assert rg.density("G") == pytest.approx(0.4, abs=1e-3)


def test_moments_of_the_host_s_own_checkpoint_stay(tmp_path: Path) -> None:
    start = tmp_path / "trained.safetensors"
    trained(start)
    net = network()
    optimizer = adam(net)
    train(net, optimizer, batches(1))
    step = optimizer.state[net[0].weight]["step"].item()
    rgplug.attach(net, None, {**PF, "start": {"weights": start, "optimizers": True}}, optimizers=[optimizer])
    train(net, optimizer, batches(1))
    assert optimizer.state[net[0].weight]["step"].item() == step + 1 == 2


def test_a_pair_that_the_host_loads_after_attach_is_pruned_by_its_magnitudes() -> None:
    trained_net, net = network(seed=3), network()
    rg = rgplug.attach(net, None, PF)
    net.load_state_dict(trained_net.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    train(net, optimizer, batches(1))
    weights = [p for p in trained_net.parameters() if p.dim() > 1]
    expected = keep_largest([w.detach().abs() for w in weights], round(0.4 * sum(w.numel() for w in weights)))
    for w, mask, value in zip(rg.weights("G"), expected, weights):
        assert torch.equal(w.mask, mask)
        assert torch.equal(w.data, value.detach() * mask)
    assert rg.networks["G"].take_written() == 0


@pytest.mark.parametrize("preset", ["pf-global", "pf-uniform", "sparse-global", "adapt"])
def test_weights_in_channels_last_are_ranked_alike(preset: str) -> None:
    masks = []
    for layout in (torch.contiguous_format, torch.channels_last):
        net, other = network().to(memory_format=layout), network()
        rg = rgplug.attach(net, other, {"base": preset, "masks.density": {"G": 0.4, "D": 0.4}})
        masks.append([w.mask.clone() for w in rg.weights("G")])
        rg.detach()
    assert all(map(torch.equal, *masks))


def test_masks_stay_and_nothing_comes_back(tmp_path: Path) -> None:
    net = network()
    rg = rgplug.attach(net, None, PF)
    optimizer = adam(net)
    train(net, optimizer, batches(1))
    masks = [w.mask.clone() for w in rg.weights("G")]
    train(net, optimizer, batches(30))
    for w, mask in zip(rg.weights("G"), masks):
        assert torch.equal(w.mask, mask)
        assert not w.data[~mask].any()
    assert rg.networks["G"].counts.regrown.sum() == 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"start.weights": "nowhere.safetensors"}, "there is no snapshot of a trained pair nowhere.safetensors"),
        ({"start": {}}, "policy.start.weights is missing"),
        ({"masks.file": "nowhere.safetensors"}, "there is no file of masks nowhere.safetensors"),
        ({"start": {"weights": "x", "networks": ["F"]}}, "policy.start.networks.F names no network"),
    ],
)
def test_files_that_are_missing(change: dict[str, Any], sentence: str) -> None:
    net = network()
    before = [p.clone() for p in net.parameters()]
    with pytest.raises(RgplugError, match=sentence):
        rgplug.attach(net, None, {**PF, **change})
    assert all(map(torch.equal, before, net.parameters()))


def test_a_snapshot_of_another_network(tmp_path: Path) -> None:
    path = tmp_path / "trained.safetensors"
    trained(path)
    other = nn.Sequential(nn.Conv2d(3, 9, 3), nn.Flatten(), nn.Linear(9 * 36, 5)).double()
    before = [p.clone() for p in other.parameters()]
    sentence = (
        r"is of another G: it has shape \[8, 3, 3, 3\] for '0.weight', and the network needs shape \[9, 3, 3, 3\]"
    )
    with pytest.raises(RgplugError, match=sentence):
        rgplug.attach(other, None, {**PF, "start": {"weights": path}})
    assert all(map(torch.equal, before, other.parameters()))


def test_a_snapshot_of_more_and_of_other_networks(tmp_path: Path) -> None:
    G, D = network(seed=1), network(seed=2)
    rg = rgplug.attach(G, D, "dense")
    rg.snapshot(tmp_path / "pair.safetensors")
    rg.detach()
    only = network()
    rg = rgplug.attach(only, None, {"base": "dense", "start": {"weights": tmp_path / "pair.safetensors"}})
    assert all(map(torch.equal, only.parameters(), G.parameters()))
    rg.detach()
    start = {"weights": tmp_path / "pair.safetensors", "networks": ["D"]}
    with pytest.raises(RgplugError, match="holds D, and no G"):
        rgplug.attach(network(), None, {"base": "dense", "start": start})


def test_a_snapshot_without_moments(tmp_path: Path) -> None:
    net = network()
    rg = rgplug.attach(net, None, "dense")
    rg.snapshot(tmp_path / "untrained.safetensors")
    rg.detach()
    with pytest.raises(RgplugError, match="holds no optimizer states"):
        rgplug.attach(net, None, {**PF, "start": {"weights": tmp_path / "untrained.safetensors", "optimizers": True}})


def test_an_attach_that_fails_leaves_the_weights_as_they_were() -> None:
    net = network()
    before = [p.clone() for p in net.parameters()]
    with pytest.raises(RgplugError, match="holds no managed weight"):
        rgplug.attach(net, None, "stu-gan", optimizers=adam(network()))
    assert all(map(torch.equal, before, net.parameters()))


def test_keep_largest_by_hand() -> None:
    a, b = torch.tensor([3.0, 1.0]), torch.tensor([[2.0], [5.0], [4.0]])
    assert [m.tolist() for m in keep_largest([a, b], 3)] == [[True, False], [[False], [True], [True]]]


def test_no_layer_is_emptied() -> None:
    a, b = torch.tensor([0.1, 0.2]), torch.tensor([1.0, 2.0, 3.0])
    assert [m.tolist() for m in keep_largest([a, b], 2)] == [[False, True], [False, False, True]]
    assert [m.tolist() for m in keep_largest([a, b], 0)] == [[False, True], [False, False, True]]
    net = network()
    with torch.no_grad():
        net[0].weight.mul_(1e-3)
    rg = rgplug.attach(net, None, PF)
    train(net, torch.optim.SGD(net.parameters(), 0.0), batches(2))
    assert int(rg.weights("G")[0].mask.sum()) == 1
    assert rg.density("G") == pytest.approx(0.4, abs=1e-3)


def test_prune_remaining_by_hand() -> None:
    thetas = [torch.tensor([0.5, -0.1, 0.0]), torch.tensor([0.2, 9.0])]
    masks = [torch.tensor([True, True, False]), torch.tensor([True, True])]
    left = prune_remaining(thetas, masks, 0.5)
    assert [m.tolist() for m in left] == [[True, False, False], [False, True]]


def test_add_and_drop_by_hand() -> None:
    masks = [torch.tensor([True, False, False]), torch.tensor([False, True])]
    scores = [torch.tensor([9.0, 1.0, 3.0]), torch.tensor([2.0, 9.0])]
    assert [m.tolist() for m in add_largest(scores, masks, 2)] == [[True, False, True], [True, True]]
    thetas = [torch.tensor([0.1, 0.2, 0.3]), torch.tensor([5.0, 4.0])]
    ones = [torch.ones(3, dtype=torch.bool), torch.ones(2, dtype=torch.bool)]
    assert [m.tolist() for m in drop_smallest(thetas, ones, 2)] == [[False, False, True], [True, True]]
    assert [m.tolist() for m in drop_smallest(thetas, ones, 4)] == [[False, False, True], [True, False]]


def mask_file(path: Path, **masks: torch.Tensor) -> Path:
    save_masks(path, {"G": {name.replace("_", "."): mask for name, mask in masks.items()}})
    return path


def test_masks_from_a_file(tmp_path: Path) -> None:
    net = network()
    weights = [net[0].weight.detach().clone(), net[3].weight.detach().clone()]
    drawn = [torch.rand(w.shape) < 0.3 for w in weights]
    path = mask_file(tmp_path / "masks", **{"0_weight": drawn[0], "3_weight": drawn[1]})
    rg = rgplug.attach(net, None, {"base": "sparse", "masks.file": path})
    for w, mask, value in zip(rg.weights("G"), drawn, weights):
        assert torch.equal(w.mask, mask)
        assert torch.equal(w.data, value * mask)


@pytest.mark.parametrize(
    ("masks", "sentence"),
    [
        ({"0_weight": torch.ones(8, 3, 3, 3)}, r"the mask of G.3.weight \(shape \[5, 288\]\) is missing"),
        ({"0_weight": torch.ones(8, 3, 3, 3), "3_weight": torch.ones(5, 5)}, r"is of shape \[5, 5\]"),
        ({"0_weight": torch.zeros(8, 3, 3, 3), "3_weight": torch.ones(5, 288)}, "keeps no weight of G.0.weight"),
        (
            {"0_weight": torch.ones(8, 3, 3, 3), "3_weight": torch.ones(5, 288), "9_weight": torch.ones(2)},
            "masks G.9.weight, which this policy does not manage",
        ),
    ],
)
def test_mask_files_that_do_not_fit(tmp_path: Path, masks: dict[str, torch.Tensor], sentence: str) -> None:
    net = network()
    before = [p.clone() for p in net.parameters()]
    path = mask_file(tmp_path / "masks", **{name: m.bool() for name, m in masks.items()})
    with pytest.raises(RgplugError, match=sentence):
        rgplug.attach(net, None, {"base": "sparse", "masks.file": path})
    assert all(map(torch.equal, before, net.parameters()))


def test_a_snapshot_is_no_file_of_masks(tmp_path: Path) -> None:
    trained(tmp_path / "pair.safetensors")
    with pytest.raises(RgplugError, match="is no file of masks; it holds something else"):
        rgplug.attach(network(), None, {"base": "sparse", "masks.file": tmp_path / "pair.safetensors"})

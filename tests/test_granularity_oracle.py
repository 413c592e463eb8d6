"""Structured masks of the engine against the numpy oracles, over 60 steps in float64.

The engine finds the ties of the network by itself; the oracles are told (residual.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from oracle_structured_training import ReGan, RgGan, Sparse, Structure, Training
from oracle_training import Arrays
from oracle_units import make_units
from residual import CHANNELS, FILTERS, LAYOUTS, losses, network
from torch import nn

import rgplug

STEPS, LR, BETAS = 60, 1e-2, (0.5, 0.999)

GRANULARITIES = ["weight", "kernel", "filter", "2:4"]  # weight: no key, and what the other oracles hold too
# densities that give every block a whole number of units, so that no rounding of counts is in question
DENSITY = {"weight": 0.375, "kernel": 0.375, "filter": 0.25, "2:4": 0.5}


def structure_of(granularity: str) -> Structure:
    if granularity == "2:4":
        return Structure(LAYOUTS, None)
    layouts = {n: layout for n, layout in LAYOUTS.items() if granularity != "filter" or n in CHANNELS}
    shapes = {n: tuple(p.shape) for n, p in network().named_parameters() if n in layouts}
    ties = CHANNELS if granularity == "filter" else None
    return Structure({n: layouts[n] for n in shapes}, make_units(shapes, layouts, granularity, ties))


def filters_of(structure: Structure) -> dict[str, int]:
    return {name: FILTERS[name.partition(".")[0]] for name in structure.layouts}


def attach(net: nn.Module, granularity: str, policy: dict[str, Any]) -> rgplug.Controller:
    return rgplug.attach(net, None, policy if granularity == "weight" else {**policy, "granularity": granularity})


def adam(net: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(net.parameters(), LR, betas=BETAS)


def masks_of(rg: rgplug.Controller) -> Arrays:
    return {w.name: w.mask.numpy().copy() for w in rg.weights("G")}


def compare(net: nn.Module, rg: rgplug.Controller, oracle: Training, i: int) -> None:
    """Masks identical; every parameter, what rests and the thresholds within 1e-9; pruned entries exactly 0."""
    assert set(masks_of(rg)) == set(oracle.masks)
    for name, mask in masks_of(rg).items():
        differ = int((mask != oracle.masks[name]).sum())
        assert not differ, f"step {i}: mask of {name} differs in {differ} of {mask.size} entries"
    for name, value in oracle.effective().items():
        ours = net.get_parameter(name).detach().numpy()
        np.testing.assert_allclose(ours, value, rtol=0, atol=1e-9, err_msg=f"step {i}: {name}")
        assert name not in oracle.masks or not ours[~oracle.masks[name]].any()
    if isinstance(oracle, RgGan):
        for w in rg.weights("G"):
            for ours, theirs in ((w.theta, oracle.values[w.name]), (w.threshold, oracle.thresholds[w.name])):
                np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-9, err_msg=f"step {i}: {w.name}")


def run(net: nn.Module, rg: rgplug.Controller, oracle: Any) -> list[Arrays]:
    """60 steps of both; the masks after each."""
    optimizer, seen = adam(net), []
    for i, loss in enumerate(losses(STEPS)):
        optimizer.zero_grad()
        loss(net).backward()
        optimizer.step()
        oracle.step(loss)
        compare(net, rg, oracle, i)
        seen.append(masks_of(rg))
    for name, p in net.named_parameters():
        for key, moments in (("exp_avg", oracle.adam.m), ("exp_avg_sq", oracle.adam.v)):
            np.testing.assert_allclose(optimizer.state[p][key].numpy(), moments[name], rtol=0, atol=1e-9, err_msg=name)
    return seen


RG_GAN: dict[str, dict[str, Any]] = {
    "absolute": {"init": 0.1},
    "absolute from 0": {"init": 0.0},
    "layer_std": {"init": 0.6, "units": "layer_std"},
    "full": {"init": 0.1, "weight_gradient": "full"},
    "full layer_std": {"init": 0.6, "units": "layer_std", "weight_gradient": "full"},
}
# lambda with which some of the network is pruned at the end; means over filters lie closer together
STRENGTH = {"absolute": 3e-3, "absolute from 0": 1e-2, "layer_std": 1e-3, "full": 3e-3, "full layer_std": 1e-3}
STRENGTH_OF_FILTERS = {"absolute": 3e-3, "absolute from 0": 3e-2, "layer_std": 1e-1}


def rg_gan(granularity: str, threshold: dict[str, Any], strength: float) -> tuple[nn.Module, rgplug.Controller, RgGan]:
    """The network under the engine, and the oracle of the same policy."""
    structure, net = structure_of(granularity), network()
    oracle = RgGan(
        net,
        structure,
        LR,
        BETAS,
        filters=filters_of(structure),
        sparsity_weight=strength,
        init=threshold["init"],
        scale=threshold.get("units", "absolute"),
        weight_gradient=threshold.get("weight_gradient", "masked"),
    )
    policy = {"method": "rg-gan", "sparsity_weight": strength, "threshold": threshold}
    return net, attach(net, granularity, policy), oracle


@pytest.mark.parametrize("case", RG_GAN)
@pytest.mark.parametrize("granularity", ["weight", "kernel", "filter"])
def test_rg_gan(granularity: str, case: str) -> None:
    if granularity == "filter" and "full" in case:
        pytest.skip("weight_gradient: full is for weights and kernels")
    strength = STRENGTH_OF_FILTERS if granularity == "filter" else STRENGTH
    net, rg, oracle = rg_gan(granularity, RG_GAN[case], strength[case])
    seen = run(net, rg, oracle)
    assert min(oracle.pruned, oracle.regrown) > 100
    assert 0.05 < rg.density("G") < 0.95
    assert all(t.std() > 1e-3 for t in oracle.thresholds.values()), "thresholds of a layer differ by filter"
    assert any(not np.array_equal(seen[-1][n], seen[STEPS // 2][n]) for n in seen[-1])


@pytest.mark.parametrize("case", ["absolute", "layer_std"])
def test_rg_gan_at_two_of_four(case: str) -> None:
    net, rg, oracle = rg_gan("2:4", RG_GAN[case], STRENGTH[case])
    run(net, rg, oracle)
    assert min(oracle.pruned - oracle.regrown, oracle.regrown) > 100
    assert all((w.threshold == RG_GAN[case]["init"]).all() for w in rg.weights("G"))
    assert rg.density("G") == 0.5


@pytest.mark.parametrize("granularity", ["weight", "kernel", "filter"])
def test_rg_gan_with_a_guard_that_acts(granularity: str) -> None:
    """A lambda that empties layers; tied layers start again together."""
    net, rg, oracle = rg_gan(granularity, {"init": 0.2}, 30.0)
    run(net, rg, oracle)
    assert oracle.resets >= 2


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_exploration(granularity: str) -> None:
    """RigL's growth by the dense gradient, from random masks that the engine draws; moments are kept."""
    structure, net = structure_of(granularity), network()
    policy = {
        "base": "rigl",
        "masks": {"density": 0.5, "distribution": "uniform"},
        "exploration": {"networks": ["G"], "every": 5, "fraction": 0.5, "final": 0.1, "end": 50, "grow": "gradient"},
        "optimizer_state": "keep",
    }
    rg = attach(net, granularity, policy)
    first = masks_of(rg)
    counts = check_start(structure, first)
    explorer = dict(every=5, fraction=0.5, final=0.1, end=50)
    # the engine has set what it pruned to 0; the oracle does so with the same masks
    oracle = Sparse(network(), structure, first, LR, BETAS, **explorer)
    seen = run(net, rg, oracle)
    changed = [i for i in range(1, STEPS) if any((seen[i][n] != seen[i - 1][n]).any() for n in first)]
    assert set(changed) <= {i * 5 - 1 for i in range(1, 10)}
    assert len(changed) >= 6
    assert check_start(structure, seen[-1]) == counts


def check_start(structure: Structure, masks: Arrays) -> list[int]:
    """Masks hold the structure, with half of the units of every block. Returns the counts."""
    if structure.units is None:
        for name, layout in structure.layouts.items():
            shares = np.moveaxis(masks[name], layout.input, -1).reshape(-1, 4).sum(axis=1)
            assert (shares == 2).all()
        return []
    active, blocks = structure.units.collapse(masks), structure.units.blocks
    counts = [int(active[blocks == b].sum()) for b in np.unique(blocks)]
    assert counts == [int((blocks == b).sum()) // 2 for b in np.unique(blocks)]
    return counts


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_re_gan(granularity: str) -> None:
    structure, net = structure_of(granularity), network()
    sparsity = 0.5 if granularity == "2:4" else 0.4
    oracle = ReGan(net, structure, LR, BETAS, sparsity=sparsity, warm_up=8, period=10)
    cycle = {"networks": ["G"], "sparsity": sparsity, "warm_up": 8, "period": 10}
    rg = attach(net, granularity, {"base": "re-gan", "cycle": cycle})
    seen = run(net, rg, oracle)
    sparse = [i for i, masks in enumerate(seen) if not all(m.all() for m in masks.values())]
    assert sparse == [*range(7, 17), *range(27, 37), *range(47, 57)]
    if granularity == "weight":  # larger units, once pruned, stay the smallest: they grow from 0 at a low rate
        assert any(not np.array_equal(seen[7][n], seen[27][n]) for n in seen[7])


@pytest.mark.parametrize("scope", ["global", "uniform"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_prune_by_magnitude_and_fine_tune(granularity: str, scope: str) -> None:
    structure, net = structure_of(granularity), network()
    with torch.no_grad():
        net.conv1.weight *= 1e-3  # the whole layer ranks last: globally, only its best unit is left
    density = DENSITY[granularity]
    oracle = Sparse(net, structure, structure.by_magnitude(starting(net), density, scope), LR, BETAS)
    rg = attach(net, granularity, {"base": f"pf-{scope}", "masks.density": density})
    seen = run(net, rg, oracle)
    assert all(np.array_equal(seen[0][n], seen[-1][n]) for n in seen[0])
    kept = sum(int(m.sum()) for m in seen[0].values())
    every = sum(m.size for m in seen[0].values())
    largest_unit = 1 if structure.units is None else int(structure.units.sizes.max())
    assert abs(kept - density * every) <= largest_unit
    if scope == "global" and structure.units is not None:
        assert structure.units.collapse(seen[0])[structure.units.unit["conv1.weight"]].sum() == 1


def starting(net: nn.Module) -> Arrays:
    return {name: p.detach().numpy().copy() for name, p in net.named_parameters()}

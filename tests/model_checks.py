"""What has to hold for a base model in training under any method; the settings that make methods act at once."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from model_training import Training
from torch import Tensor

import rgplug
from rgplug.policy import Policy
from rgplug.presets import PRESETS

# presets that begin with a file which another run has to leave first
NEED_FILES: frozenset[str] = frozenset()
# presets of whole filters run G once at attach, and so need one that takes latents alone (tests/test_small_dense.py,
# tests/test_criteria.py); what they keep is no exact count of weights
OF_FILTERS = frozenset(name for name, keys in PRESETS.items() if "granularity" in keys)
METHODS = sorted(set(PRESETS) - NEED_FILES - OF_FILTERS)
DENSITY = 0.6
# what makes a method act within a few steps
BY_METHOD: dict[str, dict[str, Any]] = {
    "rg-gan": {"threshold.init": 0.5, "threshold.units": "layer_std"},
    "re-gan": {"cycle.warm_up": 1, "cycle.period": 2},
}
BY_PRESET: dict[str, dict[str, Any]] = {
    "rg-gan-released": {"threshold.init": 0.02, "threshold.units": {"G": "layer_std", "D": "spectral"}},
    "adapt-strict": {"balance.highest": DENSITY},
}


def policy_of(preset: str) -> dict[str, Any]:
    stock = Policy.load(preset)
    keys = dict(BY_METHOD.get(stock.method, {}))
    if stock.method == "sparse":
        keys["masks.density"] = {n: 1.0 if stock.of(stock.masks.density, n) == 1 else DENSITY for n in ("G", "D")}
    if stock.exploration is not None:
        keys["exploration.every"] = 2
    if stock.balance is not None:  # upper = lower: the density changes at each adjustment
        keys |= {"balance.every": 2, "balance.measure": 1, "balance.window": 1, "balance.delta": 0.1}
        keys |= {"balance.lower": 0.5, "balance.upper": 0.5}
    return {"base": preset, **keys, **BY_PRESET.get(preset, {})}


class Watch:
    """What has to hold after every step; and what was there before and after them."""

    def __init__(self, training: Training, policy: Any) -> None:
        self.training = training
        self.classes = {k: [type(m) for m in net.modules()] for k, net in training.nets.items()}
        self.began = {k: {n: p.detach().clone() for n, p in net.named_parameters()} for k, net in training.nets.items()}
        self.rg = training.rg = rgplug.attach(training.nets["G"], training.nets["D"], policy)
        training.after = self.after_step
        self.first_masks = {k: self.masks(k) for k in training.nets}
        self.first_counts = {k: self.counts(k) for k in training.nets}
        self.kept: dict[str, list[dict[str, int]]] = {"G": [], "D": []}  # by weight, after each step
        self.step: dict[str, list[int]] = {"G": [], "D": []}  # the iteration that each of these was in
        self.resting: dict[str, list[set[str]]] = {"G": [], "D": []}  # weights without a gradient
        self.of_g: list[int | None] = []  # for each of D's: the iteration of G if it was taken after G's step

    def masks(self, network: str) -> dict[str, Tensor]:
        return {w.name: w.mask.clone() for w in self.rg.weights(network)}

    def counts(self, network: str) -> tuple[int, int, int]:
        net = self.rg.networks[network]
        return int(net.counts.kept.sum()), int(net.counts.pruned.sum()), int(net.counts.regrown.sum())

    def after_step(self, network: str) -> None:
        self.look_at(network)
        if network == "D":
            self.of_g.append(None)
        elif self.rg.policy.balance is not None:  # D is adjusted after G's step
            self.look_at("D")
            self.of_g.append(self.training.steps["G"])

    def look_at(self, network: str) -> None:
        for w in self.rg.weights(network):
            assert torch.isfinite(w.data).all(), w.name
            assert not w.data[~w.mask].any(), w.name
        self.kept[network].append({w.name: int(w.mask.sum()) for w in self.rg.weights(network)})
        self.step[network].append(self.training.steps[network])
        self.resting[network].append({w.name for w in self.rg.weights(network) if w.param.grad is None})
        assert not set(self.trained(network)) & self.waiting(network)

    def waiting(self, network: str) -> set[str]:
        """Names of weights that have had no gradient so far: their stage has not come."""
        return set.intersection(*self.resting[network])

    def totals(self, network: str) -> list[int]:
        return [sum(kept.values()) for kept in self.kept[network]]

    def changed(self, network: str) -> list[str]:
        """Names of weights whose mask is another than at attach."""
        first = self.first_masks[network]
        return [name for name, mask in self.masks(network).items() if not torch.equal(mask, first[name])]

    def trained(self, network: str) -> list[str]:
        """Names of weights of which a kept entry has moved."""
        return [
            w.name for w in self.rg.weights(network) if ((w.data != self.began[network][w.name]) & (w.data != 0)).any()
        ]


def sparse_next(step: int) -> bool:
    """Re-GAN with one dense step and phases of two: whether the step after `step` is sparse (2, 3, 6, 7, ...)."""
    return step % 4 in (1, 2)


def check_density(watch: Watch, network: str) -> None:
    """Density after every step, and whether masks changed, are what the method asks for."""
    policy, totals = watch.rg.policy, watch.totals(network)
    sizes = {w.name: w.numel for w in watch.rg.weights(network)}
    size, changed = sum(sizes.values()), bool(watch.changed(network))
    if policy.method == "rg-gan" and network in policy.threshold.networks:
        assert all(0.1 * size < n < size for n in totals)
        assert changed or not (policy.threshold.task_gradient and policy.regeneration.recurs(network))
        if not policy.regeneration.recurs(network):
            assert totals == sorted(totals, reverse=True)
    elif policy.method == "re-gan" and network in policy.cycle.networks:
        for step, kept in zip(watch.step[network], watch.kept[network]):
            pruned = {
                k: math.ceil(policy.cycle.sparsity * (n - 1)) if sparse_next(step) else 0 for k, n in sizes.items()
            }
            more = {k: kept[k] - (n - pruned[k]) for k, n in sizes.items()}  # magnitudes equal to the quantile
            assert all(0 <= m < watch.training.alike for m in more.values()), step
    elif policy.method == "sparse" and network == "D" and policy.balance is not None:
        check_adjustments(watch, policy)
    elif policy.method == "sparse":
        asked = policy.of(policy.masks.density, network) * size
        assert set(totals) == {totals[0]}
        assert totals[0] == pytest.approx(asked, abs=0.51)
        explores = policy.exploration is not None and network in policy.exploration.networks
        assert changed == explores
        if explores:
            assert all(kept == watch.kept[network][0] for kept in watch.kept[network])
    elif policy.method in ("rg-gan", "re-gan", "dense"):
        assert set(totals) == {size}
    else:
        pytest.fail(f"say here what method {policy.method} asks for")


def check_adjustments(watch: Watch, policy: Policy) -> None:
    """ADAPT: after every other step of G, D's density is a tenth higher or lower, if layers with gradients allow."""
    assert policy.balance is not None
    before = {w: int(m.sum()) for w, m in watch.first_masks["D"].items()}
    sizes = {w.name: w.numel for w in watch.rg.weights("D")}
    for of_g, kept, resting in zip(watch.of_g, watch.kept["D"], watch.resting["D"], strict=True):
        if of_g is None or of_g % policy.balance.every:
            assert kept == before
        else:
            tenths = 10 * sum(kept.values()) / sum(sizes.values())
            at_its_end = all(kept[w] in (1, sizes[w]) for w in sizes if w not in resting)
            assert at_its_end or tenths == pytest.approx(round(tenths), abs=0.01)
            assert at_its_end or tenths <= 10 * policy.balance.highest + 0.01
            assert all(kept[w] == before[w] for w in resting)
        before = kept
    assert watch.changed("D")


def check_end(watch: Watch, network: str, record: Any) -> None:
    """Counters add up; all of the network has trained; average, copies and pickles are as they should be."""
    training, rg = watch.training, watch.rg
    net = training.nets[network]
    kept, pruned, regrown = watch.counts(network)
    assert kept == watch.totals(network)[-1]
    was_kept, was_pruned, was_regrown = watch.first_counts[network]
    assert kept - was_kept == (regrown - was_regrown) - (pruned - was_pruned)
    assert record.steps[network] == training.steps[network]
    assert record.density[network] == pytest.approx(kept / sum(w.numel for w in rg.weights(network)))
    assert set(record.layers[network]) == {w.name for w in rg.weights(network)}
    assert watch.trained(network) == [w.name for w in rg.weights(network)]  # so no stage is left out
    assert all(torch.isfinite(t).all() for t in net.state_dict().values())
    training.look()
    copied, pickled = copy.deepcopy(net), pickle.dumps(net)
    assert b"rgplug" not in pickled
    for other in (copied, pickle.loads(pickled)):
        assert [type(m) for m in other.modules()] == watch.classes[network]
        assert all(torch.equal(a, b) for a, b in zip(other.parameters(), net.parameters(), strict=True))


def check_run(training: Training, preset: str) -> None:
    watch = Watch(training, policy_of(preset))
    training.run()
    assert all(torch.isfinite(loss) for loss in training.losses)
    average = dict(training.ema.named_parameters())
    unmasked = {name: p.detach().clone() for name, p in average.items()}
    with watch.rg.masked(training.ema):
        record = watch.rg.end_epoch(1.0, ema=training.ema)
        for w in watch.rg.weights("G"):
            assert not average[w.name][~w.mask].any()
    assert all(torch.equal(p, unmasked[name]) for name, p in average.items())
    for network in ("G", "D"):
        check_density(watch, network)
        check_end(watch, network, record)
    state = {k: copy.deepcopy(net.state_dict()) for k, net in training.nets.items()}
    watch.rg.detach()
    for network, net in training.nets.items():
        assert [type(m) for m in net.modules()] == watch.classes[network]
        assert all(torch.equal(value, state[network][key]) for key, value in net.state_dict().items())
    training.rg, training.after = None, lambda network: None
    training.run(1)
    assert all(torch.isfinite(loss) for loss in training.losses)

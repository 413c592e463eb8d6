"""Kernels, filters and 2:4 under every method: masks hold their structure at every step of a training."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from structured import CHANNELS, LEAVE_OUT, Discriminator, Generator, Run, channels, check, masks, pair
from torch import Tensor, nn

import rgplug
from rgplug import RgplugError

COARSE = ("kernel", "filter", "2:4")
SHORT = {"exploration.every": 4, "exploration.end": 30}
# mean |theta| of an evenly distributed layer is 0.866 of its standard deviation, and filters lie close to that
LEARNED = {"sparsity_weight": 1e-2, "threshold.init": 0.86, "threshold.units": "layer_std"}

METHODS: dict[str, dict[str, Any]] = {
    "rg-gan": LEARNED,
    "ramp": {**LEARNED, "sparsity_weight": 1.0, "threshold": {"task_gradient": False, "optimizer": {"lr": 2e-3}}},
    "spectral": {"sparsity_weight": 1e-2, "threshold": {"units": "spectral", "init": 0.05}},
    "never back": {**LEARNED, "regeneration": {"recurrent": False, "augmented": False}},
    "target": {**LEARNED, "threshold.init": 0.0, "target": {"G": 0.5, "D": 0.5, "by": 8}},
    "static": {"base": "sparse", "masks.density": 0.5},
    "er": {"base": "sparse", "masks.density": 0.5, "masks.distribution": "er"},
    "bernoulli": {"base": "sparse", "masks": {"density": 0.5, "distribution": "uniform", "sampling": "bernoulli"}},
    "global": {"base": "sparse", "masks.density": 0.5, "masks.distribution": "global"},
    "stu-gan": {"base": "stu-gan-b", "masks.density": 0.5, **SHORT},
    "set": {"base": "set", "masks.density": 0.5, **SHORT},
    "rigl": {"base": "rigl", "masks.density": 0.5, **SHORT},
    "momentum": {"base": "rigl", "masks.density": 0.5, **SHORT, "exploration.grow": "momentum"},
    "adapt": {
        "base": "adapt",
        "masks.density": 0.5,
        **SHORT,
        "balance.every": 4,
        "balance.measure": 1,
        "balance.window": 2,
        "balance.upper": 1e9,
        "balance.lower": 1e9,
    },
    "re-gan": {"base": "re-gan", "cycle": {"networks": ["G", "D"], "sparsity": 0.5, "warm_up": 3, "period": 4}},
    "re-gan at once": {"base": "re-gan", "cycle": {"networks": ["G", "D"], "sparsity": 0.5, "warm_up": 0, "period": 9}},
    "pf-global": {"base": "pf-global", "masks.density": 0.5},
    "pf-uniform": {"base": "pf-uniform", "masks.density": 0.5},
}
STAY = ("static", "er", "bernoulli", "global", "pf-global", "pf-uniform")
IMPOSSIBLE = {("target", "2:4"), ("adapt", "2:4")}  # they ask for other densities


def attached(method: str, granularity: Any, seed: int = 0, **more: Any) -> tuple[rgplug.Controller, Run]:
    G, D = pair(seed)
    split = more.pop("split", False)
    policy = {**METHODS[method], "granularity": granularity, **LEAVE_OUT, **more}
    if granularity != "2:4":
        policy.pop("networks")
    rg = rgplug.attach(G, D, policy)
    if method == "adapt":
        rg.observe(real=torch.randn(4, 3, 4, 4, dtype=torch.float64), z=torch.randn(4, 4, dtype=torch.float64))
    return rg, Run(G, D, split=split)


@pytest.mark.parametrize("granularity", COARSE)
@pytest.mark.parametrize("method", METHODS)
def test_masks_hold_their_structure(method: str, granularity: str) -> None:
    if (method, granularity) in IMPOSSIBLE:
        pytest.skip("another density than one half")
    rg, run = attached(method, granularity)
    seen: dict[str, list[dict[str, Tensor]]] = {"G": [], "D": []}
    for label in run.steps(13):
        dense = method.startswith("re-gan") and rg.density(label) == 1.0
        if not dense:
            check(rg, label, granularity)
            seen[label].append(masks(rg, label))
        if granularity == "2:4":
            assert rg.density(label) == (1.0 if dense else 0.5)
    for found in seen.values():
        assert any(not mask.all() for held in found for mask in held.values())
        moved = any(not torch.equal(a[k], b[k]) for a, b in pairwise(found) for k in a)
        if method in STAY or (method, granularity) == ("never back", "2:4"):
            assert not moved
        elif not method.startswith("re-gan"):  # whose phases may prune the same again
            assert moved
        if method == "never back":  # but for the guard's sake
            assert not any((b[k] & ~a[k]).any() and not b[k].all() for a, b in pairwise(found) for k in a)
    rg.detach()


@pytest.mark.parametrize(
    "method", ["rg-gan", "spectral", "target", "stu-gan", "set", "momentum", "re-gan", "pf-global"]
)
def test_tied_filters_agree_whoever_steps_them(method: str) -> None:
    """`linear` and `residual` belong to different optimizers, of which one rests at every third iteration."""
    rg, run = attached(method, "filter", split=True)
    first = masks(rg, "G")["residual"]
    for iteration in range(14):
        for label in ("D", "G"):
            run.backward(label)
            for number, optimizer in enumerate(run.optimizers[label]):
                if number == 1 and iteration % 3 == 2:
                    continue
                optimizer.step()
                check(rg, label, "filter")
        run.done += 1
    assert method == "pf-global" or not torch.equal(masks(rg, "G")["residual"], first)
    rg.detach()


def test_a_member_without_a_gradient_is_pruned_with_the_others() -> None:
    rg, run = attached("rg-gan", "filter")
    run.run(1)  # it trains, and rests from here on; what is frozen from the beginning is set aside
    for p in run.nets["G"].residual.parameters():
        p.requires_grad_(False)
    before = masks(rg, "G")["residual"]
    for label in run.steps(12):
        check(rg, label, "filter")
    assert not torch.equal(masks(rg, "G")["residual"], before)
    rg.detach()


@pytest.mark.parametrize("granularity", COARSE)
def test_regeneration_brings_old_values_back(granularity: str) -> None:
    rg, run = attached("rg-gan", granularity)
    run.run(6)
    theta = {w.name: w.theta for w in rg.weights("G")}
    assert any(not w.mask.all() for w in rg.weights("G"))
    rg.networks["G"].go_dense()
    for w in rg.weights("G"):
        assert torch.equal(w.data, theta[w.name])
        assert w.mask.all()
    rg.networks["G"].go_sparse()
    check(rg, "G", granularity)
    for w in rg.weights("G"):
        assert torch.equal(w.theta, theta[w.name])
        if granularity != "2:4":
            w.threshold.fill_(-1.0)
    rg.networks["G"].refresh_all()
    if granularity != "2:4":
        assert all(torch.equal(w.data, theta[w.name]) for w in rg.weights("G"))
    rg.detach()


@pytest.mark.parametrize("granularity", COARSE)
@pytest.mark.parametrize("method", ["rg-gan", "spectral", "stu-gan", "set", "momentum", "re-gan", "adapt"])
def test_a_resume_is_exact(method: str, granularity: str, tmp_path: Any) -> None:
    if (method, granularity) in IMPOSSIBLE:
        pytest.skip("another density than one half")
    rg, run = attached(method, granularity)
    run.run(7)
    rg.save(tmp_path / "state.safetensors")
    torch.save(run.state_dict(), tmp_path / "host.pt")
    run.run(9)
    expected = {label: {w.name: (w.theta, w.mask.clone()) for w in rg.weights(label)} for label in ("G", "D")}
    rg.detach()

    again, other = attached(method, granularity, seed=5)
    held = torch.load(tmp_path / "host.pt", weights_only=True)
    for label, net in other.nets.items():
        net.load_state_dict(held[label])
        for optimizer, state in zip(other.optimizers[label], held["optimizers"][label]):
            optimizer.load_state_dict(state)
    again.load(tmp_path / "state.safetensors")
    if method == "adapt":
        again.observe(*rg._balance._given)
    other.done = 7
    other.run(9)
    for label, weights in expected.items():
        for w in again.weights(label):
            theta, mask = weights[w.name]
            assert torch.equal(w.mask, mask), w.name
            assert torch.equal(w.theta, theta), w.name
    again.detach()


@pytest.mark.parametrize(
    ("density", "distribution", "expected"), [(0.5, "uniform", 4), (0.25, "uniform", 2), (0.01, "erk", 1)]
)
def test_counts_of_filters(density: float, distribution: str, expected: int) -> None:
    rg, _ = attached("static", "filter", **{"masks": {"density": density, "distribution": distribution}})
    for label in ("G", "D"):
        for name, rows in channels(label, masks(rg, label)).items():
            units = 4 if name == "third" else 8  # each filter of a group with that of the other group
            assert int(rows[:, 0].sum()) == (2 * max(expected // 2, 1) if units == 4 else expected), (label, name)
    rg.detach()


def test_counts_of_kernels() -> None:
    rg, _ = attached("static", "kernel", **{"masks": {"density": 0.3, "distribution": "uniform"}})
    kept = {k: int(m.flatten(2)[..., 0].sum() if m.dim() > 2 else m.sum()) for k, m in masks(rg, "G").items()}
    assert kept == {"linear": round(0.3 * 128), "residual": 19, "up": 19, "last": round(0.3 * 24)}
    rg.detach()


@pytest.mark.parametrize("granularity", ["kernel", "filter"])
@pytest.mark.parametrize("method", ["pf-global", "target"])
def test_a_density_over_the_network_is_met_to_one_unit(method: str, granularity: str) -> None:
    rg, run = attached(method, granularity)
    run.run(14)
    for label in ("G", "D"):
        weights = rg.weights(label)
        size, kept = sum(w.numel for w in weights), sum(int(w.mask.sum()) for w in weights)
        largest = 16 if granularity == "kernel" else 8 * 16  # of `up`
        assert round(0.5 * size) <= kept < round(0.5 * size) + largest
    rg.detach()


def test_the_guard_acts_on_all_that_is_tied() -> None:
    """Thresholds that empty `linear` bring its channels back in `residual`, and back to 0, and nowhere else."""
    rg, _ = attached("rg-gan", "filter", **{"threshold": {"init": 0.0, "units": "absolute"}})
    weights = {w.name: w for w in rg.weights("G")}
    for w in weights.values():
        w.threshold.fill_(-1.0)
    weights["linear.weight"].threshold.fill_(100.0)
    weights["up.weight"].threshold[:4] = 100.0
    rg.networks["G"].refresh_all()
    assert weights["linear.weight"].mask.all()
    assert weights["residual.weight"].mask.all()
    assert not weights["linear.weight"].threshold.any()
    assert not weights["residual.weight"].threshold.any()
    assert weights["up.weight"].density == 0.5
    assert weights["up.weight"].threshold.tolist() == [100.0] * 4 + [-1.0] * 4
    rg.detach()


def test_tied_margins_by_hand() -> None:
    """A channel is kept iff the mean over its five filters of mean |theta| - t is above 0."""
    rg, _ = attached("rg-gan", "filter", **{"threshold": {"init": 0.0, "units": "absolute"}})
    weights = {w.name: w for w in rg.weights("G")}
    linear, residual = weights["linear.weight"], weights["residual.weight"]
    with torch.no_grad():
        linear.param.fill_(0.1)
        residual.param.fill_(0.2)
    linear.threshold.fill_(0.12)  # four filters 0.02 below
    residual.threshold.copy_(torch.linspace(0.0, 0.14, CHANNELS))  # one filter 0.2 .. 0.06 above: 0.08 is needed
    rg.networks["G"].refresh_all()
    assert masks(rg, "G")["residual"].flatten(1)[:, 0].tolist() == [t < 0.12 for t in residual.threshold.tolist()]
    check(rg, "G", "filter")
    rg.detach()


@pytest.mark.parametrize("grow", [1.0, 0.0])
def test_adapt_adds_and_drops_units(grow: float) -> None:
    """balance.upper far below any ratio: D only grows; lower far above: it only shrinks."""
    bounds = {"balance.upper": -1e9, "balance.lower": -2e9} if grow else {}
    rg, run = attached("adapt", "filter", **bounds, **{"balance.delta": 0.2})
    first = rg.density("D")
    run.run(14)
    assert rg.density("D") > first + 0.2 if grow else rg.density("D") < first - 0.2
    check(rg, "D", "filter")
    rg.detach()


def test_granularity_of_one_network() -> None:
    rg, run = attached("rg-gan", {"G": "filter"})
    run.run(6)
    check(rg, "G", "filter")
    assert any(m.float().flatten(2).mean(2).frac().any() for m in masks(rg, "D").values() if m.dim() > 2)
    assert "last.weight" in {w.name for w in rg.weights("D")}
    assert "skipped: its filters are the network's output" in rg.report()
    rg.detach()


def test_kernels_under_weight_norm_leave_no_filter_empty() -> None:
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3)), nn.Flatten(), nn.Linear(6 * 4, 1))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    rg = rgplug.attach(net, None, {"granularity": "kernel", "threshold": {"init": 0.0}, "sparsity_weight": 0.0})
    rg.weights("G")[0].threshold[:3] = 100.0
    net(torch.randn(2, 4, 4, 4)).square().mean().backward()
    optimizer.step()
    kernels = rg.weights("G")[0].mask.flatten(2)
    assert torch.equal(kernels, kernels[..., :1].expand_as(kernels))
    assert kernels[..., 0].sum(1).tolist() == [1, 1, 1, 4, 4, 4]
    rg.detach()


def both(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    G, D = pair()
    D.first = layer.double()
    return G, D


class Lost(nn.Module):
    """A generator that says nothing of its latent."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv1d(4, 4, 1)

    def forward(self, z: Tensor) -> Tensor:
        return self.layer(z)


def test_errors() -> None:
    with pytest.raises(
        RgplugError, match=r"2:4 needs input channels in fours, and D\.first\.weight \(shape \[8, 3, 3, 3"
    ):
        rgplug.attach(*pair(), {"granularity": "2:4"})
    with pytest.raises(
        RgplugError, match=r"one forward of G .*cannot tell the latent size.* granularity: \{G: weight\}"
    ):
        rgplug.attach(Lost(), None, {"granularity": "filter"})
    with pytest.raises(RgplugError, match=r"one forward of D .* failed .* set granularity: \{D: weight\}"):
        rgplug.attach(*both(nn.Conv2d(5, 8, 3)), {"granularity": {"D": "filter"}})
    with pytest.raises(RgplugError, match=r"no filter of G can be pruned as a whole \(last\.weight: its filters"):
        rgplug.attach(Generator(), None, {"granularity": "filter", "networks": {"G": {"include": ["last"]}}})
    unknown = {"granularity": "kernel", "networks": {"G": {"filter_dim": {"last": 2}}}}
    with pytest.raises(RgplugError, match=r"tell the input channels of G\.last\.weight \(shape .*, filter dim 2"):
        rgplug.attach(Generator(), None, unknown)


def test_filters_under_weight_norm_are_left_out_and_those_of_transposed_ones_are_not() -> None:
    """Weight norm takes dim 0: the filters of a convolution, and the input channels of a transposed one."""
    G, D = both(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3, padding=1)))
    G.up = nn.utils.parametrizations.weight_norm(G.up)
    rg = rgplug.attach(G, D, {"base": "sparse", "masks.density": 0.5, "granularity": "filter"})
    why = {c.name: c.reason for found in rg.candidates.values() for c in found}
    assert why["first.parametrizations.weight.original1"].startswith("each of its filters is divided by")
    up = next(w for w in rg.weights("G") if w.name.startswith("up."))
    kept = up.mask.transpose(0, 1).flatten(1)
    assert torch.equal(kept, kept[:, :1].expand_as(kept))
    assert 0 < kept[:, 0].sum() < 8
    images = G(torch.randn(2, 4, dtype=torch.float64))
    assert D(images).isfinite().all()
    only = both(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3, padding=1)))
    with pytest.raises(RgplugError, match=r"no filter of D can be pruned as a whole \(first.*own norm"):
        rgplug.attach(*only, {"granularity": "filter", "networks": {"D": {"include": ["first"]}}})


def test_a_network_that_trains_dense_is_not_traced() -> None:
    D = Discriminator()
    D.forward = None  # type: ignore[assignment]
    for policy in ({"base": "dense"}, {"threshold": {"networks": ["G"]}}):
        with rgplug.attach(Generator(), D, {**policy, "granularity": "filter"}) as rg:
            assert len(rg.weights("D")) == 5


def test_attach_leaves_the_pair_as_it_was_when_it_fails() -> None:
    G, D = pair()
    before = {k: v.clone() for k, v in G.state_dict().items()}
    with pytest.raises(RgplugError, match="in fours"):
        rgplug.attach(G, D, {"granularity": "2:4"})
    assert all(torch.equal(v, before[k]) for k, v in G.state_dict().items())

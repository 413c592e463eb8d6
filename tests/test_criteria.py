"""Criteria of torch-pruning: its scores on rgplug's channels, masks that are drawn by them, rounds of tickets."""

from __future__ import annotations

import copy
import hashlib
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hosts_of_comparisons as hosts
import pytest
import torch
import torch_pruning
from model_dcgan import Discriminator, Generator
from sngan import SNGANDiscriminator, SNGANGenerator
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch_pruning.pruner import importance

import rgplug
from rgplug import RgplugError
from rgplug.baselines import compare
from rgplug.baselines.tickets import next_masks
from rgplug.criteria import CRITERIA, Criterion, criterion_of
from rgplug.filter_scores import scores_in
from rgplug.granularity import divide
from rgplug.importance import Values, filter_scores
from rgplug.metrics.isolation import preserved_rng
from rgplug.policy import NetworkPolicy, Policy
from rgplug.select import select
from rgplug.snapshot import read, save
from rgplug.units import Filters, Units

Z, WIDTH = 6, 8
CRITERION = pytest.mark.parametrize("criterion", CRITERIA.values(), ids=str)


class Images(nn.Module):
    """A generator without channels, for the trace of D alone."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.z_dim, self.side = Z, side

    def forward(self, z: Tensor) -> Tensor:
        return torch.linspace(-1, 1, 3 * self.side**2).view(1, 3, self.side, -1).repeat(len(z), 1, 1, 1)


def plain_discriminator() -> nn.Module:
    """SNGAN's, with spectral norm taken off: torch-pruning's graph knows these layers."""
    D = SNGANDiscriminator(WIDTH)
    for module in D.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.utils.remove_spectral_norm(module)
            module.reset_parameters()
    return D


# name -> (network, what it is called with, the pair that it is traced in)
NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor, dict[str, nn.Module]]]] = {
    "sngan": lambda: ((G := SNGANGenerator(WIDTH, Z)), torch.randn(4, Z), {"G": G}),
    "sngan's D": lambda: ((D := plain_discriminator()), torch.randn(4, 3, 32, 32), {"G": Images(32), "D": D}),
    "dcgan": lambda: ((G := Generator(Z, WIDTH)), torch.randn(4, Z), {"G": G}),
    "dcgan's D": lambda: ((D := Discriminator(WIDTH)), torch.randn(4, 3, 16, 16), {"G": Images(16), "D": D}),
}
BLOCKS = {"sngan": 7, "sngan's D": 6, "dcgan": 2, "dcgan's D": 2}


def units_of(label: str, modules: dict[str, nn.Module]) -> Units:
    return divide("filter", label, select(modules[label], NetworkPolicy(), label), modules)[0]


def values_of(units: Units) -> dict[str, Values]:
    return {name: Values(p.detach(), p.grad) for name, p in units.coupling.params.items()}


def with_gradients(network: nn.Module, x: Tensor) -> None:
    out = network(x)
    (1000 * (out.square().mean() + out[..., ::2].mean())).backward()  # squares of smaller gradients are 0 in float32


def drawn(network: nn.Module) -> None:
    """Batch norm's gains begin alike, and so with the same score."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)


def group_of(graph: Any, network: nn.Module, units: Units, block: Filters) -> tuple[Any, Tensor]:
    """torch-pruning's own group with one index for each unit, and the unit that each of its indices is."""
    channels, layers = units.channels_of(block), dict(network.named_modules())
    for axis in units.coupling.axes:
        layer = layers[axis.name.rpartition(".")[0]]
        if axis.role == "norm" or len(axis.of) != block.shape[0] or not torch.isin(axis.of, channels).all():
            continue
        kind = "linear" if isinstance(layer, nn.Linear) else "conv"
        prune = getattr(torch_pruning, f"prune_{kind}_{axis.role}_channels")
        group = graph.get_pruning_group(layer, prune, list(range(block.shape[0])))
        for i, (dependency, indices) in enumerate(group.items):
            # Taylor and Hessian sort a layer's indices, and not those of the root beside them: in order, both are right
            order = sorted(range(len(indices)), key=indices.__getitem__)
            item = type(group[i])(dependency, [indices[j] for j in order])
            item.root_idxs = [group[i].root_idxs[j] for j in order]
            group[i] = item
        return group, torch.searchsorted(channels, axis.of)
    raise AssertionError("no layer has one entry for each unit")


def direct(criterion: Criterion, network: nn.Module, group: Any) -> Tensor:
    """A call as torch-pruning's documentation has it. Gradients of the network stay what they are."""
    grads = {p: p.grad for p in network.parameters()}
    score = getattr(importance, criterion.name)()
    if criterion.name == "HessianImportance":
        for p, grad in grads.items():
            p.grad = None if grad is None else grad.clone()
        score.accumulate_grad(network)
    found = score(group)
    for p, grad in grads.items():
        p.grad = grad
    return found


@CRITERION
@pytest.mark.parametrize("name", NETWORKS)
def test_scores_are_those_of_a_direct_call(name: str, criterion: Criterion) -> None:
    """Its own dependency graph, its own importance, on all blocks: equal scores, and so equal ranks."""
    torch.manual_seed(0)
    network, x, modules = NETWORKS[name]()
    drawn(network)
    with_gradients(network, x)
    label = "D" if "D" in modules else "G"
    units = units_of(label, modules)
    graph = torch_pruning.DependencyGraph().build_dependency(network, example_inputs=x)
    before = [p.grad.clone() for p in network.parameters()]
    if criterion.by_norms and name == "sngan's D":
        with pytest.raises(RgplugError, match=r"BNScaleImportance scores no filter of D.*no batch norm"):
            filter_scores(criterion, units, values_of(units), label)
        return
    ours = filter_scores(criterion, units, values_of(units), label, seed=3)
    assert len(ours) == BLOCKS[name]
    for block, found in zip(units.blocks, ours):
        group, unit = group_of(graph, network, units, block)
        digest = hashlib.sha256(f"3 {label}.{block.names[0]}".encode()).digest()
        with preserved_rng(int.from_bytes(digest[:6], "big")):  # for RandomImportance
            theirs = direct(criterion, network, group)
        if theirs is None:  # no batch norm
            assert found is None
            continue
        if criterion.name != "RandomImportance":  # which knows no filter by its index
            theirs = torch.empty_like(theirs).index_copy_(0, unit, theirs)
        assert torch.allclose(found, theirs, rtol=1e-6, atol=1e-6)
        assert torch.equal(found.argsort(), theirs.argsort())
        assert len(found.unique()) > 1
    assert all(map(torch.equal, before, (p.grad for p in network.parameters())))


@pytest.mark.parametrize("wrap", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
@pytest.mark.filterwarnings("ignore:.*spectral_norm.* is deprecated")
def test_under_spectral_norm_scores_are_those_of_the_stored_weights(wrap: Any) -> None:
    """torch-pruning cannot see the Parameter there; the same network without the norm gives what it would say."""
    torch.manual_seed(0)
    plain, _, modules = NETWORKS["sngan's D"]()
    normed = copy.deepcopy(plain)
    for module in list(normed.modules()):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            wrap(module)
    for network in (plain, normed):
        for i, p in enumerate(p for p in network.parameters() if p.dim() > 1):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
    for name in ("taylor", "hessian", "magnitude", "fpgm", "lamp"):
        a, b = (units_of("D", {**modules, "D": net}) for net in (plain, normed))
        expected = filter_scores(CRITERIA[name], a, values_of(a), "D")
        assert len(expected) == BLOCKS["sngan's D"]
        for one, other in zip(expected, filter_scores(CRITERIA[name], b, values_of(b), "D")):
            assert torch.allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_squares_of_gradients_of_any_size(scale: float) -> None:
    """Under a loss scale, or in a network whose gradients vanish: float32 holds no square of them."""
    torch.manual_seed(0)
    G, z, modules = NETWORKS["dcgan"]()
    with_gradients(G, z)
    units = units_of("G", modules)
    expected = filter_scores(CRITERIA["hessian"], units, values_of(units), "G")
    for p in G.parameters():
        p.grad *= scale
    for one, other in zip(expected, filter_scores(CRITERIA["hessian"], units, values_of(units), "G")):
        assert torch.allclose(one, other, rtol=1e-4)
        assert len(one.unique()) > 1


def test_the_random_state_stays() -> None:
    torch.manual_seed(0)
    units = units_of("G", NETWORKS["dcgan"]()[2])
    state, python = torch.get_rng_state(), random.getstate()
    first = filter_scores(CRITERIA["random"], units, values_of(units), "G")
    again = filter_scores(CRITERIA["random"], units, values_of(units), "G")
    other = filter_scores(CRITERIA["random"], units, values_of(units), "G", seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])


# ---- masks ---------------------------------------------------------------------------------------------------------


def pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    G, D = Generator(Z, WIDTH), Discriminator(WIDTH)
    drawn(G)
    torch.manual_seed(1)
    return G, D


def policy(criterion: str, density: float = 0.5, **more: Any) -> dict[str, Any]:
    masks = {"criterion": criterion, "density": {"G": density, "D": 1.0}, "distribution": "uniform"}
    return {"base": "sparse", "granularity": {"G": "filter"}, "masks": masks, **more}


def step(G: nn.Module, D: nn.Module, opt: torch.optim.Optimizer) -> dict[str, Tensor]:
    """One step of G. Returns its gradients as backward left them."""
    opt.zero_grad()
    D(G(torch.randn(4, Z))).square().mean().backward()
    grads = {name: p.grad.clone() for name, p in G.named_parameters()}
    opt.step()
    return grads


def kept(rg: rgplug.Controller, network: str = "G") -> list[Tensor]:
    """[units] bool of each block."""
    units = rg.networks[network].method.units
    return [b.kept({w.name: w.mask for w in units.weights_of(b)}) for b in units.blocks]


@CRITERION
def test_masks_keep_the_best_filters(criterion: Criterion) -> None:
    """Half of each layer's channels, by the scores of the weights before the first step and the gradient of the loss
    that the training script backpropagates there."""
    G, D = pair()
    before = copy.deepcopy(G)
    rg = rgplug.attach(G, D, policy(str(criterion)))
    of_weights = criterion.needs == "weights"
    assert rg.density("G") == (pytest.approx(0.5, abs=0.1) if of_weights else 1.0)
    opt = torch.optim.Adam(G.parameters(), 1e-2)
    grads = step(G, D, opt)
    for name, p in before.named_parameters():
        # of weights that were pruned at attach the gradients are others
        p.grad = None if of_weights else grads[name]
    units = units_of("G", {"G": before})
    scores = filter_scores(criterion, units, values_of(units), "G")
    for mask, score in zip(kept(rg), scores):
        assert set(mask.nonzero().flatten().tolist()) == set(score.topk(len(score) // 2).indices.tolist())
    first = [m.clone() for m in kept(rg)]
    for _ in range(3):
        step(G, D, opt)
    assert all(map(torch.equal, first, kept(rg)))
    assert all(not w.data[~w.mask].any() for w in rg.weights("G"))
    units = rg.networks["G"].method.units
    of_filters = sum(int(w.mask.sum()) for b in units.blocks for w in units.weights_of(b))
    assert of_filters == sum(b.numel for b in units.blocks) / 2
    assert rg.density("D") == 1.0


@pytest.mark.parametrize("name", ["pf-taylor", "pf-hessian", "pf-lamp", "pf-fpgm", "pf-bnscale"])
@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_the_density_is_reached_and_no_layer_emptied(name: str, density: float) -> None:
    """Whole filters, ranked over layers, best first, until as many weights are kept: at most one filter too many, but
    for the one that each layer keeps."""
    torch.manual_seed(0)
    G, D = SNGANGenerator(WIDTH, Z), SNGANDiscriminator(WIDTH)
    rg = rgplug.attach(G, D, {"base": name, "masks.density": {"G": density, "D": 1.0}})
    step(G, D, torch.optim.Adam(G.parameters()))
    units = rg.networks["G"].method.units
    largest = [int(b.sizes(torch.device("cpu")).max()) for b in units.blocks]
    wanted = density * sum(b.numel for b in units.blocks)
    entries = sum(int(w.mask.sum()) for w in rg.weights("G"))
    assert wanted - 1 <= entries <= wanted + max(sum(largest) if density == 0.1 else 0, max(largest))
    assert all(bool(m.any()) for m in kept(rg))
    assert rg.density("D") == 1.0


def test_gradients_that_come_later() -> None:
    """A state that is saved before the first step has no masks yet; whoever loads it draws them at its own first one.
    The work before a step may be asked for early, and a second optimizer brings the weights of the same backward."""
    G, D = pair()
    rg = rgplug.attach(G, D, policy("torch-pruning:taylor"))
    waiting = rg.state_dict()
    step(G, D, torch.optim.SGD(G.parameters(), 0.1))
    expected = kept(rg)
    rg.detach()
    for how in ("loaded", "early", "two optimizers"):
        G, D = pair()
        rg = rgplug.attach(G, D, policy("torch-pruning:taylor"))
        if how == "loaded":
            rg.load_state_dict(waiting)
        assert rg.density("G") == 1.0
        D(G(torch.randn(4, Z))).square().mean().backward()
        parts = [list(G.parameters())]
        if how == "two optimizers":
            parts = [parts[0][:3], parts[0][3:]]
        elif how == "early":
            rg.mask_gradients("G")
            assert rg.density("G") < 0.7
        for part in parts:
            torch.optim.SGD(part, 0.1).step()
        assert all(map(torch.equal, expected, kept(rg))), how
        assert not rg.networks["G"].aside
        state = rg.state_dict()
        step(G, D, torch.optim.SGD(G.parameters(), 0.1))
        rg.load_state_dict(state)
        rg.detach()


def test_a_gradient_that_is_not_finite() -> None:
    G, D = pair()
    rgplug.attach(G, D, policy("torch-pruning:TaylorImportance"))
    D(G(torch.randn(4, Z))).square().mean().backward()
    G[1].weight.grad[0, 0, 0, 0] = torch.inf
    with pytest.raises(RgplugError, match=r"gradient of G\.1\.weight that is not finite; begin with a smaller loss"):
        torch.optim.SGD(G.parameters(), 0.1).step()


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_a_scaler_skips(fused: bool) -> None:
    """A fused optimizer sees the infinite gradients of a loss scale that is too large, and skips the step by itself; so
    does a script that asks for masked gradients early. Masks are drawn at the first step that counts, and are those
    without a scale."""
    found = []
    for scaled in (False, True):
        G, D = pair()
        rg = rgplug.attach(G, D, policy("torch-pruning:taylor"))
        opt = torch.optim.Adam(G.parameters(), 1e-2, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120, backoff_factor=2.0**-110, enabled=scaled)
        z = torch.randn(4, Z)
        for skipped in (True, False) if scaled else (False,):
            opt.zero_grad()
            scaler.scale(1e9 * D(G(z)).square().mean()).backward()
            assert all(p.grad.isfinite().all() for p in G.parameters()) is not skipped
            if not fused:
                scaler.unscale_(opt)
                rg.mask_gradients("G")
            scaler.step(opt)
            scaler.update()
            assert (rg.density("G") == 1.0) is skipped
        found.append(kept(rg))
    assert all(map(torch.equal, *found))


def test_filters_without_a_batch_norm_are_kept() -> None:
    """BNScale has no score for them: they stay, and the others are ranked."""
    G = nn.Sequential(
        nn.Unflatten(1, (Z, 1, 1)),
        nn.ConvTranspose2d(Z, 8, 4),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 3, 1),
    )
    with torch.no_grad():
        G[2].weight.copy_(torch.tensor([0.1, 5, 0.2, 4, 3, 0.3, 2, 0.0]))
    masks = {"criterion": "torch-pruning:BNScale", "density": 0.5, "distribution": "uniform"}
    with pytest.warns(UserWarning, match=r"no score for G\.4\.weight"):
        rg = rgplug.attach(G, None, {"base": "sparse", "granularity": "filter", "masks": masks})
    assert [m.tolist() for m in kept(rg)] == [[bool(x > 1) for x in G[2].weight], [True] * 8]


# ---- comparisons ---------------------------------------------------------------------------------------------------


def test_pf_taylor_in_a_comparison(tmp_path: Path) -> None:
    """Fine-tuned from the dense run's weights, which is charged; its masks keep the best filters of all layers, by
    these weights and the gradient of its own first step, up to the density asked for."""
    seen: dict[str, Any] = {}

    def train(build: Any, attach: Any, seed: int, run_dir: Path) -> None:
        def noted(G: nn.Module, D: nn.Module) -> rgplug.Controller:
            rg = attach(G, D)
            if "pf-taylor" in str(run_dir):
                seen.update(rg=rg, live=G, G=copy.deepcopy(G))
            return rg

        hosts.train(build, noted, seed, run_dir)

    def first_gradients(opt: torch.optim.Optimizer, *_: Any) -> None:
        if (
            "live" in seen
            and "grads" not in seen
            and opt.param_groups[0]["params"][0] is next(seen["live"].parameters())
        ):
            seen["grads"] = [p.grad.clone() for p in seen["live"].parameters()]
            seen["masks"] = [m.clone() for m in kept(seen["rg"])]

    handle = register_optimizer_step_pre_hook(first_gradients)  # before rgplug's own
    try:
        options: Any = {"policy": hosts.POLICY, **hosts.LENGTH}
        found = {r.method: r for r in compare(["pf-taylor"], train, hosts.build, out=tmp_path, **options)}
    finally:
        handle.remove()
    tuned = found["pf-taylor"]
    assert set(found) == {"dense", "pf-taylor"}
    assert tuned.before["real_images"] == 48
    assert tuned.evaluations == 3
    assert tuned.inference_flops < found["dense"].inference_flops
    G = seen["G"]
    dense = read(tmp_path / "dense/seed_0/trained.safetensors")["pair"]["G"]
    assert all(torch.equal(p, dense[name]) for name, p in G.named_parameters())
    assert all(bool(m.all()) for m in seen["masks"])
    for p, grad in zip(G.parameters(), seen["grads"]):
        p.grad = grad
    units = units_of("G", {"G": G})
    scores = torch.cat(filter_scores(CRITERIA["taylor"], units, values_of(units), "G"))
    sizes = torch.cat([b.sizes(scores.device) for b in units.blocks])
    masks = torch.cat(kept(seen["rg"]))
    total = sum(b.numel for b in units.blocks)
    assert scores[masks].min() > scores[~masks].max()
    assert 0.5 * total <= int(sizes[masks].sum()) < 0.5 * total + int(sizes.max())
    assert tuned.density == {"G": pytest.approx(float(sizes[masks].sum() / total)), "D": 1.0}


def test_tickets_by_a_criterion(tmp_path: Path) -> None:
    """Two rounds, ranked by what the run before each has left, beside ordinary tickets on the same dense run."""
    mine = {"base": "tickets", "granularity": "filter", "masks.criterion": "torch-pruning:TaylorImportance"}
    options: Any = {"policy": hosts.POLICY, **hosts.LENGTH}
    results = compare({"mine": mine, "tickets": None}, hosts.train, hosts.build, out=tmp_path, **options)
    densities = {r.method: [row["density"]["G"] for row in map(vars, r.rounds)] for r in results if r.rounds}
    assert densities["tickets"] == pytest.approx([1.0, 0.8, 0.64], abs=2e-3)
    assert densities["mine"] == pytest.approx([1.0, 0.8, 0.64], abs=0.1)
    rounds = [tmp_path / "mine/seed_0" / f"round_0{number}" for number in (1, 2)]
    trained = [tmp_path / "dense/seed_0/trained.safetensors", rounds[0] / "trained.safetensors"]
    names = {net: list(tensors) for net, tensors in read(trained[1])["pair"].items()}
    earlier = None
    for folder, path in zip(rounds, trained):
        held = read(folder / "masks.safetensors", "masks")["masks"]
        again = next_masks(path, earlier, 0.2, ["G", "D"], names, "torch-pruning:taylor")
        for network, own in read(path)["scores"].items():
            assert all(torch.equal(mask, held[network][name]) for name, mask in again[network].items())
            (scores,) = own["scores"].values()
            for block in own["units"].blocks:
                keep, score = block.kept(held[network]), scores[block.names[0]]
                assert keep.any()
                if earlier is None and not keep.all():  # the best of a layer stay
                    assert score[keep].min() >= score[~keep].max()
        earlier = folder / "masks.safetensors"
    with pytest.raises(RgplugError, match=r"holds no scores of G by torch-pruning:LAMPImportance; let the run"):
        next_masks(trained[0], None, 0.2, ["G"], names, "torch-pruning:lamp")
    for other in ({**mine, "masks.criterion": "torch-pruning:lamp"}, {"base": "tickets"}):
        with pytest.raises(RgplugError, match=r"with other settings \(policy\.(masks\.criterion|granularity) was"):
            compare({"mine": other}, hosts.train, hosts.build, out=tmp_path, **options)


def test_a_dense_run_that_left_no_scores(tmp_path: Path) -> None:
    mine = {"base": "tickets", "granularity": "filter", "masks.criterion": "torch-pruning:lamp"}
    options: Any = {"policy": hosts.POLICY, **hosts.LENGTH}
    compare(["dense"], hosts.train, hosts.build, out=tmp_path, **options)
    with pytest.raises(RgplugError, match=r"holds no scores of G by torch-pruning:LAMPImportance.* another --out"):
        compare({"mine": mine}, hosts.train, hosts.build, out=tmp_path, **options)


def test_the_scores_of_a_snapshot_are_those_of_its_last_step(tmp_path: Path) -> None:
    """Whatever the training script has done to gradients since: the trained weights, with the gradients of the last
    step of the network."""
    G, D = pair()
    names = [str(c) for c in CRITERIA.values()]
    rg = rgplug.attach(G, None, {"base": "dense", "snapshots": {"folder": str(tmp_path), "scores": names}})
    opt = torch.optim.Adam(G.parameters(), 1e-2)
    for _ in range(2):
        grads = step(G, D, opt)
    opt.zero_grad()
    rg.end_epoch(1.0)
    for name, p in G.named_parameters():
        p.grad = grads[name]
    units = units_of("G", {"G": G})
    held = read(tmp_path / "trained.safetensors")["scores"]["G"]["scores"]
    assert set(held) == set(names)
    for criterion in CRITERIA.values():
        for block, score in zip(units.blocks, filter_scores(criterion, units, values_of(units), "G")):
            assert torch.allclose(held[str(criterion)][block.names[0]], score.double())


@pytest.mark.parametrize("what", ["a shape", "a block", "a number", "a group", "units"])
def test_damaged_scores(what: str, tmp_path: Path) -> None:
    G, _ = pair()
    units, path = units_of("G", {"G": G}), tmp_path / "trained.safetensors"
    scores: dict[str, Any] = {b.names[0]: torch.rand(b.shape) for b in units.blocks}
    own: dict[str, Any] = {"units": units.to_dict(), "scores": {"torch-pruning:LAMPImportance": scores}}
    held = {"G": own}
    save(path, {"G": dict(G.named_parameters())}, scores=held)
    assert torch.equal(scores_in(read(path), path, "G", "torch-pruning:lamp")[1][0], scores["1.weight"])
    if what == "a shape":
        scores["1.weight"] = torch.rand(3)
    elif what == "a block":
        del scores["4.weight"]
    elif what == "a number":
        scores["1.weight"] = torch.full_like(scores["1.weight"], torch.nan)
    elif what == "a group":
        own["scores"] = [1]
    else:
        own["units"]["weights"]["1.weight"]["shape"] = [1 << 40, 1 << 20]
    save(path, {"G": dict(G.named_parameters())}, scores=held)
    with pytest.raises(
        RgplugError, match=r"trained\.safetensors is damaged: it (holds scores of G|describes G\.1\.we)"
    ):
        read(path)


def test_a_skipped_step_leaves_no_gradients(tmp_path: Path) -> None:
    """The last step of the run was one that a fused optimizer skips: the gradients before it count."""
    G, D = pair()
    scores = ["torch-pruning:taylor"]
    rg = rgplug.attach(G, None, {"base": "dense", "snapshots": {"folder": str(tmp_path), "scores": scores}})
    opt = torch.optim.Adam(G.parameters(), 1e-2, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for last in (False, True):
        opt.zero_grad()
        scaler.scale(D(G(torch.randn(4, Z))).square().mean() * (torch.inf if last else 1)).backward()
        if not last:
            grads = [p.grad.clone() for p in G.parameters()]
        scaler.step(opt)
        scaler.update()
    rg.end_epoch(1.0)
    for p, grad in zip(G.parameters(), grads):
        p.grad = grad
    units = units_of("G", {"G": G})
    (held,) = read(tmp_path / "trained.safetensors")["scores"]["G"]["scores"].values()
    for block, score in zip(units.blocks, filter_scores(CRITERIA["taylor"], units, values_of(units), "G")):
        assert torch.allclose(held[block.names[0]], score.double())


def test_tickets_of_another_granularity_need_scores(tmp_path: Path) -> None:
    mine = {"base": "tickets", "granularity": "kernel"}
    with pytest.raises(RgplugError, match=r"mine prunes under granularity kernel, and the dense run .* the same"):
        compare({"mine": mine}, hosts.train, hosts.build, out=tmp_path, **hosts.LENGTH)


# ---- what is asked for wrongly -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("torch-pruning:TaylorImportance", "TaylorImportance"),
        ("torch-pruning:GroupTaylorImportance", "TaylorImportance"),
        ("torch-pruning:taylor", "TaylorImportance"),
        ("Torch-Pruning:BNScale", "BNScaleImportance"),
        ("torch-pruning:random", "RandomImportance"),
    ],
)
def test_names(text: str, name: str) -> None:
    found = criterion_of(text)
    assert found is not None
    assert found.name == name
    assert hasattr(importance, name)
    assert Policy.load(policy(text)).masks.criterion == text


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (
            {"base": "pf-taylor", "granularity": "weight"},
            r"TaylorImportance, which ranks whole filters, and the granul",
        ),
        (
            {"base": "sparse", "masks.criterion": "torch-pruning:lamp"},
            r"granularity of G is weight; set granularity: f",
        ),
        ({"base": "pf-taylor", "masks.density": 0.5}, r"granularity of D is weight.*leave D dense"),
        ({"base": "sparse", "masks.criterion": "taylor"}, r"did you mean 'torch-pruning:TaylorImportance'"),
        ({"base": "sparse", "masks.criterion": "magnitud"}, r"allowed: random \| magnitude .*did you mean 'magnitude'"),
        ({"base": "pf-taylor", "masks.criterion": "torch-pruning:Tailor"}, r"no criterion .* 'torch-pruning:TaylorIm"),
        ({"base": "pf-taylor", "masks.criterion": "torch-pruning:xyzzy"}, r"no criterion .* there are torch-pruning:M"),
        ({"base": "pf-taylor", "masks.criterion": "torch-pruning:OBD-C"}, r"single images.*take torch-pruning:Hessian"),
        ({"base": "pf-taylor", "masks.sampling": "bernoulli"}, r"masks\.sampling has no effect"),
        ({"base": "dense", "snapshots": {"folder": "x", "scores": ["magnitude"]}}, r"snapshots\.scores\[0\] is 'magn"),
        ({"base": "dense", "snapshots": {"folder": "x", "scores": "torch-pruning:lam"}}, r"scores\[0\].*LAMPImportan"),
    ],
)
def test_one_sentence_for_each_mistake(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RgplugError, match=sentence):
        Policy.load(keys)


def test_without_torch_pruning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    G, D = pair()
    with pytest.raises(RgplugError, match=r"needs the package torch-pruning, which is not installed here"):
        rgplug.attach(G, D, policy("torch-pruning:taylor"))
    rgplug.attach(G, D, policy("magnitude")).detach()


def test_it_is_imported_only_where_it_is_asked_for() -> None:
    code = (
        "import sys, rgplug; from torch import nn\n"
        "G = lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 48), nn.Unflatten(1, (3, 4, 4)))\n"
        "keys = {'base': 'sparse', 'granularity': 'filter', 'masks.density': 0.5}\n"
        "for own in ('magnitude', 'torch-pruning:magnitude'):\n"
        "    rgplug.attach(G(), None, {**keys, 'masks.criterion': own}); print('torch_pruning' in sys.modules)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "True"]

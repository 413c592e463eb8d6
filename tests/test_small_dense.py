"""small-dense: masks that leave a smaller dense network, which trains as that network does by itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hosts_of_comparisons as hosts
import pytest
import torch
import torch.nn.functional as F
from base_models import MODELS
from model_dcgan import Discriminator, Generator
from sngan import SNGANDiscriminator, SNGANGenerator
from torch import Tensor, nn

import rgplug
from rgplug import RgplugError
from rgplug.baselines import compare
from rgplug.export import compact
from rgplug.policy import Policy

STEPS, BATCH, Z = 4, 4, 6
Pair = tuple[nn.Module, nn.Module]


def sngan(width: int) -> Pair:
    return SNGANGenerator(width, Z), SNGANDiscriminator(width)


def dcgan(width: int) -> Pair:
    return Generator(Z, width), Discriminator(width)


WIDTH = 16
NETWORKS: dict[str, tuple[Callable[[int], Pair], int]] = {"sngan": (sngan, 32), "dcgan": (dcgan, 16)}  # side of images


def start(name: str, width: int = WIDTH) -> Pair:
    torch.manual_seed(0)
    G, D = (net.double() for net in NETWORKS[name][0](width))
    return G, D


def numel(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def half(name: str) -> dict[str, Any]:
    """small-dense at the density of the pair of half the width."""
    pairs = zip(("G", "D"), start(name), start(name, WIDTH // 2))
    return {"base": "small-dense", "masks.density": {k: numel(small) / numel(whole) for k, whole, small in pairs}}


def lines(mask: Tensor, dim: int) -> Tensor:
    """Indices along a dim at which a mask keeps anything."""
    return mask.movedim(dim, 0).reshape(mask.shape[dim], -1).any(1).nonzero().flatten()


def sliced(net: nn.Module, masks: dict[str, Tensor], small: nn.Module) -> nn.Module:
    """`small` with the parameters and buffers of `net` at what the masks keep. Sizes that the two share are copied."""
    own, found = net.state_dict(), {}
    for name, target in small.state_dict().items():
        value, prefix = own[name], name.rpartition(".")[0]
        mask = masks.get(name)
        if mask is not None:
            for dim in range(mask.dim()):
                value = value.index_select(dim, lines(mask, dim))
        elif name.endswith(("running_mean", "running_var")):
            value = value[masks[f"{prefix}.weight"]]
        elif name.endswith("weight_u"):
            value = value[lines(masks[f"{prefix}.weight_orig"], 0)]
        elif name.endswith("weight_v"):
            value = value[masks[f"{prefix}.weight_orig"].any(0).flatten()]
        assert value.shape == target.shape, name
        found[name] = value
    small.load_state_dict(found)
    return small


def train(G: nn.Module, D: nn.Module, side: int) -> None:
    """A GAN loop with SGD: Adam would blow up rounding where a gradient is 0 but for it (biases before batch norm)."""
    torch.manual_seed(1)
    opt = {"G": torch.optim.SGD(G.parameters(), 5e-3, 0.9), "D": torch.optim.SGD(D.parameters(), 5e-3, 0.9)}
    for _ in range(STEPS):
        real, z = torch.rand(BATCH, 3, side, side).double() * 2 - 1, torch.randn(BATCH, Z).double()
        loss = F.softplus(-D(real)).mean() + F.softplus(D(G(z).detach())).mean()
        opt["D"].zero_grad()
        loss.backward()
        opt["D"].step()
        opt["G"].zero_grad()
        F.softplus(-D(G(z))).mean().backward()
        opt["G"].step()


@pytest.mark.parametrize("name", NETWORKS)
def test_it_trains_as_the_smaller_network_does(name: str) -> None:
    """The host's own classes at half the width, begun from the weights that the masks keep: after some iterations of
    the whole loop, spectral norm and batch norm included, their parameters and buffers are those under masks."""
    side = NETWORKS[name][1]
    G, D = start(name)
    first = {"G": copy.deepcopy(G), "D": copy.deepcopy(D)}
    rg = rgplug.attach(G, D, half(name))
    masks = {k: {w.name: w.mask.clone() for w in rg.weights(k)} for k in first}
    small = {k: sliced(first[k], masks[k], net) for k, net in zip(first, start(name, WIDTH // 2))}
    begun = copy.deepcopy(small)
    train(G, D, side)
    train(small["G"], small["D"], side)
    for label, net in (("G", G), ("D", D)):
        expected = sliced(net, masks[label], start(name, WIDTH // 2)[label == "D"]).state_dict()
        for key, value in small[label].state_dict().items():
            assert torch.allclose(value, expected[key], rtol=1e-9, atol=1e-12), f"{label} {key}"
        moved = zip(small[label].parameters(), begun[label].parameters())
        assert not any(torch.equal(after, before) for after, before in moved if after.dim() > 1)
        assert all(torch.equal(w.mask, masks[label][w.name]) for w in rg.weights(label))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_export_is_the_smaller_network(name: str) -> None:
    """As many parameters as the host's own class at half the width, the same images, nothing left that could go."""
    G, D = start(name)
    rg = rgplug.attach(G, D, half(name))
    train(G, D, NETWORKS[name][1])
    G.eval()
    z = torch.randn(16, Z).double()
    images = G(z)
    result = compact(rg.export(), (z,))
    assert result.parameters == (numel(G), numel(start(name, WIDTH // 2)[0]))
    assert not result.kept
    assert torch.allclose(result.network(z), images, atol=1e-6)


@pytest.mark.parametrize("density", [0.1, 0.3, 0.5, 0.8])
def test_density_counts_the_smaller_network(density: float) -> None:
    """The share of weights that is left when rows and columns are gone; one filter more or less of each layer is the
    difference that may remain."""
    G, D = start("sngan")
    rg = rgplug.attach(G, D, {"base": "small-dense", "masks.density": density})
    for label in ("G", "D"):
        kept = sum(int(w.mask.sum()) for w in rg.weights(label))
        total = sum(w.numel for w in rg.weights(label))
        assert rg.density(label) == pytest.approx(kept / total)
        assert kept / total == pytest.approx(density, abs=1 / 16)
        for w in rg.weights(label):
            whole = torch.ones_like(w.mask)
            for dim in range(w.mask.dim()):
                own = torch.zeros(w.mask.shape[dim], dtype=torch.bool)
                own[lines(w.mask, dim)] = True
                whole &= own.view([-1 if d == dim else 1 for d in range(w.mask.dim())])
            assert torch.equal(w.mask, whole), w.name  # a smaller box of the same dims


def test_the_same_filters_for_the_same_seed() -> None:
    found = []
    for seed in (0, 0, 1):
        rg = rgplug.attach(*start("sngan"), {"base": "small-dense", "masks.density": 0.3, "masks.seed": seed})
        found.append([w.mask.clone() for w in rg.weights("G")])
    same = [all(map(torch.equal, found[0], other)) for other in found[1:]]
    assert same == [True, False]
    assert [int(m.sum()) for m in found[0]] == [int(m.sum()) for m in found[2]]


def test_a_state_goes_on(tmp_path: Path) -> None:
    """Saved, and loaded into other networks of another seed: the masks of the first one, and the same training."""
    G, D = start("sngan")
    rg = rgplug.attach(G, D, half("sngan"))
    train(G, D, 32)
    rg.save(tmp_path / "state.safetensors")
    other = start("sngan")
    again = rgplug.attach(*other, {**half("sngan"), "masks.seed": 1})
    for net, saved in zip(other, (G, D)):
        net.load_state_dict(saved.state_dict())
    again.load(tmp_path / "state.safetensors")
    train(G, D, 32)
    train(*other, 32)
    for net, saved in zip(other, (G, D)):
        assert all(map(torch.equal, net.parameters(), saved.parameters()))


def test_a_layer_that_trains_later_reads_what_is_left() -> None:
    """Frozen at attach: its filters are drawn at its first gradient, and it loses the columns of channels that went."""
    G, D = (net.float() for net in start("dcgan"))
    G[4].weight.requires_grad_(False)
    rg = rgplug.attach(G, D, {"base": "small-dense", "masks.density": 0.3})
    opt = torch.optim.SGD(G.parameters(), 1e-3)
    for frozen in (True, False):
        G[4].weight.requires_grad_(not frozen)
        opt.zero_grad()
        D(G(torch.randn(4, Z))).mean().backward()
        opt.step()
    masks = {w.name: w.mask for w in rg.weights("G")}
    made = lines(masks["1.weight"], 1)  # transposed: filters in dim 1, input channels in dim 0
    assert 0 < len(made) < 2 * WIDTH
    assert lines(masks["4.weight"], 0).tolist() == made.tolist()
    assert lines(masks["4.weight"], 1).tolist() == masks["5.weight"].nonzero().flatten().tolist()
    assert masks["4.weight"][:, lines(masks["4.weight"], 1)][made].all()


# generators that rgplug can run by itself: the others take a stage or labels beside the latent
TRACED = [name for name in MODELS if name not in ("progan", "biggan")]


@pytest.mark.parametrize("model", TRACED)
def test_every_base_model(model: str) -> None:
    """It trains; what is pruned is 0; masks stay; no layer is empty."""
    torch.manual_seed(0)
    training = MODELS[model]()
    training.nets["G"].z_dim = training.z_dim  # G is run once to see its channels
    rg = training.rg = rgplug.attach(
        training.nets["G"], training.nets["D"], {"base": "small-dense", "masks.density": 0.3}
    )
    training.run(2)
    for label, net in training.nets.items():
        assert rg.density(label) < 0.7
        for w in rg.weights(label):
            assert w.mask.any()
            assert not w.data[~w.mask].any()
        assert all(p.isfinite().all() for p in net.parameters())


def test_in_a_comparison(tmp_path: Path) -> None:
    """`--density` asks it as it asks the others; cost and density are those of the smaller network."""
    options: Any = {"policy": hosts.POLICY, "length": hosts.ITERATIONS, "density": 0.4}
    dense, small = compare(["dense", "small-dense"], hosts.train, hosts.build, out=tmp_path, **options)
    assert small.density == {"G": pytest.approx(0.4, abs=0.08), "D": pytest.approx(0.4, abs=0.08)}
    assert small.flops < dense.flops
    assert small.before == {"real_images": 0, "flops": 0, "flops_proportional": 0}


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"granularity": "weight"}, r"masks\.channels takes out whole filters; set granularity: filter"),
        ({"masks.distribution": "global"}, r"the same share of filters out of every layer.*set distribution: uniform"),
    ],
)
def test_what_it_needs(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RgplugError, match=sentence):
        Policy.load({"base": "small-dense", **keys})

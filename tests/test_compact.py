"""Compact networks: the same images from fewer channels, what stays and why, and files of them."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from common import Host
from pruned import MODELS, NOISY, NORMED, empty_layer, images, made, prune_channels, prune_entries
from sngan import SNGANGenerator
from torch import Tensor, nn

import rgplug
from rgplug import RgplugError, state
from rgplug.export import compact, load_compact, load_sparse, save_compact, save_onnx, save_sparse
from rgplug.export.surgery import Carrying
from rgplug.metrics import default_sample_fn

LATENTS = 1000


def equal(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-4 * b.abs().max())


@pytest.mark.parametrize("pruning", ["1.0", "0.5", "0.1", "entries", "a layer"])
@pytest.mark.parametrize("name", MODELS)
def test_every_path_gives_the_same_images(name: str, pruning: str, tmp_path: Path) -> None:
    """Baked, sparse file, compact, compact file: over 1,000 latents, one density of channels or entries each; and an
    ONNX file, of the compact network where there is one, which is compared with torch as it is written."""
    G, inputs = made(name)
    fresh, _ = MODELS[name]()
    gone = 0
    if pruning == "entries":
        prune_entries(G, 0.5)
    elif pruning == "a layer":
        empty_layer(G)
        if name in NORMED:
            with pytest.raises(RgplugError, match=r"not finite .a wholly pruned layer under spectral norm"):
                compact(G, inputs(4))
            return
    else:
        gone = prune_channels(G, inputs(4), float(pruning), vectors=name in NOISY)
    result = compact(G, inputs(8))
    z = inputs(LATENTS if name != "official fastgan" else 64)  # 256 pixels a side
    expected = images(G, z, 250 if name != "official fastgan" else 16)
    paths = {"compact": result.network}
    save_sparse(tmp_path / "sparse", G.state_dict())
    paths["sparse file"] = load_sparse(tmp_path / "sparse", copy.deepcopy(fresh)).eval()
    save_compact(tmp_path / "compact", result)
    paths["compact file"] = load_compact(tmp_path / "compact", fresh)
    for path, network in paths.items():
        assert equal(images(network, z, 250 if name != "official fastgan" else 16), expected), path
    onnx = save_onnx(tmp_path / "G.onnx", result.network if gone else G, inputs(2))
    assert onnx.difference <= 1e-4
    if gone:
        assert result.removed == gone, result.report
        assert result.parameters[1] < result.parameters[0]
    assert sum(p.numel() for p in result.network.parameters()) == result.parameters[1]


@pytest.mark.parametrize("name", ["sngan", "dcgan"])
def test_without_the_constants_images_would_differ(name: str) -> None:
    """Biases and norms leave a constant in a pruned channel; near a padded border it is none for the next layer."""
    G, inputs = made(name)
    prune_channels(G, inputs(4), 0.5, vectors=False)
    result = compact(G, inputs(4))
    carrying = [m for m in result.network.modules() if isinstance(m, Carrying)]
    assert carrying
    z = inputs(8)
    for layer in carrying:
        layer.carrier = layer.offset = None
    assert not equal(images(result.network, z), images(G, z))


def test_widths_are_halved_through_residual_sums() -> None:
    G, inputs = made("sngan")
    with torch.no_grad():
        for name, m in G.named_modules():
            if isinstance(m, nn.Conv2d) and name != "c5":
                m.weight[::2] = 0
        G.l1.weight.view(8, 16, -1)[::2] = 0
    result = compact(G, inputs(4))
    shapes = {n: tuple(m.weight.shape) for n, m in result.network.named_modules() if hasattr(m, "weight")}
    assert shapes["l1"] == (64, 6)
    assert shapes["block2.c1"] == shapes["block4.c2"] == (4, 4, 3, 3)
    assert shapes["block3.c_sc"] == (4, 4, 1, 1)
    assert shapes["b5"] == (4,)
    assert shapes["c5"] == (3, 4, 3, 3)
    assert result.network.width == 4  # the number in the host's view
    assert result.network.block4.c1.in_channels == 4
    assert G.width == 8
    assert "28 channels removed" in result.report
    assert "block2.c1.weight: 8x8x3x3 -> 4x4x3x3" in result.report


def test_spectral_norm_is_folded() -> None:
    class G(nn.Sequential):
        def __init__(self) -> None:
            norm = nn.utils.parametrizations.spectral_norm
            first = norm(nn.ConvTranspose2d(6, 4, 4))
            second = nn.utils.spectral_norm(nn.Conv2d(4, 4, 3, padding=1, groups=4))
            super().__init__(nn.Unflatten(1, (6, 1, 1)), first, nn.ReLU(), second, nn.Conv2d(4, 3, 3))

    torch.manual_seed(0)
    network, z = G(), torch.randn(8, 6)
    network(z)
    network.eval()
    with torch.no_grad():
        network[1].parametrizations.weight.original[:, 1:3] = 0
        network[3].weight_orig[1:3] = 0
    before = network(z)
    result = compact(network, (z,))
    assert result.removed == 2
    assert isinstance(result.network[3], nn.Conv2d)
    assert result.network[3].groups == result.network[4].in_channels == 2
    assert equal(result.network(z), network(z))
    assert torch.equal(network(z), before)  # its norms are there still
    assert "1.parametrizations.weight.original" in network.state_dict()


def test_what_nobody_reads_goes_too() -> None:
    torch.manual_seed(0)
    G = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        G[4].weight[:, 2:] = 0
    result = compact(G, (torch.randn(8, 6),))
    assert result.removed == 6  # what made those, too, if it made nothing else: here it made the others as well
    assert [tuple(m.weight.shape) for m in result.network if isinstance(m, nn.Linear)] == [(8, 6), (2, 8), (3, 2)]


def test_a_channel_that_goes_takes_others_with_it() -> None:
    """The second layer's filters are not zero, but all they read is gone: they make constants."""
    torch.manual_seed(0)
    G = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        G[0].weight[4:] = 0
        G[2].weight[3:, :4] = 0
    z = torch.randn(32, 6)
    result = compact(G, (z,))
    assert [tuple(m.weight.shape) for m in result.network if isinstance(m, nn.Linear)] == [(4, 6), (3, 4), (3, 3)]
    assert equal(result.network(z), G(z))


def test_channels_that_repeat_every_two_pixels() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 64), nn.Unflatten(1, (4, 4, 4)), nn.Conv2d(4, 16, 5, padding=2), nn.PixelShuffle(2)]
    G = nn.Sequential(*layers, nn.Conv2d(4, 3, 3, padding=1), nn.Tanh())
    with torch.no_grad():
        G[2].weight[4:12] = 0
    z = torch.randn(16, 6)
    result = compact(G, (z,))
    assert result.removed == 2
    assert tuple(result.network[4].carrier.shape) == (3, 4, 3, 3)
    assert equal(result.network(z), G(z))


def test_noise_keeps_a_channel_without_filters() -> None:
    G, inputs = made("lightweight-gan")
    prune_channels(G, inputs(4), 0.5, vectors=False)
    report = compact(G, inputs(4)).report
    assert "could not be removed: they are not the same for all latents where layers.1.0.0.net.0.weight reads" in report
    assert "linalg_vector_norm counts them" in report


def test_unstructured_zeros_make_nothing_smaller() -> None:
    G, inputs = made("sngan")
    prune_entries(G, 0.3)
    result = compact(G, inputs(4))
    assert result.removed == 0
    assert "no smaller and no faster" in str(result)


def test_the_given_network_stays(tmp_path: Path) -> None:
    G, inputs = made("sngan")
    prune_channels(G, inputs(4), 0.5, vectors=False)
    before = pickle.dumps(G.state_dict())
    random = torch.get_rng_state()
    compact(G)
    assert pickle.dumps(G.state_dict()) == before
    assert torch.equal(torch.get_rng_state(), random)


def test_compact_networks_are_pickled_and_copied() -> None:
    G, inputs = made("dcgan")
    prune_channels(G, inputs(4), 0.5, vectors=False)
    network, z = compact(G, inputs(4)).network, inputs(4)
    for again in (pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
        assert torch.equal(images(again, z), images(network, z))


def test_an_attached_network_is_exported_first() -> None:
    host = Host()
    with (
        rgplug.attach(host.G, host.D, "dense"),
        pytest.raises(RgplugError, match=r"rgplug manages; export what rg"),
    ):
        compact(host.G)


def test_a_forward_that_is_random_in_another_way() -> None:
    class G(nn.Linear):
        calls = 0

        def forward(self, z: Tensor) -> Tensor:
            G.calls += 1
            return super().forward(z) + G.calls

    with pytest.raises(RgplugError, match=r"outputs differ by .* when it is run again on the same latents"):
        compact(G(3, 3), (torch.randn(4, 3),))


def test_a_file_of_a_network_with_groups_and_buffers_of_its_own(tmp_path: Path) -> None:
    """Grouped convolutions and group norms keep their groups, depthwise ones lose some; buffers of a channel's size go
    into the file even where they are in no state dict."""

    class G(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.depthwise = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
            self.second, self.norm = nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8)
            self.grouped, self.last = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Conv2d(8, 3, 1)
            self.register_buffer("gain", torch.linspace(1, 2, 8).view(1, 8, 1, 1), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            x = self.second(torch.relu(self.depthwise(self.first(x)) * self.gain))
            return self.last(self.grouped(torch.relu(self.norm(x))))

    torch.manual_seed(0)
    network, x = G().eval(), torch.randn(4, 4, 6, 6)
    with torch.no_grad():
        for p in (network.first.weight, network.depthwise.weight, network.depthwise.bias):
            p[2:6] = 0
    result = compact(network, (x,))
    assert result.removed == 4
    assert (result.network.depthwise.groups, result.network.grouped.groups, result.network.norm.num_groups) == (4, 2, 2)
    save_compact(tmp_path / "G", result)
    again = load_compact(tmp_path / "G", G())
    assert torch.equal(again(x), result.network(x))
    assert equal(again(x), network(x))


def test_a_channel_that_is_read_for_a_few_latents_only() -> None:
    """Its style is 0 for the latents of the trace; on others it is not, and that is noticed."""

    class G(nn.Module):
        z_dim = 3

        def __init__(self, latent: int = 0, open_above: float = 0.0) -> None:
            super().__init__()
            self.first, self.affine = nn.Linear(3, 4), nn.Linear(3, 4)
            self.weight = nn.Parameter(torch.randn(48, 4))
            with torch.no_grad():  # styles of 1, and a last one that opens above a value of one latent
                self.affine.weight.zero_()[3, latent] = 1.0
                self.affine.bias.fill_(1.0)[3] = -open_above

        def forward(self, z: Tensor) -> Tensor:
            weight = self.weight * torch.relu(self.affine(z))[:, None]
            return torch.bmm(weight, self.first(z)[:, :, None]).view(-1, 3, 4, 4)

    torch.manual_seed(0)
    sampler = default_sample_fn(G())
    seen, others = sampler.arguments(4)[0].amax(0), sampler.arguments(16)[0].amax(0)
    latent = int((others - seen).argmax())
    assert others[latent] > seen[latent]
    network = G(latent, float(seen[latent] + others[latent]) / 2)
    with pytest.raises(RgplugError, match=r"cannot be compacted from 4 latents: on 16 others .* give more"):
        compact(network)
    assert compact(network, default_sample_fn(network).arguments(64)).removed == 0


def test_files_are_read_strictly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    G, inputs = made("sngan")
    prune_channels(G, inputs(4), 0.5, vectors=False)
    path = tmp_path / "G.compact"
    size = save_compact(path, compact(G, inputs(4)))
    assert size == path.stat().st_size
    own = SNGANGenerator(8, 6)
    before = {k: v.clone() for k, v in own.state_dict().items()}
    load_compact(path, own)
    assert all(torch.equal(v, before[k]) for k, v in own.state_dict().items())
    with pytest.raises(RgplugError, match=r"is of another Sequential .*build the network that was exported"):
        load_compact(path, nn.Sequential(nn.Linear(3, 3)))
    save_sparse(tmp_path / "sparse", G.state_dict())
    with pytest.raises(RgplugError, match="is no compact network; give a file that save_compact wrote"):
        load_compact(tmp_path / "sparse", SNGANGenerator(8, 6))
    monkeypatch.setattr(state, "FORMAT", state.FORMAT + 1)
    save_compact(tmp_path / "newer", compact(G, inputs(4)))
    monkeypatch.undo()
    with pytest.raises(RgplugError, match="newer"):
        load_compact(tmp_path / "newer", SNGANGenerator(8, 6))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(RgplugError):
        load_compact(path, SNGANGenerator(8, 6))


def trained_by_filters(name: str, vectors: bool) -> rgplug.Controller:
    """A few steps of RG-GAN with whole filters, half of the weights to stay."""
    torch.manual_seed(0)
    G, inputs = MODELS[name]()
    policy = {
        "base": "rg-gan",
        "granularity": "filter",
        "threshold.units": "layer_std",
        "networks": {"G": {"vectors": vectors}},
        "target": {"G": 0.5, "by": 4},
        "regeneration.augmented": False,
    }
    rg = rgplug.attach(G, None, policy)
    optimizer = torch.optim.Adam(G.parameters(), 1e-3, betas=(0.5, 0.999))
    for _ in range(6):
        optimizer.zero_grad()
        G(*inputs(4)).square().mean().backward()
        optimizer.step()
    return rg


@pytest.mark.parametrize(("name", "vectors"), [("sngan", False), ("lightweight-gan", True), ("stylegan2", True)])
def test_what_training_prunes_by_filters_goes(name: str, vectors: bool) -> None:
    """Every channel that the masks empty is taken out, under noise and modulation too if gains and biases go along."""
    rg = trained_by_filters(name, vectors)
    assert rg.density("G") == pytest.approx(0.5, abs=0.06)
    kept = {
        w.name: int(w.mask.movedim(w.layout.dim, 0).reshape(w.layout.filters, -1).any(1).sum()) for w in rg.weights("G")
    }
    baked = rg.export()
    result = compact(baked)
    after = dict(result.network.named_parameters())
    for w in rg.weights("G"):
        assert after[w.name].shape[w.layout.dim] == kept[w.name], (w.name, result.report)
    z = MODELS[name]()[1](64)
    assert equal(images(result.network, z), images(baked, z))
    assert result.parameters[1] < 0.6 * result.parameters[0]

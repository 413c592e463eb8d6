"""The channels of networks: by hand, and against torch-pruning's dependency graph where it knows the operations."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
import torch.nn.functional as F
import torch_pruning
from model_biggan import BigGAN
from model_dcgan import Generator as DCGANGenerator
from model_fastgan import FastGAN
from model_stylegan2 import StyleGAN2
from pruned import official_fastgan
from sngan import SNGANDiscriminator, SNGANGenerator
from torch import Tensor, nn

from rgplug.channels import filter_channels, plain_copy, trace
from rgplug.errors import RgplugError
from rgplug.masking import FilterLayout


def groups_of(network: nn.Module, *inputs: Tensor) -> set[frozenset[str]]:
    """Sets of axes (weight and dim) of convolutions and linear layers that share a channel."""
    network = plain_copy(network, inputs)
    channels = trace(network, inputs)
    found: dict[int, set[str]] = defaultdict(set)
    for axis in channels.axes:
        module, _, own = axis.name.rpartition(".")
        if own == "weight" and isinstance(network.get_submodule(module), (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            for root in channels.of(axis).tolist():
                found[root].add(f"{module} {axis.role}")
    return {frozenset(s) for s in found.values() if any(x.endswith("out") for x in s)}


def groups_of_torch_pruning(network: nn.Module, *inputs: Tensor) -> set[frozenset[str]]:
    network = plain_copy(network, inputs).requires_grad_(True)
    graph = torch_pruning.DependencyGraph().build_dependency(network, example_inputs=inputs)
    names = {m: n for n, m in network.named_modules()}
    layers = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    found = set()
    for group in graph.get_all_groups(root_module_types=list(layers)):
        members = set()
        for dependency, _ in group:
            if isinstance(dependency.target.module, layers):
                out = "out_channels" in dependency.handler.__name__
                members.add(f"{names[dependency.target.module]} {'out' if out else 'in'}")
        found.add(frozenset(members))
    return found


CASES = {
    "sngan": lambda: (SNGANGenerator(4, 6), torch.randn(2, 6)),
    "sngan's D": lambda: (SNGANDiscriminator(4), torch.randn(2, 3, 32, 32)),
    "dcgan": lambda: (DCGANGenerator(6, 4), torch.randn(2, 6)),
}


@pytest.mark.parametrize("case", CASES)
def test_torch_pruning_agrees(case: str) -> None:
    network, x = CASES[case]()
    assert groups_of(network, x) == groups_of_torch_pruning(network, x) - {frozenset({"l5 out"})}  # D's one score


@pytest.mark.host
def test_torch_pruning_agrees_on_fastgan() -> None:
    """Gates by slices, squeeze and excitation, two outputs."""
    network, z = official_fastgan()[0], torch.randn(2, 6)
    assert groups_of(network, z) == groups_of_torch_pruning(network, z)


def channels_of(network: nn.Module, *inputs: Tensor) -> dict[str, list[int]]:
    """axis -> channel of each entry, counted from 0; -1 for those that have to stay."""
    channels = trace(plain_copy(network, inputs), inputs)
    number: dict[int, int] = {}
    return {
        f"{a.name} {a.dim}": [
            -1 if r in channels.reasons else number.setdefault(r, len(number)) for r in channels.of(a).tolist()
        ]
        for a in channels.axes
    }


class Between(nn.Module):
    """Two convolutions with something between them."""

    def __init__(self, between, middle: int = 4, read: int = 4) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, middle, 3, padding=1), nn.Conv2d(read, 3, 1)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)))


IMAGES = torch.randn(2, 3, 8, 8)


def between(function, middle: int = 4, read: int = 4) -> tuple[list[int], list[int]]:
    found = channels_of(Between(function, middle, read), IMAGES)
    return found["a.weight 0"], found["b.weight 1"]


def test_a_gated_linear_unit_ties_value_and_gate() -> None:
    assert between(lambda x: F.glu(x, dim=1), 8) == ([0, 1, 2, 3, 0, 1, 2, 3], [0, 1, 2, 3])
    assert between(lambda x: x[:, :4] * x[:, 4:].sigmoid(), 8) == ([0, 1, 2, 3, 0, 1, 2, 3], [0, 1, 2, 3])


def test_a_pixel_shuffle_ties_the_four_of_a_channel() -> None:
    assert between(lambda x: F.pixel_shuffle(x, 2), 8, 2) == ([0, 0, 0, 0, 1, 1, 1, 1], [0, 1])


def test_concatenated_and_shuffled_channels() -> None:
    made, read = between(lambda x: torch.cat([x[:, 2:], x.flip(1)], 1), 4, 6)
    assert made == [0, 1, 2, 3]
    assert read == [2, 3, 3, 2, 1, 0]


def test_a_blur_as_images_of_one_channel() -> None:
    kernel = torch.ones(1, 1, 3, 3)
    made, read = between(lambda x: F.conv2d(x.reshape(-1, 1, *x.shape[2:]), kernel, padding=1).view(x.shape))
    assert made == read == [0, 1, 2, 3]


def test_what_counts_a_channel_among_others_has_to_stay() -> None:
    assert between(lambda x: x / (x.square().mean(1, keepdim=True) + 1).sqrt())[0] == [-1] * 4
    assert between(lambda x: x.softmax(1))[0] == [-1] * 4
    assert between(lambda x: x.cumsum(1))[0] == [-1] * 4
    assert between(lambda x: F.group_norm(x, 2))[0] == [-1] * 4
    assert between(lambda x: F.instance_norm(x))[0] == [0, 1, 2, 3]


def test_depthwise_and_grouped_convolutions() -> None:
    depthwise, grouped = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 4, 3, padding=1, groups=2)
    found = channels_of(Between(depthwise), IMAGES)
    assert found["a.weight 0"] == found["between.weight 0"] == found["between.bias 0"] == found["b.weight 1"]
    assert channels_of(Between(grouped), IMAGES)["a.weight 0"] == [-1] * 4
    layouts = {n: FilterLayout((4, k, 3, 3)) for n, k in (("a.weight", 3), ("between.0.weight", 2))}

    class Residual(nn.ModuleList):
        def forward(self, x: Tensor) -> Tensor:
            return x + self[0](x)

    of = filter_channels(Between(Residual([grouped])), (IMAGES,), layouts).of  # no less tied for that
    assert of["a.weight"].tolist() == of["between.0.weight"].tolist()


def test_a_linear_layer_viewed_as_an_image() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(5, 12), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)

        def forward(self, z: Tensor) -> Tensor:
            return self.last(self.norm(F.interpolate(self.first(z).view(-1, 3, 2, 2), scale_factor=2)))

    found = channels_of(Net(), torch.randn(2, 5))
    assert found["first.weight 0"] == found["first.bias 0"] == [0] * 4 + [1] * 4 + [2] * 4
    assert found["norm.weight 0"] == found["norm.running_var 0"] == found["last.weight 1"] == [0, 1, 2]


@pytest.mark.parametrize("leading", [False, True])
def test_modulated_convolutions(leading: bool) -> None:
    """The style of a channel belongs to the filter that makes it and to the columns that read it."""
    training = StyleGAN2(leading=leading)
    found = channels_of(training.nets["G"], torch.randn(2, training.z_dim))
    out, read = ("1", "2") if leading else ("0", "1")
    assert -1 not in found[f"layers.0.conv.weight {out}"]
    for reader in ("layers.1.conv", "to_rgb.0.conv"):
        assert found[f"layers.0.conv.weight {out}"] == found[f"{reader}.weight {read}"]
        assert found[f"layers.0.conv.weight {out}"] == found[f"{reader}.affine.weight 0"]
        assert found[f"layers.0.conv.weight {out}"] == found[f"{reader}.affine.bias 0"]
    assert found[f"to_rgb.2.conv.weight {out}"] == [-1] * 3


def test_lightweight_gan_and_biggan() -> None:
    fastgan = FastGAN()
    found = channels_of(fastgan.nets["G"], torch.randn(2, fastgan.z_dim))
    gate = found["layers.1.0.2.1.weight 0"]
    assert gate[:8] == gate[8:] == found["layers.2.0.0.net.0.weight 1"]
    shuffled = found["layers.1.0.0.net.0.weight 0"]
    assert shuffled[::4] == shuffled[3::4] == found["layers.1.0.2.1.weight 1"]

    biggan = BigGAN()
    found = channels_of(biggan.nets["G"], *biggan.inputs()[1])
    assert (
        found["b1.c2.weight 0"] == found["b1.skip.weight 0"] == found["b2.n1.gain.weight 0"] == found["b2.c1.weight 1"]
    )
    assert found["attention.query.weight 0"] == found["attention.key.weight 0"]


def test_filter_channels() -> None:
    G = SNGANGenerator(4, 6)
    layouts = {f"{n}.weight": FilterLayout(tuple(m.weight.shape)) for n, m in G.named_modules() if hasattr(m, "weight")}
    found = filter_channels(G, (torch.randn(2, 6),), {n: l for n, l in layouts.items() if len(l.shape) > 1})
    assert found.fixed == {"c5.weight": "its filters are the network's output"}
    assert found.of["block2.c2.weight"].tolist() == found.of["block2.c_sc.weight"].tolist()
    assert len(set(found.of["l1.weight"].tolist())) == 4
    assert len(found.of["l1.weight"]) == 64

    D = SNGANDiscriminator(4)  # names of weights under spectral norm
    name, shape = "block1.c1.weight_orig", (4, 3, 3, 3)
    assert len(filter_channels(D, (IMAGES,), {name: FilterLayout(shape)}).of[name].unique()) == 4


def test_the_network_stays_as_it_was() -> None:
    D = SNGANDiscriminator(4)
    D(IMAGES).sum().backward()  # a graph is still held by the computed weights
    before = {k: v.clone() for k, v in D.state_dict().items()}
    random = torch.get_rng_state()
    filter_channels(D, (IMAGES,), {})
    assert all(torch.equal(v, before[k]) for k, v in D.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert D.training


def test_a_network_that_cannot_be_traced() -> None:
    with pytest.raises(RgplugError, match=r"Between does not run on the inputs it was to be traced with: .*channels"):
        plain_copy(Between(nn.Identity()), (torch.randn(2, 5, 8, 8),))

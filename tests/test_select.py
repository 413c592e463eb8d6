"""Which parameters are managed, under which names, and which are not and why."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import tiny
import torch
from torch import nn

import rgplug
from rgplug.errors import RgplugError
from rgplug.policy import NetworkPolicy
from rgplug.select import select


def managed(network: nn.Module, **rules: Any) -> list[str]:
    return [c.name for c in select(network, NetworkPolicy(**rules), "G") if not c.reason]


def reasons(network: nn.Module, **rules: Any) -> dict[str, str]:
    return {c.name: c.reason for c in select(network, NetworkPolicy(**rules), "G")}


def old_sn(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.spectral_norm(layer)


def old_wn(layer: nn.Module, **options: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(layer, **options)


class HandWrittenSN(nn.Conv2d):
    """The way of many GAN repositories: the parameter is renamed weight_bar, u and v are parameters or buffers."""

    def __init__(self) -> None:
        super().__init__(3, 4, 3)
        weight = self.weight
        del self.weight
        self.weight_bar = nn.Parameter(weight.data)
        self.register_buffer("u", torch.randn(4))


@pytest.mark.parametrize(
    ("layer", "names"),
    [
        (lambda: nn.Linear(3, 4), ["0.weight"]),
        (lambda: nn.Conv1d(3, 4, 3), ["0.weight"]),
        (lambda: nn.ConvTranspose3d(4, 4, 3, groups=2), ["0.weight"]),
        (lambda: nn.Bilinear(3, 3, 4), ["0.weight"]),
        (lambda: tiny.EqualLinear(3, 4), ["0.weight"]),
        (lambda: tiny.EqualConv2d(3, 4, 3), ["0.weight"]),
        (lambda: old_sn(nn.Conv2d(3, 4, 3)), ["0.weight_orig"]),
        (lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)), ["0.parametrizations.weight.original"]),
        (lambda: old_wn(nn.Conv2d(3, 4, 3)), ["0.weight_v"]),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), ["0.parametrizations.weight.original1"]),
        (HandWrittenSN, ["0.weight_bar"]),
    ],
)
def test_one_weight_of_each_kind_of_layer(layer: Any, names: list[str]) -> None:
    assert managed(nn.Sequential(layer())) == names


def test_biases_norms_embeddings_and_noise_strengths_are_left_alone() -> None:
    class NoiseInjection(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.const = nn.Parameter(torch.ones(4, 4, 4))

    class AdaptiveNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4))

    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        NoiseInjection(),
        Stem(),
        nn.LayerNorm((4, 4)),
        nn.Embedding(5, 4),
        AdaptiveNorm(),
    )
    assert managed(net) == ["0.weight"]
    why = reasons(net)
    assert why["4.weight"] == "a norm"
    assert why["5.weight"] == "an embedding"
    assert why["6.weight"] == "a norm"
    assert why["3.const"] == "called 'const' and not weight; name it in include to manage it"


def test_an_embedding_is_managed_when_it_is_named_and_not_by_a_wildcard() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Embedding(5, 4))
    assert managed(net, include=("*", "1.weight")) == ["0.weight", "1.weight"]
    assert managed(net, include=("*", "1")) == ["0.weight", "1.weight"]
    assert managed(net, include=("*", "?.weight")) == ["0.weight"]
    with pytest.raises(RgplugError, match=r"'1\*'.*brings nothing in \(1\.weight: an embedding\); .*'1\.weight'"):
        managed(net, include=("*", "1*"))


def test_a_parameter_with_an_unusual_name_is_managed_when_it_is_named() -> None:
    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.const = nn.Parameter(torch.ones(4, 4, 4))
            self.conv = nn.Conv2d(3, 4, 3)

    assert managed(Stem(), include=("*", "const")) == ["const", "conv.weight"]


class Adaptive(nn.Module):
    """GigaGAN's way: a bank of kernels called `weights`."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(2, 4, 3, 3, 3))
        self.gain = nn.Parameter(torch.ones(1, 4, 1, 1))


def test_every_parameter_of_two_and_more_dims_has_a_row() -> None:
    class Container(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pos_embed = nn.Parameter(torch.zeros(1, 5, 4))
            self.loose = nn.ParameterList([torch.randn(3, 3), torch.randn(3)])
            self.adaptive = Adaptive()
            self.normed = old_wn(nn.Conv2d(3, 4, 3))
            self.new = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
            self.register_buffer("u", torch.randn(4, 4))

    net = Container()
    why = reasons(net)
    assert set(why) == {n for n, p in net.named_parameters() if p.dim() > 1}
    assert {n for n in why if not why[n]} == {"normed.weight_v", "new.parametrizations.weight.original1"}
    assert why["normed.weight_g"] == why["new.parametrizations.weight.original0"] == "the norms of a weight norm"
    assert why["adaptive.gain"] == "one number per channel, as gains and biases have"
    assert all("name it in include" in why[n] for n in ("pos_embed", "loose.0", "adaptive.weights"))


def test_names_of_torchs_attention_and_recurrent_layers_are_weights() -> None:
    """Their layout is known, [out, in], and they hold most of what such a network has."""
    net = nn.ModuleDict(
        {
            "mha": nn.MultiheadAttention(8, 2, add_bias_kv=True),
            "split": nn.MultiheadAttention(8, 2, kdim=4, vdim=4),
            "lstm": nn.LSTM(3, 4, proj_size=2),
            "cell": nn.GRUCell(3, 4),
        }
    )
    assert managed(net) == [n for n, p in net.named_parameters() if p.dim() == 2]
    found = {c.name: c for c in select(net, NetworkPolicy(), "G")}
    layout = found["mha.in_proj_weight"].layout
    assert layout is not None
    assert layout.filters == 24
    assert "gains and biases" in found["mha.bias_k"].reason


def test_a_pattern_that_ends_on_an_unusual_name_brings_it_in() -> None:
    net = nn.ModuleDict({"a": Adaptive(), "b": nn.Conv2d(3, 4, 3)})
    assert managed(net) == ["b.weight"]
    assert managed(net, include=("*.weights",)) == ["a.weights"]
    assert managed(net, include=("*", "*.weights")) == ["a.weights", "b.weight"]
    assert managed(net, include=("*", "a")) == ["a.weights", "b.weight"]
    assert managed(net, include=("*", "a.gain")) == ["a.gain", "b.weight"]
    assert managed(net, include=("*", "*.weights"), exclude=("a",)) == ["b.weight"]
    normed = nn.Sequential(old_wn(nn.Conv2d(3, 4, 3)))
    assert managed(normed, include=("0",)) == ["0.weight_v"]


def test_a_pattern_of_include_without_effect_is_an_error() -> None:
    net = nn.ModuleDict({"a": Adaptive(), "b": nn.Conv2d(3, 4, 3), "c": nn.LazyLinear(3)})
    for pattern, words in (
        ("*weights", r"a\.weights: called 'weights' and not weight.*write a parameter's name, e\.g\. 'a\.weights'"),
        ("a.*", r"a\.weights: called .*a\.gain: one number"),
        ("c", r"c\.weight: lazy .*; take it out"),
    ):
        with pytest.raises(RgplugError, match=rf"include brings nothing in \({words}"):
            managed(net, include=("*", pattern))


def test_a_frozen_layer_whose_weight_is_a_buffer_is_skipped_with_the_reason() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.randn(4, 3))

    net = nn.Sequential(Frozen(), nn.Linear(4, 4))
    assert managed(net) == ["1.weight"]
    assert "buffer" in reasons(net)["0.weight"]


def test_a_weight_shared_by_two_modules_is_one_weight() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    assert managed(net) == ["0.weight", "1.weight"]
    assert reasons(net)["2.weight"] == "shared with 0.weight"


def test_a_module_used_twice_is_one_module() -> None:
    layer = nn.Linear(4, 4)
    assert managed(nn.Sequential(layer, nn.ReLU(), layer)) == ["0.weight"]


def test_include_and_exclude_are_globs_over_parameters_and_modules() -> None:
    net = nn.ModuleDict({"map": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "rgb": nn.Conv2d(2, 3, 1)})
    assert managed(net, include=("map.*",)) == ["map.0.weight", "map.1.weight"]
    assert managed(net, exclude=("rgb",)) == ["map.0.weight", "map.1.weight"]
    assert managed(net, exclude=("*.0.weight",)) == ["map.1.weight", "rgb.weight"]
    assert "excluded by 'rgb'" in reasons(net, exclude=("rgb",))["rgb.weight"]
    assert reasons(net, include=("map.*",))["rgb.weight"] == "not included"


def test_a_pattern_that_matches_nothing_is_an_error_that_names_it_and_an_example() -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    for rules in ({"include": ("*", "conv*")}, {"exclude": ("conv*",)}, {"filter_dim": {"conv*": 1}}):
        with pytest.raises(RgplugError, match=r"'conv\*'.*0\.weight"):
            managed(net, **rules)


def test_a_network_without_weights_is_an_error_that_says_how_to_leave_it_dense() -> None:
    with pytest.raises(RgplugError, match=r"no weight.*networks: \{G: null\}"):
        managed(nn.Sequential(nn.ReLU()))
    with pytest.raises(RgplugError, match=r"excluded by '0'"):
        managed(nn.Sequential(nn.Linear(2, 2)), exclude=("0",))


def test_filter_dim_can_be_named_and_is_checked() -> None:
    net = nn.Sequential(nn.Linear(2, 5))
    (c,) = select(net, NetworkPolicy(filter_dim={"0": 1}), "G")
    assert c.layout is not None
    assert c.layout.filters == 2
    with pytest.raises(RgplugError, match=r"filter_dim 2.*0\.weight.*\[5, 2\]"):
        managed(net, filter_dim={"0": 2})


def test_lazy_modules_are_skipped_until_they_have_a_shape() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.LazyLinear(5))
    assert managed(net) == ["0.weight"]
    assert "lazy" in reasons(net)["1.weight"]
    assert "?" in str(rgplug.attach(net))  # the report can be printed
    with pytest.raises(RgplugError, match="lazy"):
        managed(nn.Sequential(nn.LazyLinear(5)))


def test_wrappers_leave_no_trace_in_the_names() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mapping = nn.DataParallel(nn.Sequential(nn.Linear(3, 4)))
            self.synthesis = torch.compile(nn.Sequential(nn.Conv2d(3, 4, 3)), backend="eager")

    names = ["mapping.0.weight", "synthesis.0.weight"]
    assert managed(Net()) == names
    assert managed(nn.DataParallel(Net())) == names
    assert managed(torch.compile(Net(), backend="eager")) == names


def test_tensors_that_cannot_be_masked_are_skipped() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"), nn.Linear(2, 2, dtype=torch.complex64))
    assert managed(net) == ["0.weight"]
    assert "meta" in reasons(net)["1.weight"]
    assert "complex64" in reasons(net)["2.weight"]


def test_layers_in_the_middle_of_a_class_hierarchy_called_norm_are_still_convolutions() -> None:
    class ConvNormBlock(nn.Conv2d):
        pass

    class SpectralNormLinear(nn.Linear):
        pass

    class WeightNormDense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 3))

    net = nn.Sequential(ConvNormBlock(2, 3, 1), SpectralNormLinear(2, 2), WeightNormDense())
    assert managed(net) == ["0.weight", "1.weight", "2.weight"]


def test_a_convolution_that_somebody_calls_norm_is_a_convolution() -> None:
    class Norm(nn.Conv2d):
        pass

    class PixelNormUp(nn.ConvTranspose2d):
        pass

    class NormBlock(nn.Module):  # its weight has kernels
        def __init__(self, *shape: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(shape))

    class EmbedPatches(nn.Conv2d):
        pass

    net = nn.Sequential(
        Norm(2, 3, 1), PixelNormUp(2, 3, 1), NormBlock(4, 3, 3, 3), NormBlock(1, 4, 3, 3, 3), EmbedPatches(3, 4, 2)
    )
    assert managed(net) == [f"{i}.weight" for i in range(5)]
    gains = nn.Sequential(*(NormBlock(*shape) for shape in ((1, 4, 1, 1), (4, 8, 8), (10, 4), (10, 4, 1, 1))))
    assert set(reasons(nn.Sequential(nn.Linear(2, 2), gains)).values()) == {"", "a norm"}


def test_the_report_shows_every_candidate_with_shape_filter_dim_and_density() -> None:
    G = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.Embedding(3, 4))
    D = nn.Sequential(nn.Linear(4, 2))
    rg = rgplug.attach(G, D)
    rows = [line.split() for line in str(rg).splitlines()]
    assert ["G", "0.weight", "4x3x3x3", "1", "x2", "1.0000", "managed"] in rows
    assert ["G", "1.weight", "3x4", "skipped:", "an", "embedding"] in rows
    assert ["D", "0.weight", "2x4", "0", "1.0000", "managed"] in rows
    assert rg.report() == str(rg)


def test_vectors_by_choice() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.LayerNorm(4), nn.Embedding(5, 4))
    net[2].bias.requires_grad_(False)
    assert managed(net) == ["0.weight"]
    # what is frozen is set aside later, once it is known what trains: see test_frozen.py
    assert managed(net, vectors=True) == ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"]
    assert managed(net, vectors=True, exclude=("*.bias", "2")) == ["0.weight", "1.weight"]


@pytest.mark.parametrize("units", ["absolute", "layer_std", "spectral"])
@pytest.mark.parametrize("kernels", ["auto", "eager"])
def test_vectors_under_thresholds(units: str, kernels: str) -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    policy = {"sparsity_weight": 1.0, "threshold.units": units, "networks.G.vectors": True, "kernels": kernels}
    rg = rgplug.attach(net, None, policy)
    optimizer = torch.optim.Adam(net.parameters(), 5e-2)
    for _ in range(8):
        optimizer.zero_grad()
        net(torch.randn(4, 6)).square().sum().backward()
        optimizer.step()
    bias = next(w for w in rg.weights("G") if w.name == "0.bias")
    assert bias.threshold.shape == (8,)
    assert torch.isfinite(net[0].bias).all()
    assert torch.equal(net[0].bias == 0, ~bias.mask)


def test_a_layer_without_entries_is_a_row_with_a_reason() -> None:
    class Host(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.classes = nn.Linear(5, 0)
            self.fc = nn.Linear(8, 8)

    assert reasons(Host()) == {"classes.weight": "has no entries", "fc.weight": ""}
    with pytest.raises(RgplugError, match="has no entries"):
        reasons(Host(), include=("*", "classes.weight"))
    rg = rgplug.attach(Host(), policy="rg-gan")
    assert rg.density("G") == 1.0
    assert "has no entries" in rg.report()
    rg.detach()

"""MACs of known networks and FLOPs of known schedules."""

import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rgplug.errors import RgplugError
from rgplug.metrics.accounting import LayerMacs, layer_macs, training_flops_per_step

sys.path.insert(0, str(Path(__file__).parents[1]))  # for tests/sngan.py, from whichever folder pytest is started

from sngan import SNGANDiscriminator, SNGANGenerator


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def sngan() -> tuple[LayerMacs, LayerMacs]:
    return layer_macs(SNGANGenerator(), torch.randn(2, 128)), layer_macs(
        SNGANDiscriminator(), torch.randn(2, 3, 32, 32)
    )


def test_sngan_has_the_published_size(sngan):
    assert (parameters(SNGANGenerator()), parameters(SNGANDiscriminator())) == (4_276_739, 1_053_824)
    g, d = sngan
    assert f"{g.total:.3e} {d.total:.3e}" == "1.681e+09 2.721e+08"
    assert g.source == d.source == "fvcore"


def test_sngan_layers_by_hand(sngan):
    g, d = sngan
    assert g.layers["l1"] == 128 * 4096
    assert g.layers["block4.c1"] == 256 * 256 * 9 * 32 * 32
    assert g.layers["block4.c_sc"] == 256 * 256 * 32 * 32
    assert d.layers["block1.c_sc"] == 3 * 128 * 16 * 16  # after pooling
    assert d.layers["block2.c_sc"] == 128 * 128 * 16 * 16  # before pooling
    assert d.layers["l5"] == 128
    assert "b5" not in g.layers  # normalization multiplies nothing that a mask could save
    assert sum(g.layers.values()) == g.total


def test_sngan_width_and_spectral_norm_do_what_they_should():
    small = SNGANGenerator(width=8, z_dim=4)
    assert small(torch.randn(2, 4)).shape == (2, 3, 32, 32)
    d = SNGANDiscriminator(width=8)
    assert d(torch.randn(2, 3, 32, 32)).shape == (2, 1)
    assert all(hasattr(m, "weight_orig") for m in d.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))


class TraceBreaker(nn.Module):
    """conv 2 x 3 x 3 x 3 on 4 x 4, a product without parameters, linear 32 -> 5; refuses to be traced if asked to."""

    def __init__(self, refuse: bool) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 2, 3, padding=1), nn.Linear(32, 5)
        self.body = nn.Sequential(self.conv)
        self.refuse = refuse

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.refuse and torch.jit.is_tracing():
            raise RuntimeError("no tracing")
        h = self.body(x).flatten(2)  # [N, 2, 16]
        h = torch.bmm(torch.bmm(h, h.transpose(1, 2)), h)  # 2 * 64 MACs, no parameters
        return self.fc(h.flatten(1))


@pytest.mark.parametrize(("refuse", "source"), [(False, "fvcore"), (True, "torch.utils.flop_counter")])
def test_both_counters_agree_with_a_count_by_hand(refuse, source):
    found = layer_macs(TraceBreaker(refuse), torch.randn(4, 3, 4, 4))
    assert found.source == source
    assert dict(found.layers) == {"conv": 2 * 3 * 9 * 16, "fc": 32 * 5}
    assert found.total == 864 + 160 + 128
    assert found.flops() == 2 * found.total
    assert found.flops(0.5) == 2 * (0.5 * (864 + 160) + 128)  # what has no parameters cannot be pruned
    assert found.flops({"fc": 0.25}) == 2 * (864 + 40 + 128)
    assert "total" in str(found)
    assert source in str(found)


class Modulated(nn.Module):
    """A convolution by hand, with a child that has parameters too, and a parametrized one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 1, 1))
        self.style = nn.Linear(6, 3)
        self.last = nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 2, 1, bias=False))

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return self.last(F.conv2d(x * self.style(w)[:, :, None, None], self.weight))


def test_a_module_is_charged_for_its_own_work_only_and_parametrized_ones_are_found():
    found = layer_macs(Modulated(), (torch.randn(2, 3, 5, 5), torch.randn(2, 6)))
    assert dict(found.layers) == {"": 3 * 4 * 25, "style": 18, "last": 4 * 2 * 25}


def test_transposed_and_grouped_convolutions():
    assert layer_macs(nn.ConvTranspose2d(6, 4, 4, 2, 1), torch.randn(1, 6, 3, 3)).total == 6 * 4 * 16 * 9
    assert layer_macs(nn.Conv2d(6, 6, 3, padding=1, groups=6), torch.randn(1, 6, 4, 4)).total == 6 * 9 * 16


def test_counting_leaves_no_trace_and_says_nothing(capsys):
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()).train()
    before, state = {n: v.clone() for n, v in net.state_dict().items()}, torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer_macs(net, torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(v, before[n]) for n, v in net.state_dict().items())
    assert all(m.training for m in net.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert capsys.readouterr() == ("", "")


def test_a_forward_that_fails_is_reported():
    with pytest.raises(RgplugError, match="cannot count Linear: its forward failed"):
        layer_macs(nn.Linear(3, 2), torch.randn(1, 4))


# --- training --------------------------------------------------------------------------------------------------

G, D = LayerMacs({"a": 30.0, "b": 20.0}, 50.0, "hand"), LayerMacs({"c": 5.0}, 5.0, "hand")  # F_G = 100, F_D = 10


def test_steps_by_hand():
    found = training_flops_per_step(G, D, batch=4, batch_g=8, n_critic=5)
    assert found.d_step == 3 * 10 * 2 * 4 + 100 * 4
    assert found.g_step == 3 * 100 * 8 + 3 * 10 * 8
    assert found.per_iteration == 5 * found.d_step + found.g_step
    assert found.per_real_image == found.per_iteration / 20
    assert training_flops_per_step(G, D, batch=4).g_step == 3 * 110 * 4


def test_without_the_weight_gradient_of_d():
    found = training_flops_per_step(G, D, batch=4, d_weight_gradient=False)
    assert found.g_step == 3 * 100 * 4 + 2 * 10 * 4


def test_density_scales_what_is_managed_and_dense_gradients_do_not_scale():
    density = {"a": 0.5}  # F_G = 2 (15 + 20) = 70
    sparse = training_flops_per_step(G, D, batch=1, density_g=density)
    assert (sparse.d_step, sparse.g_step) == (60 + 70, 210 + 30)
    dense_gradient = training_flops_per_step(G, D, batch=1, density_g=density, dense_gradient=["G"])
    assert (dense_gradient.d_step, dense_gradient.g_step) == (60 + 70, 140 + 100 + 30)
    both = training_flops_per_step(G, D, batch=1, density_g=density, density_d=0.5, dense_gradient="GD")
    assert (both.d_step, both.g_step) == (2 * (2 * 5 + 10) + 70, 140 + 100 + 2 * 5 + 10)
    frozen = training_flops_per_step(G, D, batch=1, density_d=0.5, dense_gradient="D", d_weight_gradient=False)
    assert frozen.g_step == 300 + 2 * 5


def test_sngan_costs_8_97e9_flops_per_real_image(sngan):
    found = training_flops_per_step(*sngan, batch=64, n_critic=5)
    assert f"{found.per_real_image:.2e}" == "8.97e+09"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch": 0}, "at least 1"),
        ({"batch": 1, "n_critic": 0}, "at least 1"),
        ({"batch": 1, "dense_gradient": ["H"]}, "no network 'H'"),
        ({"batch": 1, "density_g": {"z": 0.5}}, "density of 'z': there is no such layer"),
    ],
)
def test_mistakes_are_named(given, message):
    with pytest.raises(RgplugError, match=message):
        training_flops_per_step(G, D, **given)

"""Nothing that an evaluation touches may differ afterwards."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from rgplug.errors import RgplugError
from rgplug.metrics.isolation import evaluation_mode, preserved_buffers, preserved_rng, swapped_weights
from rgplug.wrappers import unwrap


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002 - what hosts use


def test_random_states_continue_where_they_were():
    with preserved_rng():
        inside = draws()
    assert draws() == inside
    with preserved_rng(3):
        seeded = draws()
    with preserved_rng(3):
        assert draws() == seeded
    with preserved_rng(4):
        assert draws() != seeded


def test_random_states_are_restored_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(KeyError), preserved_rng(1):
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


def test_every_training_flag_comes_back():
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.Dropout(), nn.Linear(2, 2)))
    net[1].eval()
    net[1][0].training = True  # a host's own mixture
    flags = [m.training for m in net.modules()]
    with evaluation_mode(net):
        assert not any(m.training for m in net.modules())
    assert [m.training for m in net.modules()] == flags == [True, True, False, True, False]


def test_buffers_come_back_with_their_bits_and_their_identity():
    net = nn.Sequential(nn.BatchNorm1d(2), nn.utils.spectral_norm(nn.Linear(2, 2)))
    net[1](torch.ones(1, 2))
    before = {n: (b, b.clone()) for n, b in net.named_buffers()}
    left_by_spectral_norm = net[1].weight
    with preserved_buffers(net):
        net(torch.randn(8, 2))
        net[0].running_mean = torch.full((2,), 7.0)  # replaced, not written to
    for name, buffer in net.named_buffers():
        assert buffer is before[name][0]
        assert torch.equal(buffer, before[name][1])
    assert net[1].weight is left_by_spectral_norm


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))


def bits(module: nn.Module) -> dict[str, torch.Tensor]:
    return {n: v.clone() for n, v in module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def averages(module: nn.Module) -> dict[str, object]:
    doubled = {n: v * 2 for n, v in module.state_dict().items()}
    parameters = {n: doubled[n] for n, _ in module.named_parameters()}
    return {
        "state dict": doubled,
        "parameters only": parameters,
        "with DDP's prefix": {f"module.{n}": v for n, v in doubled.items()},
        "with torch.compile's prefix": {f"_orig_mod.{n}": v for n, v in doubled.items()},
        "list": list(parameters.values()),
        "double precision": {n: v.double() for n, v in parameters.items()},
    }


@pytest.mark.parametrize("kind", list(averages(net())))
def test_weights_are_lent_and_given_back_bit_for_bit(kind):
    module = net()
    before, addresses = bits(module), [p.data_ptr() for p in module.parameters()]
    versions = [p._version for p in module.parameters()]
    with swapped_weights(module, averages(module)[kind]):
        for name, parameter in module.named_parameters():
            assert torch.equal(parameter, before[name] * 2)
    assert same(bits(module), before)
    assert [p.data_ptr() for p in module.parameters()] == addresses
    assert [p._version for p in module.parameters()] == versions  # graphs that the host holds stay usable


def test_a_list_may_be_of_the_trained_parameters_only():
    module = net()
    module[0].requires_grad_(False)
    with swapped_weights(module, [torch.full_like(p, 5.0) for p in module.parameters() if p.requires_grad]):
        assert module[2].bias.tolist() == [5.0]
        assert module[0].bias[0].item() != 5.0


def test_tied_weights_may_be_named_twice():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight
    before = bits(module)
    with swapped_weights(module, {n: v + 1 for n, v in before.items()}):
        assert torch.equal(module[1].weight, before["0.weight"] + 1)
    assert same(bits(module), before)


def test_weights_are_given_back_after_an_error():
    module = net()
    before = bits(module)
    with pytest.raises(KeyError), swapped_weights(module, {n: v * 0 for n, v in before.items()}):
        raise KeyError
    assert same(bits(module), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {n: v for n, v in s.items() if n != "2.bias"}, "has no '2.bias'"),
        (lambda s: {**s, "3.bias": torch.ones(1)}, "has '3.bias', which the generator has not"),
        (lambda s: {**s, "2.bias": torch.ones(2)}, r"\(2,\) where the generator has \(1,\)"),
        (lambda s: list(s.values())[:2], "2 tensors for 6 parameters"),
    ],
)
def test_averages_of_another_network_are_refused_before_anything_is_written(change, message):
    module = net()
    before = bits(module)
    with pytest.raises(RgplugError, match=message), swapped_weights(module, change(bits(module))):
        pass
    assert same(bits(module), before)


def test_unwrap_takes_wrappers_off_but_not_a_body_called_module():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

    own = Own()
    assert unwrap(own) is own
    assert unwrap(nn.DataParallel(own)) is own
    assert unwrap(torch.compile(own)) is own
    assert isinstance(unwrap(AveragedModel(own)), Own)

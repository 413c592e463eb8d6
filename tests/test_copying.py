"""Deep copies of networks that hold tensors of a graph: after a training step, and fresh ones under weight norm."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rgplug
from rgplug.copying import copy_network
from rgplug.errors import RgplugError


def old(norm: Callable[..., Any], layer: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return norm(layer)


class Keeping(nn.Module):
    """Keeps what it computed, in an attribute, in a list, in a buffer, and in a module that is no child."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("mean", torch.zeros(2))
        self.hidden = [nn.Identity()]

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        self.last, self.all, self.mean = y, {"y": [y]}, y.mean(0)
        self.hidden[0].last = y
        return y


def test_tensors_with_a_graph_are_copied_without_it() -> None:
    net = Keeping()
    y = net(torch.ones(1, 2))
    with pytest.raises(RuntimeError):
        copy.deepcopy(net)
    copied = copy_network(net)
    assert torch.equal(copied.last, y)
    assert copied.last.grad_fn is None
    assert copied.all["y"][0] is copied.last  # one tensor stays one tensor
    assert copied.last is not net.last
    assert torch.equal(copied.mean, y[0])
    assert torch.equal(copied.hidden[0].last, y)
    assert net.last.grad_fn is not None
    assert torch.equal(copied.layer.weight, net.layer.weight)
    assert copied.layer.weight is not net.layer.weight


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_export_right_after_a_training_step(norm: Callable[..., Any]) -> None:
    G = nn.Sequential(old(norm, nn.Linear(4, 6)), nn.Tanh(), old(norm, nn.Linear(6, 4)))
    optimizer = torch.optim.Adam(G.parameters(), 1e-2)
    with rgplug.attach(G, None, {"base": "sparse", "masks.density": 0.5}) as rg:
        for _ in range(2):
            G(torch.randn(3, 4)).square().sum().backward()
            optimizer.step()
        baked = rg.export()
        x = torch.randn(3, 4)
        assert torch.equal(baked(x), G.eval()(x))
        stored = "weight_v" if norm is nn.utils.weight_norm else "weight_orig"
        assert (getattr(baked[0], stored) == 0).sum() == 12


def test_a_fresh_network_under_old_weight_norm_can_be_checked() -> None:
    """HiFi-GAN's generator: the weight that was computed at construction has a graph before the first forward."""
    G = nn.Sequential(old(nn.utils.weight_norm, nn.Linear(4, 6)), nn.LeakyReLU(), nn.Linear(6, 4))
    with pytest.raises(RuntimeError):
        copy.deepcopy(G)
    report = rgplug.check(G, make_batch=lambda: (torch.randn(3, 4), None))
    assert report.ok, str(report)
    G(torch.randn(3, 4))
    report = rgplug.check(G, make_batch=lambda: (torch.randn(3, 4), None))
    assert report.ok, str(report)


def test_what_cannot_be_copied_is_an_error_with_a_way_out() -> None:
    class Uncopyable(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("holds\na file")

    G = nn.Sequential(Uncopyable(4, 4))
    with rgplug.attach(G) as rg, pytest.raises(RgplugError, match=r"cannot be copied \(holds a file\); .*save_sparse"):
        rg.export()

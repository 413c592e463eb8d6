"""A layer that would be empty, and the norms that would divide by nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from common import FIXED, adam, linear, pruned_at
from torch import Tensor, nn

import rgplug


def test_the_guard_by_hand() -> None:
    """A layer that keeps 1 of 100 is reset, one that keeps 2 is not; other layers are left alone."""
    for kept, reset in ((1, True), (2, False)):
        rows = [[9.0] * kept + [0.5] * (100 - kept)]
        G = nn.Sequential(linear(rows), linear([[9.0, 0.5]]))
        rg = rgplug.attach(G, policy=FIXED)
        pruned_at(rg, "G", 1.0)
        assert rg.weights("G")[0].density == pytest.approx(1.0 if reset else 0.02)
        assert rg.weights("G")[0].threshold.item() == (0 if reset else 1)
        assert rg.weights("G")[1].density == 0.5
        rg.detach()


def filters(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.LazyLinear(1))


def old(norm: Any, **options: Any) -> Callable[[nn.Module], nn.Module]:
    def wrap(layer: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return norm(layer, **options)

    return wrap


NORMED: dict[str, Callable[[], nn.Module]] = {
    "old spectral": lambda: old(nn.utils.spectral_norm)(nn.Conv2d(3, 6, 3)),
    "new spectral": lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 6, 3)),
    "old spectral, transposed": lambda: old(nn.utils.spectral_norm)(nn.ConvTranspose2d(3, 6, 3)),
    "old weight norm": lambda: old(nn.utils.weight_norm)(nn.Conv2d(3, 6, 3)),
    "new weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 3)),
    "new weight norm, grouped": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 3, groups=3)),
    "weight norm of all": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 3), dim=None),
    # weight norm takes dim 0, which is the input of a transposed convolution (HiFi-GAN's up-sampling)
    "old weight norm, transposed": lambda: old(nn.utils.weight_norm)(nn.ConvTranspose2d(3, 6, 3)),
    "new weight norm, transposed": lambda: nn.utils.parametrizations.weight_norm(nn.ConvTranspose2d(3, 6, 3)),
    "new weight norm, transposed, dim 1": lambda: nn.utils.parametrizations.weight_norm(
        nn.ConvTranspose2d(3, 6, 3), dim=1
    ),
    "new weight norm, transposed, grouped": lambda: nn.utils.parametrizations.weight_norm(
        nn.ConvTranspose2d(3, 6, 3, groups=3)
    ),
}


@pytest.mark.parametrize("name", NORMED)
@pytest.mark.parametrize("method", ["regularizer", "target"])
def test_an_empty_layer_never_reaches_a_forward(name: str, method: str) -> None:
    torch.manual_seed(0)
    G = filters(NORMED[name]())
    x = torch.randn(4, 3, 6, 6)
    G(x)
    if name.endswith("transposed"):
        with torch.no_grad():  # one row of much smaller weights than the others
            for p in G[0].parameters():
                if p.dim() == 4 and p.shape[1] == 6 and p.shape[2] == 3:
                    p[1] *= 1e-3
    opt = adam(G, lr=0.02)
    policy: dict[str, Any] = {"sparsity_weight": 1e6}
    if method == "target":
        policy = {"target": {"G": 0.05, "by": 3}}
    rg = rgplug.attach(G, policy=policy)
    least = 1.0
    for step in range(30):
        opt.zero_grad()
        out = G(x)
        assert torch.isfinite(out).all(), f"step {step}"
        out.square().mean().backward()
        opt.step()
        for w in rg.weights("G"):
            assert w.mask.any()
            assert torch.isfinite(w.param).all()
        least = min(least, rg.density("G"))
    assert least < 0.9


def test_a_hand_written_spectral_norm_is_safe_too() -> None:
    class SN(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            sigma = torch.linalg.matrix_norm(self.weight.flatten(1), 2)
            return F.conv2d(x, self.weight / sigma, self.bias)

    G = filters(SN(3, 6, 3))
    x = torch.randn(4, 3, 6, 6)
    G(x)
    opt = adam(G, lr=0.05)
    rgplug.attach(G, policy={"sparsity_weight": 1e6})
    for _ in range(30):
        opt.zero_grad()
        G(x).square().mean().backward()
        opt.step()
        assert torch.isfinite(G(x)).all()


def test_sigma_is_that_of_the_sparse_matrix() -> None:
    torch.manual_seed(0)
    D = nn.utils.parametrizations.spectral_norm(nn.Linear(16, 16), n_power_iterations=50)
    rg = rgplug.attach(D)
    pruned_at(rg, "G", 0.15)
    assert rg.density("G") < 0.6
    D(torch.ones(1, 16))
    assert torch.linalg.matrix_norm(D.weight, 2).item() == pytest.approx(1, abs=1e-3)

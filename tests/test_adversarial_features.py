"""AdvAug: features moved by the sign of a gradient, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from common import linear
from torch import Tensor, nn

from rgplug import RgplugError
from rgplug.baselines import AdversarialFeatures

X = torch.tensor([[1.0, 2.0]])


def discriminator() -> nn.Sequential:
    """x -> (x1, x2) -> 3 x1 - x2."""
    return nn.Sequential(linear([[1.0, 0.0], [0.0, 1.0]]), linear([[3.0, -1.0]]))


def real(score: Tensor) -> Tensor:
    return (4 - score).mean()  # a hinge that is active


def fake(score: Tensor) -> Tensor:
    return (4 + score).mean()


@pytest.mark.parametrize(
    ("loss", "direction", "moved"),
    [
        (real, "adversarial", 1 - 0.1 * 4),  # the score falls, the loss of a real image rises
        (fake, "adversarial", 1 + 0.1 * 4),
        (real, "released", 1 + 0.1 * 4),  # the score rises in all places
        (fake, "released", 1 + 0.1 * 4),
    ],
)
def test_by_hand(loss: Any, direction: Any, moved: float) -> None:
    """The score is 3 - 2 = 1; a step of 0.1 along the sign of (3, -1) changes it by 0.4."""
    D = discriminator()
    features = AdversarialFeatures(D[1], 0.1, direction)
    value = features.loss(lambda: D(X), loss)
    clean, other = loss(torch.tensor(1.0)), loss(torch.tensor(moved))
    assert value.item() == pytest.approx((0.5 * (clean + other)).item())
    assert not D[1]._forward_pre_hooks
    assert (other > clean) == (direction == "adversarial" or loss is fake)


def test_gradients_reach_all_layers_through_both_halves() -> None:
    D = discriminator()
    AdversarialFeatures(D[1], 0.1).loss(lambda: D(X), fake).backward()
    # 0.5 (h + h + step) for the last layer, the last layer's weight times x for the first
    assert D[1].weight.grad.flatten().tolist() == pytest.approx([1.05, 1.95])
    assert D[0].weight.grad.tolist() == [[3.0, 6.0], [-1.0, -2.0]]


def test_the_generator_s_half() -> None:
    """Features of G behind its first layer; only G learns from it."""
    G, D = nn.Sequential(linear([[1.0, 0.0], [0.0, 1.0]]), nn.Identity()), discriminator()
    loss = AdversarialFeatures(G[1], 0.1).loss(lambda: D(G(X)), lambda score: -score.mean())
    assert loss.item() == pytest.approx(0.5 * (-1.0 - 0.6))


@pytest.mark.parametrize(
    ("layer", "sentence"), [(linear([[1.0, 1.0]]), "did not pass through the layer"), (None, "have no gradient")]
)
def test_layers_that_do_not_fit(layer: Any, sentence: str) -> None:
    D = discriminator()
    with pytest.raises(RgplugError, match=sentence):
        AdversarialFeatures(D[0] if layer is None else layer).loss(lambda: D(X), fake)

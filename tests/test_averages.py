"""Sparse moving averages by hand (STU-GAN, Eq. 5)."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import rgplug
from rgplug import RgplugError
from rgplug.methods.averages import average_, sparse_average_


def test_sema_by_hand() -> None:
    average = torch.zeros(4)
    steps = [  # weight, mask, average after it with beta 0.5
        ([1.0, 2.0, 0.0, 4.0], [1, 1, 0, 1], [1.0, 2.0, 0.0, 4.0]),  # the first active step takes the weight itself
        ([3.0, 0.0, 6.0, 4.0], [1, 0, 1, 1], [2.0, 0.0, 6.0, 4.0]),  # pruned: 0; grown: the weight itself
        ([3.0, 8.0, 0.0, 0.0], [1, 1, 1, 1], [2.5, 8.0, 3.0, 2.0]),  # back again: begins anew
    ]
    for weight, mask, expected in steps:
        sparse_average_(average, torch.tensor(weight), torch.tensor(mask) > 0, 0.5)
        assert average.tolist() == expected
    # a weight that grew at value 0 stays new until it moves
    average = torch.zeros(1)
    for weight, expected in ((0.0, 0.0), (0.0, 0.0), (2.0, 2.0), (4.0, 3.0)):
        assert sparse_average_(average, torch.tensor([weight]), torch.tensor([True]), 0.5).item() == expected


def test_ordinary_average() -> None:
    assert average_(torch.tensor([1.0]), torch.tensor([3.0]), 0.75).item() == 1.5
    assert average_(torch.tensor(3), torch.tensor(7), 0.75).item() == 7


def test_an_average_of_a_network() -> None:
    G = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    rg = rgplug.attach(G, None, {"base": "sparse", "masks.density": 0.5})
    (weight,) = rg.weights("G")
    ema = copy.deepcopy(G)
    with torch.no_grad():
        G[0].weight.mul_(3)
        G[0].bias.add_(1)
    before = ema[0].weight.clone(), ema[0].bias.clone()
    G(torch.randn(8, 4))
    assert rg.ema(ema, 0.9) is ema
    assert not ema[0].weight[~weight.mask].any()
    torch.testing.assert_close(ema[0].weight, 0.9 * before[0] + 0.1 * G[0].weight)
    torch.testing.assert_close(ema[0].bias, before[1] + 0.1)
    torch.testing.assert_close(ema[1].running_mean, 0.1 * G[1].running_mean)
    assert ema[1].num_batches_tracked == 1
    with torch.no_grad():
        ema[0].weight.fill_(1)  # as an average over other masks would be
    rg.ema(ema, 0.9)
    assert not ema[0].weight[~weight.mask].any()
    with pytest.raises(RgplugError, match=r"the average has no 0.weight of shape \[3, 4\]"):
        rg.ema(nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)), 0.9)
    with pytest.raises(RgplugError, match="ema got beta 1"):
        rg.ema(ema, 1.0)

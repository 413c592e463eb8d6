"""A network small enough to work out by hand, for the tests of the oracles."""

import numpy as np
import torch
from torch import nn


class Weights(nn.Module):
    """Two weights 'a', 'b' and a bias, without a forward: the losses below are linear in them."""

    def __init__(self, a, b, bias=(0.0,)):
        super().__init__()
        self.a, self.b, self.bias = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (a, b, bias))


def linear(a, b, bias=(0.0,)):
    """A loss whose gradients are the given values; under constant gradients Adam moves lr * sign."""
    a, b, bias = (torch.tensor(v, dtype=torch.float64) for v in (a, b, bias))
    return lambda net: (net.a * a).sum() + (net.b * b).sum() + (net.bias * bias).sum()


def bits(*rows):
    return np.array(rows, dtype=bool)


def same(masks, expected):
    assert set(masks) == set(expected)
    for name, mask in expected.items():
        np.testing.assert_array_equal(masks[name], mask, err_msg=name)

"""Adam of the oracles, by hand and against torch's."""

import numpy as np
import pytest
import torch
from oracle_training import Adam, masked_step, moments_of, read_parameters
from torch import nn
from two_weights import Weights


def test_adam_by_hand():
    adam = Adam(0.1, (0.5, 0.9))
    value = adam.update("w", np.array([1.0]), np.array([2.0]))
    np.testing.assert_allclose(value, 0.9, atol=1e-8)  # m_hat 2, v_hat 4
    value = adam.update("w", value, np.array([0.0]))
    # m 0.5 / 0.75, v 0.36 / 0.19: 0.1 * 0.66667 / 1.37649
    np.testing.assert_allclose(value, 0.9 - 0.0484322, atol=1e-7)
    np.testing.assert_allclose([adam.m["w"][0], adam.v["w"][0], adam.t["w"]], [0.5, 0.36, 2])


@pytest.mark.parametrize("betas", [(0.0, 0.9), (0.5, 0.999)])
def test_adam_equals_torch_and_continues_its_moments(betas):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 1)).double()
    twin = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 1)).double()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01, betas=betas)
    images = torch.randn(8, 5, 2, 4, 4, dtype=torch.float64)
    for i, x in enumerate(images):
        if i == 4:
            twin.load_state_dict(net.state_dict())
            adam = Adam(0.01, betas, moments_of(net, optimizer))
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
        if i >= 4:
            masked_step(twin, {}, adam, lambda n, x=x: n(x).square().mean())
    assert adam.t["0.weight"] == 8
    for name, value in read_parameters(net).items():
        np.testing.assert_allclose(read_parameters(twin)[name], value, rtol=1e-12, atol=1e-14)


def test_a_parameter_without_gradient_is_left_alone():
    net = Weights([[1.0]], [[2.0]])
    adam = Adam(0.1, (0.5, 0.9))
    masked_step(net, {}, adam, lambda n: n.a.sum())
    assert set(adam.t) == {"a"}
    assert net.b.item() == 2.0

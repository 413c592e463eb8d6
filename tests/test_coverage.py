"""Which share of a network is managed: one line at attach, a line of the report, a warning where it is small."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
from torch import nn

import rgplug
from rgplug.coverage import coverage


class Adaptive(nn.Module):
    """GigaGAN's way: nearly all numbers are in a bank of kernels called `weights`."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(2, 4, 4, 3, 3))  # 288
        self.to = nn.Linear(2, 4)  # 8 + 4

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.to(z) * self.weights.mean()


def test_one_line_at_attach_and_in_the_report(caplog: pytest.LogCaptureFixture) -> None:
    G, D = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), nn.Linear(4, 1)  # 12 of 24, 4 of 5
    with warnings.catch_warnings(), caplog.at_level(logging.INFO, "rgplug"):
        warnings.simplefilter("error")
        rg = rgplug.attach(G, D)
    line = "G 50.0% of 24 parameters managed, D 80.0% of 5 parameters managed"
    assert [r.message for r in caplog.records] == [line]
    assert line in rg.report().splitlines()


def test_a_small_share_is_warned_of_with_what_to_do() -> None:
    with pytest.warns(UserWarning, match=r"only 2\.7% of the 300 parameters of G") as caught:
        rg = rgplug.attach(Adaptive())
    text = str(caught[0].message)
    assert "weights 2x4x4x3x3 (called 'weights' and not weight" in text
    assert "networks: {G: {include: ['*', 'weights']}}" in text
    assert caught[0].filename == __file__
    rg.detach()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rg = rgplug.attach(Adaptive(), None, {"networks": {"G": {"include": ["*", "weights"]}}})
    assert {w.name for w in rg.weights("G")} == {"weights", "to.weight"}


def test_what_the_policy_leaves_out_and_what_trains_dense_is_no_surprise() -> None:
    net = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for policy in ({"networks": {"G": {"exclude": ["0"]}}}, {"networks": {"G": {"include": ["1"]}}}):
            with rgplug.attach(net, None, policy) as rg:
                assert "G 9.0% of 100 parameters managed" in rg.report()
        rgplug.attach(Adaptive(), None, "dense")


def test_shared_and_lazy_parameters() -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False), nn.LazyLinear(3))
    net[1].weight = net[0].weight
    with rgplug.attach(net) as rg:
        found = coverage(net, rg.candidates["G"])
    assert (found.total, found.managed, found.left_out) == (4, 4, 0)

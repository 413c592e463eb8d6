"""Re-GAN's prune and grow phases, against an oracle in numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_sparse import batches, loss_of, network
from torch import nn

import rgplug
from rgplug import Policy, RgplugError
from rgplug.methods.prune_grow import is_sparse, smallest
from rgplug.policy import CyclePolicy

POLICY = {"base": "re-gan", "cycle.warm_up": 10, "cycle.period": 15, "cycle.sparsity": 0.4}


class Oracle:
    """Plain numpy: the quantile by numpy, Adam written out, phases by counting."""

    def __init__(self, net: nn.Module, warm_up: int) -> None:
        self.net, self.t, self.warm_up = net, 0, warm_up
        self.pruned = {k: np.zeros(p.shape, bool) for k, p in net.named_parameters() if p.dim() > 1}
        self.m = {k: np.zeros(p.shape) for k, p in net.named_parameters()}
        self.v = {k: np.zeros(p.shape) for k, p in net.named_parameters()}

    def phase(self, t: int) -> str:
        if t <= self.warm_up:
            return "warm-up"
        return "sparse" if (t - self.warm_up - 1) % 30 < 15 else "dense"

    def step(self, x: torch.Tensor) -> None:
        self.net.zero_grad()
        loss_of(self.net, x).backward()
        self.t += 1
        phase, lr = self.phase(self.t), 1e-2
        lr = lr * 0.1 if phase == "dense" else lr
        for k, p in self.net.named_parameters():
            w, g = p.detach().numpy().copy(), p.grad.numpy().copy()
            if k in self.pruned and phase == "sparse":
                g[self.pruned[k]] = 0
            self.m[k] = 0.5 * self.m[k] + 0.5 * g
            self.v[k] = 0.999 * self.v[k] + 0.001 * g * g
            w -= lr * (self.m[k] / (1 - 0.5**self.t)) / (np.sqrt(self.v[k] / (1 - 0.999**self.t)) + 1e-8)
            if k in self.pruned:
                if phase == "sparse":
                    w[self.pruned[k]] = 0
                if self.phase(self.t + 1) == "sparse" != phase:
                    self.pruned[k] = np.abs(w) < np.quantile(np.abs(w), 0.4)
                    w[self.pruned[k]] = 0
                elif self.phase(self.t + 1) != "sparse":
                    self.pruned[k][:] = False
            with torch.no_grad():
                p.copy_(torch.from_numpy(w))


@pytest.mark.parametrize("kernels", ["auto", "eager"])
def test_re_gan_equals_the_oracle(kernels: str) -> None:
    ours, theirs = network(), network()
    rg = rgplug.attach(ours, None, {**POLICY, "kernels": kernels})
    oracle = Oracle(theirs, 10)
    optimizer = torch.optim.Adam(ours.parameters(), 1e-2, betas=(0.5, 0.999))
    densities = []
    for i, x in enumerate(batches(100)):
        optimizer.zero_grad()
        loss_of(ours, x).backward()
        optimizer.step()
        oracle.step(x)
        assert optimizer.param_groups[0]["lr"] == 1e-2
        for w in rg.weights("G"):
            assert np.array_equal(w.mask.numpy(), ~oracle.pruned[w.name]), (i, w.name)
        for (k, a), b in zip(ours.named_parameters(), theirs.parameters()):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9, msg=f"{i} {k}")
            for key, moments in (("exp_avg", oracle.m), ("exp_avg_sq", oracle.v)):
                np.testing.assert_allclose(optimizer.state[a][key].numpy(), moments[k], rtol=0, atol=1e-9)
        densities.append(rg.density("G"))
    assert densities[:9] == [1.0] * 9
    assert densities[9:24] == [pytest.approx(0.6, abs=2e-3)] * 15
    assert densities[24:39] == [1.0] * 15
    assert densities[39] == pytest.approx(0.6, abs=2e-3)


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.3, 0.5, 0.77])
@pytest.mark.parametrize("n", [5, 11, 100, 101])
def test_smallest_are_those_below_the_quantile(n: int, sparsity: float) -> None:
    theta = torch.randn(n, dtype=torch.float64)
    below = theta.abs() < torch.quantile(theta.abs(), sparsity)
    assert torch.equal(smallest(theta, sparsity), below)


def test_equal_magnitudes_are_not_below_their_quantile() -> None:
    assert not smallest(torch.ones(10), 0.3).any()
    theta = torch.tensor([0.0, -1.0, 1.0, 1.0, 2.0])
    assert smallest(theta, 0.5).tolist() == [True, False, False, False, False]


def test_gains_and_biases_by_choice() -> None:
    """As the released code has it: nothing at first, where gains are 1 and biases 0; then their smallest."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 4))
    policy = {
        "base": "re-gan",
        "cycle.warm_up": 0,
        "cycle.period": 3,
        "cycle.sparsity": 0.5,
        "networks.G.vectors": True,
    }
    rg = rgplug.attach(net, None, policy)
    names = ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]
    assert [w.name for w in rg.weights("G")] == names
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for step in range(9):
        optimizer.zero_grad()
        net(torch.randn(16, 8)).square().sum().backward()
        optimizer.step()
        density = {w.name: w.density for w in rg.weights("G")}
        if step == 0:
            assert (density["1.weight"], density["1.bias"]) == (1.0, 1.0)
        if step in (5, 6, 7):
            assert density["1.weight"] == density["0.bias"] == 0.5
            assert int((net[1].weight == 0).sum()) == 8
    assert "no longer pruned" not in str(rg.end_epoch(1.0))
    rg.detach()
    assert type(net[0]) is nn.Linear


def test_phases() -> None:
    policy = CyclePolicy(warm_up=2, period=3)
    assert [is_sparse(policy, i) for i in range(1, 12)] == [False] * 2 + [True] * 3 + [False] * 3 + [True] * 3
    assert is_sparse(CyclePolicy(warm_up=0, period=3), 1)


def test_without_warm_up_the_first_step_is_sparse_on_the_weights_the_host_loaded() -> None:
    net = network()
    rg = rgplug.attach(net, None, {**POLICY, "cycle.warm_up": 0})
    with torch.no_grad():
        net[3].weight.copy_(torch.linspace(1, 2, net[3].weight.numel()).view_as(net[3].weight))
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    loss_of(net, batches(1)[0]).backward()
    optimizer.step()
    linear = rg.weights("G")[1]
    assert linear.mask.reshape(-1).int().diff().abs().sum() == 1  # the smallest come first
    assert linear.density == pytest.approx(0.6, abs=2e-3)
    managed = rg.networks["G"].counts
    assert managed.pruned.sum() == managed.numel.sum() - managed.kept.sum() > 0
    assert managed.regrown.sum() == 0


def test_d_stays_dense_and_schedulers_go_on() -> None:
    G, D = network(), network()
    rg = rgplug.attach(G, D, {**POLICY, "cycle.warm_up": 1, "cycle.period": 1})
    optimizers = [torch.optim.SGD(net.parameters(), 1.0) for net in (G, D)]
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in optimizers]
    seen = []
    for x in batches(4):
        for net, optimizer, scheduler in zip((G, D), optimizers, schedulers):
            optimizer.zero_grad()
            loss_of(net, x).backward()
            before = net[0].bias.detach().clone()
            optimizer.step()
            seen.append(((before - net[0].bias.detach()) / net[0].bias.grad).mean().item())
            scheduler.step()
    assert seen[0::2] == pytest.approx([1.0, 0.5, 0.25 * 0.1, 0.125])  # warm-up, sparse, dense, sparse
    assert seen[1::2] == pytest.approx([1.0, 0.5, 0.25, 0.125])
    assert rg.density("D") == 1


def test_a_resume_is_exact(tmp_path: Path) -> None:
    steps, nets = batches(40), [network(), network()]
    optimizers = [torch.optim.SGD(net.parameters(), 0.1) for net in nets]

    def train(i: int, some: list[torch.Tensor]) -> None:
        for x in some:
            optimizers[i].zero_grad()
            loss_of(nets[i], x).backward()
            optimizers[i].step()

    rg = rgplug.attach(nets[0], None, POLICY, optimizers=[optimizers[0]])
    train(0, steps[:18])
    rg.save(tmp_path / "state.safetensors")
    host = {k: v.clone() for k, v in nets[0].state_dict().items()}
    train(0, steps[18:])
    resumed = rgplug.attach(nets[1], None, POLICY, optimizers=[optimizers[1]])
    nets[1].load_state_dict(host)
    resumed.load(tmp_path / "state.safetensors")
    train(1, steps[18:])
    for a, b in zip(rg.weights("G"), resumed.weights("G")):
        assert torch.equal(a.mask, b.mask)
        assert torch.equal(a.data, b.data)


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        ({"method": "re-gan", "regeneration": True}, "augmented has no meaning with method: re-gan"),
        ({"base": "re-gan", "target": {"G": 0.5}}, r"give cycle: \{sparsity"),
        ({"base": "re-gan", "cycle.sparsity": 1.0}, "policy.cycle.sparsity is 1"),
        ({"base": "re-gan", "cycle.networks": ["F"]}, "policy.cycle.networks.F names no network"),
    ],
)
def test_bad_policies(policy: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RgplugError, match=sentence):
        Policy.load(policy)

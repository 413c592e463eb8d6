"""Static sparse training and exploration (SET, RigL, STU-GAN), against an oracle in numpy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import rgplug
from rgplug import Policy, RgplugError
from rgplug.methods.sparse import drop_fraction, explore
from rgplug.policy import ExplorationPolicy

STU = {"base": "stu-gan", "masks.density": 0.3, "masks.distribution": "erk"}
SHORT = {"exploration.every": 10, "exploration.end": 80}


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(8 * 36, 5)).double()


def batches(steps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, 8, 8, generator=generator, dtype=torch.float64) for _ in range(steps)]


def loss_of(net: nn.Module, x: Tensor) -> Tensor:
    return (net(x) - 1).square().mean()


class Oracle:
    """Adam and the exchange of weights, in numpy, from the papers: keep what is above the k-th smallest magnitude, with
    k the inactive and ceil(p active) more; of what is then inactive, the largest dense gradients grow, at value 0
    unless just dropped."""

    def __init__(self, net: nn.Module, masks: dict[str, NDArray[np.bool_]], reset: bool):
        self.net, self.masks, self.reset, self.t = net, masks, reset, 0
        self.m = {k: np.zeros(v.shape) for k, v in masks.items()}
        self.v = {k: np.zeros(v.shape) for k, v in masks.items()}
        self.put({k: p.detach().numpy() * masks[k] for k, p in net.named_parameters() if k in masks})

    def put(self, values: dict[str, NDArray[np.float64]]) -> None:
        with torch.no_grad():
            for k, p in self.net.named_parameters():
                if k in values:
                    p.copy_(torch.from_numpy(values[k]))

    def step(self, x: Tensor, every: int, end: int) -> None:
        self.net.zero_grad()
        loss_of(self.net, x).backward()
        self.t += 1
        for k, p in self.net.named_parameters():
            dense, w = p.grad.numpy().copy(), p.detach().numpy().copy()
            mask = self.masks.get(k, np.ones(w.shape, bool))
            g = dense * mask
            m = self.m[k] = 0.5 * self.m.get(k, np.zeros(w.shape)) + 0.5 * g
            v = self.v[k] = 0.999 * self.v.get(k, np.zeros(w.shape)) + 0.001 * g * g
            w -= 1e-2 * (m / (1 - 0.5**self.t)) / (np.sqrt(v / (1 - 0.999**self.t)) + 1e-8)
            w *= mask
            if k in self.masks and self.t % every == 0 and self.t < end:
                p_t = 0.005 + 0.495 * (1 + math.cos(math.pi * self.t / end)) / 2
                active = int(mask.sum())
                drop = math.ceil(p_t * active)
                level = np.sort(np.abs(w).ravel())[mask.size - active + drop - 1]
                kept = mask & (np.abs(w) > level)
                new = np.where(kept, -np.inf, np.abs(dense)).ravel().argsort()[::-1][:drop]
                grown = kept.copy()
                grown.ravel()[new] = True
                changed = grown != mask
                if self.reset:
                    self.m[k][changed] = self.v[k][changed] = 0
                self.masks[k] = grown
                w *= grown
            self.put({k: w})


@pytest.mark.parametrize("reset", [False, True], ids=["keep", "reset"])
@pytest.mark.parametrize("kernels", ["auto", "eager"])
def test_stu_gan_equals_the_oracle(kernels: str, reset: bool) -> None:
    ours, theirs = network(), network()
    policy = {**STU, **SHORT, "kernels": kernels, "optimizer_state": "reset" if reset else "keep"}
    rg = rgplug.attach(ours, None, policy)
    weights = rg.weights("G")
    first = {w.name: w.mask.numpy().copy() for w in weights}
    counts = {k: int(v.sum()) for k, v in first.items()}
    assert sum(counts.values()) == round(0.3 * sum(w.numel for w in weights))
    oracle = Oracle(theirs, {k: v.copy() for k, v in first.items()}, reset)
    optimizer = torch.optim.Adam(ours.parameters(), 1e-2, betas=(0.5, 0.999))
    for i, x in enumerate(batches(100)):
        optimizer.zero_grad()
        loss_of(ours, x).backward()
        optimizer.step()
        oracle.step(x, every=10, end=80)
        for w in weights:
            assert np.array_equal(w.mask.numpy(), oracle.masks[w.name]), (i, w.name)
            assert int(w.mask.sum()) == counts[w.name]
            assert not w.data[~w.mask].any()
        for (k, a), b in zip(ours.named_parameters(), theirs.parameters()):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9, msg=f"{i} {k}")
    moved = sum(int((w.mask.numpy() != first[w.name]).sum()) for w in weights)
    assert moved > 0.2 * sum(counts.values())
    for w in weights:
        state = optimizer.state[w.param]
        np.testing.assert_allclose(state["exp_avg"].numpy(), oracle.m[w.name], rtol=0, atol=1e-12)
        np.testing.assert_allclose(state["exp_avg_sq"].numpy(), oracle.v[w.name], rtol=0, atol=1e-12)
    regrown, pruned = rg.networks["G"].counts.regrown.sum(), rg.networks["G"].counts.pruned.sum()
    assert regrown == pruned > moved / 2


@pytest.mark.parametrize("preset", ["sparse", "set", "rigl", "stu-gan"])
def test_counts_never_change_and_only_explorers_move(preset: str) -> None:
    G, D = network(), network()
    policy: dict[str, Any] = {"base": preset, "masks.density": {"G": 0.2, "D": 0.4}}
    if preset != "sparse":
        policy.update(SHORT)
    rg = rgplug.attach(G, D, policy)
    before = {(n, w.name): w.mask.clone() for n in "GD" for w in rg.weights(n)}
    optimizers = [torch.optim.Adam(net.parameters(), 1e-2, betas=(0.5, 0.999)) for net in (G, D)]
    for x in batches(25):
        for net, optimizer in zip((G, D), optimizers):
            optimizer.zero_grad()
            loss_of(net, x).backward()
            optimizer.step()
    assert rg.density() == {"G": pytest.approx(0.2, abs=1e-3), "D": pytest.approx(0.4, abs=1e-3)}
    explorers = {"sparse": "", "set": "GD", "rigl": "GD", "stu-gan": "G"}[preset]
    for (n, name), mask in before.items():
        (w,) = (w for w in rg.weights(n) if w.name == name)
        assert w.mask.sum() == mask.sum()
        assert torch.equal(w.mask, mask) is (n not in explorers)


def test_exchange_by_hand() -> None:
    theta = torch.tensor([0.5, -0.1, 0.3, 0.0, 0.0, 0.0])
    mask = torch.tensor([True, True, True, False, False, False])
    score = torch.tensor([9.0, 0.1, 0.1, 0.3, 0.2, 0.4])
    assert explore(theta, mask, score, 1).tolist() == [True, False, True, False, False, True]
    assert explore(theta, mask, score, 2).tolist() == [True, False, False, True, False, True]
    # the smallest weight has the largest gradient: it is dropped and comes back, with its value
    back = torch.tensor([0.0, 9.0, 0.0, 0.1, 0.2, 0.3])
    assert explore(theta, mask, back, 1).tolist() == mask.tolist()
    assert explore(theta, mask, score, 0).tolist() == mask.tolist()


def test_drop_fraction_by_hand() -> None:
    policy = ExplorationPolicy(fraction=0.5, final=0.1, end=100)
    found = [drop_fraction(policy, step) for step in (0, 50, 100, 200)]
    assert found == pytest.approx([0.5, 0.3, 0.1, 0.1])


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: list[Tensor]) -> None:
    for x in steps:
        optimizer.zero_grad()
        loss_of(net, x).backward()
        optimizer.step()


@pytest.mark.parametrize("grow", ["gradient", "random", "momentum"])
def test_a_resume_is_exact(grow: str, tmp_path: Path) -> None:
    policy = {**STU, **SHORT, "exploration.grow": grow}
    steps = batches(40)
    nets = [network(), network()]
    rg = rgplug.attach(nets[0], None, policy)
    optimizer = torch.optim.Adam(nets[0].parameters(), 1e-2)
    train(nets[0], optimizer, steps[:15])
    rg.save(tmp_path / "state.safetensors")
    saved = {"net": {k: v.clone() for k, v in nets[0].state_dict().items()}, "optimizer": optimizer.state_dict()}
    torch.save(saved, tmp_path / "host.pt")
    train(nets[0], optimizer, steps[15:])

    held = torch.load(tmp_path / "host.pt", weights_only=True)
    resumed = rgplug.attach(nets[1], None, {**policy, "masks.seed": 0})
    nets[1].load_state_dict(held["net"])
    other = torch.optim.Adam(nets[1].parameters(), 1e-2)
    other.load_state_dict(held["optimizer"])
    resumed.load(tmp_path / "state.safetensors")
    train(nets[1], other, steps[15:])
    for a, b in zip(rg.weights("G"), resumed.weights("G")):
        assert torch.equal(a.mask, b.mask)
        assert torch.equal(a.data, b.data)


def test_masks_by_seed() -> None:
    def masks(**more: Any) -> list[Tensor]:
        net = network()
        with rgplug.attach(net, None, {"base": "sparse", "masks.density": 0.3, **more}) as rg:
            return [w.mask.clone() for w in rg.weights("G")]

    assert all(map(torch.equal, masks(), masks()))
    assert not all(map(torch.equal, masks(), masks(**{"masks.seed": 1})))
    uniform = masks(**{"masks.distribution": "uniform"})
    assert [m.double().mean().item() for m in uniform] == pytest.approx([0.3, 0.3], abs=5e-3)
    drawn = masks(**{"masks.sampling": "bernoulli"})
    assert [int(m.sum()) for m in drawn] != [int(m.sum()) for m in masks()]


def test_auxiliary_steps_explore_nothing() -> None:
    net = network()
    rg = rgplug.attach(net, None, {**STU, **SHORT, "exploration.every": 1})
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    before = [w.mask.clone() for w in rg.weights("G")]
    with rg.auxiliary_step("G"):
        train(net, optimizer, batches(3))
    assert all(map(torch.equal, before, [w.mask for w in rg.weights("G")]))
    train(net, optimizer, batches(1))
    assert not all(map(torch.equal, before, [w.mask for w in rg.weights("G")]))


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        ({"method": "sparse", "regeneration": True}, "augmented has no meaning with method: sparse"),
        ({"base": "sparse", "target": {"G": 0.5}}, r"give masks: \{density"),
        ({"base": "rg-gan", "exploration": {}}, "policy.exploration needs method: sparse"),
        ({"base": "sparse", "masks.density": {"G": 0.1, "E": 0.1}}, "policy.masks.density.E names no network"),
        ({"base": "sparse", "masks.density": 0}, "policy.masks.density.G is 0"),
        ({"base": "stu-gan", "exploration.networks": ["F"]}, "policy.exploration.networks.F names no network"),
    ],
)
def test_bad_policies(policy: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RgplugError, match=sentence):
        Policy.load(policy)


class Resting(nn.Module):
    """A network with a layer that gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.rest = nn.Linear(10, 10), nn.Linear(30, 30)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


@pytest.mark.parametrize("grow", ["gradient", "random", "momentum"])
def test_a_layer_without_a_gradient_rests(grow: str) -> None:
    net = Resting()
    policy = {"base": "rigl", **SHORT, "masks.density": 0.5, "masks.distribution": "uniform"}
    rg = rgplug.attach(net, None, {**policy, "exploration.grow": grow})
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    masks = {w.name: w.mask.clone() for w in rg.weights("G")}
    for _ in range(12):
        optimizer.zero_grad()
        net(torch.randn(4, 10)).square().sum().backward()
        optimizer.step()
    changed = {w.name for w in rg.weights("G") if not torch.equal(w.mask, masks[w.name])}
    assert changed == {"used.weight"}
    assert net.rest.weight.count_nonzero() == masks["rest.weight"].sum()

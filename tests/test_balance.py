"""ADAPT: D's density follows the balance ratio, against an oracle in numpy; and how the ratio is measured."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import oracle_adapt as oracle
import pytest
import torch
from common import Host, different
from common import snapshot as state_of
from test_sparse import batches, loss_of, network
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import rgplug
from rgplug import Policy, RgplugError, snapshot
from rgplug.baselines.methods import Baseline, Scale, find
from rgplug.methods.balance import adjusted_density, balance_ratio
from rgplug.methods.sparse import drop_fraction
from rgplug.policy import BalancePolicy

BETAS = (0.5, 0.999)
ADAPT = {"base": "adapt", "masks.density": {"G": 0.5, "D": 0.3}, "exploration.every": 7, "exploration.end": 70}
SHORT = {"balance.every": 10, "balance.window": 3, "balance.delta": 0.1, "balance.lowest": 0.1}
RATIOS = [0.5] + 7 * [0.9] + 2 * [0.3] + 8 * [0.0] + 3 * [0.9]


def even(net: nn.Module) -> int:
    """Managed entries: a tenth of them is a whole number, so that densities in tenths are exact."""
    return sum(p.numel() for p in net.parameters() if p.dim() > 1)


def ten_layers(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 10, 3), nn.Softplus(), nn.Flatten(), nn.Linear(360, 1)).double()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kernels", ["auto", "eager"])
def test_adapt_equals_the_oracle(strict: bool, kernels: str) -> None:
    """D steps five times, then G once. `every` is in iterations of G: 2 of them are 10 steps of D, 20 the whole run."""
    G, D, theirs = network(), ten_layers(), ten_layers()
    assert even(D) % 10 == 0
    own: dict[str, Any] = {
        "masks.distribution": "uniform"
    }  # a filter without weights would give its inputs equal gradients
    own |= {"balance.highest": 0.5 if strict else 1.0, "balance.exchange": strict}
    own |= {"balance.every": 2, "balance.fraction": 0.2, "balance.end": 20, "balance.measure": 10**6}
    rg = rgplug.attach(G, D, {**ADAPT, **SHORT, **own, "kernels": kernels})
    ratio = rg.networks["D"].method.ratio
    masks = {w.name: w.mask.numpy().copy() for w in rg.weights("D")}
    reference = oracle.Adapt(
        theirs, masks, window=3, every=10, lower=0.45, upper=0.55, delta=0.1, lowest=0.1,
        highest=0.5 if strict else 1.0, lr=1e-2, betas=BETAS, strict=strict, fraction=0.2, end=100,
    )  # fmt: skip
    optimizer = torch.optim.Adam(D.parameters(), 1e-2, betas=BETAS)
    optimizer_g = torch.optim.Adam(G.parameters(), 1e-2, betas=BETAS)
    densities, actions = [], []
    for i, x in enumerate(batches(100)):
        optimizer.zero_grad()
        loss_of(D, x).backward()
        optimizer.step()
        if i % 5 == 4:
            ratio.add(torch.tensor(RATIOS[i // 5], dtype=torch.float64))
            reference.measure(RATIOS[i // 5])
            optimizer_g.zero_grad()
            loss_of(G, x).backward()
            optimizer_g.step()
        actions.append(reference.d_step(lambda net, x=x: loss_of(net, x)))
        for w in rg.weights("D"):
            assert np.array_equal(w.mask.numpy(), reference.masks[w.name]), (i, w.name)
        for (name, a), b in zip(D.named_parameters(), theirs.parameters()):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9, msg=f"{i} {name}")
            for key, moments in (("exp_avg", reference.adam.m), ("exp_avg_sq", reference.adam.v)):
                np.testing.assert_allclose(optimizer.state[a][key].numpy(), moments[name], rtol=0, atol=1e-9)
        densities.append(rg.density("D"))
    assert max(densities) == pytest.approx(0.5 if strict else 0.6)
    assert min(densities) == pytest.approx(0.1 if strict else 0.2)
    assert {"grow", "shrink", "stay"} <= set(actions)
    assert ("exchange" in actions) == strict


def test_balance_ratio_by_hand() -> None:
    real, before, after = torch.tensor([3.0, 5.0]), torch.tensor([0.0, -2.0]), torch.tensor([1.0, 2.0])
    assert balance_ratio(real, before, after).item() == pytest.approx((1.5 + 1) / (4 + 1))


@pytest.mark.parametrize(
    ("density", "ratio", "expected"),
    [(0.3, 0.5, 0.3), (0.3, 0.55, 0.35), (0.3, 0.45, 0.25), (0.48, 0.9, 0.5), (0.07, -1.0, 0.05), (0.8, 0.9, 0.8)],
)
def test_adjusted_density(density: float, ratio: float, expected: float) -> None:
    assert adjusted_density(density, ratio, BalancePolicy(highest=0.5)) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["plain", "old_sn", "new_sn"])
def test_the_ratio_is_measured_around_g_s_step_and_nobody_notices(kind: str) -> None:
    """Against copies of the networks that are called by hand, and against a run without measurements."""
    measured: list[float] = []
    expected: list[float] = []
    runs = []
    for measures in (True, False):
        host = Host(kind, dtype=torch.float64)
        every = 1 if measures else 10**6
        policy = {**ADAPT, **SHORT, "balance.measure": every, "balance.every": 10**6, "balance.window": 100}
        rg = rgplug.attach(host.G, host.D, policy)
        seen: dict[str, Any] = {}

        def before(optimizer: Any, *_: Any, host: Host = host, seen: dict[str, Any] = seen) -> None:
            if optimizer is host.opt["G"] and kind == "plain":
                seen["G"], seen["D"] = copy.deepcopy(host.G), copy.deepcopy(host.D)

        for _ in range(6):
            i = host.iteration
            rg.observe(host.data.x(i), host.data.z(2 * i + 1))
            handle = register_optimizer_step_pre_hook(before)
            host.run(1)
            handle.remove()
            if measures and kind == "plain":
                D, x, z = seen["D"], host.data.x(i), host.data.z(2 * i + 1)
                expected.append(oracle.measured_ratio(D, seen["G"], copy.deepcopy(host.G), x, z))
        if measures:
            measured = [float(v) for v in rg.networks["D"].method.ratio.values]
        runs.append(state_of(rg) | {f"G.{k}": v.clone() for k, v in host.G.state_dict().items()})
        runs[-1] |= {f"D.{k}": v.clone() for k, v in host.D.state_dict().items()}
        rg.detach()
    assert len(measured) == 6
    if kind == "plain":
        assert measured == pytest.approx(expected, rel=1e-9)
    assert not different(*runs)


# ---- when D is adjusted, and by what ---------------------------------------------------------------------------------

GROWS = {"balance.window": 1, "balance.measure": 1, "balance.delta": 0.1, "balance.upper": -1e9, "balance.lower": -2e9}


class Pair:
    """A small G and D, Adam with momentum, one step at a time; G's step lets rgplug observe the batch."""

    def __init__(self, policy: dict[str, Any], seed: int = 0):
        torch.manual_seed(seed)
        self.G = nn.Sequential(nn.Linear(4, 30), nn.Softplus(), nn.Linear(30, 10), nn.Unflatten(1, (1, 2, 5))).double()
        self.D = nn.Sequential(nn.Flatten(), nn.Linear(10, 30), nn.Softplus(), nn.Linear(30, 1)).double()
        self.rg = rgplug.attach(self.G, self.D, {"base": "adapt", "masks.density": 0.5, **policy})
        self.optimizers = {k: torch.optim.Adam(n.parameters(), 1e-2, betas=BETAS) for k, n in self.nets.items()}
        self.batches = torch.Generator().manual_seed(7)

    @property
    def nets(self) -> dict[str, nn.Module]:
        return {"G": self.G, "D": self.D}

    def batch(self) -> tuple[Tensor, Tensor]:
        return (
            torch.randn(8, 1, 2, 5, generator=self.batches, dtype=torch.float64),
            torch.randn(8, 4, generator=self.batches, dtype=torch.float64),
        )

    def backward(self, network: str) -> tuple[Tensor, Tensor]:
        x, z = self.batch()
        self.optimizers[network].zero_grad()
        score = self.D(self.G(z) if network == "G" else self.G(z).detach())
        (-score.mean() if network == "G" else nn.functional.softplus(score - self.D(x)).mean()).backward()
        return x, z

    def step(self, network: str) -> None:
        self.rg.observe(*self.backward(network))
        self.optimizers[network].step()

    def density(self) -> float:
        return round(self.rg.density("D"), 2)


def test_every_counts_iterations_of_g_and_d_is_adjusted_after_g_s_step() -> None:
    pair, densities = Pair({**GROWS, "balance.every": 2}), []
    for _ in range(4):
        for label in "DDDDDG":
            pair.step(label)
            densities.append(pair.density())
    assert densities == 11 * [0.5] + 12 * [0.6] + [0.7]


def test_d_is_adjusted_by_the_gradient_of_its_last_step_and_not_by_its_regularizer_s() -> None:
    for kernels in ("auto", "eager"):
        pair = Pair({**GROWS, "balance.every": 1, "kernels": kernels})
        pair.step("D")
        pair.backward("D")
        wanted = {n: p.grad.abs() for n, p in pair.D.named_parameters() if p.dim() > 1}
        masks = {w.name: w.mask for w in pair.rg.weights("D")}
        pair.optimizers["D"].step()
        pair.optimizers["D"].zero_grad()
        sum((p * torch.randn_like(p)).sum() for p in pair.D.parameters()).backward()
        with pair.rg.auxiliary_step("D"):
            pair.optimizers["D"].step()
        pair.step("G")
        free = torch.cat([(g * ~masks[n]).flatten() for n, g in wanted.items()])
        level = free.topk(33).values[-1]  # a tenth of 330
        for w in pair.rg.weights("D"):
            assert torch.equal(w.mask, masks[w.name] | (wanted[w.name] >= level)), (kernels, w.name)


def test_an_adjustment_waits_for_a_d_that_steps_less_often_than_g() -> None:
    pair = Pair({**GROWS, "balance.every": 2})
    densities = []
    for label in "DGGGDGGG":
        pair.step(label)
        densities.append(pair.density())
    # due after G's 2nd step, but since its 1st D has had none; made up for after G's 4th, which was due itself
    assert densities == [0.5, 0.5, 0.5, 0.5, 0.5, 0.6, 0.6, 0.6]


def test_a_resume_between_d_s_step_and_g_s_is_exact(tmp_path: Path) -> None:
    policy = {**GROWS, "balance.every": 2, "exploration.every": 2}
    pair, other = Pair(policy), Pair(policy, seed=3)
    for label in "DGD":
        pair.step(label)
    pair.rg.save(tmp_path / "state.safetensors")
    for key, net in other.nets.items():
        net.load_state_dict(pair.nets[key].state_dict())
        other.optimizers[key].load_state_dict(copy.deepcopy(pair.optimizers[key].state_dict()))
    other.rg.load(tmp_path / "state.safetensors")
    other.batches.set_state(pair.batches.get_state())
    for label in "GDG":
        pair.step(label)
        other.step(label)
        assert pair.density() == 0.6
        assert not different(state_of(pair.rg), state_of(other.rg))


@pytest.mark.parametrize("measure", [1, 3])
def test_the_ratio_leaves_out_g_s_exploration(measure: int) -> None:
    """G exchanges half of its weights after each step. The twin makes the optimizer's step and nothing else; momentum
    moves its pruned weights, which are 0 when it generates."""
    pair = Pair({"balance.every": 10**6, "balance.measure": measure, "exploration.every": 1})
    expected = []
    for i in range(1, 7):
        x, z = pair.backward("G")
        twin, moments = copy.deepcopy(pair.G), copy.deepcopy(pair.optimizers["G"].state_dict())
        optimizer = torch.optim.Adam(twin.parameters())
        optimizer.load_state_dict(moments)
        masks = {w.name: w.mask for w in pair.rg.weights("G")}
        for (name, p), mine in zip(twin.named_parameters(), pair.G.parameters(), strict=True):
            p.grad = mine.grad * masks.get(name, 1)
        optimizer.step()
        for name, p in twin.named_parameters():
            p.data *= masks.get(name, 1)
        if i % measure == 0:
            with torch.no_grad():
                expected.append(oracle.balance_ratio(pair.D(x), pair.D(pair.G(z)), pair.D(twin(z))))
        pair.rg.observe(x, z)
        pair.optimizers["G"].step()
        assert any(not torch.equal(w.mask, masks[w.name]) for w in pair.rg.weights("G"))
    assert [float(v) for v in pair.rg.networks["D"].method.ratio.values] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("ratio", "expected"), [(0.5, 0.3), (0.9, 0.4), (0.1, 0.2)])
def test_adjustments_start_from_the_densities_of_masks_from_a_file(
    ratio: float, expected: float, tmp_path: Path
) -> None:
    """The file's D has .3 and the policy .5: inside the bounds nothing changes, outside .3 is what changes."""
    torch.manual_seed(1)
    masks: dict[str, dict[str, Tensor]] = {"G": {}, "D": {}}
    for label, shapes in {"G": [(30, 4), (10, 30)], "D": [(30, 10), (1, 30)]}.items():
        for i, shape in enumerate(shapes):
            mask = torch.rand(shape)
            masks[label][f"{2 * i + (label == 'D')}.weight"] = (
                mask <= mask.flatten().kthvalue(round(0.3 * mask.numel())).values
            )
    snapshot.save_masks(tmp_path / "masks.safetensors", masks)
    own = {"masks.file": str(tmp_path / "masks.safetensors"), "balance.every": 1, "balance.window": 1}
    pair = Pair({**own, "balance.delta": 0.1, "balance.measure": 10**6})
    pair.rg.networks["D"].method.ratio.add(torch.tensor(ratio))
    pair.step("D")
    pair.step("G")
    assert pair.rg.density("D") == pytest.approx(expected)


@pytest.mark.parametrize("preset", ["adapt", "adapt-strict"])
def test_presets_are_the_published_runs(preset: str) -> None:
    """Runs of 100,000 iterations of G, with 5 steps of D each; the strict one's scripts adjust half as often."""
    policy = Policy.load(preset)
    assert policy.of(policy.exploration.end, "G") == 100_000
    assert policy.of(policy.exploration.every, "G") == 500
    balance = policy.balance
    assert (balance.every, balance.measure, balance.window) == (1000 if preset == "adapt" else 2000, 10, 100)
    assert [drop_fraction(balance, t) for t in (0, 50_000, 100_000)] == pytest.approx([0.5, 0.2525, 0.005])
    scaled = Policy.load(Scale(length=1000, n_critic=5).policy(find(preset)))
    assert scaled.balance.every == balance.every // 100
    assert scaled.balance.end == 1000


@pytest.mark.parametrize("own", [{"balance.delta": 0.1}, {"balance": True}])
def test_a_scaled_policy_of_one_s_own(own: dict[str, Any]) -> None:
    baseline = Baseline("mine", {"base": "sparse", **own})
    assert Policy.load(Scale(length=10_000).policy(baseline)).balance.every == 100


def test_real_images_that_the_policy_names(tmp_path: Path) -> None:
    images = (np.random.default_rng(0).random((6, 8, 8, 3)) * 255).astype(np.uint8)
    np.savez(tmp_path / "real.npz", images=images)
    host = Host()
    policy = {**ADAPT, **SHORT, "balance.measure": 2, "balance.real": tmp_path / "real.npz", "balance.batch": 4}
    rg = rgplug.attach(host.G, host.D, policy)
    host.run(6)
    assert len(rg.networks["D"].method.ratio.values) == 3


def test_a_resume_is_exact(tmp_path: Path) -> None:
    np.savez(tmp_path / "real.npz", images=np.full((3, 8, 8, 3), 99, np.uint8))
    policy = {**ADAPT, "balance.real": tmp_path / "real.npz", "balance.batch": 2, "balance.measure": 1}
    policy |= {"balance.every": 5, "balance.window": 4, "balance.upper": 0.0, "balance.lower": -1e9}
    first = Host(dtype=torch.float64)
    rg = rgplug.attach(first.G, first.D, policy, optimizers=first.opt)
    first.run(7)
    host, saved = copy.deepcopy(first.state_dict()), tmp_path / "state.safetensors"
    rg.save(saved)
    first.run(9)
    second = Host(seed=4, dtype=torch.float64)
    resumed = rgplug.attach(second.G, second.D, policy, optimizers=second.opt)
    second.load_state_dict(host)
    resumed.load(saved)
    second.run(9)
    assert not different(state_of(rg), state_of(resumed))
    assert rg.density("D") != pytest.approx(0.3, abs=1e-3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"balance.lower": 0.9}, "policy.balance.lower is 0.9, above policy.balance.upper"),
        ({"exploration.networks": ["D"]}, "policy.balance adjusts D's density and policy.exploration explores D too"),
        ({"balance.highest": 0.01}, "policy.balance.highest is 0.01"),
        ({"base": "rg-gan", "balance": True}, "policy.balance needs method: sparse"),
    ],
)
def test_bad_policies(change: dict[str, Any], sentence: str) -> None:
    own = {} if "base" in change else ADAPT
    with pytest.raises(RgplugError, match=sentence):
        Policy.load({**own, **change})


def test_no_real_images() -> None:
    host = Host()
    rgplug.attach(host.G, host.D, {**ADAPT, "balance.measure": 1})
    with pytest.raises(RgplugError, match=r"the balance ratio needs real images.*rg.observe"):
        host.run(1)


def test_a_discriminator_that_takes_labels() -> None:
    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(192, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.layer(x.flatten(1)).gather(1, y[:, None])

    host = Host()
    D = Labelled()
    rg = rgplug.attach(host.G, D, {**ADAPT, "balance.measure": 1})
    rg.observe(host.data.x(0), host.data.z(0))
    optimizer = torch.optim.SGD(host.G.parameters(), 0.1)
    host.G(host.data.z(0)).sum().backward()
    with pytest.raises(RgplugError, match="D does not take images alone"):
        optimizer.step()


def test_only_g() -> None:
    with pytest.raises(RgplugError, match=r"policy.balance needs both networks"):
        rgplug.attach(network(), None, ADAPT)

"""What does not train is not managed: frozen pretrained parts, weights that no optimizer steps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from common import adam, sgd
from torch import nn

import rgplug
from rgplug import snapshot

TARGET = {"base": "rg-gan", "threshold.units": "layer_std", "target": {"D": 0.3, "by": 5, "shape": "linear"}}
METHODS: dict[str, Any] = {
    "rg-gan": "rg-gan",
    "target": TARGET,
    "stu-gan": {"base": "stu-gan", "exploration": {"every": 3, "networks": ["G", "D"]}},
    "re-gan": {"base": "re-gan", "cycle": {"networks": ["G", "D"], "warm_up": 2, "period": 3}},
    "pf-uniform": {"base": "pf-uniform", "masks.density": {"G": 0.5, "D": 0.5}},
    "filter": {"base": "sparse-uniform", "masks.density": 0.5, "granularity": {"D": "filter"}},
}


def trained(method: str) -> list[str]:
    """Weights of D that train; the filters of its last layer are its output, and are not pruned as a whole."""
    return ["2.weight"] if method == "filter" else ["2.weight", "5.weight"]


def pair(frozen: bool = True) -> tuple[nn.Module, nn.Module]:
    """D begins with a convolution that is not to be trained, as projected GANs have it."""
    torch.manual_seed(0)
    G = nn.Sequential(nn.Linear(8, 3 * 64), nn.Unflatten(1, (3, 8, 8)))
    D = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 1)
    )
    D[0].requires_grad_(not frozen)
    return G, D


def train(G: nn.Module, D: nn.Module, opt_G: Any, opt_D: Any, steps: int = 10) -> None:
    for _ in range(steps):
        opt_D.zero_grad()
        (D(G(torch.randn(4, 8)).detach()).mean() - D(torch.rand(4, 3, 8, 8)).mean()).backward()
        opt_D.step()
        opt_G.zero_grad()
        (-D(G(torch.randn(4, 8))).mean()).backward()
        opt_G.step()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("in_the_optimizer", [True, False])
def test_a_frozen_part_is_neither_pruned_nor_counted(method: str, in_the_optimizer: bool) -> None:
    G, D = pair()
    before = D[0].weight.clone()
    rg = rgplug.attach(G, D, METHODS[method])
    given = D.parameters() if in_the_optimizer else [p for p in D.parameters() if p.requires_grad]
    train(G, D, adam(G), torch.optim.Adam(given, 1e-3))
    rg.end_epoch(1.0)
    assert torch.equal(D[0].weight, before)
    assert [w.name for w in rg.weights("D")] == trained(method)
    kept = sum(int(w.mask.sum()) for w in rg.weights("D"))
    assert rg.density("D") == pytest.approx(kept / sum(w.numel for w in rg.weights("D")))
    (row,) = [line for line in str(rg).splitlines() if line.startswith("D ") and " 0.weight" in line]
    assert "frozen" in row


def test_a_density_is_that_of_what_trains() -> None:
    G, D = pair()
    rg = rgplug.attach(G, D, {"base": "sparse", "masks.density": {"G": 1.0, "D": 0.3}})
    assert rg.density("D") == pytest.approx(0.3, abs=1e-3)
    train(G, D, adam(G), adam(D), 2)
    assert sum(int((w.param != 0).sum()) for w in rg.weights("D")) == round(0.3 * (16 * 16 * 9 + 576))


class Phases:
    """StyleGAN's way: everything is frozen at attach, and gradients are switched on for one network's phase only; parts
    of D stay frozen in it."""

    def __init__(self, policy: Any, resting: bool = True) -> None:
        self.G, self.D = pair(frozen=False)
        for net in (self.G, self.D):
            net.requires_grad_(False)
        self.backbone = self.D[0].weight.clone()
        self.resting = resting
        self.rg = rgplug.attach(self.G, self.D, policy)
        self.opts = {"G": adam(self.G), "D": adam(self.D)}

    def run(self, steps: int) -> None:
        for _ in range(steps):
            for label, net in (("D", self.D), ("G", self.G)):
                self.opts[label].zero_grad(set_to_none=True)
                net.requires_grad_(True)
                if self.resting:
                    self.D[0].requires_grad_(False)
                fake = self.D(self.G(torch.randn(4, 8))).mean()
                (fake - self.D(torch.rand(4, 3, 8, 8)).mean() if label == "D" else -fake).backward()
                net.requires_grad_(False)
                self.opts[label].step()


@pytest.mark.parametrize("method", METHODS)
def test_networks_frozen_at_attach_are_pruned_from_their_first_gradient_on(method: str) -> None:
    host = Phases(METHODS[method])
    assert all(not w.mask.logical_not().any() for w in host.rg.weights("D"))  # it is not known yet what trains
    assert "waits for its first gradient" in str(host.rg)
    host.run(8)
    assert torch.equal(host.D[0].weight, host.backbone)
    assert [w.name for w in host.rg.weights("D")] == trained(method)
    assert host.rg.networks["G"].iteration == 8
    if method not in ("rg-gan",):
        assert host.rg.density("D") < 0.9
    for w in host.rg.weights("D"):
        assert not w.param[~w.mask].any()


def test_masks_are_drawn_for_what_trains_alone() -> None:
    host = Phases({"base": "sparse", "masks.density": {"G": 0.5, "D": 0.3}})
    host.run(1)
    assert host.rg.density("D") == pytest.approx(0.3, abs=1e-3)
    assert host.rg.density("G") == pytest.approx(0.5, abs=1e-3)


def test_without_a_frozen_part_masks_are_those_of_networks_that_were_not_frozen() -> None:
    policy = {"base": "sparse", "masks.density": 0.3}
    host = Phases(policy, resting=False)
    host.run(1)
    found = [w.mask for w in host.rg.weights("D")]
    host.rg.detach()
    G, D = pair(frozen=False)
    rg = rgplug.attach(G, D, policy)
    for mask, w in zip(found, rg.weights("D"), strict=True):
        assert torch.equal(mask, w.mask)


@pytest.mark.parametrize("method", METHODS)
def test_what_trains_later_is_managed_from_then_on(method: str) -> None:
    G, D = pair()
    rg = rgplug.attach(G, D, METHODS[method])
    opts = adam(G), adam(D)
    train(G, D, *opts, steps=5)
    D[0].requires_grad_(True)
    train(G, D, *opts, steps=5)
    assert [w.name for w in rg.weights("D")] == ["0.weight", *trained(method)]
    first = rg.weights("D")[0]
    assert not first.param[~first.mask].any()
    if method in ("stu-gan", "pf-uniform", "filter"):
        assert first.density == pytest.approx({"stu-gan": 0.3}.get(method, 0.5), abs=0.07)
    numel = sum(w.numel for w in rg.weights("D"))
    assert rg.density("D") == pytest.approx(sum(int(w.mask.sum()) for w in rg.weights("D")) / numel)


@pytest.mark.parametrize("method", ["stu-gan", "rg-gan", "filter"])
def test_what_no_optimizer_steps_gets_its_values_back(method: str) -> None:
    """It requires a gradient, so it was taken for a part that trains, and pruned at attach."""
    G, D = pair(frozen=False)
    before = D[0].weight.clone()
    rg = rgplug.attach(G, D, METHODS[method])
    opts = adam(G), torch.optim.Adam([*D[2].parameters(), *D[5].parameters()], 1e-3)
    if method != "rg-gan":
        assert not torch.equal(D[0].weight, before)
    with pytest.warns(UserWarning, match=r"no optimizer has stepped D\.0\.weight: not managed any more"):
        train(G, D, *opts, steps=20)
    assert torch.equal(D[0].weight, before)
    assert [w.name for w in rg.weights("D")] == trained(method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("again", [True, False])
def test_what_is_frozen_between_attach_and_the_first_step(method: str, again: bool) -> None:
    """FreezeD: the optimizer holds all of D, and the first layer is frozen once, or in each iteration."""
    G, D = pair(frozen=False)
    before = D[0].weight.clone()
    opts = adam(G), adam(D)
    rg = rgplug.attach(G, D, METHODS[method])
    D[0].requires_grad_(False)
    for _ in range(20):
        train(G, D, *opts, steps=1)
        if again:
            D.requires_grad_(True)
            D[0].requires_grad_(False)
    assert torch.equal(D[0].weight, before)
    assert [w.name for w in rg.weights("D")] == trained(method)
    if method == "pf-uniform":
        assert rg.density("D") == pytest.approx(0.5, abs=1e-3)


def test_vectors_of_networks_frozen_at_attach() -> None:
    host = Phases({"base": "re-gan", "cycle": {"warm_up": 0, "networks": ["G"]}, "networks": {"G": {"vectors": True}}})
    host.run(2)
    assert [w.name for w in host.rg.weights("G")] == ["0.weight", "0.bias"]


def test_the_regularizer_in_the_loss_where_a_frozen_part_has_an_optimizer_too() -> None:
    _, D = pair()
    policy = {"sparsity_weight": 1.0, "regularization": "loss", "threshold": {"task_gradient": False}}
    rg = rgplug.attach(D, None, policy)
    opts = [sgd(nn.ModuleList([D[0], D[2]]), 2**-10), sgd(D[5], 2**-10)]
    D.zero_grad()
    (D(torch.randn(4, 3, 8, 8)).mean() + rg.regularization_loss("G")).backward()
    for opt in opts:
        opt.step()
    for w in rg.weights("G"):
        assert w.threshold.tolist() == [2**-10] * w.layout.filters  # lr * lambda * exp(0)


def test_a_resume_manages_what_was_managed(tmp_path: Any) -> None:
    host = Phases(METHODS["stu-gan"])
    host.run(4)
    host.rg.save(tmp_path / "state.safetensors")
    saved = [part.state_dict() for part in (host.G, host.D, *host.opts.values())]
    torch.save(saved, tmp_path / "host.pt")
    random = torch.get_rng_state()
    host.run(5)
    expected = [(w.name, w.theta, w.mask) for w in host.rg.weights("D")]
    host.rg.detach()

    again = Phases(METHODS["stu-gan"])
    parts = (again.G, again.D, *again.opts.values())
    for part, held in zip(parts, torch.load(tmp_path / "host.pt", weights_only=True), strict=True):
        part.load_state_dict(held)
    again.rg.load(tmp_path / "state.safetensors")
    assert [w.name for w in again.rg.weights("D")] == ["2.weight", "5.weight"]
    torch.set_rng_state(random)
    again.run(5)
    for (name, theta, mask), w in zip(expected, again.rg.weights("D"), strict=True):
        assert name == w.name
        assert torch.equal(w.theta, theta)
        assert torch.equal(w.mask, mask)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("into", ["a new run", "the same run"])
def test_a_state_from_before_the_first_gradient(method: str, into: str) -> None:
    """Nothing is pruned yet in it, and masks go on with the first gradient after it was loaded, too."""
    host = Phases(METHODS[method], resting=False)
    state = host.rg.state_dict()
    weights = {k: {n: x.clone() for n, x in net.state_dict().items()} for k, net in (("G", host.G), ("D", host.D))}
    torch.manual_seed(1)
    host.run(4)
    expected = [w.mask for label in "GD" for w in host.rg.weights(label)]
    if into == "a new run":
        host.rg.detach()
        host = Phases(METHODS[method], resting=False)
    for label, net in (("G", host.G), ("D", host.D)):
        net.load_state_dict(weights[label])
        host.opts[label] = adam(net)
    host.rg.load_state_dict(state)
    torch.manual_seed(1)
    host.run(4)
    for mask, w in zip(expected, [w for label in "GD" for w in host.rg.weights(label)], strict=True):
        assert torch.equal(w.mask, mask), w.name


@pytest.mark.parametrize("method", ["rg-gan", "pf-uniform", "stu-gan"])
def test_a_resume_where_no_optimizer_stepped_a_part(method: str, tmp_path: Any) -> None:
    """The new run does not know yet that it is set aside; the state says it."""

    def begin() -> tuple[Any, ...]:
        G, D = pair(frozen=False)
        rg = rgplug.attach(G, D, METHODS[method])
        return rg, G, D, adam(G), torch.optim.Adam([*D[2].parameters(), *D[5].parameters()], 1e-3)

    rg, *parts = begin()
    with pytest.warns(UserWarning, match="no optimizer has stepped"):
        train(*parts, steps=20)
    rg.save(tmp_path / "state.safetensors")
    saved = [copy.deepcopy(part.state_dict()) for part in parts]
    random = torch.get_rng_state()
    train(*parts, steps=3)
    expected = [(w.name, w.theta, w.mask) for w in rg.weights("D")]
    rg.detach()
    rg, *parts = begin()
    for part, held in zip(parts, saved, strict=True):
        part.load_state_dict(held)
    rg.load(tmp_path / "state.safetensors")
    torch.set_rng_state(random)
    train(*parts, steps=3)
    for (name, theta, mask), w in zip(expected, rg.weights("D"), strict=True):
        assert name == w.name
        assert torch.equal(w.theta, theta)
        assert torch.equal(w.mask, mask)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("finish", ["dense", "sparse"])
def test_detach_while_weights_wait(method: str, finish: Any) -> None:
    host = Phases(METHODS[method])
    before = [p.detach().clone() for p in host.D.parameters()]
    host.rg.detach(finish)
    assert all(torch.equal(p, b) for p, b in zip(host.D.parameters(), before, strict=True))
    rgplug.attach(host.G, host.D, METHODS[method])


@pytest.mark.parametrize("method", METHODS)
def test_ranks_made_equal_before_the_first_step_leave_a_frozen_part_alone(method: str) -> None:
    host = Phases(METHODS[method])
    host.rg.synchronize()
    host.run(3)
    assert torch.equal(host.D[0].weight, host.backbone)


class Tied(nn.Module):
    """b adds to the channels of a."""

    z_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 3 * 16)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x = self.a(z).relu()
        return self.c((x + self.b(x)).relu()).view(-1, 3, 4, 4)


@pytest.mark.parametrize("grow", ["random", "gradient", None])
def test_a_tied_weight_that_joins_has_the_channels_of_the_others(grow: str | None) -> None:
    torch.manual_seed(0)
    G = Tied()
    G.b.requires_grad_(False)
    explores = {"exploration": {"networks": ["G"], "every": 2, "end": 100, "grow": grow}} if grow else {}
    rg = rgplug.attach(G, None, {"base": "sparse-uniform", "masks.density": 0.5, "granularity": "filter", **explores})
    opt = adam(G)
    for i in range(8):
        G.b.requires_grad_(i > 4)
        opt.zero_grad()
        G(torch.randn(4, 4)).square().mean().backward()
        opt.step()
    masks = {w.name: w.mask for w in rg.weights("G")}
    assert torch.equal(masks["a.weight"].any(1), masks["b.weight"].any(1))
    rg.load_state_dict(rg.state_dict())  # which counts active units


@pytest.mark.parametrize("backbone", [True, False])
@pytest.mark.parametrize("frozen", ["a part", "all"])
def test_masks_of_a_file_where_a_part_trains_later(backbone: bool, frozen: str, tmp_path: Any) -> None:
    """The file may have a mask of the part, which it gets when it joins, or none."""
    _, D = pair(frozen=False)
    masks = {n: torch.rand_like(p) < 0.5 for n, p in D.named_parameters() if p.dim() > 1}
    held = masks if backbone else {n: m for n, m in masks.items() if n != "0.weight"}
    snapshot.save_masks(tmp_path / "masks.safetensors", {"G": held})
    if frozen == "all":
        D.requires_grad_(False)
    D[0].requires_grad_(False)
    rg = rgplug.attach(D, None, {"method": "sparse", "masks": {"file": str(tmp_path / "masks.safetensors")}})
    opt = adam(D)
    for i in range(4):
        D.requires_grad_(True)
        D[0].requires_grad_(i > 1)
        opt.zero_grad()
        D(torch.randn(4, 3, 8, 8)).mean().backward()
        opt.step()
    found = {w.name: w.mask for w in rg.weights("G")}
    for name in ("2.weight", "5.weight"):
        assert torch.equal(found[name], masks[name])
    assert torch.equal(found["0.weight"], masks["0.weight"] if backbone else torch.ones_like(masks["0.weight"]))


def test_one_optimizer_for_both_networks_and_a_part_without_any_gradient() -> None:
    G, D = pair()
    rg = rgplug.attach(G, D, METHODS["stu-gan"])
    both = sgd(nn.ModuleList([G, D]), 1e-3)
    for _ in range(3):
        both.zero_grad()
        D(G(torch.randn(4, 8))).mean().backward()
        both.step()
    assert [w.name for w in rg.weights("D")] == ["2.weight", "5.weight"]

"""Wrong use: one clear sentence, and everything is left as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny
import torch
from common import adam, linear, set_grad, sgd
from torch import nn

import rgplug
from rgplug.controller import attached_networks
from rgplug.errors import RgplugError


def untouched(networks: list[nn.Module], attempt: Any, match: str) -> None:
    before = [copy.deepcopy(n) for n in networks]
    known = len(attached_networks)
    with pytest.raises(RgplugError, match=match) as error:
        attempt()
    assert "\n" not in str(error.value)
    for network, old in zip(networks, before):
        assert [type(m).__name__ for m in network.modules()] == [type(m).__name__ for m in old.modules()]
        for (name, a), b in zip(network.named_parameters(), old.parameters()):
            assert torch.equal(a, b), name
    assert len(attached_networks) == known


def test_attach_twice() -> None:
    G, D = tiny.build("plain")
    rg = rgplug.attach(G, D)
    for pair in ((G, D), (G, None), (nn.Linear(2, 2), D), (nn.DataParallel(G), None)):
        with pytest.raises(RgplugError, match="attached already"):
            rgplug.attach(*pair)
    rg.detach()
    rgplug.attach(G, D)


def test_attach_to_a_part_of_an_attached_network() -> None:
    """Two controllers would mask the same weights."""
    G, _ = tiny.build("plain")
    rgplug.attach(G)
    with pytest.raises(RgplugError, match="attached already"):
        rgplug.attach(G[0])
    with pytest.raises(RgplugError, match="attached already"):
        rgplug.attach(nn.Sequential(G, nn.Linear(2, 2)))


def test_the_same_network_twice() -> None:
    G, _ = tiny.build("plain")
    untouched([G], lambda: rgplug.attach(G, G), "same network")
    untouched([G], lambda: rgplug.attach(G, nn.DataParallel(G)), "same network")


def test_networks_that_share_a_weight() -> None:
    G, D = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    D[0].weight = G[0].weight
    untouched([G, D], lambda: rgplug.attach(G, D), r"share the weight D\.0\.weight.*exclude")
    rg = rgplug.attach(G, D, {"networks": {"D": {"exclude": ["0.weight"]}}})
    assert [w.name for w in rg.weights("D")] == ["1.weight"]


@pytest.mark.parametrize("thing", ["network", None, 3, torch.nn.Linear])
def test_things_that_are_no_network(thing: Any) -> None:
    with pytest.raises(RgplugError, match=r"needs an nn\.Module"):
        rgplug.attach(thing)


def test_arguments_in_the_wrong_order() -> None:
    G, _ = tiny.build("plain")
    untouched([G], lambda: rgplug.attach(G, "rg-gan"), r"D is a str")  # type: ignore[arg-type]


def test_networks_without_weights() -> None:
    G = nn.Sequential(nn.Linear(2, 2))
    untouched([G], lambda: rgplug.attach(G, nn.Sequential(nn.ReLU())), r"D .*no weight")
    untouched([G], lambda: rgplug.attach(G, None, {"networks": {"G": None}}), "nothing is left")


WRONG: dict[str, Any] = {
    "a pattern": ({"networks": {"G": {"include": ["conv.*"]}}}, None, r"'conv\.\*'"),
    "a key": ({"treshold": {}}, None, "treshold"),
    "an optimizer of another network": ({}, lambda: adam(nn.Linear(2, 2)), "holds no managed weight"),
    "no optimizer": ({}, lambda: [3], "no torch.optim.Optimizer"),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("init", [0.0, 0.2])
def test_everything_is_as_it_was_when_attach_fails(what: str, init: float) -> None:
    policy, optimizers, match = WRONG[what]
    G, D = tiny.build("old_sn")
    policy = {"threshold": {"init": init}, **policy}
    optimizers = None if optimizers is None else optimizers()
    untouched([G, D], lambda: rgplug.attach(G, D, policy, optimizers), match)
    # and nobody listens
    opt = sgd(G, 0.1)
    for p in G.parameters():
        p.grad = torch.ones_like(p)
    before = [p.detach().clone() for p in G.parameters()]
    opt.step()
    for p, b in zip(G.parameters(), before):
        torch.testing.assert_close(p.detach(), b - 0.1)
    rgplug.attach(G, D)


def test_a_sparse_gradient_is_named() -> None:
    G = nn.Sequential(nn.Embedding(4, 3, sparse=True), nn.Linear(3, 3))
    opt = sgd(G)
    rgplug.attach(G, policy={"networks": {"G": {"include": ["*", "0"]}}})
    G(torch.tensor([1])).sum().backward()
    with pytest.raises(RgplugError, match=r"G\.0\.weight has a sparse gradient"):
        opt.step()


def test_a_wrong_network_name() -> None:
    rg = rgplug.attach(nn.Linear(2, 2))
    for call in (rg.density, rg.weights, rg.mask_gradients, rg.before_step, rg.after_step, rg.regularization_loss):
        with pytest.raises(RgplugError, match=r"'generator'.*managed: G"):
            call("generator")


def test_evaluate_without_a_metric() -> None:
    rg = rgplug.attach(nn.Linear(2, 2))
    with pytest.raises(RgplugError, match="metric"):
        rg.evaluate()


def test_nan_gradients_with_plain_sgd_by_hand() -> None:
    """What is live goes NaN as it would in the host; what is dormant, the mask and the threshold do not."""
    G = linear([[1.0, 0.02], [2.0, 0.5]])
    opt = sgd(G)
    rg = rgplug.attach(G, policy={"sparsity_weight": 0.0, "threshold": {"init": 0.1}})
    set_grad(G, [[float("nan"), float("nan")], [0.0, 0.25]])
    opt.step()
    (w,) = rg.weights("G")
    assert G.weight[0, 0].isnan()
    assert G.weight[0, 1] == 0
    assert G.weight[1].tolist() == [2.0, 0.25]
    assert w.dormant[0, 1].item() == pytest.approx(0.02)
    assert w.threshold[0].item() == pytest.approx(0.1)
    assert torch.isfinite(w.threshold).all()
    assert w.mask.tolist() == [[True, False], [True, True]]


def test_a_closure_that_raises_leaves_the_next_step_alone() -> None:
    G = linear([[1.0, 0.5]])
    opt = sgd(G)
    rg = rgplug.attach(G, policy={"sparsity_weight": 0.0, "threshold": {"init": 0.1, "task_gradient": False}})

    def closure() -> float:
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        opt.step(closure)
    set_grad(G, 0.25)
    opt.step()
    assert G.weight.tolist() == [[0.75, 0.25]]
    assert rg.networks["G"].iteration == 1

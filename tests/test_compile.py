"""torch.compile, before and after attach: compiled networks read the masked parameter like everybody else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from common import RAMP, linear, pruned_at, set_grad, sgd
from torch import nn

import rgplug

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def fresh_compiler() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize(
    "when", ["before attach", "after attach", "attach to the compiled one", "after its first call"]
)
def test_a_compiled_network_computes_with_the_masked_weight(when: str) -> None:
    G = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    x = torch.randn(3, 4)
    compiled = torch.compile(G, backend="eager") if when != "after attach" else None
    if when == "after its first call":
        compiled(x)
    rg = rgplug.attach(compiled if when == "attach to the compiled one" else G)
    compiled = compiled if compiled is not None else torch.compile(G, backend="eager")
    compiled(x)
    pruned_at(rg, "G", 0.25)
    assert rg.density("G") < 1
    torch.testing.assert_close(compiled(x), G(x))
    rg.networks["G"].go_dense()
    torch.testing.assert_close(compiled(x), G(x))


def test_training_a_compiled_network_does_not_recompile_at_each_step() -> None:
    compiles = 0

    def backend(graph: Any, inputs: Any) -> Any:
        nonlocal compiles
        compiles += 1
        return graph.forward

    torch.manual_seed(0)  # of 36 weights one has to lie below the threshold
    G = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    rg = rgplug.attach(G, policy=RAMP)
    compiled = torch.compile(G, backend=backend)
    opt = sgd(G, 1e-2)
    counts = []
    for _ in range(5):
        opt.zero_grad()
        compiled(torch.randn(3, 4)).square().mean().backward()
        opt.step()
        counts.append(compiles)
    assert counts[-1] == counts[0] > 0
    assert rg.density("G") < 1


def test_state_dict_keys_of_the_compiled_network_stay() -> None:
    G = torch.compile(nn.Sequential(nn.Linear(2, 2)), backend="eager")
    keys = list(G.state_dict())
    rg = rgplug.attach(G)
    assert list(G.state_dict()) == keys
    assert [w.name for w in rg.weights("G")] == ["0.weight"]


@pytest.mark.slow
def test_a_compiled_optimizer_step() -> None:
    G = linear([[1.0, 0.5], [1.0, 0.02]])
    opt = sgd(G)
    rg = rgplug.attach(G, policy={**RAMP, "sparsity_weight": 0.25})
    step = torch.compile(lambda: opt.step(), backend="eager")
    set_grad(G, 0.0)
    step()
    assert rg.weights("G")[0].steps == 1
    assert G.weight.tolist() == [[1, 0.5], [1, 0]]

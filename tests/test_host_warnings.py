"""What a host did that it will not have meant: one warning each, once, with what to do; and none where all is well."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from common import MILD, Host, adam, attached
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import rgplug
from rgplug import first_steps

pytestmark = pytest.mark.filterwarnings("ignore:rgplug. densities have drifted apart")
UNMASKED = "moving average of G has had no mask on"
LOADED = "a sparse run was loaded without its masks"
NEVER = "rg.end_epoch.*was never called"
SWAPPED = "attach got"


def said(caught: list[warnings.WarningMessage], text: str) -> int:
    import re

    return sum(re.search(text, str(w.message)) is not None for w in caught)


class Averaged:
    """A host under a policy, with a moving average of G that it updates after each iteration."""

    def __init__(self, average: Any = copy.deepcopy, policy: Any = MILD) -> None:
        self.host = Host()
        self.rg = rgplug.attach(self.host.G, self.host.D, policy)
        self.ema = average(self.host.G)

    def train(self) -> None:
        self.host.run(2, self.update)

    def update(self) -> None:
        with torch.no_grad():
            inside = getattr(self.ema, "module", self.ema)
            for p, live in zip(inside.parameters(), self.host.G.parameters()):
                p.lerp_(live, 0.1)


# ---- a value of an average without the mask --------------------------------------------------------------------------


@pytest.mark.parametrize("known_by", ["ema=", "masked", "a deep copy", "AveragedModel", "evaluating ema= with a value"])
def test_a_value_of_an_unmasked_average_is_said_once(known_by: str) -> None:
    run = Averaged(AveragedModel if known_by == "AveragedModel" else copy.deepcopy)
    rg, options = run.rg, {}
    run.train()
    if known_by == "ema=":
        rg.end_epoch(ema=run.ema)
    elif known_by == "masked":
        with rg.masked(run.ema):
            pass  # drawn, say
        rg.end_epoch(9.0)  # all is well: it had the mask on
    elif known_by == "evaluating ema= with a value":
        options = {"ema": run.ema}
    else:
        rg.end_epoch(9.0)  # one look says that there is a copy, two say that it moves
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for value in (8.0, 7.0, 6.0):
            run.train()
            rg.end_epoch(value, **options)
    assert said(caught, UNMASKED) == 1
    assert Path(next(w for w in caught if said([w], UNMASKED)).filename).name == Path(__file__).name


@pytest.mark.parametrize(
    "host", ["masked", "inside the block", "apply_masks", "SEMA", "no average", "a kept copy", "dense"]
)
def test_a_value_of_a_masked_network_is_not_complained_of(host: str) -> None:
    sema = {"base": "sparse", "masks.density": 0.5}
    run = Averaged(policy={"MILD": MILD, "SEMA": sema, "dense": "dense"}.get(host, MILD))
    rg, ema = run.rg, run.ema
    if host == "no average":
        run.ema = nn.Sequential()
        del ema
    if host in ("SEMA", "a kept copy"):
        run.update = (lambda: rg.ema(run.ema, 0.9)) if host == "SEMA" else (lambda: None)  # type: ignore[method-assign]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for value in (9.0, 8.0, 7.0):
            run.train()
            if host == "masked":
                with rg.masked(run.ema):
                    measured = value
                rg.end_epoch(measured, ema=run.ema)
            elif host == "inside the block":
                with rg.masked(run.ema.state_dict()):
                    rg.end_epoch(value, ema=run.ema)
            elif host == "apply_masks":
                rg.apply_masks(run.ema)
                rg.end_epoch(value, ema=run.ema)
            else:
                rg.end_epoch(value)
    assert said(caught, UNMASKED) == 0


# ---- weights of a sparse run without its masks -----------------------------------------------------------------------


def sparse_checkpoint(policy: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    host, rg = attached(policy, steps=3)
    state = {name: copy.deepcopy(net.state_dict()) for name, net in host.nets.items()}
    held = rg.state_dict()
    rg.detach(finish="as-is")
    return state, held


POLICIES: dict[str, Any] = {
    "rg-gan": {"sparsity_weight": 1e-2, "threshold": {"init": 0.2}},
    "sparse": {"base": "sparse", "masks.density": 0.5},
}

OTHER_MASKS: dict[str, Any] = {"rg-gan": {}, "sparse": {"masks.seed": 1}}  # with one seed they would be the same


@pytest.mark.parametrize("policy", list(POLICIES))
@pytest.mark.parametrize("load", ["nothing", "weights", "weights and state", "state and weights"])
def test_a_sparse_checkpoint_without_its_masks_is_said_at_the_first_step(policy: str, load: str) -> None:
    weights, held = sparse_checkpoint(POLICIES[policy])
    host = Host(seed=1)
    rg = rgplug.attach(host.G, host.D, {**POLICIES[policy], **OTHER_MASKS[policy]})
    for part in load.split(" and "):
        if part == "state":
            rg.load_state_dict(held)
        elif part == "weights":
            for name, net in host.nets.items():
                net.load_state_dict(weights[name])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        host.run(2)
    assert said(caught, LOADED + ".*rg.load") == (2 if load == "weights" else 0)  # G and D, each once
    for warning in caught:
        if said([warning], LOADED):
            assert Path(warning.filename).name == "common.py"  # where the host makes its step


def test_a_layer_that_begins_at_zero_is_none_of_a_sparse_run() -> None:
    torch.manual_seed(0)
    G = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    nn.init.zeros_(G[1].weight)
    rg = rgplug.attach(G, None, POLICIES["sparse"])
    G(torch.randn(4, 8)).sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adam(G).step()
    assert rg.networks["G"].iteration == 1


def test_masks_that_follow_the_loaded_weights_fit_a_sparse_checkpoint() -> None:
    weights, _ = sparse_checkpoint(POLICIES["sparse"])
    host = Host(seed=1)
    rgplug.attach(host.G, host.D, {"base": "sparse", "masks": {"density": 0.5, "criterion": "magnitude"}})
    for name, net in host.nets.items():
        net.load_state_dict(weights[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        host.run(1)


# ---- no evaluation ---------------------------------------------------------------------------------------------------


def test_never_evaluating_is_said_once_where_a_decision_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_steps, "ITERATIONS_WITHOUT_EVALUATION", 5)
    cases = {
        "never": (MILD, None, 1),
        "once": (MILD, 3, 0),
        "no augmented regeneration": ({**MILD, "regeneration": {"augmented": False}}, None, 0),
    }
    for name, (policy, evaluated, expected) in cases.items():
        host = Host()
        rg = rgplug.attach(host.G, host.D, policy)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            host.run(evaluated or 0)
            if evaluated:
                rg.end_epoch(1.0)
            host.run(12)
        assert said(caught, NEVER) == expected, name
        rg.detach()


def test_a_run_is_given_time_for_its_first_evaluation() -> None:
    assert first_steps.ITERATIONS_WITHOUT_EVALUATION >= 5_000


# ---- G and D swapped -------------------------------------------------------------------------------------------------


def network(name: str) -> nn.Module:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)  # type: ignore[operator]
        return out

    def __init__(self: nn.Module) -> None:
        nn.Module.__init__(self)
        self.linear = nn.Linear(4, 4)

    made: nn.Module = type(name, (nn.Module,), {"__init__": __init__, "forward": forward})()
    return made


@pytest.mark.parametrize(
    ("g", "d", "expected"),
    [
        ("Discriminator", "Generator", "Discriminator as G and Generator as D"),
        ("PatchCritic", "Net", "PatchCritic as G;"),
        ("Net", "MyGenerator", "MyGenerator as D;"),
        ("Discriminator", None, "Discriminator as G;"),
        ("Generator", "Discriminator", None),
        ("NetA", "NetB", None),
        ("GeneratorOfTheDiscriminator", "Critic", None),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_swapped_networks_are_known_by_their_names(g: str, d: str | None, expected: str | None, wrapped: bool) -> None:
    wrap = nn.DataParallel if wrapped else lambda m: m
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rgplug.attach(wrap(network(g)), None if d is None else wrap(network(d)), "dense")
    texts = [str(w.message) for w in caught if said([w], SWAPPED)]
    assert len(texts) == (expected is not None)
    if expected is not None:
        assert expected in texts[0]
        assert "rgplug.attach(G, D)" in texts[0]

"""Moving averages in every form that hosts have them in: masked for a block, measured, exported; left bit for bit."""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
from common import MILD, Host, attached
from PIL import Image
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import rgplug
from rgplug.errors import RgplugError
from rgplug.metrics.value import MetricValue

pytestmark = pytest.mark.filterwarnings("ignore:rgplug. densities have drifted apart")
HALF = {"base": "sparse", "masks.density": 0.5}


@functools.cache
def pictures() -> str:
    """A folder of real images, which attach looks at."""
    folder = tempfile.mkdtemp()
    Image.new("RGB", (4, 4)).save(f"{folder}/a.png")
    return folder


class Generator(nn.Module):
    z_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.rgb = nn.Linear(6, 3 * 16)

    def forward(self, z: Tensor) -> Tensor:
        return self.rgb(self.body(z)).view(-1, 3, 4, 4)


class EMA(nn.Module):
    """The members and the state-dict keys of ema-pytorch's EMA."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.online_model = [model]
        self.ema_model = copy.deepcopy(model)
        self.register_buffer("initted", torch.tensor(True))
        self.register_buffer("step", torch.tensor(3))

    def forward(self, *args: Any) -> Any:
        return self.ema_model(*args)


def fabric(module: nn.Module) -> nn.Module:
    lightning = pytest.importorskip("lightning_fabric")
    wrapped: nn.Module = lightning.Fabric(accelerator="cpu", devices=1).setup_module(copy.deepcopy(module))
    return wrapped


WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": copy.deepcopy,
    "AveragedModel": AveragedModel,
    "AveragedModel of DataParallel": lambda m: AveragedModel(nn.DataParallel(m)),
    "DataParallel": lambda m: nn.DataParallel(copy.deepcopy(m)),
    "compile": lambda m: torch.compile(copy.deepcopy(m)),
    "Fabric": fabric,
    "ema-pytorch": EMA,
}


def in_form(module: nn.Module, form: str) -> Any:
    return {
        "module": lambda: module,
        "state dict": module.state_dict,
        "parameters": lambda: dict(module.named_parameters()),
        "list": lambda: list(getattr(module, "ema_model", module).parameters()),
    }[form]()


class Seen:
    """An evaluator that looks at G's weights, or at those of the network it draws from, while it measures."""

    seed = 0

    def __init__(self) -> None:
        self.images: list[Tensor] = []

    def __call__(self, sample: Callable[[int], Tensor]) -> MetricValue:
        self.images.append(sample(2))
        return MetricValue("fid", 1.0, None, 2, 0.0)


def pair(wrap: Callable[[nn.Module], nn.Module], live: Callable[[nn.Module], nn.Module] = lambda m: m) -> Any:
    """(rg, G, wrapped average of random values): G with half of its weights pruned, attached in a wrapper or not."""
    torch.manual_seed(0)
    G = Generator()
    rg = rgplug.attach(live(G), None, {**HALF, "metric": {"real": pictures()}})
    assert rg._evaluation is not None
    rg._evaluation._evaluator = Seen()
    average = wrap(G)
    with torch.no_grad():
        for p in average.parameters():
            p.copy_(torch.randn_like(p))
    return rg, G, average


def bits(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def under_mask(rg: rgplug.Controller, average: nn.Module) -> Generator:
    """By hand: a plain generator with the average's values where G's weights are kept."""
    values = [p.detach() for p in getattr(average, "ema_model", average).parameters()]
    masks = {w.name: w.mask for w in rg.weights("G")}
    plain = Generator()
    with torch.no_grad():
        for (name, p), value in zip(plain.named_parameters(), values):
            p.copy_(value * masks[name] if name in masks else value)
    return plain


@pytest.mark.parametrize("form", ["module", "state dict", "parameters", "list"])
@pytest.mark.parametrize("live", ["plain", "DataParallel", "compile"])
@pytest.mark.parametrize("kind", list(WRAPPED))
def test_every_form_is_measured_under_the_mask_and_left_as_it_was(kind: str, live: str, form: str) -> None:
    attach_as = {"plain": lambda m: m, "DataParallel": nn.DataParallel, "compile": torch.compile}[live]
    rg, G, average = pair(WRAPPED[kind], attach_as)
    before, weights = bits(average), bits(G)
    rg.end_epoch(ema=in_form(average, form))
    sampler = rg._evaluation._evaluator
    z = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sampler.images[0], under_mask(rg, average)(z))
    assert same(bits(average), before)
    assert same(bits(G), weights)


@pytest.mark.parametrize("form", ["module", "state dict", "parameters", "list"])
@pytest.mark.parametrize("kind", list(WRAPPED))
def test_masked_is_for_the_block_and_apply_masks_and_export_agree(kind: str, form: str) -> None:
    rg, _, average = pair(WRAPPED[kind])
    before, expected = bits(average), under_mask(rg, average)
    given = in_form(average, form)
    with rg.masked(given) as same_object:
        assert same_object is given
        values = getattr(average, "ema_model", average).parameters()
        assert all(torch.equal(a, b) for a, b in zip(values, expected.parameters()))
    assert same(bits(average), before)
    baked = rg.export(ema=in_form(average, form))
    assert type(baked) is Generator
    assert same(bits(baked), bits(expected))
    assert same(bits(average), before)
    assert rg.apply_masks(given) is given
    values = getattr(average, "ema_model", average).parameters()
    assert all(torch.equal(a, b) for a, b in zip(values, expected.parameters()))


@pytest.mark.parametrize("form", ["module", "state dict", "parameters", "list"])
@pytest.mark.parametrize("kind", list(WRAPPED))
def test_sema_updates_every_form(kind: str, form: str) -> None:
    rg, G, average = pair(WRAPPED[kind])
    expected = copy.deepcopy(under_mask(rg, average))
    given = in_form(average, form)
    assert rg.ema(given, 0.75) is given
    masks = {w.name: w.mask for w in rg.weights("G")}
    values = getattr(average, "ema_model", average).parameters()
    for (name, p), old, live in zip(expected.named_parameters(), values, G.parameters()):
        new = 0.75 * p + 0.25 * live
        torch.testing.assert_close(old, new * masks[name] if name in masks else new)


@pytest.mark.parametrize("use", ["end_epoch", "end_epoch with a value", "evaluate", "masked", "apply_masks", "export"])
def test_names_that_match_nothing_are_an_error(use: str) -> None:
    rg, _, average = pair(copy.deepcopy)
    state = {f"generator.{name}": value for name, value in average.state_dict().items()}
    before = {name: value.clone() for name, value in state.items()}

    def used() -> Any:
        if use == "masked":
            with rg.masked(state):
                pytest.fail("masked nothing")
        return {
            "end_epoch": lambda: rg.end_epoch(ema=state),
            "end_epoch with a value": lambda: rg.end_epoch(1.0, ema=state),
            "evaluate": lambda: rg.evaluate(ema=state),
            "apply_masks": lambda: rg.apply_masks(state),
            "export": lambda: rg.export(ema=state),
        }[use]()

    with pytest.raises(RgplugError, match=r"body.weight|give a (copy|state dict) of"):
        used()
    assert same(state, before)
    assert rg.epoch == 0


def test_a_layer_of_the_hosts_own_may_be_called_module() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(4, 4)

    G = Own()
    rg = rgplug.attach(G, None, HALF)
    (w,) = rg.weights("G")
    for average in (copy.deepcopy(G), AveragedModel(G), nn.DataParallel(copy.deepcopy(G))):
        state = average.state_dict()
        with rg.masked(state):
            (name,) = [n for n in state if n.endswith("weight")]
            assert torch.equal(state[name] != 0, w.mask)


def test_a_tied_weight_in_a_file_without_ties() -> None:
    """safetensors writes a tied tensor twice; both copies get the mask."""
    G = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    G[1].weight = G[0].weight
    rg = rgplug.attach(G, None, HALF)
    state = {name: value.clone() + 1 for name, value in G.state_dict().items()}
    before = {name: value.clone() for name, value in state.items()}
    pruned = ~rg.weights("G")[0].mask
    with rg.masked(state):
        assert not state["0.weight"][pruned].any()
        assert not state["1.weight"][pruned].any()
    assert same(state, before)


# ---- the block -----------------------------------------------------------------------------------------------------


def test_how_often_is_evaluated_changes_nothing() -> None:
    """The average of the same training, evaluated at every step or never."""

    def average(every: bool) -> dict[str, Tensor]:
        host = Host()
        rg = rgplug.attach(host.G, host.D, MILD)
        ema = copy.deepcopy(host.G)

        def update() -> None:
            with torch.no_grad():
                for p, live in zip(ema.parameters(), host.G.parameters()):
                    p.lerp_(live, 0.1)
            if every:
                with rg.masked(ema):
                    rg.end_epoch(3.0, ema=ema)

        host.run(8, update)
        assert rg.density("G") < 1
        return bits(ema)

    assert same(average(every=True), average(every=False))


def test_blocks_may_be_nested_and_an_error_leaves_the_average_whole() -> None:
    host, rg = attached(steps=2)
    ema = copy.deepcopy(host.G)
    with torch.no_grad():
        for p in ema.parameters():
            p.fill_(float("nan"))  # whatever stands there comes back
    before = bits(ema)

    def fails() -> None:
        with rg.masked(ema), rg.masked(ema.state_dict()):
            assert not ema[0].weight[~rg.weights("G")[0].mask].any()
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert all(torch.equal(a.view(torch.int32), before[n].view(torch.int32)) for n, a in ema.named_parameters())


def test_a_decision_inside_the_block_leaves_its_mask() -> None:
    """What is drawn after end_epoch is what was measured, though the run goes dense; then everything comes back."""
    host, rg = attached(steps=3)
    ema = copy.deepcopy(host.G)
    with torch.no_grad():
        for p in ema.parameters():
            p.fill_(1.0)
    mask = rg.weights("G")[0].mask.clone()
    with rg.masked(ema):
        for value in (5, 6, 7, 8, 9):
            rg.end_epoch(value)
        assert rg.phase == "dense"
        assert torch.equal(ema[0].weight != 0, mask)
    assert ema[0].weight.all()
    with rg.masked(ema):  # nothing is pruned in a dense phase
        assert ema[0].weight.all()
        assert rg.end_epoch(1).phase == "sparse"
        assert ema[0].weight.all()  # what was measured was dense
    assert ema[0].weight.all()


def test_masks_are_on_schedule_in_the_block() -> None:
    host, rg = attached({"target": {"G": 0.5, "by": 0, "shape": "constant"}, "threshold.units": "layer_std"}, steps=3)
    ema = copy.deepcopy(host.G)
    size = sum(w.numel for w in rg.weights("G"))
    with rg.masked(ema):
        masks = [w.mask.clone() for w in rg.weights("G")]
        assert sum(int(m.sum()) for m in masks) == pytest.approx(0.5 * size, abs=1 + 0.01 * size)
        rg.end_epoch(1.0)  # which would have met the target itself
        assert all(torch.equal(w.mask, m) for w, m in zip(rg.weights("G"), masks))


def test_a_network_that_the_policy_leaves_out_has_no_mask() -> None:
    host, rg = attached({**MILD, "networks.G": None}, steps=1)
    ema = copy.deepcopy(host.G)
    before = bits(ema)
    with rg.masked(ema):
        assert same(bits(ema), before)
        rg.end_epoch(1.0, ema=ema)
    with pytest.raises(RgplugError, match="no managed network 'X'"), rg.masked(ema, "X"):
        pass


def test_drawing_in_inference_mode_leaves_training_possible() -> None:
    policy = {"target": {"G": 0.5, "by": 0, "shape": "constant"}, "threshold.units": "layer_std"}
    host, rg = attached(policy, steps=2)
    ema = copy.deepcopy(host.G)
    before = bits(ema)
    with torch.inference_mode(), rg.masked(ema):
        assert not ema[0].weight[~rg.weights("G")[0].mask].any()
    assert same(bits(ema), before)
    host.run(2)
    assert rg.networks["G"].iteration == 4


def test_the_network_itself_may_be_given_and_trains_on() -> None:
    host, rg = attached(steps=2)
    with rg.masked(host.G), rg.masked(nn.DataParallel(host.G)):
        host.run(3)
        trained = [p.detach().clone() for p in host.G.parameters()]
    assert all(torch.equal(p, q) for p, q in zip(host.G.parameters(), trained))


def test_a_state_saved_before_fabrics_setup_loads_after_it() -> None:
    lightning = pytest.importorskip("lightning_fabric")
    torch.manual_seed(0)
    policy = {"base": "rg-gan", "threshold.init": 0.2}
    G = Generator()
    rg = rgplug.attach(G, None, policy)
    rg.networks["G"].refresh_all()
    state = rg.state_dict()
    masks = [w.mask.clone() for w in rg.weights("G")]
    assert 0 < rg.density("G") < 1
    weights = bits(G)
    rg.detach()

    again = Generator()
    run = lightning.Fabric(accelerator="cpu", devices=1)
    wrapped, optimizer = run.setup(again, torch.optim.Adam(again.parameters(), 1e-3))
    resumed = rgplug.attach(wrapped, None, policy)
    wrapped.load_state_dict(weights)
    resumed.load_state_dict(state)
    assert all(torch.equal(w.mask, m) for w, m in zip(resumed.weights("G"), masks))
    run.backward(wrapped(torch.randn(4, 4)).square().mean())
    optimizer.step()
    assert resumed.networks["G"].iteration == 1

"""Every base model of the papers, trained a few steps under every method."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import host_runs
import pytest
import torch
from base_models import MODELS, VARIANTS
from model_autogan import AutoGAN
from model_official import FOLDERS, OFFICIAL
from model_progan import GrowingProGAN, ProGAN
from model_stylegan2 import StyleGAN2
from model_training import Training
from test_hosts import host, own_weights
from torch import Tensor, nn

import rgplug
from rgplug.policy import Policy
from rgplug.presets import PRESETS

pytestmark = pytest.mark.filterwarnings("error:rgplug")

# presets that begin with a file which another run has to leave first
NEED_FILES: frozenset[str] = frozenset()
METHODS = sorted(set(PRESETS) - NEED_FILES)
DENSITY = 0.6
# what makes a method act within a few steps
BY_METHOD: dict[str, dict[str, Any]] = {
    "rg-gan": {"threshold.init": 0.5, "threshold.units": "layer_std"},
    "re-gan": {"cycle.warm_up": 1, "cycle.period": 2},
}
BY_PRESET: dict[str, dict[str, Any]] = {
    "rg-gan-released": {"threshold.init": 0.05, "threshold.units": {"G": "layer_std", "D": "spectral"}},
    "adapt-strict": {"balance.highest": DENSITY},
}


def policy_of(preset: str) -> dict[str, Any]:
    stock = Policy.load(preset)
    keys = dict(BY_METHOD.get(stock.method, {}))
    if stock.method == "sparse":
        keys["masks.density"] = {n: 1.0 if stock.of(stock.masks.density, n) == 1 else DENSITY for n in ("G", "D")}
    if stock.exploration is not None:
        keys["exploration.every"] = 2
    if stock.balance is not None:  # upper = lower: the density changes at each adjustment
        keys |= {"balance.every": 2, "balance.measure": 1, "balance.window": 1, "balance.delta": 0.1}
        keys |= {"balance.lower": 0.5, "balance.upper": 0.5}
    return {"base": preset, **keys, **BY_PRESET.get(preset, {})}


class Watch:
    """What has to hold after every step; and what was there before and after them."""

    def __init__(self, training: Training, policy: Any) -> None:
        self.training = training
        self.classes = {k: [type(m) for m in net.modules()] for k, net in training.nets.items()}
        self.began = {k: {n: p.detach().clone() for n, p in net.named_parameters()} for k, net in training.nets.items()}
        self.rg = training.rg = rgplug.attach(training.nets["G"], training.nets["D"], policy)
        training.after = self.after_step
        self.first_masks = {k: self.masks(k) for k in training.nets}
        self.first_counts = {k: self.counts(k) for k in training.nets}
        self.kept: dict[str, list[dict[str, int]]] = {"G": [], "D": []}  # by weight, after each step
        self.step: dict[str, list[int]] = {"G": [], "D": []}  # the iteration that each of these was in
        self.resting: dict[str, list[set[str]]] = {"G": [], "D": []}  # weights without a gradient

    def masks(self, network: str) -> dict[str, Tensor]:
        return {w.name: w.mask.clone() for w in self.rg.weights(network)}

    def counts(self, network: str) -> tuple[int, int, int]:
        net = self.rg.networks[network]
        return int(net.kept.sum()), int(net.pruned.sum()), int(net.regrown.sum())

    def after_step(self, network: str) -> None:
        for w in self.rg.weights(network):
            assert torch.isfinite(w.data).all(), w.name
            assert not w.data[~w.mask].any(), w.name
        self.kept[network].append({w.name: int(w.mask.sum()) for w in self.rg.weights(network)})
        self.step[network].append(self.training.steps[network])
        self.resting[network].append({w.name for w in self.rg.weights(network) if w.param.grad is None})
        assert not set(self.trained(network)) & self.waiting(network)

    def waiting(self, network: str) -> set[str]:
        """Names of weights that have had no gradient so far: their stage has not come."""
        return set.intersection(*self.resting[network])

    def totals(self, network: str) -> list[int]:
        return [sum(kept.values()) for kept in self.kept[network]]

    def changed(self, network: str) -> list[str]:
        """Names of weights whose mask is another than at attach."""
        first = self.first_masks[network]
        return [name for name, mask in self.masks(network).items() if not torch.equal(mask, first[name])]

    def trained(self, network: str) -> list[str]:
        """Names of weights of which a kept entry has moved."""
        return [
            w.name for w in self.rg.weights(network) if ((w.data != self.began[network][w.name]) & (w.data != 0)).any()
        ]


def sparse_next(step: int) -> bool:
    """Re-GAN with one dense step and phases of two: whether the step after `step` is sparse (2, 3, 6, 7, ...)."""
    return step % 4 in (1, 2)


def check_density(watch: Watch, network: str) -> None:
    """Density after every step, and whether masks changed, are what the method asks for."""
    policy, totals = watch.rg.policy, watch.totals(network)
    sizes = {w.name: w.numel for w in watch.rg.weights(network)}
    size, changed = sum(sizes.values()), bool(watch.changed(network))
    if policy.method == "rg-gan" and network in policy.threshold.networks:
        assert all(0.2 * size < n < 0.98 * size for n in totals)
        assert changed or not (policy.threshold.task_gradient and policy.regeneration.recurs(network))
        if not policy.regeneration.recurs(network):
            assert totals == sorted(totals, reverse=True)
    elif policy.method == "re-gan" and network in policy.cycle.networks:
        for step, kept in zip(watch.step[network], watch.kept[network]):
            pruned = {
                k: math.ceil(policy.cycle.sparsity * (n - 1)) if sparse_next(step) else 0 for k, n in sizes.items()
            }
            assert kept == {k: n - pruned[k] for k, n in sizes.items()}, step
    elif policy.method == "sparse" and network == "D" and policy.balance is not None:
        check_adjustments(watch, policy)
    elif policy.method == "sparse":
        asked = policy.of(policy.masks.density, network) * size
        assert set(totals) == {totals[0]}
        assert totals[0] == pytest.approx(asked, abs=0.51)
        explores = policy.exploration is not None and network in policy.exploration.networks
        assert changed == explores
        if explores:
            assert all(kept == watch.kept[network][0] for kept in watch.kept[network])
    elif policy.method in ("rg-gan", "re-gan", "dense"):
        assert set(totals) == {size}
    else:
        pytest.fail(f"say here what method {policy.method} asks for")


def check_adjustments(watch: Watch, policy: Policy) -> None:
    """ADAPT: every other step of D, the layers that have a gradient come to a density a tenth higher or lower."""
    assert policy.balance is not None
    before = {w: int(m.sum()) for w, m in watch.first_masks["D"].items()}
    sizes = {w.name: w.numel for w in watch.rg.weights("D")}
    for step, kept, resting in zip(watch.step["D"], watch.kept["D"], watch.resting["D"]):
        if step % policy.balance.every or (step == 2 and watch.training.d_steps == 2):  # nothing was measured yet
            assert kept == before
        else:
            tenths = 10 * sum(n for w, n in kept.items() if w not in resting)
            tenths /= sum(n for w, n in sizes.items() if w not in resting)
            assert tenths == pytest.approx(round(tenths), abs=0.01)
            assert tenths <= 10 * policy.balance.highest + 0.01
            assert all(kept[w] == before[w] for w in resting)
        before = kept
    assert watch.changed("D")


def check_end(watch: Watch, network: str, record: Any) -> None:
    """Counters add up; all of the network has trained; average, copies and pickles are as they should be."""
    training, rg = watch.training, watch.rg
    net = training.nets[network]
    kept, pruned, regrown = watch.counts(network)
    assert kept == watch.totals(network)[-1]
    was_kept, was_pruned, was_regrown = watch.first_counts[network]
    assert kept - was_kept == (regrown - was_regrown) - (pruned - was_pruned)
    assert record.steps[network] == training.steps[network]
    assert record.density[network] == pytest.approx(kept / sum(w.numel for w in rg.weights(network)))
    assert set(record.layers[network]) == {w.name for w in rg.weights(network)}
    assert watch.trained(network) == [w.name for w in rg.weights(network)]  # so no stage is left out
    assert all(torch.isfinite(t).all() for t in net.state_dict().values())
    training.look()
    copied, pickled = copy.deepcopy(net), pickle.dumps(net)
    assert b"rgplug" not in pickled
    for other in (copied, pickle.loads(pickled)):
        assert [type(m) for m in other.modules()] == watch.classes[network]
        assert all(torch.equal(a, b) for a, b in zip(other.parameters(), net.parameters(), strict=True))


RUNS = [(model, preset) for model in MODELS for preset in METHODS] + [
    (model, preset) for model in VARIANTS for preset in ("rg-gan", "sparse", "rigl", "re-gan")
]


@pytest.mark.parametrize(("model", "preset"), RUNS)
def test_trains_under(model: str, preset: str) -> None:
    torch.manual_seed(0)
    check_run((MODELS | VARIANTS)[model](), preset)


def check_run(training: Training, preset: str) -> None:
    watch = Watch(training, policy_of(preset))
    training.run()
    assert all(torch.isfinite(loss) for loss in training.losses)
    record = watch.rg.end_epoch(1.0, ema=training.ema)
    for network in ("G", "D"):
        check_density(watch, network)
        check_end(watch, network, record)
    average = dict(training.ema.named_parameters())
    for w in watch.rg.weights("G"):
        assert not average[w.name][~w.mask].any()
    state = {k: copy.deepcopy(net.state_dict()) for k, net in training.nets.items()}
    watch.rg.detach()
    for network, net in training.nets.items():
        assert [type(m) for m in net.modules()] == watch.classes[network]
        assert all(torch.equal(value, state[network][key]) for key, value in net.state_dict().items())
    training.rg, training.after = None, lambda network: None
    training.run(1)
    assert all(torch.isfinite(loss) for loss in training.losses)


@pytest.mark.parametrize("model", [*MODELS, *VARIANTS])
def test_managed_weights(model: str) -> None:
    """All parameters of two or more dims but those that the model names, and no other."""
    training = (MODELS | VARIANTS)[model]()
    rg = rgplug.attach(training.nets["G"], training.nets["D"], "dense")
    for network, net in training.nets.items():
        left_out = training.left_out[network]
        large = {name for name, p in net.named_parameters() if p.dim() > 1}
        assert set(left_out) <= large
        assert {w.name for w in rg.weights(network)} == large - set(left_out)
        reasons = {c.name: c.reason for c in rg.candidates[network] if c.reason}
        assert reasons == {name: reason for name, reason in left_out.items() if reason}
        for w in rg.weights(network):
            second = isinstance(w.module, nn.ConvTranspose2d) or w.param.dim() == 5
            assert w.layout.dim == int(second), w.name


@pytest.mark.parametrize("model", [*MODELS, *VARIANTS])
def test_dense_training_is_not_changed(model: str) -> None:
    runs = []
    for attached in (False, True):
        torch.manual_seed(0)
        training = (MODELS | VARIANTS)[model]()
        if attached:
            training.rg = rgplug.attach(training.nets["G"], training.nets["D"], "dense")
        training.run(3)
        runs.append([t for net in (*training.nets.values(), training.ema) for t in net.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("model", [*MODELS, *VARIANTS])
def test_augmented_regeneration_and_target(model: str) -> None:
    """A target density is met; a worse metric brings every weight back, a better one prunes again."""
    torch.manual_seed(0)
    training = (MODELS | VARIANTS)[model]()
    augmented = {"regeneration.augmented.window": 2, "regeneration.augmented.weights": [0.5, 0.5]}
    target = {"target.G": 0.5, "target.D": 0.7, "target.by": 2, "threshold.units": "layer_std"}
    watch = Watch(training, {"base": "rg-gan", **augmented, **target})
    asked = {"G": pytest.approx(0.5, abs=0.01), "D": pytest.approx(0.7, abs=0.01)}
    training.run(3)
    assert watch.rg.end_epoch(1.0).density == asked
    assert watch.rg.end_epoch(2.0).phase == "dense"
    assert watch.rg.density() == {"G": 1, "D": 1}
    training.run(1)
    assert watch.totals("G")[-1] == sum(w.numel for w in watch.rg.weights("G"))
    assert watch.rg.end_epoch(0.5).phase == "sparse"
    training.run(1)
    assert watch.rg.density() == asked


# ---- what one model has and the others have not ----------------------------------------------------------------------


@pytest.mark.parametrize("preset", METHODS)
def test_progan_layers_whose_stage_has_not_come(preset: str) -> None:
    """After two iterations at 4x4: no weight of a later stage has moved, and those that grow by gradient keep masks."""
    torch.manual_seed(0)
    training = ProGAN()
    watch = Watch(training, policy_of(preset))
    training.run(2)
    for network in ("G", "D"):
        late = {w.name: w for w in watch.rg.weights(network) if ".1." in w.name or ".2." in w.name}
        assert set(late) == watch.waiting(network)
        assert len(late) == 4
        assert set(watch.trained(network)) | set(late) == {w.name for w in watch.rg.weights(network)}
        assert all(w.steps == training.steps[network] for w in late.values())
        for w in late.values():  # nothing is lost: what is pruned by thresholds waits with its value
            whole = watch.rg.policy.method == "rg-gan"
            assert not whole or torch.equal(w.theta, watch.began[network][w.name])
        p = watch.rg.policy.exploration
        if p is not None and network in p.networks:
            assert bool(set(watch.changed(network)) & set(late)) == (p.grow == "random")


@pytest.mark.parametrize("preset", METHODS)
def test_progan_modules_made_after_attach_train_dense(preset: str) -> None:
    torch.manual_seed(0)
    training = GrowingProGAN()
    watch = Watch(training, policy_of(preset))
    managed = {network: [w.name for w in watch.rg.weights(network)] for network in ("G", "D")}
    training.run()
    record = watch.rg.end_epoch(1.0, ema=training.ema)
    for network, net in training.nets.items():
        check_density(watch, network)
        new = {n: p for n, p in net.named_parameters() if p.dim() > 1 and n not in managed[network]}
        assert len(new) == 4
        assert set(record.layers[network]) == set(managed[network])
        assert not any(name in watch.rg.report() for name in new)
        for name, p in new.items():
            moments = training.optimizers[network].state[p]
            assert p.all(), name
            assert moments["exp_avg_sq"].all(), name
        assert b"rgplug" not in pickle.dumps(net)
    watch.rg.detach()
    assert not any("Masked" in type(m).__name__ for net in training.nets.values() for m in net.modules())
    again = rgplug.attach(training.nets["G"], training.nets["D"], "sparse")
    assert {w.name for w in again.weights("G")} == {n for n, p in training.nets["G"].named_parameters() if p.dim() > 1}


@pytest.mark.parametrize("leading", [False, True])
def test_stylegan2_lazy_steps_are_no_iterations(leading: bool) -> None:
    torch.manual_seed(0)
    training = StyleGAN2(leading)
    watch = Watch(training, policy_of("rg-gan"))
    training.run(4)
    assert training.steps == {"G": 4, "D": 4}
    assert [len(watch.kept[n]) for n in ("G", "D")] == [6, 6]
    assert watch.rg.end_epoch(1.0).steps == {"G": 4, "D": 4}


def test_autogan_learning_rate_is_the_schedulers() -> None:
    """Re-GAN lowers it in dense phases, and only while the optimizer steps."""
    torch.manual_seed(0)
    training = AutoGAN()
    inside: list[float] = []
    between: list[float] = []
    Watch(training, policy_of("re-gan"))
    optimizer = training.optimizers["G"]
    optimizer.register_step_pre_hook(lambda o, *_: inside.append(o.param_groups[0]["lr"]))
    training.after = lambda network: between.append(optimizer.param_groups[0]["lr"]) if network == "G" else None
    training.run(5)
    falling = [AutoGAN.lr * (1 - i / 10) for i in range(5)]
    assert between == pytest.approx(falling)
    assert inside == pytest.approx([lr * f for lr, f in zip(falling, (1, 1, 1, 0.1, 0.1))])


# ---- official code ----------------------------------------------------------------------------------------------------


@pytest.mark.host
@pytest.mark.parametrize("preset", ["rg-gan", "rg-gan-released", "sparse", "stu-gan-b", "re-gan"])
@pytest.mark.parametrize("name", OFFICIAL)
def test_official_networks_train_under(name: str, preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in FOLDERS:
        monkeypatch.setitem(host_runs.FOLDERS, name, (FOLDERS[name], "", ""))
    if name == "biggan":
        pytest.importorskip("torchvision")
    with host(name):
        torch.manual_seed(0)
        training = OFFICIAL[name]()
        with rgplug.attach(training.nets["G"], training.nets["D"], "dense") as rg:
            for network, net in training.nets.items():
                assert {w.name for w in rg.weights(network)} == own_weights(net)
        check_run(training, preset)

"""Every base model of the papers, trained a few steps under every method."""

from __future__ import annotations

import pickle

import host_runs
import pytest
import torch
from base_models import MODELS, VARIANTS
from model_autogan import AutoGAN
from model_checks import METHODS, Watch, check_density, check_run, policy_of
from model_official import FOLDERS, OFFICIAL
from model_progan import GrowingProGAN, ProGAN
from model_stylegan2 import StyleGAN2
from test_hosts import host, own_weights
from torch import nn

import rgplug

pytestmark = pytest.mark.filterwarnings("error:rgplug")

RUNS = [(model, preset) for model in MODELS for preset in METHODS] + [
    (model, preset) for model in VARIANTS for preset in ("rg-gan", "sparse", "rigl", "re-gan")
]


@pytest.mark.parametrize(("model", "preset"), RUNS)
def test_trains_under(model: str, preset: str) -> None:
    torch.manual_seed(0)
    check_run((MODELS | VARIANTS)[model](), preset)


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
        assert reasons == left_out
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


# ---- what one model has and the others have not --------------------------------------------------------------------


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
        policy = watch.rg.policy
        if network in {"rg-gan": policy.threshold.networks, "re-gan": policy.cycle.networks}.get(policy.method, ()):
            assert any(w.density < 1 for w in late.values())
        p = policy.exploration
        if p is not None and network in p.networks:
            exchanged = {name for name, w in late.items() if (w.data[w.mask] == 0).any()}  # what grew began at 0
            assert set(watch.changed(network)) & set(late) == exchanged == set()


@pytest.mark.parametrize("preset", METHODS)
def test_progan_modules_made_after_attach_train_dense(preset: str) -> None:
    torch.manual_seed(0)
    training = GrowingProGAN()
    watch = Watch(training, policy_of(preset))
    managed = {network: [w.name for w in watch.rg.weights(network)] for network in ("G", "D")}
    training.run()
    with watch.rg.masked(training.ema):
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


# ---- published code -------------------------------------------------------------------------------------------------


@pytest.mark.host
@pytest.mark.parametrize("preset", ["rg-gan", "rg-gan-released", "sparse", "stu-gan-b", "re-gan"])
@pytest.mark.parametrize("name", OFFICIAL)
def test_published_networks_train_under(name: str, preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
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

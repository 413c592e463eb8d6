"""STU-GAN's released training and masks (Shiweiliuiiiiiii/GAN-LTH-main), run as they are, against rgplug: bit for bit.

Checkout: RGPLUG_HOSTS/GAN-LTH-main. Networks are the released ones, of 8 channels, D under spectral norm. Replaced from
outside are the named deviations: inactive weights have no gradient in Adam, D's steps explore nothing and move no
cosine. Masks at the start are those that the released code draws.
"""

from __future__ import annotations

import copy
import importlib
from argparse import Namespace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from released import Event, Recorder, Replay, equal, released, state_of
from torch import Tensor, nn

import rgplug
from rgplug.methods.allocation import layer_densities
from rgplug.snapshot import save_masks

pytestmark = pytest.mark.host

STUBS = ("utils.inception_score", "utils.fid_score", "imageio")
CRITIC, LR, RUN, EVERY, MADE = 3, 2e-3, 20, 4, 17  # iterations of G: planned, between exchanges, made
MANAGED = {"networks": {"G": {"exclude": ["l1"]}, "D": {"exclude": ["l5"]}}}  # 4-D weights, as released


def patch_deviations(core: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    step = core.Masking.step

    def patched(self: Any, explore_mode: str) -> None:
        net = self.G_model if explore_mode == "G" else self.D_model
        masks = self.G_masks if explore_mode == "G" else self.D_masks
        held = {p: p.grad for n, p in net.named_parameters() if n in masks}
        for n, p in net.named_parameters():
            if n in masks:
                p.grad = p.grad * masks[n]
        if explore_mode == "D":
            mode, self.sparse_mode = self.sparse_mode, "none"
            decay, self.death_rate_decay = self.death_rate_decay, MagicMock()
            step(self, explore_mode)
            self.sparse_mode, self.death_rate_decay = mode, decay
        else:
            explore = self.weight_exploration

            def with_gradients(dy_mode: str) -> None:
                for p, grad in held.items():
                    p.grad = grad
                explore(dy_mode)

            self.weight_exploration = with_gradients
            self.death_rate_decay.step()
            self.death_rate = self.death_rate_decay.get_dr()
            step(self, explore_mode)
            del self.weight_exploration

    monkeypatch.setattr(core.Masking, "step", patched)


def run_released(
    monkeypatch: pytest.MonkeyPatch, patched: bool
) -> tuple[Recorder, dict[str, dict[str, Tensor]], list[dict[str, Tensor]]]:
    """What happened; the masks at the start; the sparse moving average after each step of G."""
    core = importlib.import_module("sparselearning.core_SNGAN")
    functions = importlib.import_module("functions")
    model = importlib.import_module("models.sngan_cifar10")
    if patched:
        patch_deviations(core, monkeypatch)
    args = Namespace(
        random_seed=1, gf_dim=8, df_dim=8, bottom_width=2, latent_dim=6, d_spectral_norm=True, n_critic=CRITIC,
        gen_batch_size=4, print_freq=10**6, max_epoch=1, sparse=True, SEMA=True, sparse_mode="DST", dy_mode="G",
        densityG=0.3, densityD=0.3, imbalanced=False, update_frequency=EVERY, final_prune_time=0.8,
        initial_prune_time=0.1,
    )  # fmt: skip
    torch.manual_seed(0)
    nets = {"G": model.Generator(args), "D": model.Discriminator(args)}
    optimizers = {k: torch.optim.Adam(n.parameters(), LR, (0.0, 0.9)) for k, n in nets.items()}
    mask = core.Masking(optimizers["G"], optimizers["D"], core.CosineDecay(0.5, RUN), death_rate=0.5, args=args)
    mask.add_module(nets["G"], nets["D"], density=0.3)

    def held() -> dict[str, dict[str, Tensor]]:
        return {"G": mask.G_masks, "D": mask.D_masks}

    def look(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        masks = held()["G" if net is nets["G"] else "D"]
        return state_of(net, optimizer) | {f"{n}:mask": m.bool() for n, m in masks.items()}

    recorder = Recorder(look)
    for label, net in nets.items():
        recorder.network(label, net)
        recorder.optimizer(label, optimizers[label])
    first = {k: {n: m.bool().clone() for n, m in masks.items()} for k, masks in held().items()}
    average = copy.deepcopy(nets["G"].state_dict())
    averages = []
    writer = {"writer": MagicMock(), "train_global_steps": 0}
    for i in range((MADE - 1) * CRITIC + 1):  # released `train` loops over a loader; one batch at a time
        torch.manual_seed(i)
        batch = [(torch.rand(4, 3, 16, 16) * 2 - 1, 0)]
        functions.train(args, nets["G"], nets["D"], *optimizers.values(), average, batch, i, writer, None, mask)
        if i % CRITIC == 0:
            averages.append({k: v.clone() for k, v in average.items()})
    for label in ("G", "D"):
        recorder.events.append(Event(f"end {label}", before=look(nets[label], optimizers[label])))
    return recorder, first, averages


def compare(
    recorder: Recorder, masks: dict[str, dict[str, Tensor]], averages: list[dict[str, Tensor]], where: Path
) -> int:
    """The number of exchanges of G. Fails at the first difference."""
    save_masks(where / "masks.safetensors", masks)
    policy = {"base": "stu-gan", **MANAGED, "masks.file": str(where / "masks.safetensors")}
    policy |= {"exploration.every": EVERY, "exploration.end": RUN}
    mine = Replay(recorder.began["G"], recorder.began["D"], policy, LR)
    mine.at_once = True
    average = copy.deepcopy(mine.nets["G"])
    exchanges, steps = 0, 0
    for i, event in enumerate(recorder.events):
        label = event.what[-1]
        if not event.what.startswith("end"):
            mine.backward(event)
        state = mine.state(label) | {f"{n}:mask": m for n, m in mine.masks(label).items()}
        equal({k: v for k, v in state.items() if k in event.before}, event.before, f"event {i}, {event.what}")
        if event.what.startswith("end"):
            continue
        before = mine.masks(label)
        mine.step(event)
        if label == "G":
            mine.rg.ema(average, 0.999)
            theirs = averages[steps]
            steps += 1
            for name, value in average.state_dict().items():
                if value.is_floating_point():
                    torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-7, msg=f"average, {i} {name}")
            exchanges += any(not torch.equal(m, before[n]) for n, m in mine.masks("G").items())
    assert steps == len(averages)
    return exchanges


def test_stu_gan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with released("GAN-LTH-main/src/SNGAN", *STUBS), on_path():
        recorder, masks, averages = run_released(monkeypatch, patched=True)
        monkeypatch.undo()
        assert compare(recorder, masks, averages, tmp_path) == MADE // EVERY


def test_densities_of_erdos_renyi_kernel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As the program prints them."""
    with released("GAN-LTH-main/src/SNGAN", *STUBS), on_path():
        _, masks, _ = run_released(monkeypatch, patched=True)
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("layer: ")]
    theirs = {line.split()[1].rstrip(","): float(line.rsplit(" ", 1)[1]) for line in printed}
    for layers in masks.values():
        mine = layer_densities([tuple(m.shape) for m in layers.values()], 0.3, "erk")
        assert mine == pytest.approx([theirs[name] for name in layers], rel=1e-12)


def test_as_released_the_first_step_of_d_explores(monkeypatch: pytest.MonkeyPatch) -> None:
    """G has no gradient then: the program ends with an error."""
    with released("GAN-LTH-main/src/SNGAN", *STUBS), on_path(), pytest.raises(AttributeError, match="clone"):
        run_released(monkeypatch, patched=False)


@pytest.mark.parametrize(("preset", "mode"), [("pf-uniform", "uniformG"), ("pf-global", "globalG")])
def test_masks_of_prune_and_fine_tune(preset: str, mode: str) -> None:
    """core_SNGAN_PF: the masks of a trained pair. Of 75 % pruned, no count has to be rounded."""
    with released("GAN-LTH-main/src/SNGAN", *STUBS), on_path():
        core = importlib.import_module("sparselearning.core_SNGAN_PF")
        model = importlib.import_module("models.sngan_cifar10")
        args = Namespace(
            gf_dim=8, df_dim=8, bottom_width=2, latent_dim=6, d_spectral_norm=True, sparse_mode="fix", dy_mode="",
            densityG=0.3, densityD=0.3, imbalanced=False, update_frequency=EVERY, final_prune_time=0.8,
            initial_prune_time=0.1, pruning_mode=mode, pruning_rate=0.75,
        )  # fmt: skip
        torch.manual_seed(0)
        nets = {"G": model.Generator(args), "D": model.Discriminator(args)}
        twins = copy.deepcopy(nets)
        optimizers = [torch.optim.Adam(n.parameters(), LR, (0.0, 0.9)) for n in nets.values()]
        mask = core.Masking(*optimizers, core.CosineDecay(0.5, RUN), death_rate=0.5, args=args)
        mask.add_module(nets["G"], nets["D"], density=0.3, sparse_init="PT")
    rg = rgplug.attach(twins["G"], twins["D"], {"base": preset, **MANAGED, "masks.density": {"G": 0.25, "D": 1.0}})
    found = {w.name: w.mask for w in rg.weights("G")}
    equal(found, {n: m.bool() for n, m in mask.G_masks.items()}, mode)
    assert sum(int(m.sum()) for m in found.values()) * 4 == sum(m.numel() for m in found.values())
    assert all(bool(m.all()) for m in mask.D_masks.values())


def on_path() -> Any:
    """The program adds '..', of its own working folder, to the path."""
    return released("GAN-LTH-main/src")

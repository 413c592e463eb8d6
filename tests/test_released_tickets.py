"""The released programs of GAN tickets (VITA-Group/GAN-LTH: IMPG, IMPGD), run as they are, against rgplug.

Three rounds. Checkout: RGPLUG_HOSTS/GAN-LTH. Networks are the released ones, of 8 channels, D under spectral norm.
Replaced from outside: the data set, the evaluation, logging, and for IMPGD one deviation: its D prunes int(.2 n) + 1 of
n weights.
"""

from __future__ import annotations

import importlib
from argparse import Namespace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import numpy as np
import pytest
import torch
from released import Event, Recorder, Replay, equal, released, state_of
from torch import Tensor, nn

import rgplug
from rgplug.baselines import distillation_loss
from rgplug.baselines.methods import TICKET
from rgplug.baselines.tickets import next_masks
from rgplug.snapshot import save_masks

pytestmark = pytest.mark.host

STUBS = ("utils.inception_score", "utils.fid_score", "tensorboardX")
ROUNDS, CRITIC, LR = 3, 3, 2e-3
MANAGED = {"networks": {"G": {"exclude": ["l1"]}, "D": {"exclude": ["l5"]}}}  # convolutions, as released


class Enough(Exception):
    """The released programs make ten rounds."""


def arguments(where: Path) -> Namespace:
    return Namespace(
        random_seed=1, seed=1, model="sngan_cifar10", gf_dim=8, df_dim=8, bottom_width=2, latent_dim=6,
        d_spectral_norm=True, init_type="xavier_uniform", init_path=str(where), load_path=str(where), dataset="cifar10",
        n_critic=CRITIC, max_iter=4, max_epoch=0, g_lr=LR, d_lr=LR, beta1=0.0, beta2=0.9, exp_name="", val_freq=100,
        print_freq=1000, gen_batch_size=4, lr_decay=False, second_seed=False, finetune_G=False, finetune_D=False,
        use_kd_D=False,
    )  # fmt: skip


def look(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """As `state_of`, with torch's pruning taken away: a weight is what the layer uses."""
    masks = {name.removesuffix("_mask"): mask for name, mask in net.named_buffers() if name.endswith("weight_mask")}
    found = {}
    for name, value in state_of(net, optimizer).items():
        plain = name.replace("weight_orig", "weight")
        if plain.partition(":")[0] in masks:
            found[plain] = value if ":" in plain else value * masks[plain]
        else:
            found[name] = value
    return found


def networks(where: Path) -> dict[str, nn.Module]:
    model = importlib.import_module("models.sngan_cifar10")
    args = arguments(where)
    return {"G": model.Generator(args), "D": model.Discriminator(args)}


def write_weights(where: Path) -> None:
    """First weights, and those of a dense run, which is another draw here."""
    (where / "Model").mkdir()
    (where / "fid_stat").mkdir()
    (where / "fid_stat" / "fid_stats_cifar10_train.npz").touch()
    for seed, names in enumerate((("initial_gen_net.pth", "initial_dis_net.pth"), ("gen", "dis"))):
        torch.manual_seed(seed)
        states = [net.state_dict() for net in networks(where).values()]
        if seed == 0:
            for name, state in zip(names, states):
                torch.save(state, where / name)
        else:
            torch.save({f"{k}_state_dict": s for k, s in zip(names, states)}, where / "Model" / "checkpoint.pth")


def run_released(name: str, where: Path, monkeypatch: pytest.MonkeyPatch, patched: bool) -> tuple[Recorder, list[Any]]:
    """main() of train_impg.py or train_impgd.py; the checkpoint of each round as the program saves it."""
    monkeypatch.chdir(where)
    write_weights(where)
    recorder, saved = Recorder(look), []
    program, model = importlib.import_module(name), importlib.import_module("models.sngan_cifar10")
    adam, made, prunes = torch.optim.Adam, [], []

    def make_adam(parameters: Any, *args: Any) -> torch.optim.Optimizer:  # in each round G's, then D's
        held = list(parameters)
        made.append(adam(held, *args))
        label = "GD"[(len(made) - 1) % 2]
        owner = next(net for net in built[label] if any(p is held[0] for p in net.parameters()))
        if recorder.nets.get(label) is not owner:
            recorder.network(label, owner)
        if label == "G":
            recorder.events.append(Event("R"))
        prunes[:] = [label]
        recorder.optimizer(label, made[-1])
        return made[-1]

    built: dict[str, list[nn.Module]] = {"G": [], "D": []}

    def building(label: str, kind: type[nn.Module]) -> Any:
        def build(args: Any) -> nn.Module:
            built[label].append(kind(args=args))
            return built[label][-1]

        return build

    def nearest(value: Any) -> int:
        """int() of the program; its first use in a round is the count of D's weights that go, less one."""
        if prunes == ["D"]:
            prunes.clear()
            return round(float(value)) - 1
        return int(value)

    def save(states: dict[str, Any], *_: Any) -> None:
        if states["epoch"] == 2:  # the last one: 4 iterations of G, 6 batches, 3 steps of D each
            saved.append({k: v for k, v in states["avg_gen_state_dict"].items() if k.endswith("mask")})
            if len(saved) == ROUNDS:
                raise Enough

    kinds = {"Generator": building("G", model.Generator), "Discriminator": building("D", model.Discriminator)}
    images = [(torch.rand(4, 3, 16, 16) * 2 - 1, 0) for _ in range(6)]
    replaced = {
        "models": Namespace(sngan_cifar10=Namespace(**kinds)),
        "cfg": Namespace(parse_args=lambda: arguments(where)),
        "datasets": Namespace(ImageDataset=lambda _: Namespace(train=images)),
        "validate": lambda *_: (1.0, 1.0),
        "set_seed": lambda seed: (torch.manual_seed(seed), np.random.seed(seed)),  # noqa: NPY002 - the program's own
        "set_log_dir": MagicMock(),
        "create_logger": MagicMock(),
        "save_checkpoint_imp": save,
    }
    if patched:
        replaced["int"] = nearest
    for key, value in replaced.items():
        monkeypatch.setattr(program, key, value, raising=False)
    with patch.object(torch.optim, "Adam", make_adam), pytest.raises(Enough):
        program.main()
    return recorder, saved


def compare(recorder: Recorder, where: Path, pruned: tuple[str, ...]) -> list[dict[str, dict[str, Tensor]]]:
    """rgplug's rounds: masks from its own trained weights. Fails at the first difference; returns the masks."""
    kinds, masks_of = networks(where), []
    states = torch.load(where / "Model" / "checkpoint.pth")
    first = {"G": torch.load(where / "initial_gen_net.pth"), "D": torch.load(where / "initial_dis_net.pth")}
    for key, name in (("G", "gen"), ("D", "dis")):
        kinds[key].load_state_dict(states[f"{name}_state_dict"])
    with rgplug.attach(kinds["G"], kinds["D"], {"base": "dense", **MANAGED}) as rg:
        managed = {k: [w.name for w in rg.weights(k)] for k in pruned}
        rg.snapshot(where / "trained_0.safetensors")
    mine: Replay | None = None
    for i, event in enumerate(recorder.events):
        if event.what == "R":
            number = len(masks_of)
            if mine is not None:
                mine.rg.snapshot(where / f"trained_{number}.safetensors")
                mine.rg.detach()
            earlier = where / f"masks_{number - 1}.safetensors" if number else None
            masks = next_masks(where / f"trained_{number}.safetensors", earlier, 0.2, pruned, managed)
            save_masks(where / f"masks_{number}.safetensors", masks)
            masks_of.append(masks)
            nets = networks(where)
            for key, net in nets.items():
                net.load_state_dict(first[key])
            policy = {**TICKET, **MANAGED, "masks": {"file": str(where / f"masks_{number}.safetensors")}}
            mine = Replay(nets["G"], nets["D"], policy, LR)
            mine.at_once = True
            continue
        assert mine is not None
        mine.backward(event)
        mine.step(event)
        equal(mine.state(event.what), event.after, f"round {len(masks_of)}, event {i}, {event.what}")
    return masks_of


@pytest.mark.parametrize(("program", "pruned"), [("train_impg", ("G",)), ("train_impgd", ("G", "D"))])
def test_tickets(program: str, pruned: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with released("GAN-LTH/src/SNGAN", *STUBS):
        recorder, saved = run_released(program, tmp_path, monkeypatch, patched="D" in pruned)
        monkeypatch.undo()
        masks = compare(recorder, tmp_path, pruned)
    assert len(masks) == ROUNDS
    for number, found in enumerate(masks, 1):
        for layers in found.values():
            kept = sum(int(m.sum()) for m in layers.values()) / sum(m.numel() for m in layers.values())
            assert kept == pytest.approx(0.8**number, abs=0.002)
    # what the programs save: IMPGD the masks that were trained, IMPG those of the averaged copy
    same = [all(bool((m == saved[n][f"{k}_mask"]).all()) for k, m in f["G"].items()) for n, f in enumerate(masks)]
    assert same == ([True, False, False] if program == "train_impg" else 3 * [True])


def test_impgd_prunes_one_weight_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with released("GAN-LTH/src/SNGAN", *STUBS):
        recorder, _ = run_released("train_impgd", tmp_path, monkeypatch, patched=False)
        monkeypatch.undo()
        with pytest.raises(pytest.fail.Exception, match=r"round 1, event 1, D: "):
            compare(recorder, tmp_path, ("G", "D"))
    weights = [v for k, v in recorder.events[1].before.items() if k.endswith("weight_orig") and not k.startswith("l5")]
    count = sum(w.numel() for w in weights)
    assert sum(int((w == 0).sum()) for w in weights) == int(0.2 * count) + 1 != round(0.2 * count)


def test_distillation(tmp_path: Path) -> None:
    """The loss of D that `train_kd` logs in each step: hinge, and the term of both batches together."""
    losses: list[float] = []

    def log(name: str, value: float, _: int) -> None:
        if name == "d_loss":
            losses.append(value)

    with released("GAN-LTH/src/SNGAN", *STUBS):
        functions = importlib.import_module("functions")
        torch.manual_seed(0)
        nets, teacher = networks(tmp_path), networks(tmp_path)["D"].eval()
        args, recorder, before, taught = arguments(tmp_path), Recorder(look), [], []
        optimizers = {k: torch.optim.Adam(n.parameters(), LR, (0.0, 0.9)) for k, n in nets.items()}
        for label, net in nets.items():
            recorder.network(label, net)
            recorder.optimizer(label, optimizers[label])
        nets["D"].register_forward_hook(lambda _, __, scores: before.append(scores.detach().clone()))
        teacher.register_forward_hook(lambda _, __, scores: taught.append(scores.detach().clone()))
        images = [(torch.rand(n, 3, 16, 16) * 2 - 1, 0) for n in (4, 4, 3, 4)]
        writer = {"writer": Namespace(add_scalar=log), "train_global_steps": 1}
        average = [p.data.clone() for p in nets["G"].parameters()]
        functions.train_kd(args, nets["G"], nets["D"], teacher, *optimizers.values(), average, images, 0, writer)
        steps = [e for e in recorder.events if e.what == "D"]
        assert len(steps) == len(losses) == 4
        for i, (event, loss) in enumerate(zip(steps, losses)):
            assert torch.equal(event.x, images[i][0])
            real, fake = before[:2]
            del before[: 3 if (i + 1) % CRITIC == 0 else 2]  # a step of G looks at D once more
            expected = torch.relu(1 - real).mean() + torch.relu(1 + fake).mean()
            term = distillation_loss((real, fake), taught[2 * i : 2 * i + 2])
            assert term > 1e-3
            assert loss == pytest.approx((expected + term).item(), rel=1e-5)

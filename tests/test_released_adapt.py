"""ADAPT's released training step and masks (YiteWang/ADAPT) on tiny networks, against rgplug: bit for bit.

Checkout: RGPLUG_HOSTS/ADAPT. The released `train` makes every iteration. G explores by layer, which is an option of the
released code. Networks are without spectral and batch norm, whose states its measurement moves. Replaced from outside
are the named deviations: inactive weights have no gradient in Adam, the window does not grow to one more, and counts
are rounded to the nearest (exchanges of D: up) where the program takes `int`.
"""

from __future__ import annotations

import copy
import importlib
import math
from argparse import Namespace
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from released import Event, Recorder, Replay, equal, released, state_of
from torch import Tensor, nn

from rgplug.snapshot import save_masks

pytestmark = pytest.mark.host

STUBS = (
    "imageio",
    "sparselearning.gan_utils.inception_score",
    "sparselearning.gan_utils.fid_score",
)
BATCH, CRITIC, LR, BETAS = 4, 3, 5e-3, (0.5, 0.9)
RUN, MADE = 60, 48  # iterations of the planned run, and those that are made
FREQUENCY_G, FREQUENCY_D, MEASURE, WINDOW = 5, 4, 1, 3


def generator() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 32), nn.LeakyReLU(0.2), nn.Unflatten(1, (8, 2, 2)), nn.Conv2d(8, 8, 3, padding=1),
        nn.LeakyReLU(0.2), nn.Conv2d(8, 3, 1), nn.Tanh(),
    )  # fmt: skip


def discriminator() -> nn.Module:
    """660 weights: densities in twentieths are exact."""
    return nn.Sequential(
        nn.Conv2d(3, 20, 2), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(20, 20), nn.LeakyReLU(0.2), nn.Linear(20, 1)
    )


def arguments(**own: Any) -> Namespace:
    return Namespace(
        seed=3, d_norm="none", n_critic=CRITIC, accumulation_steps=1, dis_batch_size=BATCH, gen_batch_size=BATCH,
        diff_aug=False, latent_dim=6, cal_br=True, br_freq=MEASURE, da_criterion="fake", da_iters=WINDOW * MEASURE,
        loss="hinge", cr=0.0, sparse_G=True, ema=0.999, log_interval=10**6, gen_lr=LR, dis_lr=LR, max_iter=RUN, **own,
    )  # fmt: skip


class Counts:
    """The program's `int` for counts, rounded as rgplug rounds them."""

    exchanging = False

    def __call__(self, value: Any) -> int:
        if isinstance(value, float):
            return math.ceil(value - 1e-9) if self.exchanging else round(value)
        return int(value)


def patch_deviations(core: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    step, truncate, counts = core.Masking.step, core.Masking.truncate_weights, Counts()

    def masked_step(self: Any, *args: Any) -> None:
        """Adam sees no gradient of inactive weights; growth does."""
        held = {p: p.grad for m in self.modules for n, p in m.named_parameters() if n in self.masks}
        for m in self.modules:
            for n, p in m.named_parameters():
                if n in self.masks:
                    p.grad = p.grad * self.masks[n]
        step(self, *args)
        for p, grad in held.items():
            p.grad = grad

    def truncate_weights(self: Any) -> None:
        counts.exchanging = self.obj_name == "discriminator"
        truncate(self)
        counts.exchanging = False

    monkeypatch.setattr(core.Masking, "step", masked_step)
    monkeypatch.setattr(core.Masking, "truncate_weights", truncate_weights)
    monkeypatch.setattr(core, "int", counts, raising=False)


def first_masks(net: nn.Module, density: float) -> dict[str, Tensor]:
    """Random masks of that density over the network, exactly."""
    weights = {n: p for n, p in net.named_parameters() if p.dim() > 1}
    scores = torch.rand(sum(p.numel() for p in weights.values()))
    kept = scores <= scores.kthvalue(round(density * scores.numel())).values
    parts = kept.split([p.numel() for p in weights.values()])
    return {n: part.view(p.shape) for (n, p), part in zip(weights.items(), parts)}


def images() -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    while True:
        yield torch.rand(CRITIC * BATCH, 3, 2, 2, generator=generator) * 2 - 1, torch.zeros(CRITIC * BATCH)


def run_released(
    monkeypatch: pytest.MonkeyPatch, bounds: tuple[float, float], delta: float, strict: bool, patched: bool
) -> tuple[Recorder, dict[str, dict[str, Tensor]], list[float], list[float]]:
    """What happened; the masks at the start; measured ratios; D's densities after each iteration."""
    core = importlib.import_module("sparselearning.core")
    functions = importlib.import_module("sparselearning.gan_functions")
    if patched:
        patch_deviations(core, monkeypatch)
    torch.manual_seed(0)
    nets = {"G": generator(), "D": discriminator()}
    optimizers = {k: torch.optim.Adam(n.parameters(), LR, BETAS) for k, n in nets.items()}
    args = arguments(density_D=0.3, dd_b=strict)
    cosine_g = core.CosineDecay(0.5, RUN)
    fixed = core.ConstantRate(delta, RUN * CRITIC)
    decay_d = [fixed, core.CosineDecay(0.5, RUN * CRITIC)] if strict else fixed
    common = {"redistribution_mode": "none", "fix": False, "args": args}
    masking = {
        "G": core.Masking(
            optimizers["G"], death_rate=0.5, death_mode="magnitude", death_rate_decay=cosine_g, growth_mode="gradient",
            update_frequency=FREQUENCY_G, obj_name="generator", **common,
        ),
        "D": core.Masking(
            optimizers["D"], death_rate=delta, death_mode="global_magnitude", death_rate_decay=decay_d,
            growth_mode="global_gradient", adjust_mode="dynamic_adjust", da_bound=(*bounds, 0.5), doub_dst=strict,
            update_frequency=FREQUENCY_D * CRITIC, obj_name="discriminator", **common,
        ),
    }  # fmt: skip

    def look(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        label = "G" if net is nets["G"] else "D"
        masks = {f"{n}:mask": m.bool() for n, m in masking[label].masks.items()}
        return state_of(net, optimizer) | masks

    masks = {}
    for label, mask in masking.items():
        whole = copy.deepcopy(nets[label].state_dict())
        mask.add_module(nets[label], density=0.3, sparse_init="ERK")
        nets[label].load_state_dict(whole)
        masks[label] = first_masks(nets[label], 0.3)
        for name, value in masks[label].items():
            mask.masks[name] = value.float()
        mask.baseline_nonzero = sum(int(m.sum()) for m in masks[label].values())
        mask.apply_mask()
        mask.fired_masks = copy.deepcopy(mask.masks)
    recorder = Recorder(look)
    for label, net in nets.items():
        recorder.network(label, net)
        recorder.optimizer(label, optimizers[label])
    flops = Namespace(training_flops=1.0, dense_training_flops=1.0, iter_flops=1.0)
    flops.update_iter_and_training_flops = lambda *_: None
    queue: Any = deque(maxlen=WINDOW if patched else None)
    ratios, densities, loader = [], [], images()
    average = [p.data.clone() for p in nets["G"].parameters()]
    for i in range(1, MADE + 1):
        functions.train(
            args, nets, optimizers, average, loader, i, queue, [], [], None, masking, False, {"G": flops, "D": flops}
        )
        after, before, real = queue[-1]
        ratios.append((after - before) / (real - before))
        kept = [m.sum().item() for m in masking["D"].masks.values()]
        densities.append(sum(kept) / masking["D"].total_params)
    for label in ("G", "D"):
        recorder.events.append(Event(f"end {label}", before=look(nets[label], optimizers[label])))
    return recorder, masks, ratios, densities


def compare(
    recorder: Recorder, masks: dict[str, dict[str, Tensor]], policy: dict[str, Any], where: Path
) -> tuple[list[float], list[float]]:
    """rgplug's ratios, and D's densities after each iteration of G. Fails at the first difference."""
    save_masks(where / "masks.safetensors", masks)
    own = {"base": "adapt", "masks.file": str(where / "masks.safetensors"), **policy}
    mine = Replay(recorder.began["G"], recorder.began["D"], own, LR, BETAS)
    mine.at_once = True
    x, densities, ratios = None, [], []

    def check(event: Event, label: str, where: str) -> None:
        state = {k: v for k, v in mine.state(label).items() if k in event.before}
        equal(state | {f"{n}:mask": m for n, m in mine.masks(label).items()}, event.before, where)

    for i, event in enumerate(recorder.events):
        label = event.what[-1]
        if event.what.startswith("end"):
            check(event, label, event.what)
            continue
        mine.backward(event)
        check(event, label, f"event {i}, {label}")
        x = event.x if label == "D" else x
        mine.rg.observe(real=x, z=event.z)
        mine.step(event)
        if label == "G":
            densities.append(mine.rg.density("D"))
            ratios.append(float(mine.rg.networks["D"].method.ratio.values[-1]))
    return ratios, densities


def policy_of(bounds: tuple[float, float], delta: float, strict: bool) -> dict[str, Any]:
    return {
        "exploration.every": FREQUENCY_G, "exploration.end": RUN, "balance.every": FREQUENCY_D, "balance.delta": delta,
        "balance.measure": MEASURE, "balance.window": WINDOW, "balance.lower": bounds[0], "balance.upper": bounds[1],
        "balance.highest": 0.5 if strict else 1.0, "balance.exchange": strict, "balance.end": RUN,
    }  # fmt: skip


# what D does after every fourth iteration of G, in order
UP, DOWN, STAY, EXCHANGE = "up", "down", "stay", "exchange"


@pytest.mark.parametrize(
    ("strict", "bounds", "actions"),
    [
        (False, (0.02, 0.05), {UP, DOWN, STAY}),
        (False, (0.04, 0.06), {UP, DOWN, STAY}),
        (True, (0.04, 0.06), {UP, DOWN, EXCHANGE}),
        (True, (-0.5, 0.1), {UP, STAY, EXCHANGE}),
    ],
)
def test_adapt(
    strict: bool, bounds: tuple[float, float], actions: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with released("ADAPT", *STUBS):
        recorder, masks, theirs, densities = run_released(monkeypatch, bounds, 0.1, strict, patched=True)
    ratios, mine = compare(recorder, masks, policy_of(bounds, 0.1, strict), tmp_path)
    assert ratios == pytest.approx(theirs, rel=1e-3)
    assert mine == pytest.approx(densities)
    assert actions <= set(actions_of(recorder, densities))


def actions_of(recorder: Recorder, densities: list[float]) -> list[str]:
    """Read off D's masks right before and after each fourth iteration of G."""
    steps = [e for e in recorder.events if e.what[-1] == "D"]  # CRITIC in an iteration, and the end
    found = []
    for i in range(FREQUENCY_D, MADE + 1, FREQUENCY_D):
        before, after = steps[i * CRITIC - 1].before, steps[i * CRITIC].before
        change = densities[i - 1] - densities[i - 2]
        moved = any(not torch.equal(before[k], after[k]) for k in before if k.endswith(":mask"))
        found.append(UP if change > 0.01 else DOWN if change < -0.01 else EXCHANGE if moved else STAY)
    return found


def test_the_deviations_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As released, inactive weights have moments: the first difference is in them, after the first step."""
    with released("ADAPT", *STUBS):
        recorder, masks, *_ = run_released(monkeypatch, (0.02, 0.05), 0.1, strict=False, patched=False)
    with pytest.raises(pytest.fail.Exception, match=r"event 1, D: .*exp_avg"):
        compare(recorder, masks, policy_of((0.02, 0.05), 0.1, strict=False), tmp_path)

"""One training iteration of the hosts' own networks and losses, without and with rgplug.

    RGPLUG_HOSTS=FOLDER python -m benchmarks.hosts [--rounds 16]

Blocks of iterations alternate in one process, without rgplug and with it attached under the host's policy
(examples/policies), on the same networks: two copies differ by several per cent, by where their memory happens to lie.
For the same reason the C library is told to keep freed memory. Reported are ratios of medians over blocks, and the time
that rgplug itself takes, which the noise of the rest does not reach. Regularization phases, which only add to what the
host does per optimizer step, are left out. Each host runs in a process of its own, since their modules share names.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import rgplug
from benchmarks import keep_memory

POLICIES = Path(__file__).parent.parent / "examples" / "policies"
ITERATIONS = 2  # of a block
HOSTS = {
    "StyleGAN2-ADA": ("stylegan2-ada-pytorch", "stylegan2_ada"),
    "DiffAugment-BigGAN": ("data-efficient-gans/DiffAugment-biggan-cifar", "diffaugment_biggan"),
    "FastGAN": ("FastGAN-pytorch", "fastgan"),
}
Step = Callable[[], None]
Made = tuple[nn.Module, nn.Module, Step]


def stylegan2() -> Made:
    """Gmain, Dmain and the moving average: 32x32, channel_base 4096, batch 8."""
    import copy

    from training.loss import StyleGAN2Loss
    from training.networks import Discriminator, Generator

    torch.manual_seed(0)
    common: dict[str, Any] = {"c_dim": 0, "img_resolution": 32, "img_channels": 3}
    blocks = {"channel_base": 4096, "channel_max": 256}
    G = Generator(z_dim=128, w_dim=128, mapping_kwargs={"num_layers": 2}, synthesis_kwargs=blocks, **common)
    D = Discriminator(**common, **blocks, epilogue_kwargs={"mbstd_group_size": 4})
    G_ema = copy.deepcopy(G)
    loss = StyleGAN2Loss("cpu", G.mapping, G.synthesis, D, r1_gamma=1)
    optimizers = {n: torch.optim.Adam(m.parameters(), 2e-3, betas=(0.0, 0.99)) for n, m in (("G", G), ("D", D))}
    real, labels = torch.randn(8, 3, 32, 32), torch.zeros(8, 0)

    def step() -> None:
        for name, module in (("G", G), ("D", D)):
            optimizers[name].zero_grad(set_to_none=True)
            module.requires_grad_(True)
            z = torch.randn(8, 128)
            loss.accumulate_gradients(f"{name}main", real, labels, z, labels, sync=True, gain=1)
            module.requires_grad_(False)
            optimizers[name].step()
        with torch.no_grad():
            for average, live in zip(G_ema.parameters(), G.parameters()):
                average.copy_(live.lerp(average, 0.999))

    G.requires_grad_(False)
    D.requires_grad_(False)
    return G, D, step


def biggan() -> Made:
    """The host's own GAN_training_function: CIFAR's 32x32, G_ch and D_ch 32, batch 16, two D steps."""
    import BigGAN
    import train_fns
    import utils

    utils.Distribution.__torch_function__ = torch._C._disabled_torch_function_impl
    options = ["--dataset=C10", "--G_ch=32", "--D_ch=32", "--batch_size=16", "--num_D_steps=2", "--G_attn=0"]
    options += ["--D_attn=0", "--G_init=N02", "--D_init=N02", "--ema", "--DiffAugment=translation,cutout"]
    config = vars(utils.prepare_parser().parse_args(options))
    config |= {"resolution": 32, "n_classes": 10, "D_fp16": False, "G_fp16": False}
    config |= {"G_activation": utils.activation_dict["relu"], "D_activation": utils.activation_dict["relu"]}
    torch.manual_seed(0)
    G, D = BigGAN.Generator(**config), BigGAN.Discriminator(**config)
    G_ema = BigGAN.Generator(**{**config, "skip_init": True, "no_optim": True})
    ema = utils.ema(G, G_ema, 0.999, 0)
    z, y = utils.prepare_z_y(16, G.dim_z, 10, device="cpu")
    train = train_fns.GAN_training_function(G, D, BigGAN.G_D(G, D), z, y, ema, {"itr": 1}, config)
    real, labels = torch.randn(32, 3, 32, 32), torch.randint(10, (32,))
    return G, D, lambda: train(real, labels)


def fastgan() -> Made:
    """The host's networks and augmentation at 256x256, ngf 64, batch 4; its losses but for the perceptual one, in
    whose place is the mean absolute difference."""
    import torch.nn.functional as F
    from diffaug import DiffAugment
    from models import Discriminator, Generator

    torch.manual_seed(0)
    G, D = Generator(ngf=64, nz=256, im_size=256), Discriminator(ndf=64, im_size=256)
    optimizers = [torch.optim.Adam(m.parameters(), 2e-4, betas=(0.5, 0.999)) for m in (G, D)]
    average = [p.detach().clone() for p in G.parameters()]
    images = torch.randn(4, 3, 256, 256)

    def step() -> None:
        fakes = [DiffAugment(x, policy="color,translation") for x in G(torch.randn(4, 256))]
        real = DiffAugment(images, policy="color,translation")
        D.zero_grad()
        logits, rebuilt = D(real, "real", part=0)
        whole = [F.interpolate(real, x.shape[2]) for x in rebuilt[:2]]
        (F.relu(1 - logits).mean() + sum((a - b).abs().mean() for a, b in zip(rebuilt, whole))).backward()
        F.relu(1 + D([x.detach() for x in fakes], "fake")).mean().backward()
        optimizers[1].step()
        G.zero_grad()
        (-D(fakes, "fake").mean()).backward()
        optimizers[0].step()
        for averaged, p in zip(average, G.parameters()):
            averaged.mul_(0.999).add_(p.data, alpha=0.001)

    return G, D, step


def measure(make: Callable[[], Made], policy: str, rounds: int) -> dict[str, float]:
    G, D, step = make()
    loaded = rgplug.Policy.load({"base": str(POLICIES / f"{policy}.yaml"), "metric": None})
    stock: list[float] = []
    attached: list[float] = []
    own: list[float] = []
    state: dict[str, Any] = {}
    _seconds(step)
    for _ in range(rounds):
        stock.append(_seconds(step))
        rg = rgplug.attach(G, D, loaded)
        if state:
            rg.load_state_dict(state)
        _seconds(step, 1)  # the first step finds the optimizers
        watch = Watch(rg)
        attached.append(_seconds(step))
        own.append(watch.seconds / ITERATIONS)
        state = rg.state_dict()
        rg.detach("dense")
    return {
        "ratio": statistics.median(attached) / statistics.median(stock),
        "own work": statistics.fmean(own) / statistics.median(stock),
        "stock again": statistics.median(stock[1::2]) / statistics.median(stock[::2]),  # what is left to chance
        "stock, ms": 1000 * statistics.median(stock),
        "managed": sum(w.numel for label in ("G", "D") for w in rg.weights(label)),
    }


class Watch:
    """The time that is spent around the optimizers' steps from now on, in seconds."""

    def __init__(self, rg: rgplug.Controller):
        self.seconds = 0.0
        for network in rg.networks.values():
            for name in ("before_step", "after_step"):
                setattr(network, name, self._timed(getattr(network, name)))

    def _timed(self, work: Callable[..., None]) -> Callable[..., None]:
        def timed(*args: Any) -> None:
            start = time.perf_counter()
            work(*args)
            self.seconds += time.perf_counter() - start

        return timed


def _seconds(step: Step, iterations: int = ITERATIONS) -> float:
    """Of one iteration, the mean over some in a row."""
    start = time.perf_counter()
    for _ in range(iterations):
        step()
    return (time.perf_counter() - start) / iterations


def run(rounds: int = 16) -> dict[str, dict[str, float]]:
    """Ratio, milliseconds and managed weights by host; empty where RGPLUG_HOSTS names no checkouts."""
    folder, found = os.environ.get("RGPLUG_HOSTS"), {}
    for name, (checkout, _) in HOSTS.items():
        if folder and (Path(folder).expanduser() / checkout).is_dir():
            command = [sys.executable, "-m", "benchmarks.hosts", "--host", name, "--rounds", str(rounds)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[name] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


if __name__ == "__main__":
    keep_memory()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=16, help="blocks of each variant")
    parser.add_argument("--host", choices=HOSTS, help="only this one, as JSON")
    args = parser.parse_args()
    if args.host is None:
        for host, values in run(args.rounds).items():
            print(host, {k: round(v, 3) for k, v in values.items()})
    else:
        warnings.simplefilter("ignore")
        checkout, policy = HOSTS[args.host]
        sys.path.insert(0, str(Path(os.environ["RGPLUG_HOSTS"]).expanduser() / checkout))
        make = {"StyleGAN2-ADA": stylegan2, "DiffAugment-BigGAN": biggan, "FastGAN": fastgan}[args.host]
        print(json.dumps(measure(make, policy, args.rounds)))

"""Train a small GAN on a folder of images. Two CPU cores and six minutes are enough for 200 images of 64x64 pixels.

    python examples/train_gan.py --data FOLDER --out runs/robots

An ordinary training script, as one finds many: hinge loss, spectral norm, DiffAugment, an EMA of the generator.
Every epoch leaves OUT/samples.png (and OUT/samples/epoch_XXX.png) and OUT/checkpoint.pt; --resume goes on from there.
"""

import argparse
import copy
import os
import pickle
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from tqdm import tqdm

import rgplug

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}  # what counts as an image
Z_DIM = 64  # length of the latent vector
EMA = 0.995  # share of the average that stays in every iteration
SHIFT = 1 / 8  # DiffAugment: translation up to this share of the side

# ----------------------------------------------------------------------------
# Images in, images out.


def load_images(folder, resolution):
    """All images below `folder`, centre-cropped to squares and resized. uint8 [N, 3, resolution, resolution]."""
    if not folder.is_dir():
        raise SystemExit(f"--data: there is no folder {folder}.")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise SystemExit(f"--data: no images ({', '.join(sorted(SUFFIXES))}) in {folder} or below it.")
    images = []
    for path in files:
        try:
            with Image.open(path) as image:
                square = ImageOps.fit(image.convert("RGB"), (resolution, resolution), Image.Resampling.LANCZOS)
        except OSError as error:
            raise SystemExit(f"--data: {path} cannot be read as an image ({error}).") from None
        images.append(np.asarray(square))  # [H, W, 3]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def save_grid(images, columns, *paths):
    """Write images [N, 3, H, W] in [-1, 1] as one PNG, row by row, under each of the paths."""
    n, c, h, w = images.shape
    pixels = images.mul(127.5).add(128).clamp(0, 255).to(torch.uint8).cpu()
    grid = pixels.view(n // columns, columns, c, h, w).permute(0, 3, 1, 4, 2)  # [rows, H, columns, W, 3]
    picture = Image.fromarray(grid.reshape(n // columns * h, columns * w, c).numpy())
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


# ----------------------------------------------------------------------------
# Differentiable augmentation (Zhao et al. 2020): D sees real and generated images altered alike.


def augment(images):
    """Random brightness, saturation, contrast and translation. [N, 3, H, W] in [-1, 1] -> same shape."""
    n, _, h, w = images.shape
    a, b, c = torch.rand(3, n, 1, 1, 1, device=images.device)  # one number per image and operation
    images = images + (a - 0.5)  # brightness
    grey = images.mean(dim=1, keepdim=True)  # [N, 1, H, W]
    images = grey + (images - grey) * (2 * b)  # saturation
    mean = images.mean(dim=(1, 2, 3), keepdim=True)  # [N, 1, 1, 1]
    images = mean + (images - mean) * (c + 0.5)  # contrast
    reach = round(h * SHIFT)  # translation, what comes in from outside is zero
    padded = F.pad(images, (reach, reach, reach, reach))
    corners = torch.randint(2 * reach + 1, (n, 2)).tolist()
    return torch.stack([image[:, y : y + h, x : x + w] for image, (y, x) in zip(padded, corners)])


# ----------------------------------------------------------------------------
# The two networks.


class UpBlock(nn.Module):
    """Twice the resolution: nearest upsampling, convolution, batch norm, gated linear unit."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 2 * out_channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(2 * out_channels)

    def forward(self, x):  # [N, in, H, W]
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return F.glu(self.norm(self.conv(x)), dim=1)  # [N, out, 2H, 2W]


class Generator(nn.Module):
    def __init__(self, resolution=64):
        super().__init__()
        sides = [2**i for i in range(2, resolution.bit_length())]  # 4 8 16 32 64
        channels = [max(512 // side, 16) for side in sides]  # 128 64 32 16 16
        self.linear = nn.Linear(Z_DIM, channels[0] * 4 * 4)
        self.blocks = nn.Sequential(*[UpBlock(i, o) for i, o in pairwise(channels)])
        self.to_rgb = nn.Conv2d(channels[-1], 3, 3, padding=1)

    def forward(self, z):  # [N, Z_DIM]
        x = self.linear(z).unflatten(1, (-1, 4, 4))  # [N, 128, 4, 4]
        return torch.tanh(self.to_rgb(self.blocks(x)))  # [N, 3, resolution, resolution]


class Discriminator(nn.Module):
    def __init__(self, resolution=64):
        super().__init__()
        blocks = resolution.bit_length() - 3  # halved so many times, down to 4x4
        channels = [3] + [min(32 * 2**i, 128) for i in range(blocks)]  # 3 32 64 128 128
        layers = []
        for i, o in pairwise(channels):
            layers += [spectral_norm(nn.Conv2d(i, o, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
        self.blocks = nn.Sequential(*layers)
        self.score = spectral_norm(nn.Linear(channels[-1] * 4 * 4, 1))

    def forward(self, x):  # [N, 3, resolution, resolution]
        return self.score(self.blocks(x).flatten(1)).squeeze(1)  # [N]


# ----------------------------------------------------------------------------
# Checkpoints: plain state dicts, which torch.load(weights_only=True) reads.


def save_checkpoint(path, iteration, modules):
    """Write a temporary file first: a run that is killed while it saves still has its previous checkpoint."""
    state = {name: module.state_dict() for name, module in modules.items()}
    state |= {"iteration": iteration, "rng": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["rng_cuda"] = torch.cuda.get_rng_state()
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def load_checkpoint(path, device, modules):
    """Load networks, optimizers and random state. Returns the number of iterations done."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise SystemExit(f"--resume: there is no checkpoint {path}.") from None
    except (RuntimeError, EOFError, pickle.UnpicklingError):
        raise SystemExit(f"--resume: {path} cannot be read as a checkpoint.") from None
    for name, module in modules.items():
        try:
            module.load_state_dict(state[name])
        except (KeyError, RuntimeError, ValueError):
            raise SystemExit(f"--resume: {name} in {path} is of another architecture; choose another --out.") from None
    torch.set_rng_state(state["rng"].cpu())
    if "rng_cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["rng_cuda"].cpu())
    return state["iteration"]


# ----------------------------------------------------------------------------


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of images, searched with its subfolders")
    add("--out", type=Path, default="runs/train_gan", help="folder for samples and checkpoint [%(default)s]")
    add("--iterations", type=int, default=1600, help="steps of G and of D in the whole run [%(default)s]")
    add("--epoch-iterations", type=int, default=100, help="iterations between two evaluations [%(default)s]")
    add("--batch", type=int, default=16, help="images per step [%(default)s]")
    add("--resolution", type=int, default=64, help="side of the images in pixels, a power of two [%(default)s]")
    add("--seed", type=int, default=0, help="seed of everything random [%(default)s]")
    add("--resume", action="store_true", help="go on from OUT/checkpoint.pt, exactly as if there had been no break")
    args = parser.parse_args(argv)
    if args.resolution < 8 or args.resolution & (args.resolution - 1):
        parser.error(f"--resolution: a power of two from 8 on, not {args.resolution}.")
    return args


def main(argv=None):
    args = parse_arguments(argv)
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reals = load_images(args.data, args.resolution).to(device)  # uint8 [N, 3, H, W]
    fixed_z = torch.randn(64, Z_DIM, device=device)  # the same 64 samples every epoch

    G = Generator(args.resolution).to(device)
    D = Discriminator(args.resolution).to(device)
    G_ema = copy.deepcopy(G).eval().requires_grad_(False)
    opt_G = torch.optim.Adam(G.parameters(), lr=5e-4, betas=(0.5, 0.99))
    opt_D = torch.optim.Adam(D.parameters(), lr=8e-4, betas=(0.5, 0.99))
    rg = rgplug.attach(G, D, {"base": __file__.replace(".py", ".yaml"), "metric.real": args.data, "run_dir": args.out})

    iteration = 0
    checkpoint = args.out / "checkpoint.pt"
    modules = {"G": G, "D": D, "G_ema": G_ema, "opt_G": opt_G, "opt_D": opt_D}
    modules["rg"] = rg  # masks, thresholds, schedule and phase go into the checkpoint: --resume is exact
    if args.resume:
        iteration = load_checkpoint(checkpoint, device, modules)

    bar = tqdm(total=args.iterations, initial=iteration, unit="it")
    while iteration < args.iterations:
        started = time.perf_counter()
        for _ in range(min(args.epoch_iterations, args.iterations - iteration)):
            # Discriminator: hinge loss, real and generated images in one batch.
            real = reals[torch.randint(len(reals), (args.batch,), device=device)].float() / 127.5 - 1  # [B, 3, H, W]
            fake = G(torch.randn(args.batch, Z_DIM, device=device))  # [B, 3, H, W]
            score_real, score_fake = D(augment(torch.cat([real, fake.detach()]))).chunk(2)  # [B], [B]
            loss_D = F.relu(1 - score_real).mean() + F.relu(1 + score_fake).mean()
            opt_D.zero_grad()
            loss_D.backward()
            opt_D.step()

            # Generator: the same images again, under other alterations.
            loss_G = -D(augment(fake)).mean()
            opt_G.zero_grad()
            loss_G.backward(inputs=list(G.parameters()))  # D's gradients are not needed here
            opt_G.step()

            with torch.no_grad():
                for average, current in zip(G_ema.parameters(), G.parameters()):
                    average.lerp_(current, 1 - EMA)
                for average, current in zip(G_ema.buffers(), G.buffers()):
                    average.copy_(current)
            iteration += 1
            bar.update()

        epoch = -(-iteration // args.epoch_iterations)
        seconds = time.perf_counter() - started
        losses = f"loss D {loss_D:.3f}  loss G {loss_G:+.3f}"
        bar.write(f"epoch {epoch:3d}  iteration {iteration:6d}  {losses}  {seconds:.1f} s")
        with torch.no_grad(), rg.masked(G_ema):  # what is drawn is what is measured
            bar.write(str(rg.end_epoch(ema=G_ema)))
            save_grid(G_ema(fixed_z), 8, args.out / f"samples/epoch_{epoch:03d}.png", args.out / "samples.png")
        save_checkpoint(checkpoint, iteration, modules)
    bar.close()


if __name__ == "__main__":
    main()

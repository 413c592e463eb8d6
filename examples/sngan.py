"""Train SNGAN-ResNet (Miyato et al. 2018) on images of 32x32 pixels, in the setting usual on CIFAR-10.

    python examples/sngan.py --data FOLDER_OR_NPZ --out runs/sngan

Every --eval-every iterations leave OUT/samples.png (of the EMA generator) and OUT/checkpoint.pt; the same command goes
on from there. On a CPU a run that was stopped and resumed ends with the same bits as one without a break.

The data is a folder of images, searched with its subfolders, or an .npz file with `images` (uint8 [N, H, W, 3]) or with
`jpeg` and `lengths` (the bytes of all files, one after the other, and the number of bytes of each). --share 0.1 takes
a tenth of each class: of each subfolder, or of each value of `labels` in the .npz file. Which images these are depends
on --share-seed alone, so every method and every --seed trains on the same ones.

A program that compares trainings imports this file: `build, train = host(arguments)`, see `train`.
"""

import argparse
import contextlib
import copy
import functools
import hashlib
import io
import math
import os
import pickle
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import nn

# Not the older torch.nn.utils.spectral_norm: a network with that one cannot be deep-copied after a forward.
from torch.nn.utils.parametrizations import spectral_norm
from tqdm import tqdm

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}  # what counts as an image
SIDE = 32  # of the images, in pixels
Z_DIM = 128  # length of the latent vector
BETAS = (0.0, 0.9)  # Adam
RESIDUAL_GAIN = math.sqrt(2)  # Xavier gain of the 3x3 convolutions in residual branches; 1 elsewhere

# ----------------------------------------------------------------------------
# Images in, images out.


def load_images(data, share=1.0, share_seed=0):
    """int(N * share) of N images, the same share of each class, in the order of the file or of the paths.

    Returns uint8 [n, 3, SIDE, SIDE].
    """
    if data.is_dir():
        sources = sorted(path for path in data.rglob("*") if path.suffix.lower() in SUFFIXES)
        names = [path.relative_to(data).as_posix() for path in sources]
        classes = [name.partition("/")[0] if "/" in name else "" for name in names]
    elif data.suffix.lower() == ".npz":
        sources, classes = unpack(data)
        names = [str(i) for i in range(len(sources))]
    else:
        raise SystemExit(f"--data: {data} is neither a folder nor an .npz file.")
    if not sources:
        raise SystemExit(f"--data: there are no images in {data}.")
    if int(len(sources) * share) == 0:
        raise SystemExit(f"--share: {share:g} of {len(sources)} images is less than one image; give a larger share.")
    images = []
    for i in subset(names, classes, share, share_seed) if share < 1 else range(len(sources)):
        source = sources[i]
        try:
            with Image.fromarray(source) if isinstance(source, np.ndarray) else Image.open(source) as image:
                square = ImageOps.fit(image.convert("RGB"), (SIDE, SIDE), Image.Resampling.LANCZOS)
        except (OSError, SyntaxError, ValueError) as error:
            name = source if isinstance(source, Path) else f"number {i} in {data}"
            raise SystemExit(f"--data: {name} cannot be read as an image ({error}).") from None
        images.append(np.asarray(square))  # [H, W, 3]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def subset(names, classes, share, seed):
    """Indices, ascending, of int(N * share) of N images: of each class as near to that share as whole numbers allow.

    names, classes: [N], of each image. An image is drawn by a hash of the seed and its name, not by a random generator:
    the same images on every machine, and with another version of every library.
    """

    def draw(*what):
        return hashlib.sha256("/".join([str(seed), *what]).encode("utf-8", "surrogateescape")).digest()

    members = {}
    for i, label in enumerate(classes):
        members.setdefault(label, []).append(i)
    exact = {label: len(of_class) * share for label, of_class in members.items()}
    counts = {label: int(number) for label, number in exact.items()}
    # What rounding down leaves goes to the classes that lost most by it; those that lost alike are drawn.
    order = sorted(members, key=lambda label: (round(counts[label] - exact[label], 9), draw("class", label)))
    for label in order[: int(len(names) * share) - sum(counts.values())]:
        counts[label] += 1
    chosen = [sorted(members[label], key=lambda i: draw("image", names[i]))[: counts[label]] for label in members]
    return sorted(i for of_class in chosen for i in of_class)


def unpack(path):
    """The images of an .npz file: a list of arrays uint8 [H, W, 3], or of files in memory; and the class of each."""
    if not zipfile.is_zipfile(path):
        raise SystemExit(f"--data: there is no .npz file {path}, or it is damaged.")
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in ("images", "jpeg", "lengths", "labels") if name in file}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise SystemExit(f"--data: {path} cannot be read ({error}).") from None
    if "images" in arrays:
        images = arrays["images"]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise SystemExit(f"--data: images in {path} must be uint8 [N, H, W, 3], not {images.dtype} {images.shape}.")
        return list(images), labels_of(arrays, len(images), path)
    if "jpeg" not in arrays or "lengths" not in arrays:
        raise SystemExit(f"--data: {path} must hold `images`, or `jpeg` and `lengths`.")
    ends = np.cumsum(arrays["lengths"], dtype=np.int64)
    blob = arrays["jpeg"].tobytes()
    if len(ends) and ends[-1] != len(blob):
        raise SystemExit(f"--data: `lengths` in {path} add up to {ends[-1]} bytes, `jpeg` has {len(blob)}.")
    files = [io.BytesIO(blob[end - length : end]) for end, length in zip(ends, arrays["lengths"].astype(np.int64))]
    return files, labels_of(arrays, len(files), path)


def labels_of(arrays, count, path):
    """The class of each of `count` images as text; one class for all where the file has no `labels`."""
    if "labels" not in arrays:
        return [""] * count
    labels = arrays["labels"].reshape(-1)
    if len(labels) != count or labels.dtype.kind not in "iuU":
        raise SystemExit(f"--data: `labels` in {path} must be a whole number or a text for each of {count} images.")
    return [str(label) for label in labels.tolist()]


def save_grid(images, path, columns=8):
    """Write images [N, 3, H, W] in [-1, 1] as one PNG, row by row."""
    n, c, h, w = images.shape
    pixels = images.mul(127.5).add(128).clamp(0, 255).to(torch.uint8).cpu()
    grid = pixels.view(n // columns, columns, c, h, w).permute(0, 3, 1, 4, 2)  # [rows, H, columns, W, 3]
    Image.fromarray(grid.reshape(n // columns * h, columns * w, c).numpy()).save(path)


class Batches:
    """Shuffled epochs without end, in full batches.

    A batch that an epoch no longer fills is completed from the next one, so that every step shows D as many images.
    """

    def __init__(self, images, batch, seed):
        self.images, self.batch = images, batch
        self.generator = torch.Generator().manual_seed(seed)
        self.order = torch.empty(0, dtype=torch.int64)  # indices still to come in this epoch

    def next(self):  # uint8 [batch, 3, SIDE, SIDE]
        while len(self.order) < self.batch:
            epoch = torch.randperm(len(self.images), generator=self.generator)
            self.order = torch.cat([self.order, epoch])
        index, self.order = self.order[: self.batch], self.order[self.batch :]
        return self.images[index.to(self.images.device)]

    def state_dict(self):
        return {"order": self.order.clone(), "generator": self.generator.get_state()}

    def load_state_dict(self, state):
        self.order = state["order"]
        self.generator.set_state(state["generator"])


# ----------------------------------------------------------------------------
# DiffAugment (Zhao et al. 2020): D sees real and generated images altered alike.


def color(images):
    """Random brightness, saturation and contrast of each image."""
    a, b, c = torch.rand(3, len(images), 1, 1, 1, device=images.device)  # one number per image and operation
    images = images + (a - 0.5)  # brightness
    grey = images.mean(dim=1, keepdim=True)  # [N, 1, H, W]
    images = grey + (images - grey) * (2 * b)  # saturation
    mean = images.mean(dim=(1, 2, 3), keepdim=True)  # [N, 1, 1, 1]
    return mean + (images - mean) * (c + 0.5)  # contrast


def translation(images):
    """Shift each image by up to 1/8 of its side; what comes in from outside is zero."""
    n, _, h, w = images.shape
    down = torch.randint(-(h // 8), h // 8 + 1, (n, 1, 1, 1), device=images.device)  # pixels
    right = torch.randint(-(w // 8), w // 8 + 1, (n, 1, 1, 1), device=images.device)
    rows, columns = (torch.arange(side, device=images.device) for side in (h, w))
    # Products with shifted unit matrices: exact, and their gradients are added up in a fixed order on a GPU too.
    from_row = rows[:, None] - rows == down  # [N, 1, H, H], row i takes row i - down
    from_column = columns - columns[:, None] == right  # [N, 1, W, W]
    return from_row.to(images.dtype) @ images @ from_column.to(images.dtype)


def cutout(images):
    """Set a square of half the side to zero; its centre is anywhere in the image."""
    n, _, h, w = images.shape
    top = torch.randint(h + 1 - h // 2 % 2, (n, 1, 1, 1), device=images.device) - h // 4
    left = torch.randint(w + 1 - w // 2 % 2, (n, 1, 1, 1), device=images.device) - w // 4
    rows, columns = torch.arange(h, device=images.device)[:, None], torch.arange(w, device=images.device)
    in_rows = (rows >= top) & (rows < top + h // 2)  # [N, 1, H, 1]
    in_columns = (columns >= left) & (columns < left + w // 2)  # [N, 1, 1, W]
    return images * ~(in_rows & in_columns)


AUGMENTATIONS = {"color": color, "translation": translation, "cutout": cutout}


def augment(images, names):
    """Apply the named augmentations one after the other. [N, 3, H, W] in [-1, 1] -> same shape."""
    for name in names:
        images = AUGMENTATIONS[name](images)
    return images


def flip(images):
    """Mirror each image with probability 1/2."""
    mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(mirrored, images.flip(3), images)


# ----------------------------------------------------------------------------
# The two networks.


def xavier(layer, gain=1.0):
    """Draw the weight (Glorot & Bengio 2010, uniform) and set the bias to zero."""
    nn.init.xavier_uniform_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def conv3(in_channels, out_channels, gain=RESIDUAL_GAIN):
    return xavier(nn.Conv2d(in_channels, out_channels, 3, padding=1), gain)


def conv1(in_channels, out_channels):
    return xavier(nn.Conv2d(in_channels, out_channels, 1))


class UpBlock(nn.Module):
    """Twice the resolution: BN-ReLU-upsample-conv-BN-ReLU-conv, and a 1x1 convolution beside it."""

    def __init__(self, width):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(width)
        self.conv1 = conv3(width, width)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = conv3(width, width)
        self.shortcut = conv1(width, width)

    def forward(self, x):  # [N, width, H, W]
        h = F.interpolate(F.relu(self.norm1(x)), scale_factor=2, mode="nearest")
        h = self.conv2(F.relu(self.norm2(self.conv1(h))))
        return h + self.shortcut(F.interpolate(x, scale_factor=2, mode="nearest"))  # [N, width, 2H, 2W]


class Generator(nn.Module):
    def __init__(self, width=256):
        super().__init__()
        self.linear = xavier(nn.Linear(Z_DIM, width * 4 * 4))
        self.blocks = nn.Sequential(*[UpBlock(width) for _ in range(3)])
        self.norm = nn.BatchNorm2d(width)
        self.to_rgb = conv3(width, 3, gain=1.0)

    def forward(self, z):  # [N, Z_DIM]
        x = self.blocks(self.linear(z).unflatten(1, (-1, 4, 4)))  # [N, width, 32, 32]
        return torch.tanh(self.to_rgb(F.relu(self.norm(x))))  # [N, 3, 32, 32]


class FirstBlock(nn.Module):
    """Half the resolution: conv-ReLU-conv-pool, no activation on the image, and the shortcut after its pooling."""

    def __init__(self, width):
        super().__init__()
        self.conv1 = spectral_norm(conv3(3, width))
        self.conv2 = spectral_norm(conv3(width, width))
        self.shortcut = spectral_norm(conv1(3, width))

    def forward(self, x):  # [N, 3, H, W]
        h = F.avg_pool2d(self.conv2(F.relu(self.conv1(x))), 2)
        return h + self.shortcut(F.avg_pool2d(x, 2))  # [N, width, H/2, W/2]


class DownBlock(nn.Module):
    """ReLU-conv-ReLU-conv beside the input; with `halve`, a 1x1 convolution in the shortcut, and both pooled."""

    def __init__(self, width, halve):
        super().__init__()
        self.conv1 = spectral_norm(conv3(width, width))
        self.conv2 = spectral_norm(conv3(width, width))
        self.shortcut = spectral_norm(conv1(width, width)) if halve else None

    def forward(self, x):  # [N, width, H, W]
        h = self.conv2(F.relu(self.conv1(F.relu(x))))
        if self.shortcut is None:
            return h + x  # [N, width, H, W]
        return F.avg_pool2d(h + self.shortcut(x), 2)  # [N, width, H/2, W/2]


class Discriminator(nn.Module):
    def __init__(self, width=128):
        super().__init__()
        rest = [DownBlock(width, halve) for halve in (True, False, False)]
        self.blocks = nn.Sequential(FirstBlock(width), *rest)
        self.score = spectral_norm(xavier(nn.Linear(width, 1, bias=False)))

    def forward(self, x):  # [N, 3, 32, 32]
        features = F.relu(self.blocks(x)).sum(dim=(2, 3))  # [N, width]
        return self.score(features).squeeze(1)  # [N]


# ----------------------------------------------------------------------------
# Checkpoints: tensors, numbers and text, which torch.load(weights_only=True) reads.


def save_checkpoint(path, iteration, settings, parts, extra):
    """Write a temporary file first: a run that is killed while it saves still has its previous checkpoint."""
    state = {name: part.state_dict() for name, part in parts.items()}
    state |= {"iteration": iteration, "settings": settings, "rng": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["rng_cuda"] = torch.cuda.get_rng_state()
    if extra is not None:
        state["extra"] = extra.state_dict()
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def load_checkpoint(path, settings, parts, extra):
    """Load networks, optimizers, what was attached, and random states. Returns the number of iterations done."""
    damaged = f"{path} cannot be read as a checkpoint; delete it to start anew."
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, pickle.UnpicklingError):
        raise SystemExit(damaged) from None
    expected = {*parts, "iteration", "settings", "rng"}
    if not isinstance(state, dict) or not expected <= state.keys():
        raise SystemExit(damaged)
    for name, value in settings.items():
        if (before := state["settings"].get(name)) != value:
            raise SystemExit(f"{path} is of a run with {name} = {before}, not {value}; choose another folder.")
    for name, part in parts.items():
        try:
            part.load_state_dict(state[name])
        except (KeyError, RuntimeError, ValueError):
            raise SystemExit(f"{name} in {path} is of another architecture; choose another folder.") from None
    if extra is not None:
        extra.load_state_dict(state["extra"])
    torch.set_rng_state(state["rng"])
    if "rng_cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["rng_cuda"])
    return state["iteration"]


# ----------------------------------------------------------------------------
# Training.


def train_iteration(args, G, D, opt_G, opt_D, batches):
    """`n_critic` steps of D, one step of G. Returns both losses, 0-dim."""
    device = batches.images.device
    for _ in range(args.n_critic):  # discriminator: hinge loss, real and generated images in one batch
        real = batches.next().float() / 127.5 - 1  # [B, 3, 32, 32]
        if args.flip:
            real = flip(real)
        with torch.no_grad():
            fake = G(torch.randn(args.batch, Z_DIM, device=device))  # [B, 3, 32, 32]
        score_real, score_fake = D(augment(torch.cat([real, fake]), args.diffaug)).chunk(2)  # [B], [B]
        loss_D = F.relu(1 - score_real).mean() + F.relu(1 + score_fake).mean()
        opt_D.zero_grad()
        loss_D.backward()
        opt_D.step()

    fake = G(torch.randn(args.batch_g, Z_DIM, device=device))  # [B_g, 3, 32, 32]
    loss_G = -D(augment(fake, args.diffaug)).mean()
    opt_G.zero_grad()
    loss_G.backward(inputs=list(G.parameters()))  # D's gradients are not needed here
    opt_G.step()
    return loss_D.detach(), loss_G.detach()


def build(args):
    """The networks (G, D), freshly initialized from torch's global random state."""
    return Generator(args.width_g), Discriminator(args.width_d)


@torch.no_grad()
def update_average(average, network, beta, extra=None):
    """Parameters move by a share of 1 - beta towards the network's, or as `extra` has it; buffers are copied."""
    if getattr(extra, "sema", False):
        extra.ema(average, beta)
    else:
        for mean, current in zip(average.parameters(), network.parameters()):
            mean.lerp_(current, 1 - beta)
    for mean, current in zip(average.buffers(), network.buffers()):
        mean.copy_(current)


def train(args, build, attach, seed, run_dir):
    """Train, or go on training from run_dir/checkpoint.pt; nothing is left to do where that one is complete.

    build: called without arguments, gives (G, D).
    attach: None, or called once as attach(G, D) when the networks are on their device and before optimizers and EMA are
        made. What it returns has end_epoch(ema=...), called at every evaluation, and state_dict() and
        load_state_dict(); that state (tensors, numbers, text, lists, dicts) becomes a part of the checkpoint. Where its
        attribute `sema` is true, its ema(average, beta) takes the place of the ordinary average of parameters. Where
        it has masked(average), a context manager, the average is measured and drawn inside of it.
    seed: of everything random.
    run_dir: folder for checkpoint.pt and samples.png.

    Returns the EMA of G. SystemExit, with one sentence, where the data or the checkpoint cannot be used.
    """
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reals = load_images(args.data, args.share, args.share_seed).to(device)  # uint8 [N, 3, 32, 32]
    fixed_z = torch.randn(64, Z_DIM, generator=torch.Generator().manual_seed(seed)).to(device)  # the same every time

    torch.manual_seed(seed)
    G, D = build()
    G, D = G.to(device), D.to(device)
    extra = None if attach is None else attach(G, D)
    G_ema = copy.deepcopy(G).eval().requires_grad_(False)
    opt_G = torch.optim.Adam(G.parameters(), lr=args.lr, betas=BETAS)
    opt_D = torch.optim.Adam(D.parameters(), lr=args.lr, betas=BETAS)
    batches = Batches(reals, args.batch, seed)

    iteration = 0
    checkpoint = run_dir / "checkpoint.pt"
    parts = {"G": G, "D": D, "G_ema": G_ema, "opt_G": opt_G, "opt_D": opt_D, "batches": batches}
    settings = {name: value for name, value in vars(args).items() if name not in ("data", "out", "seed", "iterations")}
    settings |= {"seed": seed, "images": len(reals), "attached": extra is not None}
    if args.share == 1:  # nothing is drawn
        del settings["share_seed"]
    if checkpoint.exists():
        iteration = load_checkpoint(checkpoint, settings, parts, extra)

    bar = tqdm(total=args.iterations, initial=iteration, unit="it", disable=None)  # no bar in a log file
    while iteration < args.iterations:
        loss_D, loss_G = train_iteration(args, G, D, opt_G, opt_D, batches)
        update_average(G_ema, G, args.ema, extra)
        iteration += 1
        bar.update()

        if iteration % args.eval_every == 0 or iteration == args.iterations:
            bar.write(f"iteration {iteration:6d}  loss D {loss_D:.3f}  loss G {loss_G:+.3f}")
            masked = getattr(extra, "masked", contextlib.nullcontext)
            with torch.no_grad(), masked(G_ema):  # what is drawn is what is measured; the average itself goes on
                if extra is not None:
                    extra.end_epoch(ema=G_ema)
                save_grid(G_ema(fixed_z), run_dir / "samples.png")
            save_checkpoint(checkpoint, iteration, settings, parts, extra)
    bar.close()
    return G_ema


def host(argv):
    """Command-line arguments -> (build, train), picklable: build() and train(build, attach, seed, run_dir)."""
    args = parse_arguments(argv)
    return functools.partial(build, args), functools.partial(train, args)


# ----------------------------------------------------------------------------


def positive(text):
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 on, not {text}")
    return int(text)


def fraction(text):
    if not 0 < float(text) <= 1:
        raise argparse.ArgumentTypeError(f"a number above 0 and up to 1, not {text}")
    return float(text)


def augmentations(text):
    names = [name for name in text.split(",") if name]
    if unknown := [name for name in names if name not in AUGMENTATIONS]:
        raise argparse.ArgumentTypeError(f"a list of {', '.join(AUGMENTATIONS)} with commas between, not {unknown[0]}")
    return names


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of images, or .npz file")
    add("--out", type=Path, default="runs/sngan", help="folder for samples and checkpoint [%(default)s]")
    add(
        "--share",
        type=fraction,
        default=1.0,
        help="use this share of the images of each class, above 0 and up to 1 [%(default)s]",
    )
    add("--share-seed", type=int, default=0, help="which images --share takes, whatever the --seed [%(default)s]")
    add("--flip", action="store_true", help="mirror half of the real images")
    add(
        "--diffaug",
        type=augmentations,
        default=[],
        metavar="NAMES",
        help="DiffAugment: color,translation,cutout or fewer [none]",
    )
    add("--width-g", type=positive, help="channels of G [256]")
    add("--width-d", type=positive, help="channels of D [128]")
    add("--width", type=positive, help="channels of G, and twice those of D, where they are not given")
    add("--iterations", type=positive, default=50000, help="steps of G in the whole run [%(default)s]")
    add("--eval-every", type=positive, default=1000, help="steps of G between two checkpoints [%(default)s]")
    add("--batch", type=positive, default=64, help="real images per step of D, and as many generated [%(default)s]")
    add("--batch-g", type=positive, default=64, help="generated images per step of G [%(default)s]")
    add("--n-critic", type=positive, default=5, help="steps of D per step of G [%(default)s]")
    add("--lr", type=float, default=2e-4, help="learning rate of both Adams [%(default)s]")
    add("--ema", type=float, default=0.999, help="share of the average that stays in every step of G [%(default)s]")
    add("--seed", type=int, default=0, help="seed of everything random [%(default)s]")
    args = parser.parse_args(argv)
    if not args.lr > 0:
        parser.error(f"argument --lr: a number above 0, not {args.lr:g}")
    if not 0 <= args.ema < 1:
        parser.error(f"argument --ema: a number from 0 on and below 1, not {args.ema:g}")
    width = args.width or 256
    args.width_g = args.width_g or width
    args.width_d = args.width_d or max(width // 2, 1)
    del args.width
    return args


def main(argv=None):
    args = parse_arguments(argv)
    train(args, functools.partial(build, args), None, args.seed, args.out)


if __name__ == "__main__":
    main()

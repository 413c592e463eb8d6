"""Make the 200 robots of rgplug/data/robots64.npz from the artwork in the PyPI package `robohash` (set1).

    pip install robohash
    python tools/make_robots.py

Needed only to make the set again; the file it writes is part of the repository. The artwork is by Zikri Kader and
under a Creative Commons Attribution licence: see rgplug/data/README.md.

The full artwork has ten of everything, and much white paper around small heads. At 64x64, from 200 images and within
minutes, a network learns best what is large and returns often. Hence a crop around the head, bright colours only,
and the parts that are still readable when an eye is four pixels wide.
"""

import argparse
import random
from pathlib import Path

import numpy as np
from PIL import Image

CANVAS = 300  # side of the artwork, pixels
CROP = (36, 48, 256, 268)  # left, top, right, bottom on the canvas: the head, hats and shoulders
BACKGROUND = (238, 240, 243)  # soft, and short of white: tanh never quite gets to 255
COLOURS = ("blue", "green", "grey", "orange", "pink", "purple", "red", "yellow")
PARTS = {  # folder of the artwork -> numbers of the pieces used, in the order they are laid over each other
    "003#01Body": (2, 4, 5, 7, 9),
    "004#02Face": (1, 2, 3, 4, 5, 7, 8, 9, 10),
    "002#Accessory": (1, 4, 5, 7, 10),
    "001#Eyes": (2, 3, 4, 6, 7, 9, 10),
    "000#Mouth": (3, 4, 6, 7, 9, 10),
}


def piece(art: Path, colour: str, part: str, number: int) -> Image.Image:
    """One piece of artwork as RGBA, e.g. the red eyes number 7."""
    (path,) = (art / colour / part).glob(f"*-{number:02d}.png")
    with Image.open(path) as image:
        return image.convert("RGBA").resize((CANVAS, CANVAS), Image.Resampling.LANCZOS)


def robot(art: Path, colour: str, numbers: dict[str, int], resolution: int) -> np.ndarray:
    """The pieces laid over each other, cropped and reduced. Returns uint8 [resolution, resolution, 3]."""
    canvas = Image.new("RGBA", (CANVAS, CANVAS), (*BACKGROUND, 255))
    for part, number in numbers.items():
        canvas.alpha_composite(piece(art, colour, part, number))
    small = canvas.convert("RGB").resize((resolution, resolution), Image.Resampling.LANCZOS, box=CROP)
    return np.asarray(small)


def make(art: Path, count: int, resolution: int, seed: int) -> np.ndarray:
    """`count` robots, no two with the same pieces, each colour equally often. Returns uint8 [count, H, W, 3]."""
    rng = random.Random(seed)
    seen: set[tuple[object, ...]] = set()
    images: list[np.ndarray] = []
    while len(images) < count:
        colour = COLOURS[len(images) % len(COLOURS)]
        numbers = {part: rng.choice(choices) for part, choices in PARTS.items()}
        if (key := (colour, *numbers.values())) not in seen:
            seen.add(key)
            images.append(robot(art, colour, numbers, resolution))
    return np.stack(images)


def main(argv: list[str] | None = None) -> None:
    default = Path(__file__).resolve().parents[1] / "rgplug" / "data" / "robots64.npz"
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=default, help="file to write [rgplug/data/robots64.npz]")
    parser.add_argument("--count", type=int, default=200, help="number of robots [200]")
    parser.add_argument("--resolution", type=int, default=64, help="side of the images in pixels [64]")
    parser.add_argument("--seed", type=int, default=0, help="which robots [0]")
    args = parser.parse_args(argv)

    import robohash  # here, so that --help works without it

    art = Path(robohash.__file__).parent / "sets" / "set1"
    images = make(art, args.count, args.resolution, args.seed)
    np.savez_compressed(args.out, images=images)
    print(f"{args.out}: {images.shape[0]} robots, {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

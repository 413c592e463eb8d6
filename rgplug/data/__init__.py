"""Two hundred 64x64 robots, so that there is something to train on without a download (README.md: who drew them)."""

import os
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from rgplug import files

__all__ = ["robots", "write_folder"]


def robots() -> np.ndarray:
    """The images, uint8 [200, 64, 64, 3], RGB; the same 200 in the same order every time."""
    with np.load(Path(__file__).with_name("robots64.npz"), allow_pickle=False) as archive:
        images: np.ndarray = archive["images"]
    return images


def write_folder(path: str | os.PathLike[str]) -> Path:
    """Write the robots as robot_000.png ... robot_199.png into `path` (made if missing) and return it.

    A file that is there is left alone. Each appears under its name only when it is whole, so that a second call
    completes what an interrupted first one began.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(robots()):
        target = folder / f"robot_{index:03d}.png"
        if not target.exists():
            # the name before it is whole has no image suffix: nobody's loader picks it up
            files.write_whole(target, partial(Image.fromarray(image).save, format="PNG"))
    return folder

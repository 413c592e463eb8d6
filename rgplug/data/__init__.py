"""Two hundred 64x64 robots, so that there is something to train on without a download (README.md: who drew them)."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

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
            part = folder / f".robot_{index:03d}.{os.getpid()}.part"  # no image suffix: nobody's loader picks it up
            Image.fromarray(image).save(part, format="PNG")
            os.replace(part, target)
    return folder

"""An evaluation end to end: rgplug's Evaluator against PNG files and clean-fid's folders, on the same features.

    python -m benchmarks.evaluation [--images 300] [--rounds 3]

SNGAN's generator (32x32, 64 channels) is measured against the 200 robots that come with rgplug, as a folder of PNG
files. first: with real images that nobody has seen; again: with their statistics (clean-fid: their features) at hand.
The four alternate in one process, clean-fid without worker processes, and all of them use the same batches of the same
images; medians. Beside the times stands where rgplug's go: generation, features, and all the rest.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from rgplug.data import robots
from rgplug.examples.sngan import Generator
from rgplug.metrics import Evaluator, Features, default_sample_fn, evaluate_generator, get_features
from rgplug.metrics.images import resize_images, to_uint8

BATCH = 64
SIDE = 32


class Timed:
    """An extractor, or a sample function, and the seconds that its calls took."""

    settings = "benchmark"  # real statistics are cached under it
    dim = None

    def __init__(self, function: Callable[[Any], Any], name: str) -> None:
        self.function, self.name, self.seconds = function, name, 0.0

    def __call__(self, given: Any) -> Any:
        start = time.perf_counter()
        found = self.function(given)
        self.seconds += time.perf_counter() - start
        return found


class InMemory:
    """rgplug's way: samples go to the features in batches. seconds: of generation and of features in the last call."""

    def __init__(self, generator: nn.Module, features: Callable[[Tensor], Tensor], real: Path, images: int) -> None:
        self.generator, self.seconds = generator, {"generation": 0.0, "features": 0.0}
        self.features = Timed(lambda x: Features(features(x)), "timed")
        self.evaluator: Evaluator | None = None
        self.settings: dict[str, Any] = {"real": real, "samples": images}

    def __call__(self, known: bool) -> float:
        """The Frechet distance; known: with the real images' statistics of an earlier call."""
        with tempfile.TemporaryDirectory() as cache:
            if self.evaluator is None or not known:
                quiet = {"device": "cpu", "progress": False}
                self.evaluator = Evaluator(features=self.features, batch=BATCH, cache=cache, **self.settings, **quiet)
            self.features.seconds = 0.0
            samples = Timed(default_sample_fn(self.generator, seed=self.evaluator.seed), "samples")
            value = evaluate_generator(self.generator, self.evaluator, samples)
        self.seconds = {"generation": samples.seconds, "features": self.features.seconds}
        return float(value)


def light(images: Tensor) -> Tensor:
    """192 features [N, 192] that cost next to nothing: colours on an 8x8 grid."""
    return F.adaptive_avg_pool2d(images.float(), 8).flatten(1)


def write_pngs(pixels: Tensor, folder: Path) -> None:
    """uint8 [N, 3, H, W] as numbered PNG files."""
    for i, image in enumerate(pixels.permute(0, 2, 3, 1).numpy(), start=len(list(folder.iterdir()))):
        Image.fromarray(image).save(folder / f"{i:06d}.png")


class Folders:
    """The usual way: write PNG files, give the folder to clean-fid."""

    def __init__(self, generator: nn.Module, features: Callable[[Tensor], Tensor], real: Path, images: int) -> None:
        self.generator, self.features, self.real, self.images = generator, features, real, images
        self.real_features: Any = None

    def __call__(self, known: bool) -> float:
        """The Frechet distance; known: with the real images' features of an earlier call."""
        from cleanfid import fid

        with tempfile.TemporaryDirectory() as written, warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of a singular covariance: there are fewer images than features
            draw = default_sample_fn(self.generator)
            for start in range(0, self.images, BATCH):
                write_pngs(to_uint8(draw(min(BATCH, self.images - start))), Path(written))
            if not known:
                self.real_features = self._of_folder(str(self.real))
            return float(fid.fid_from_feats(self.real_features, self._of_folder(written)))

    def _of_folder(self, folder: str) -> Any:
        from cleanfid import fid

        return fid.get_folder_features(
            folder,
            model=lambda batch: self.features(batch.round().to(torch.uint8)),
            num_workers=0,
            batch_size=BATCH,
            device=torch.device("cpu"),
            custom_fn_resize=lambda image: image,  # the features bring images to their size themselves
            verbose=False,
        )


def compare(features: Callable[[Tensor], Tensor], images: int, rounds: int) -> dict[str, float]:
    """Medians in seconds, ratios, how far the values are apart, and the shares of a repeated evaluation."""
    torch.manual_seed(0)
    generator = Generator(64).eval()
    times: dict[str, list[float]] = {}
    shares: dict[str, list[float]] = {}
    values: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        real = Path(folder)
        write_pngs(resize_images(torch.from_numpy(robots()).permute(0, 3, 1, 2), (SIDE, SIDE)), real)
        ours, theirs = (kind(generator, features, real, images) for kind in (InMemory, Folders))
        variants = [("first", False), ("again", True)]
        for number in range(rounds + 1):
            for when, known in variants:
                for name, way in (("rgplug", ours), ("clean-fid", theirs)):
                    start = time.perf_counter()
                    values[name] = way(known)
                    seconds = time.perf_counter() - start
                    if number > 0:  # the first round warms up
                        times.setdefault(f"{name}, {when}", []).append(seconds)
                if number > 0 and known:
                    rest = times["rgplug, again"][-1] - sum(ours.seconds.values())
                    for part, spent in {**ours.seconds, "rest": rest}.items():
                        shares.setdefault(part, []).append(spent / times["rgplug, again"][-1])
    medians = {name: statistics.median(t) for name, t in times.items()}
    made = statistics.median(shares["generation"]) * medians["rgplug, again"]  # the same on both sides
    return {
        **medians,
        "ratio, first": medians["clean-fid, first"] / medians["rgplug, first"],
        "ratio, again": medians["clean-fid, again"] / medians["rgplug, again"],
        "ratio, again, without generation": (medians["clean-fid, again"] - made) / (medians["rgplug, again"] - made),
        "relative difference": abs(values["rgplug"] / values["clean-fid"] - 1),
        **{f"share of {part}": statistics.median(s) for part, s in shares.items()},
    }


def run(rounds: int = 3, images: int = 300) -> dict[str, dict[str, float]]:
    """features -> what `compare` returns."""
    network = get_features("efficientnet_lite0", "cpu")
    return {
        "EfficientNet-Lite0": compare(lambda x: network(x).features, images, rounds),
        "8x8 colours": compare(light, images, rounds),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=300, help="generated images")
    parser.add_argument("--rounds", type=int, default=3, help="timed evaluations of each variant")
    args = parser.parse_args()
    for name, found in run(args.rounds, args.images).items():
        print(name, {k: round(v, 5) for k, v in found.items()})

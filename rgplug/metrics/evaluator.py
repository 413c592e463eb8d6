"""The evaluator: real images, features and a distance, ready to be asked about a generator again and again."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from rgplug.errors import RgplugError
from rgplug.metrics import parallel
from rgplug.metrics.distances import Estimate, frechet_distance, inception_score, kernel_distance
from rgplug.metrics.features import Extractor, FeatureFunction, get_features, say_once
from rgplug.metrics.images import Size, resize_images, to_rgb, to_uint8
from rgplug.metrics.isolation import preserved_rng
from rgplug.metrics.real import real_statistics
from rgplug.metrics.sampling import SampleFn
from rgplug.metrics.sources import ImageSource, open_source
from rgplug.metrics.statistics import KEEP, Statistics
from rgplug.metrics.value import DISTANCES, MetricValue, metric_name

Kind = Literal["features", "logits"]
Rows = dict[Kind, Tensor]  # [images, D] of each
Real = str | os.PathLike[str] | Tensor | ImageSource


class NotFinite(Exception):
    """A generated batch holds NaN or infinity."""


class Evaluator:
    """Measures a sample function: `evaluator(sample_fn) -> MetricValue`.

    Several distances are taken of the same images, which are generated, and shown to the feature network, once; the
    first is the value, the others are its `further`, and each is what it would be alone, bit for bit.

    Real statistics are computed at the first call (or by `prepare`) and cached on disk. Generated images stay in
    memory, one batch at a time. With several processes every rank has to call it: the samples are split over the
    ranks, and every rank returns the same value. A sample_fn of the user's has to differ by rank itself if it does
    not use the global random state, which is seeded with `seed` and the rank during a call and restored afterwards.
    """

    def __init__(
        self,
        real: Real | None,  # folder, .zip, .npz, or tensor [N, 3, H, W]; None is enough for distance="is"
        features: str | FeatureFunction | Extractor = "auto",  # see get_features
        distance: str | Sequence[str] = "frechet",  # "frechet", "kid" or "is", or several of them
        samples: int = 5000,  # generated images
        batch: int = 64,  # images at a time, generated and real
        resolution: int | None = None,  # px both sets are brought to; None: the real ones to the generated ones' size
        device: torch.device | str | None = None,  # of the feature network; None: the GPU if there is one
        seed: int = 0,  # of latents and subsets
        cache: str | os.PathLike[str] | bool | None = None,  # folder of real statistics; False: no disk
        progress: bool = True,  # a bar on rank 0
        sheet: int = 0,  # generated images that a call leaves in `images`, the first ones that this rank makes
    ) -> None:
        distances = (distance,) if isinstance(distance, str) else tuple(distance)
        for name in distances:
            if name not in DISTANCES:
                raise RgplugError(f"there is no distance {name!r}; there are {', '.join(DISTANCES)}")
        if not distances or len(set(distances)) < len(distances):
            raise RgplugError(f"an evaluator needs one or more distances, each once, not {list(distances)}")
        if samples < 2 or batch < 1:
            raise RgplugError(f"an evaluation needs samples >= 2 and batch >= 1, not {samples} and {batch}")
        against = [name for name in distances if name != "is"]  # those that compare with real images
        if real is None and against:
            raise RgplugError(f"the distance {against[0]!r} needs real images: a folder, a .zip, an .npz or a tensor")
        self.source = None if real is None else open_source(real)
        self.features = get_features(features, device)
        self.distances = distances
        self._against = against
        self.samples = samples
        self.batch = batch
        self.size: Size | None = None if resolution is None else (resolution, resolution)
        self.seed = seed
        self.cache = cache
        self.progress = progress
        self.sheet = sheet
        self.images: Tensor | None = None  # uint8 [N, 3, H, W] on the CPU; None: none kept, or not finite
        self._real: dict[tuple[Size, int | None], Statistics] = {}  # by size and features kept

    @property
    def distance(self) -> str:
        """The first of its distances."""
        return self.distances[0]

    @property
    def name(self) -> str:
        """Name of its (first) values: `fid`, `fd_efficientnet_lite0`, ..."""
        return metric_name(self.distance, self.features.name)

    def prepare(self, size: Size) -> Statistics:
        """Statistics of the real images at (height, width), computed or read from disk the first time.

        A call of the evaluator does this on rank 0 only; doing it before the training saves the wait later. Of several
        distances, each gets the statistics that it needs; those of the first one are returned.
        """
        first, *_ = [self._statistics(size, distance) for distance in self._against or self.distances]
        return first

    def _statistics(self, size: Size, distance: str) -> Statistics:
        keep = None if distance == "kid" else KEEP
        if self.source is not None and self.source.count <= KEEP:  # all features are kept, whoever asks
            keep = next((k for s, k in self._real if s == size), keep)
        if (size, keep) not in self._real:
            if self.source is None:
                raise RgplugError("there are no real images in this evaluator")
            found = self.source.size()
            if found != size:
                say_once(
                    f"metrics: real images are {found[1]}x{found[0]}, generated ones {size[1]}x{size[0]}: the real "
                    f"ones are centre-cropped to that aspect and resized (Lanczos)"
                )
            self._real[size, keep] = real_statistics(
                self.source,
                self.features,
                size,
                batch=self.batch,
                keep=keep,
                cache=self.cache,
                progress=self.progress,
            )
        return self._real[size, keep]

    def __call__(self, sample_fn: SampleFn) -> MetricValue:
        """Measure sample_fn(n) -> images [n, 3 or 1, H, W], float in [-1, 1] or uint8.

        NaN, with a warning, when the images are not finite. RgplugError when they are no images.
        """
        start = time.monotonic()
        sizes = [min(self.batch, self.samples - i) for i in range(0, self.samples, self.batch)]
        with preserved_rng(self.seed + 7919 * parallel.rank()), torch.no_grad():
            rows, size, failure = self._sample_share(sample_fn, sizes)
            parallel.meet("the evaluator")
            failures = parallel.gather(failure)
            if any(f == "" for f in failures) and not any(failures):
                warnings.warn(f"{self.name} is NaN: the generator made images that are not finite", stacklevel=2)
                estimates = [Estimate(math.nan, None) for _ in self.distances]
            elif bad := [(r, f) for r, f in enumerate(failures) if f]:
                raise RgplugError(f"the evaluation failed on rank {bad[0][0]}: {bad[0][1]}")
            else:
                estimates = self._agree({kind: self._gather(part, sizes) for kind, part in rows.items()}, size)
        seconds = time.monotonic() - start
        first, *others = (
            MetricValue(metric_name(distance, self.features.name), e.value, e.error, self.samples, seconds)
            for distance, e in zip(self.distances, estimates)
        )
        return replace(first, further=tuple(others))

    def _sample_share(self, sample_fn: SampleFn, sizes: list[int]) -> tuple[Rows, Size, str | None]:
        """This rank's batches: rows [n, D] by kind, image size, and what went wrong ("" = not finite)."""
        rank, world = parallel.rank(), parallel.world()
        rows: dict[Kind, list[Tensor]] = {kind: [] for kind in dict.fromkeys(map(_kind, self.distances))}
        nothing = {kind: torch.empty(0, 0) for kind in rows}
        kept: list[Tensor] = []
        self.images = None
        size: Size = (0, 0)
        skip = getattr(sample_fn, "skip", None)
        bar = tqdm(total=self.samples, desc=self.name, leave=False, disable=not self.progress or rank > 0)
        try:
            for i, n in enumerate(sizes):
                if i % world == rank:
                    images = self._images(sample_fn, n)
                    size = (images.shape[2], images.shape[3])
                    if (missing := self.sheet - sum(map(len, kept))) > 0:
                        kept.append(images[:missing].cpu())
                    for kind, part in self._rows(images).items():
                        rows[kind].append(part)
                elif skip is not None:
                    skip(n)
                bar.update(n)
        except NotFinite:
            return nothing, size, ""
        except Exception as error:
            if world == 1:
                raise
            return nothing, size, str(error) or type(error).__name__  # the other ranks wait for an answer
        finally:
            bar.close()
        self.images = torch.cat(kept) if kept else None
        return {kind: torch.cat(parts) if parts else nothing[kind] for kind, parts in rows.items()}, size, None

    def _images(self, sample_fn: SampleFn, n: int) -> Tensor:
        """n generated images, uint8 [n, 3, H, W], at the evaluator's resolution if it has one."""
        images = sample_fn(n)
        if isinstance(images, Tensor) and images.is_floating_point():
            low, high = images.aminmax()
            if not (torch.isfinite(low) and torch.isfinite(high)):  # NaN passes through min and max
                raise NotFinite
            if low >= 0 and high <= 1:
                say_once(
                    "metrics: generated images all lie in [0, 1], but -1 means black here: scale them in sample_fn"
                )
        pixels = to_rgb(to_uint8(images))
        if len(pixels) < n:
            raise RgplugError(f"sample_fn({n}) returned {len(pixels)} images")
        return resize_images(pixels[:n], self.size or (pixels.shape[2], pixels.shape[3]))

    def _rows(self, images: Tensor) -> Rows:
        """What the distances need of some images, from one pass through the feature network."""
        found = self.features(images)
        rows: Rows = {}
        if self._against:
            rows["features"] = found.features.float().cpu()
        if "is" in self.distances:
            if found.logits is None:
                raise RgplugError(
                    f"the features {self.features.name!r} have no logits, which the inception score needs"
                )
            rows["logits"] = found.logits.float().cpu()
        return rows

    def _gather(self, rows: Tensor, sizes: list[int]) -> Tensor:
        """All ranks' rows [samples, D], in the order in which one process would have made them."""
        world = parallel.world()
        width = parallel.broadcast(rows.shape[1])
        shares = [sizes[r::world] for r in range(world)]
        parts = parallel.gather_rows(rows.reshape(-1, width), [sum(s) for s in shares])
        batches = [list(part.split(share)) for part, share in zip(parts, shares)]
        return torch.cat([batches[i % world][i // world] for i in range(len(sizes))])

    def _agree(self, rows: Rows, size: Size) -> list[Estimate]:
        """What rank 0 measures, on every rank: equal to the last bit, whatever their processors round differently."""
        found: list[Estimate] | RgplugError | None = None
        if parallel.rank() == 0:
            try:
                found = [self._measure(distance, rows[_kind(distance)], size) for distance in self.distances]
            except RgplugError as error:
                found = error
            except Exception as error:
                if parallel.world() == 1:
                    raise
                found = RgplugError(f"the evaluation failed on rank 0: {error or type(error).__name__}")
        found = parallel.broadcast(found)
        if not isinstance(found, list):
            raise found or RgplugError("rank 0 sent no value")
        return found

    def _measure(self, distance: str, rows: Tensor, size: Size) -> Estimate:
        """The value for generated rows [samples, D] of images of `size`."""
        if distance == "is":
            return inception_score(rows)
        real = self._statistics(size, distance)
        if distance == "frechet":
            return Estimate(frechet_distance(real, Statistics.from_features(rows)), None)
        assert real.features is not None  # all of them are kept for this distance
        return kernel_distance(real.features, rows, seed=self.seed)


def _kind(distance: str) -> Kind:
    """The output of the feature network that a distance is taken of."""
    return "logits" if distance == "is" else "features"

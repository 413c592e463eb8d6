"""Mean and covariance of image features, from one array or as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rgplug.errors import RgplugError

KEEP = 10_000  # up to this many images the raw features stay (80 MB at 2048 dims); above it only mean and covariance
CHUNK = 4096  # rows converted to float64 at a time


@dataclass(frozen=True, eq=False)
class Statistics:
    """What a distance needs to know about one set of images.

    mean: [D] float64. count: number of images N. features: [N, D] float32, or None when there were too many to keep.
    streamed: [D, D] float64 covariance when features is None.
    """

    mean: Tensor
    count: int
    features: Tensor | None = None
    streamed: Tensor | None = None

    @classmethod
    def from_features(cls, features: Tensor) -> Statistics:
        """Statistics of features [N, D], N >= 2; the features are kept (as float32, on the CPU)."""
        if features.ndim != 2 or len(features) < 2:
            raise RgplugError(f"statistics need features of at least two images, [N, D], not {tuple(features.shape)}")
        rows = features.detach().to("cpu", torch.float32)
        total = torch.zeros(rows.shape[1], dtype=torch.float64)
        for part in rows.split(CHUNK):
            total += part.double().sum(0)
        return cls(total / len(rows), len(rows), rows)

    @classmethod
    def from_moments(cls, mean: Tensor, covariance: Tensor, count: int) -> Statistics:
        """Statistics that somebody else computed: mean [D], covariance [D, D] (divided by N - 1), count N."""
        d = mean.numel()
        if mean.shape != (d,) or covariance.shape != (d, d) or count < 2:
            shapes = f"{tuple(mean.shape)} and {tuple(covariance.shape)} of {count} images"
            raise RgplugError(
                f"statistics need a mean [D] and a covariance [D, D] of at least two images, not {shapes}"
            )
        return cls(mean.detach().to("cpu", torch.float64), count, None, covariance.detach().to("cpu", torch.float64))

    @property
    def dim(self) -> int:
        """D, the length of one feature vector."""
        return self.mean.numel()

    def _centred_chunks(self) -> Iterator[Tensor]:
        assert self.features is not None
        for part in self.features.split(CHUNK):
            yield part.double() - self.mean

    def factor(self) -> Tensor:
        """A = (X - mean) / sqrt(N - 1), [N, D] float64, so that A^T A is the covariance. Needs the features."""
        if self.features is None:
            raise RgplugError("these statistics hold a covariance only: the features they came from were not kept")
        return torch.cat(list(self._centred_chunks())) / (self.count - 1) ** 0.5

    @cached_property
    def covariance(self) -> Tensor:
        """Covariance divided by N - 1, [D, D] float64."""
        if self.streamed is not None:
            return self.streamed
        product = torch.zeros(self.dim, self.dim, dtype=torch.float64)
        for part in self._centred_chunks():
            product.addmm_(part.T, part)
        return product / (self.count - 1)

    @cached_property
    def trace(self) -> float:
        """Trace of the covariance; does not build it when the features are there."""
        if self.streamed is not None:
            return float(self.streamed.diagonal().sum())
        return sum(float(part.square().sum()) for part in self._centred_chunks()) / (self.count - 1)

    def finite(self) -> bool:
        """Whether every number is finite."""
        held = self.features if self.features is not None else self.streamed
        return bool(torch.isfinite(self.mean).all()) and held is not None and bool(torch.isfinite(held).all())


class Accumulator:
    """Collects features batch by batch; `finish()` gives their Statistics.

    keep: how many images' features may be held before they are folded into float64 sums (None: no limit). The sums
    are taken about the mean of the first rows, so nothing cancels when features are far from zero.
    """

    def __init__(self, keep: int | None = KEEP) -> None:
        self.keep = keep
        self.count = 0
        self._rows: list[Tensor] = []
        self._shift: Tensor | None = None
        self._sum = torch.empty(0)
        self._product = torch.empty(0)

    def update(self, features: Tensor) -> None:
        """Add features [B, D]."""
        self._rows.append(features.detach().to("cpu", torch.float32))
        self.count += len(features)
        if self.keep is not None and self.count > self.keep:
            for rows in self._rows:
                self._fold(rows)
            self._rows.clear()

    def _fold(self, rows: Tensor) -> None:
        exact = rows.double()
        if self._shift is None:
            self._shift = exact.mean(0)
            self._sum = torch.zeros_like(self._shift)
            self._product = torch.zeros(len(self._shift), len(self._shift), dtype=torch.float64)
        centred = exact - self._shift
        self._sum += centred.sum(0)
        self._product.addmm_(centred.T, centred)

    def finish(self) -> Statistics:
        """Statistics of everything so far; RgplugError for fewer than two images."""
        if self.count < 2:
            raise RgplugError(f"statistics need at least two images, not {self.count}")
        if self._shift is None:
            return Statistics.from_features(torch.cat(self._rows))
        offset = self._sum / self.count
        covariance = (self._product - torch.outer(self._sum, offset)) / (self.count - 1)
        return Statistics.from_moments(self._shift + offset, covariance, self.count)

"""A measured value that carries its own name."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rgplug.policy import higher_is_better

DISTANCES = ("frechet", "kid", "is")


@dataclass(frozen=True)
class MetricValue:
    """name: see metric_name. value: NaN when the generator made non-finite images. error: see Estimate; None for the
    Frechet distance. samples: generated images. seconds: wall time. further: the other distances of the same images,
    where several were asked for. `float(v)` is the value."""

    name: str
    value: float
    error: float | None
    samples: int
    seconds: float
    further: tuple[MetricValue, ...] = ()

    @property
    def all(self) -> tuple[MetricValue, ...]:
        """This value, and then the further ones."""
        return (self, *self.further)

    @property
    def lower_is_better(self) -> bool:
        """False for the inception score only."""
        return not higher_is_better(self.name)

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        digits = 2 if not math.isfinite(self.value) or abs(self.value) >= 1 else 5
        error = "" if self.error is None else f" +- {self.error:.{digits}f}"
        own = f"{self.name} {self.value:.{digits}f}{error} ({self.samples} samples)"
        return ", ".join([own, *map(str, self.further)])


def metric_name(distance: str, features: str) -> str:
    """The name of a value: `fid`, `kid` and `is` on Inception only; elsewhere `fd_`, `kid_`, `is_` and the features."""
    if features == "inception":
        return "fid" if distance == "frechet" else distance
    return f"{'fd' if distance == 'frechet' else distance}_{features}"

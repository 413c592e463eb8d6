"""Statistics of real images on disk, found again by what they were computed from."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rgplug import files
from rgplug.metrics.images import Size
from rgplug.metrics.statistics import Statistics

FORMAT = 1  # raise it whenever the same key would mean other numbers


def cache_dir(given: str | os.PathLike[str] | None = None) -> Path:
    """The argument, else $RGPLUG_CACHE, else $XDG_CACHE_HOME/rgplug, else ~/.cache/rgplug. Not created here."""
    chosen = given or os.environ.get("RGPLUG_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "rgplug"


def cache_file(folder: Path, *, digest: str, size: Size, features: str, settings: str, keep: int | None) -> Path:
    """Path of the statistics that belong to these inputs.

    digest: of the image contents. size: pixels the images are brought to before the features see them. features,
    settings: name and configuration of the extractor. keep: see Accumulator.
    """
    key = json.dumps([FORMAT, digest, list(size), features, settings, keep])
    return folder / f"real-{features}-{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.npz"


def load_statistics(path: Path) -> Statistics | None:
    """Statistics from a file; None when there is none, or (with a warning) when it cannot be used."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as held:
            arrays = {name: np.array(held[name]) for name in held.files}
        return _from_arrays(arrays)
    except Exception as error:  # a half-written or foreign file may fail anywhere in the reader
        warnings.warn(f"{path} cannot be used ({error}); the real statistics are computed again", stacklevel=2)
        return None


def save_statistics(path: Path, statistics: Statistics) -> None:
    """Write statistics atomically; a folder that cannot be written to costs a warning, not the run."""
    held: dict[str, Any] = {"mean": statistics.mean.numpy(), "count": np.array(statistics.count)}
    if statistics.features is not None:
        held["features"] = statistics.features.numpy()
    else:
        held["covariance"] = statistics.covariance.numpy()

    def write(partial: Path) -> None:
        with partial.open("wb") as opened:
            np.savez(opened, **held)

    try:
        files.write_whole(path, write)
    except OSError as error:
        warnings.warn(f"the real statistics cannot be kept in {path.parent} ({error}); set RGPLUG_CACHE", stacklevel=2)


def _from_arrays(held: dict[str, NDArray[np.generic]]) -> Statistics:
    mean, count = torch.from_numpy(held["mean"]), int(held["count"])
    if "features" in held:
        statistics = Statistics(mean, count, torch.from_numpy(held["features"]))
        expected: tuple[int, ...] = (count, mean.numel())
        found = tuple(held["features"].shape)
    else:
        statistics = Statistics.from_moments(mean, torch.from_numpy(held["covariance"]), count)
        expected = found = ()
    if expected != found or mean.dtype != torch.float64 or not statistics.finite():
        raise ValueError("its arrays do not belong together")
    return statistics

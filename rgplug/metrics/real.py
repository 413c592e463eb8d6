"""Statistics of the real images: from the disk cache, or computed."""

from __future__ import annotations

import os

from tqdm import tqdm

from rgplug.metrics.cache import cache_dir, cache_file, load_statistics, save_statistics
from rgplug.metrics.features import Extractor
from rgplug.metrics.images import Size
from rgplug.metrics.sources import ImageSource
from rgplug.metrics.statistics import KEEP, Accumulator, Statistics


def real_statistics(
    source: ImageSource,
    extractor: Extractor,
    size: Size,
    *,
    batch: int = 64,  # images at a time
    keep: int | None = KEEP,  # features of up to so many images are kept, see Accumulator
    cache: str | os.PathLike[str] | bool | None = None,  # folder; None: see cache_dir; False: no disk
    progress: bool = False,
) -> Statistics:
    """Statistics of a source at `size` pixels, looked up in the cache and put there."""
    path = None
    if cache is not False and extractor.settings is not None:
        folder = cache_dir(None if isinstance(cache, bool) else cache)
        path = cache_file(
            folder,
            digest=source.digest(),
            size=size,
            features=extractor.name,
            settings=extractor.settings,
            keep=keep,
        )
        if (found := load_statistics(path)) is not None:
            return found
    accumulator = Accumulator(keep)
    with tqdm(total=source.count, desc=f"real {extractor.name}", leave=False, disable=not progress) as bar:
        for images in source.batches(batch, size):
            accumulator.update(extractor(images).features)
            bar.update(len(images))
    statistics = accumulator.finish()
    if path is not None:
        save_statistics(path, statistics)
    return statistics

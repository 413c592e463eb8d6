"""`rgplug demo`: the quickstart script on the robots that come with rgplug, or on any folder of images."""

from __future__ import annotations

import time
from pathlib import Path

from rgplug.before_attach import check_folder
from rgplug.data import write_folder
from rgplug.errors import RgplugError


def demo(
    data: Path | None,
    out: Path,
    *,
    iterations: int | None = None,
    epoch_iterations: int | None = None,
    seed: int = 0,
) -> None:
    """Train with RG-GAN attached and leave in `out`: samples.png, training.png, history.jsonl, checkpoint.pt."""
    from rgplug.examples import quickstart

    if data is not None and not data.is_dir():
        raise RgplugError(f"--data: there is no folder {data}")
    check_folder(str(out), "--out")
    out.mkdir(parents=True, exist_ok=True)
    if data is None:
        data = write_folder(out / "robots")
    argv = ["--data", str(data), "--out", str(out), "--seed", str(seed)]
    for flag, value in (("--iterations", iterations), ("--epoch-iterations", epoch_iterations)):
        if value is not None:
            argv += [flag, str(value)]
    started = time.perf_counter()
    quickstart.main(argv)
    minutes = (time.perf_counter() - started) / 60
    left = ["samples.png", "history.jsonl", "checkpoint.pt", "rgplug.safetensors"]
    try:
        from rgplug.report.figures import training_figure

        training_figure(out / "history.jsonl", out / "training.png")
        left.insert(1, "training.png")
    except (ImportError, RgplugError) as error:
        print(error)
    print(f"{minutes:.1f} minutes; in {out}: {', '.join(left)}")

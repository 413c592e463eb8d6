"""Runs that are killed at random moments and continued. A script: torch is imported once, each run is a fork of it.

    python tests/kill_runs.py quickstart|two-files FOLDER KILLS SEED

prints one JSON line a trial: how often it was killed, where it went on from, what differs from the run that was not.
Half of the kills come at random times, half just before a random one of the run's calls that open, link, rename or
remove a file in its folder, so that every gap between two of them is met.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Host
from PIL import Image

import rgplug
from rgplug import state
from rgplug.examples import quickstart
from rgplug.metrics import register_features
from rgplug.metrics.features import CallableFeatures

EVENTS = ("open", "os.rename", "os.link", "os.remove", "os.truncate")
METRICS = [5, 6, 9, 9, 1, 2, 8, 3]  # dense and sparse phases
TWO_FILES = {
    "sparsity_weight": 1e-2,
    "threshold": {"init": 0.05, "units": "layer_std"},
    "regeneration.augmented": {"window": 2, "weights": [0.5, 0.5]},
    "target": {"G": 0.5, "D": 0.7, "by": 8},
}
QUICKSTART = """
metric: {features: tiny, samples: 16, batch: 16}
regeneration: {augmented: {window: 2, weights: [0.5, 0.5]}}
target: {by: 8}
"""


def run_quickstart(out: Path) -> None:
    argv = f"--data {out.parent / 'images'} --out {out} --iterations 12 --epoch-iterations 2 --batch 4 --resolution 8"
    quickstart.main([*argv.split(), *(["--resume"] if (out / "checkpoint.pt").exists() else [])])


def run_two_files(out: Path) -> None:
    """A host that knows nothing of rgplug's state: its own checkpoint, after rgplug's file."""
    host, checkpoint = Host(seed=0), out / "checkpoint.pt"
    rg = rgplug.attach(host.G, host.D, {**TWO_FILES, "run_dir": str(out)})
    if checkpoint.exists():
        host.load_state_dict(torch.load(checkpoint, weights_only=True))
        rg.load(out / "rgplug.safetensors")
    while host.iteration < 2 * len(METRICS):
        host.run(2)
        rg.end_epoch(METRICS[host.iteration // 2 - 1])
        torch.save(host.state_dict(), out / "part")
        os.replace(out / "part", checkpoint)


def child(run: Callable[[Path], None], out: Path, stop_at: int = -1) -> int:
    """The process of a run. stop_at: the call on a file of the run just before which it kills itself."""
    process = os.fork()
    if process:
        return process
    count = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in EVENTS and str(arguments[0]).startswith(str(out)):
            if count == stop_at:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

    try:
        sys.addaudithook(watch)
        silent = os.open(out / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        run(out)
        (out / "calls").write_text(str(count))
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(1)


def finish(run: Callable[[Path], None], out: Path) -> None:
    _, status = os.waitpid(child(run, out), 0)
    if status:
        raise SystemExit(f"the run in {out} failed:\n{(out / 'log').read_text()[-3000:]}")


def left(out: Path) -> dict[str, Any]:
    """Everything that a finished run leaves, but for its wall-clock times."""
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    found = {
        "checkpoint": torch.load(out / "checkpoint.pt", weights_only=True),
        "state": state.load(out / "rgplug.safetensors"),
        "history": [{k: v for k, v in line.items() if k != "seconds"} for line in lines],
        "best": (out / "best.png").read_bytes() if (out / "best.png").exists() else b"",
        "partial": [path.name for path in out.rglob("*.partial")],
    }
    found["state"]["policy"] = {k: v for k, v in found["state"]["policy"].items() if k != "run_dir"}
    if "rg" in found["checkpoint"]:
        found["checkpoint"]["rg"].pop("policy")
    return found


def different(a: Any, b: Any, name: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        names = [f"{name}.{k} is missing" for k in set(a) ^ set(b)]
        return names + [x for k in a if k in b for x in different(a[k], b[k], f"{name}.{k}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [x for i, (u, v) in enumerate(zip(a, b)) for x in different(u, v, f"{name}.{i}")]
    same = torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b
    return [] if same else [name]


def trials(run: Callable[[Path], None], folder: Path, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    started = time.monotonic()
    finish(run, folder / "whole")
    duration, calls = time.monotonic() - started, int((folder / "whole" / "calls").read_text())
    expected = left(folder / "whole")
    done = trial = 0
    while done < kills:
        trial += 1
        out = folder / f"trial-{trial}"
        out.mkdir()
        killed, records = 0, []
        for _ in range(rng.choice([1, 1, 2])):
            at_call = trial % 2 == 1
            process = child(run, out, rng.randrange(calls) if at_call else -1)
            if not at_call:
                time.sleep(rng.uniform(0, duration))
                os.kill(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
            if not os.WIFSIGNALED(status):
                break  # it was over before
            killed, done = killed + 1, done + 1
            records.append((out / "history.jsonl").read_text().count("\n") if (out / "history.jsonl").exists() else 0)
        finish(run, out)
        log = (out / "log").read_text()
        found = {"killed": killed, "warned": "other weights" in log, "different": different(left(out), expected)[:5]}
        print(json.dumps({**found, "records": records}), flush=True)


def main() -> None:
    what, folder, kills, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    (folder / "whole").mkdir(parents=True)
    if what == "quickstart":
        register_features("tiny", lambda device: CallableFeatures(lambda x: x.float().mean((2, 3)), "tiny", "1"))
        pixels = np.random.default_rng(0)
        (folder / "images").mkdir()
        for i in range(8):
            Image.fromarray(pixels.integers(0, 255, (8, 8, 3), np.uint8)).save(folder / "images" / f"{i}.png")
        (folder / "tiny.yaml").write_text(QUICKSTART)
        os.environ["RGPLUG_POLICY"] = str(folder / "tiny.yaml")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        trials({"quickstart": run_quickstart, "two-files": run_two_files}[what], folder, kills, seed)


if __name__ == "__main__":
    main()

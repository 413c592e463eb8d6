"""Starting a host's own train.py, with or without the two lines, in a process of its own.

The checkouts are never written to: the patched copy of train.py lies in the test's folder, and the host's folder is on
PYTHONPATH. `host_cpu/sitecustomize.py` replaces CUDA and downloads.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw

from rgplug.adapters.patching import with_two_lines

FOLDERS = {
    "stylegan2-ada": ("stylegan2-ada-pytorch", "stylegan2", "stylegan2_ada"),
    "diffaugment-stylegan2": ("data-efficient-gans/DiffAugment-stylegan2-pytorch", "stylegan2", "diffaugment"),
    "biggan": ("data-efficient-gans/DiffAugment-biggan-cifar", "biggan", "diffaugment"),
    "biggan-pytorch": ("BigGAN-PyTorch", "biggan_pytorch", "biggan"),
    "fastgan": ("FastGAN-pytorch", "fastgan", "fastgan"),
}


def folder(host: str) -> Path:
    found = Path(os.environ.get("RGPLUG_HOSTS", "")).expanduser() / FOLDERS[host][0]
    if not os.environ.get("RGPLUG_HOSTS") or not found.is_dir():
        pytest.skip(f"RGPLUG_HOSTS names no folder with {FOLDERS[host][0]}")
    return found


@dataclass
class HostRun:
    """Runs of one host in one folder. policy: a dict that becomes policy.yaml, a preset's name, or None: stock."""

    host: str
    where: Path
    environment: dict[str, str] = field(default_factory=dict)

    def script(self, name: str, policy: Any, **options: Any) -> Path:
        source = (folder(self.host) / name).read_text(encoding="utf-8-sig")
        self.where.mkdir(parents=True, exist_ok=True)
        if policy is not None:
            if isinstance(policy, dict):
                (self.where / "policy.yaml").write_text(yaml.safe_dump(policy))
                policy = str(self.where / "policy.yaml")
            source = with_two_lines(source, FOLDERS[self.host][2], policy, **options)
        path = self.where / name
        path.write_text(source)
        return path

    def __call__(
        self, script: Path | str, *arguments: Any, check: bool = True, plain: bool = False, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """plain: rgplug cannot be imported in the process."""
        here = Path(__file__).parent
        path = [str(here / "host_cpu"), str(folder(self.host))]
        if plain:
            blocked = self.where / "blocked" / "rgplug"
            blocked.mkdir(parents=True, exist_ok=True)
            (blocked / "__init__.py").write_text("raise ImportError('rgplug is not installed here')\n")
            path.insert(0, str(blocked.parent))
        known = {k: v for k, v in os.environ.items() if not k.startswith("RGPLUG_TEST")}
        shutil.rmtree(self.where / "dnnlib-cache", ignore_errors=True)  # a cache hit draws fewer random numbers
        done = subprocess.run(
            [sys.executable, str(script), *map(str, arguments)],
            cwd=self.where,
            env={
                **known,
                "PYTHONPATH": os.pathsep.join(path),
                "PYTHONDONTWRITEBYTECODE": "1",
                "OMP_NUM_THREADS": "1",
                "DNNLIB_CACHE_DIR": str(self.where / "dnnlib-cache"),
                "TORCH_EXTENSIONS_DIR": str(self.where / "extensions"),
                "RGPLUG_TEST_HOST": FOLDERS[self.host][1],
                **self.environment,
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=900,
        )
        if check and done.returncode:
            raise AssertionError(f"{script} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        return done


def history(where: Path) -> list[dict[str, Any]]:
    """The records in a run folder, one per evaluation."""
    return [json.loads(line) for line in (where / "history.jsonl").read_text().splitlines()]


def tree(where: Path) -> str:
    """Digest of all files in a folder and their contents."""
    digest = hashlib.sha256()
    for path in sorted(p for p in where.rglob("*") if p.is_file() and not {".git", "__pycache__"} & set(p.parts)):
        digest.update(f"{path}".encode() + path.read_bytes())
    return digest.hexdigest()


@dataclass
class Story:
    """A run that was resumed; `first` and `second` hold what was there after each half."""

    run: HostRun
    first: Path
    second: Path


def shapes(where: Path, size: int, count: int = 32) -> Path:
    """A folder of coloured shapes."""
    where = where / f"shapes{size}"
    if not where.is_dir():
        where.mkdir(parents=True)
        random = np.random.RandomState(size)
        for i in range(count):
            _shape(random, size).save(where / f"img{i:05d}.png")
    return where


def cifar(where: Path) -> Path:
    """The folder that the host's data_root has to hold: CIFAR-10's batches, 10,000 rows each, of a few images."""
    base = where / "data" / "cifar" / "cifar-10-batches-py"
    if not base.is_dir():
        base.mkdir(parents=True)
        random = np.random.RandomState(0)
        pool = [np.asarray(_shape(random, 32)).transpose(2, 0, 1).reshape(-1) for _ in range(64)]
        rows = np.stack(pool).astype(np.uint8)
        for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
            which = random.randint(0, 64, 10000)
            batch = {"data": rows[which], "labels": [int(i % 10) for i in which], "filenames": []}
            (base / name).write_bytes(pickle.dumps(batch))
        names = {"label_names": [str(i) for i in range(10)], "num_cases_per_batch": 10000, "num_vis": 3072}
        (base / "batches.meta").write_bytes(pickle.dumps(names))
    return base.parent.parent


def _shape(random: np.random.RandomState, size: int) -> Image.Image:
    image = Image.new("RGB", (size, size), tuple(int(v) for v in random.randint(0, 255, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(3):
        (left, right), (top, bottom) = sorted(random.randint(0, size, 2)), sorted(random.randint(0, size, 2))
        fill = tuple(int(v) for v in random.randint(0, 255, 3))
        draw_one = draw.ellipse if random.rand() < 0.5 else draw.rectangle
        draw_one([int(left), int(top), int(right) + 1, int(bottom) + 1], fill=fill)
    return image

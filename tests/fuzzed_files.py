"""Files of states with something changed in them and the checksum made right again: what anybody may hand over."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rgplug import state

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8]
DTYPES += [torch.bool, torch.complex64, torch.float8_e4m3fn, torch.int8]
VALUES: list[Any] = [None, True, False, -1, 0, 1, 7, 2**36, 2**63, 10**30, 0.5, -0.5, 1e308, {"tensor": "missing"}]
VALUES += [
    "",
    "x",
    "Adam",
    "rg-gan",
    [],
    [2**36],
    [2**20, 2**20],
    [-1],
    [0],
    ["x"],
    {},
    {"x": 1},
    {"tensor": "missing"},
]


def mutate(source: Path, target: Path, rng: random.Random) -> list[str]:
    """Write `source` with one to three changes to `target`; what was changed."""
    done: list[str] = []

    def change(plain: Any, tensors: dict[str, torch.Tensor]) -> None:
        for _ in range(rng.choice([1, 1, 2, 3])):
            done.append(_tensor(tensors, rng) if tensors and rng.random() < 0.5 else _text(plain, tensors, rng))

    rewritten(source, target, change)
    return done


def rewritten(source: Path, target: Path, change: Callable[[Any, dict[str, torch.Tensor]], None]) -> None:
    """`source` after `change` to its text and its tensors, with a checksum that is right."""
    tensors = load_file(str(source))
    with safe_open(str(source), framework="pt") as file:
        metadata = dict(file.metadata())
    plain = json.loads(metadata["state"])
    change(plain, tensors)
    metadata["state"] = json.dumps(plain)
    metadata["sha256"] = state._digest(tensors, metadata["state"])
    save_file(tensors, str(target), metadata=metadata)


def _tensor(tensors: dict[str, torch.Tensor], rng: random.Random) -> str:
    key = rng.choice(sorted(tensors))
    t = tensors.pop(key)
    how = rng.choice(["gone", "renamed", "dtype", "shape", "longer", "empty", "scalar", "value", "other"])
    if how == "renamed":
        tensors[key + "x"] = t
    elif how == "dtype":
        tensors[key] = t.to(rng.choice(DTYPES))
    elif how == "shape":
        tensors[key] = rng.choice([t.reshape(-1), t[None], t.reshape(1, -1)]).contiguous()
    elif how == "longer":
        flat = t.reshape(-1)
        tensors[key] = torch.cat([flat, flat[:1] if flat.numel() else torch.zeros(1).to(t.dtype)])
    elif how == "empty":
        tensors[key] = t.reshape(-1)[:0].clone()
    elif how == "scalar":
        tensors[key] = torch.zeros((), dtype=t.dtype)
    elif how == "value":
        number = rng.choice([-1.0, 0.0, 1e30, float("nan"), float("inf"), -float("inf"), 255.0])
        integer = not (t.is_floating_point() or t.is_complex())
        tensors[key] = torch.full_like(t, rng.randrange(256) if integer else number)
    elif how == "other":
        tensors[key] = tensors[rng.choice(sorted(tensors))].clone() if tensors else t
    return f"{how} {key}"


def _text(plain: Any, tensors: dict[str, torch.Tensor], rng: random.Random) -> str:
    """Change, take out or add an entry somewhere, most often deep inside."""
    path, at = "", plain
    while True:
        keys = sorted(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            if isinstance(at, dict):
                at["x"] = copy.deepcopy(rng.choice(VALUES))
            else:
                at.append(1)
            return f"added to {path}"
        key = rng.choice(keys)
        path += f"/{key}"
        below = at[key]
        if isinstance(below, (dict, list)) and below and rng.random() < 0.85:
            at = below
            continue
        how = rng.choice(["value", "value", "value", "gone", "tensor", "added", "wrapped"])
        if how == "gone":
            del at[key]
        elif how == "added" and isinstance(at, dict):
            at[f"{key}x"] = copy.deepcopy(rng.choice(VALUES))
        elif how == "tensor" and tensors:
            at[key] = {"tensor": rng.choice(sorted(tensors))}
        elif how == "wrapped":
            at[key] = [below]
        else:
            at[key] = copy.deepcopy(rng.choice(VALUES))
        return f"{how} {path}: {str(at.get(key) if isinstance(at, dict) else at)[:60]}"

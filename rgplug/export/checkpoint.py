"""`rgplug export`: a sparse file from a checkpoint that a host has saved with torch.save."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rgplug.errors import RgplugError
from rgplug.export.sparse_file import save_sparse


def export_checkpoint(checkpoint: Path, out: Path, key: str = "", half: bool = False) -> str:
    """Write the state dict at `key` of a checkpoint (dotted, "" for all of it) as a sparse file; returns a line that
    says what became of it. The checkpoint is read with weights_only: no code of its runs. Raises RgplugError.
    """
    return write_sparse(out, read_state_dict(checkpoint, key), half)


def write_sparse(out: Path, tensors: Mapping[str, Tensor], half: bool = False) -> str:
    """`save_sparse`, and a line that says what became of the state dict."""
    size = save_sparse(out, tensors, half)
    entries = sum(t.numel() for t in tensors.values())
    values = sum(int(torch.count_nonzero(t)) for t in tensors.values())
    dense = sum(t.numel() * t.element_size() for t in tensors.values())
    return (
        f"{out}: {values:,} non-zeros of {entries:,} ({values / max(entries, 1):.3f}), {size:,} bytes instead of "
        f"{dense:,} ({size / max(dense, 1):.3f}); a smaller file, and no faster network"
    )


def read_state_dict(checkpoint: Path, key: str = "") -> Mapping[str, Tensor]:
    """The state dict at `key` of what a host saved with torch.save, read without running code of it. Raises
    RgplugError where there is none."""
    return _state_dict(_read(checkpoint), checkpoint, key)


def _read(checkpoint: Path) -> Any:
    if not checkpoint.is_file():
        raise RgplugError(f"there is no checkpoint {checkpoint}")
    try:
        return torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        line = str(error).splitlines()[0]
        raise RgplugError(
            f"{checkpoint} cannot be read without running code of it ({line}); load it where its code is, and call "
            "rgplug.export.save_sparse on the network's state dict"
        ) from error


def _state_dict(held: Any, checkpoint: Path, key: str) -> Mapping[str, Tensor]:
    found = held
    for part in key.split(".") if key else ():
        if not isinstance(found, Mapping) or part not in found:
            has = ", ".join(map(str, found)) if isinstance(found, Mapping) else f"a {type(found).__name__}"
            raise RgplugError(f"{checkpoint} has no {key!r}: where {part!r} should be, it has {has[:200]}")
        found = found[part]
    if not isinstance(found, Mapping) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        has = ", ".join(map(str, found))[:200] if isinstance(found, Mapping) else f"a {type(found).__name__}"
        raise RgplugError(
            f"{checkpoint} holds no state dict at {key!r} but {has}; name one with --key, e.g. --key G_ema"
        )
    return found

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
from rgplug.state import load as load_state
from rgplug.wrappers import plain_state


def export_checkpoint(checkpoint: Path, out: Path, key: str = "", half: bool = False) -> str:
    """Write the state dict at `key` of a checkpoint (dotted, "" for all of it) as a sparse file; returns a line that
    says what became of it. The checkpoint is read with weights_only: no code of its runs. Raises RgplugError.
    """
    tensors, said = masked_state_dict(checkpoint, key)
    return said + write_sparse(out, tensors, half)


def write_sparse(out: Path, tensors: Mapping[str, Tensor], half: bool = False) -> str:
    """`save_sparse`, and a line that says what became of the state dict."""
    size = save_sparse(out, tensors, half)
    entries = sum(t.numel() for t in tensors.values())
    values = sum(int(torch.count_nonzero(t)) for t in tensors.values())
    dense = sum(t.numel() * t.element_size() for t in tensors.values())
    return (
        f"{out}: {values:,} non-zeros of {entries:,} ({values / max(entries, 1):.3f}), {size:,} bytes instead of "
        f"{dense:,} ({size / max(dense, 1):.3f}); no faster network"
    )


def masked_state_dict(checkpoint: Path, key: str = "", state: Path | None = None) -> tuple[dict[str, Tensor], str]:
    """A state dict of a checkpoint under the mask of the rgplug state that the checkpoint holds or that lies in a file
    (state), and a line that says which mask; a moving average in a checkpoint has none on. Without a state that fits:
    the state dict as it is, and "".

    Names are those inside the network: what a wrapper adds (module., n_averaged) is left out. Raises RgplugError for a
    state file of other networks.
    """
    held = _read(checkpoint)
    tensors = dict(_state_dict(held, checkpoint, key))
    states = [load_state(state)] if state is not None else [v for v in _values(held) if _is_state(v)]
    for found in states:
        for label, net in found["networks"].items():
            weights = net["weights"]
            plain = plain_state(tensors, set(weights))
            if not weights or any(n not in plain or plain[n].shape != w["mask"].shape for n, w in weights.items()):
                continue
            if not net["sparse"]:
                return plain, f"{label} trained dense when the state was saved, so there is no mask to put on\n"
            masked = {n: plain[n].masked_fill(torch.logical_not(w["mask"]), 0) for n, w in weights.items()}
            return {**plain, **masked}, f"under the mask of {label} in {state or f'the rgplug state of {checkpoint}'}\n"
    if state is not None:
        raise RgplugError(
            f"{state} manages no weights that are in {checkpoint} at {key!r}; name its network with --key"
        )
    return tensors, ""


def _values(held: Any) -> list[Any]:
    return list(held.values()) if isinstance(held, Mapping) else []


def _is_state(value: Any) -> bool:
    """Whether it is what rg.state_dict() made."""
    return isinstance(value, Mapping) and {"policy", "networks", "last_counts"} <= set(value)


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

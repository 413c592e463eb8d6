"""Sparse files: safetensors with the non-zero values of tensors and a bit per entry. Reading one can run no code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rgplug import state
from rgplug.errors import RgplugError
from rgplug.select import misfit

KIND = "sparse network"
_DTYPES = {str(d).removeprefix("torch."): d for d in vars(torch).values() if isinstance(d, torch.dtype)}
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def save_sparse(path: str | Path, tensors: Mapping[str, Tensor], half: bool = False) -> int:
    """Write a state dict, each tensor as values and packed bits where that is smaller. Returns the bytes on disk.

    A tensor with n non-zeros of m takes n values and m / 8 bytes. half: floating tensors as float16, which rounds them;
    they are read back in their own dtype. Written whole or not at all.
    """
    index: list[Any] = []  # [name, dtype, dtype in the file, shape, values, bytes of bits or 0]
    values: dict[str, list[Tensor]] = {}
    bits: list[Tensor] = [torch.empty(0, dtype=torch.uint8)]
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        kept = value.to(torch.float16) if half and value.is_floating_point() else value
        filled, size = _filled(kept), kept.element_size()
        count = int(filled.sum())
        packed = state.pack_mask(filled) if count * size + kept.numel() / 8 < kept.numel() * size else bits[0]
        flat = kept[filled] if packed.numel() else kept.reshape(-1)
        kind = _name(kept.dtype)
        values.setdefault(kind, []).append(flat)
        bits.append(packed)
        index.append([name, _name(value.dtype), kind, list(value.shape), flat.numel(), packed.numel()])
    joined = {kind: torch.cat(parts) for kind, parts in values.items()}
    held = {"networks": {}, "kind": KIND, "index": index, "values": joined, "bits": torch.cat(bits)}
    state.save(path, held)
    return Path(path).stat().st_size


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _filled(value: Tensor) -> Tensor:
    """bool: entries that are not +0, bit for bit, so that what is read back is what was written (-0 too)."""
    if value.dtype is torch.bool or value.is_complex():
        return torch.ones(value.shape, dtype=torch.bool)
    return value.view(_INTEGERS[value.element_size()]) != 0


def read_sparse(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a sparse file, dense tensors on the CPU. Raises RgplugError for a missing, damaged, foreign or
    newer file."""
    found = state.load(path)
    if found.get("kind") != KIND:
        raise RgplugError(f"{path} is no sparse file of a network; give one that save_sparse or rg.export wrote")
    try:
        return _unpacked(found)
    except Exception as error:  # whatever comes of parts that do not belong together
        reason = state.first_line(error)
        raise RgplugError(f"{path} is damaged ({reason}); write it again from the network") from error


def _unpacked(found: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a sparse file. Raises ValueError and the like where its parts do not belong together; sizes are
    compared with what is in the file before memory is taken for them."""
    values, bits, begun = found["values"], found["bits"], dict.fromkeys(found["values"], 0)
    tensors: dict[str, Tensor] = {}
    at = 0
    for name, own, kind, shape, count, packed in found["index"]:
        wanted, dtype = state.entries(shape), _DTYPES.get(own)
        if wanted is None or dtype is None or not all(type(n) is int and n >= 0 for n in (count, packed)):
            raise ValueError(f"{name} is said to be {own} of shape {state.short(shape)}")
        first = begun[kind]
        part = values[kind][first : first + count].to(dtype)
        begun[kind] += count
        if packed:
            mask = state.unpack_mask(_exactly(bits[at : at + packed], -(-wanted // 8)), shape)
            tensors[name] = torch.zeros(shape, dtype=dtype)
            tensors[name][mask] = _exactly(part, int(mask.sum()))
            at += packed
        else:
            tensors[name] = _exactly(part, wanted).reshape(shape).clone()
    return tensors


def _exactly(part: Tensor, count: int) -> Tensor:
    if part.shape != (count,):
        raise ValueError(f"{list(part.shape)} values are there for {count}")
    return part


def load_sparse(path: str | Path, network: nn.Module) -> nn.Module:
    """Read a sparse file into a network, strictly: every key, every shape. Returns the network; it is unchanged where
    RgplugError is raised."""
    tensors = read_sparse(path)
    wrong = misfit(tensors, network.state_dict())
    if wrong:
        raise RgplugError(
            f"{path} is of another {type(network).__name__}: {wrong}; build the network that was exported"
        )
    network.load_state_dict(tensors, strict=True)
    return network

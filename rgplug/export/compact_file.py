"""Compact files: the tensors of a compact network and how its layers differ from the host's, as safetensors.

Reading one runs no code of it: the host builds its own network, and what the file says of it is sizes and tensors.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from rgplug import state
from rgplug.channels.trace import fold_norms
from rgplug.copying import copy_network
from rgplug.errors import RgplugError
from rgplug.export.compact import Compact
from rgplug.export.surgery import Carrying, carry, owner_of, set_size, set_sizes, sizes
from rgplug.select import walk

KIND = "compact network"


def save_compact(path: str | Path, result: Compact) -> int:
    """Write a compact network. Returns the bytes on disk. Written whole or not at all."""
    network = result.network
    carrying = [name for name, module in walk(network) if isinstance(module, Carrying)]
    tensors = {name: t.detach().cpu().contiguous() for name, t in _tensors(network).items()}
    held = {"networks": {}, "kind": KIND, "carrying": carrying, "sizes": sizes(network), "tensors": tensors}
    state.save(path, held)
    return Path(path).stat().st_size


def load_compact(path: str | Path, network: nn.Module) -> nn.Module:
    """The compact network of a file, from the host's own as it is built for training, which stays as it is.

    Strict: every tensor of the file has its place, and every tensor of the network is in the file. Raises RgplugError
    for a missing, damaged, foreign or newer file, and for another network.
    """
    found = state.load(path)
    if found.get("kind") != KIND:
        raise RgplugError(f"{path} is no compact network; give a file that save_compact wrote")
    smaller = copy_network(network).eval().requires_grad_(False)
    with torch.no_grad():
        try:
            for _, module in walk(smaller):
                fold_norms(module)
            for name in found["carrying"]:
                carry(smaller.get_submodule(name))
            for name, value in found["sizes"].items():
                set_size(smaller, name, int(value))
            _set_tensors(smaller, found["tensors"])
        except (AttributeError, KeyError, StopIteration) as error:
            raise RgplugError(
                f"{path} is of another {type(network).__name__} ({error}); build the network that was exported"
            ) from error
    return smaller


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those too that are not in the state dict: they may have a size that became smaller."""
    parameters = dict(network.named_parameters(remove_duplicate=False))  # a tied weight under each of its names
    return {**parameters, **dict(network.named_buffers(remove_duplicate=False))}


def _set_tensors(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Parameters and buffers as the file has them, whatever their shapes were."""
    own = _tensors(network)
    missing = sorted(set(own) - set(tensors))
    if missing:
        raise KeyError(f"the file has no {missing[0]}")
    for name, value in tensors.items():
        module = network.get_submodule(owner_of(name))
        key = name.rpartition(".")[2]
        if key not in module._parameters and key not in module._buffers:
            raise KeyError(f"the network has no {name}")
        before = own.get(name)
        if before is not None and before.dim() != value.dim():
            raise KeyError(f"{name} has {before.dim()} dims in the network and {value.dim()} in the file")
        value = value.clone() if before is None else value.to(before.device, before.dtype, copy=True)
        if key in module._parameters:
            module._parameters[key] = nn.Parameter(value, requires_grad=False)
        else:
            module._buffers[key] = value
        set_sizes(module)

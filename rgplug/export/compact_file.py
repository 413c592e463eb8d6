"""Compact files: the tensors of a compact network and how its layers differ from the host's, as safetensors.

Reading one runs no code of it: the host builds its own network, and what the file says of it is sizes and tensors.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from rgplug import expected, state
from rgplug.channels.trace import fold_norms
from rgplug.copying import copy_network
from rgplug.errors import RgplugError
from rgplug.export.compact import Compact
from rgplug.export.surgery import Carrying, carry, owner_of, set_size, set_sizes, sizes
from rgplug.metrics.isolation import preserved_buffers, preserved_rng
from rgplug.metrics.sampling import example_inputs, pick_images
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
                if expected.whole(-(2**62), 2**62)(value):
                    raise KeyError(f"{name} is {expected.short(value)}")
                set_size(smaller, name, value)
            _set_tensors(smaller, found["tensors"])
            _check_layers(smaller)
            _try_out(network, smaller)
        except (AttributeError, KeyError, IndexError, StopIteration, TypeError, ValueError, RuntimeError) as error:
            reason = state.first_line(error)
            raise RgplugError(
                f"{path} is of another {type(network).__name__} ({reason}); build the network that was exported"
            ) from error
    return smaller


def _check_layers(network: nn.Module) -> None:
    """Sizes within each layer belong together. Raises KeyError where they do not."""
    for name, module in walk(network):
        filters = getattr(module, "out_channels", getattr(module, "out_features", None))
        channels = getattr(module, "num_features", getattr(module, "num_channels", filters))
        for own in ("bias", "running_mean", "running_var"):
            tensor = getattr(module, own, None)
            length = len(tensor) if isinstance(tensor, Tensor) and tensor.dim() == 1 else channels
            if isinstance(channels, int) and length != channels:
                raise KeyError(f"{name}.{own} has {length} entries for {channels} channels")


def _try_out(network: nn.Module, smaller: nn.Module) -> None:
    """One image from the compact network, where the host's own can be run with inputs that are guessed (generators
    without classes): sizes of different layers belong together. Raises whatever comes of it where they do not."""
    try:
        arguments, images = example_inputs(network)
    except RgplugError:
        return
    with preserved_buffers(smaller), preserved_rng():
        made = pick_images(smaller(*arguments))
    if made.shape != images.shape:
        raise KeyError(f"it makes images of shape {list(made.shape)}, not {list(images.shape)}")


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
        if not isinstance(value, Tensor):
            raise KeyError(f"{name} is no tensor")
        before = own.get(name)
        if before is not None and any(a > b for a, b in zip(value.shape, before.shape)):
            raise KeyError(f"{name} has shape {list(value.shape)}, which is larger than {list(before.shape)}")
        if (before is None or before.is_floating_point()) != value.is_floating_point():
            raise KeyError(f"{name} is of {value.dtype}")
        if before is not None and before.dim() != value.dim():
            raise KeyError(f"{name} has {before.dim()} dims in the network and {value.dim()} in the file")
        value = value.clone() if before is None else value.to(before.device, before.dtype, copy=True)
        if key in module._parameters:
            module._parameters[key] = nn.Parameter(value, requires_grad=False)
        else:
            module._buffers[key] = value
        set_sizes(module)

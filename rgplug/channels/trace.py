"""`trace`: the channels of a network; `filter_channels`: which output filters are decided together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.utils import _pytree as pytree

from rgplug.channels.contractions import Read
from rgplug.channels.labels import Axis, Labels
from rgplug.channels.mode import LabelMode
from rgplug.copying import copy_network
from rgplug.errors import RgplugError
from rgplug.layout import FilterLayout
from rgplug.metrics.isolation import evaluation_mode, preserved_buffers, preserved_rng
from rgplug.select import walk
from rgplug.wrappers import unwrap

OUTPUT = "it is part of the network's output"
_NORMED = ("weight_orig", "weight_v", "parametrizations.weight.original", "parametrizations.weight.original1")


@dataclass
class Channels:
    """What `trace` found. A channel is named by the smallest of its labels, its root."""

    axes: list[Axis]
    roots: Tensor  # int64 [labels]
    reasons: dict[int, str]  # root -> why the channel has to stay
    reads: list[Read] = field(default_factory=list)

    def of(self, axis: Axis) -> Tensor:
        """int64 [size]: the channel of each entry of an axis."""
        return self.roots[axis.base : axis.base + axis.size]


@dataclass(frozen=True)
class Coupled:
    """A dim of a parameter whose entries belong to channels. role: "out" of a weight whose filters make them, "in" of
    one that reads them, "norm" of a batch norm's gains. of: int64 [size], the channel of each entry."""

    name: str  # as it is where spectral and weight norms are folded
    dim: int
    role: str
    of: Tensor


@dataclass(frozen=True)
class FilterChannels:
    """of: weight -> int64 [filters], the channel that each output filter makes; filters of one channel, in one weight
    or in several, are decided together. fixed: weight -> why its filters have to stay. coupled: all that belongs to
    channels, managed or not, in the network's order."""

    of: dict[str, Tensor]
    fixed: dict[str, str]
    coupled: tuple[Coupled, ...] = ()


def plain_copy(network: nn.Module, inputs: tuple[Any, ...]) -> nn.Module:
    """A copy in eval mode whose spectral and weight norms are folded into plain weights; outputs are the same up to
    rounding. inputs: what forward takes. Raises RgplugError where the network does not run on them or cannot be copied.
    """
    network = unwrap(network)
    name = type(network).__name__
    with evaluation_mode(network), preserved_buffers(network), preserved_rng(), torch.no_grad():
        try:
            network(*inputs)  # layers that keep a computed weight compute it anew, and are folded with that one
        except Exception as error:
            raise RgplugError(f"{name} does not run on the inputs it was to be traced with: {_line(error)}") from error
        try:
            copied = copy_network(network)
        except Exception as error:
            raise RgplugError(f"{name} cannot be copied, and so not traced: {_line(error)}") from error
        copied.eval().requires_grad_(False)
        for _, module in walk(copied):
            fold_norms(module)
    return copied


def fold_norms(module: nn.Module) -> bool:
    """Spectral and weight norm of one module's own weight become a plain Parameter; True if there was one."""
    if parametrize.is_parametrized(module):
        # not remove_parametrizations: it takes the property from the class, which the copy's original is of, too
        names = list(cast(nn.ModuleDict, module.parametrizations))
        values = {name: nn.Parameter(getattr(module, name).detach().clone(), requires_grad=False) for name in names}
        module.__class__ = type(module).__mro__[1]
        del module._modules["parametrizations"]
        module._parameters = {**values, **module._parameters}
        return True
    hooks = [type(h).__name__ for h in module._forward_pre_hooks.values()]
    if "SpectralNorm" in hooks:
        remove_spectral_norm(module)
    elif "WeightNorm" in hooks:
        remove_weight_norm(module)
    else:
        return False
    return True


def trace(network: nn.Module, inputs: tuple[Any, ...]) -> Channels:
    """The channels of a network, by running it once on `inputs` (a batch of two or more) in eval mode.

    Spectral and weight norms have to be folded (`plain_copy`). Raises RgplugError where the forward fails.
    """
    tensors = dict(named_once(network))
    labels = Labels(tensors)
    mode = LabelMode(labels, {id(t): n for n, t in tensors.items()})
    with evaluation_mode(network), preserved_buffers(network), preserved_rng(), torch.no_grad():
        try:
            with mode:
                out = network(*inputs)
        except Exception as error:
            raise RgplugError(f"{type(network).__name__} cannot be traced: {_line(error)}") from error
    for part in pytree.tree_leaves(out):
        for slot in mode.slots(part):
            labels.fix(slot, OUTPUT)
    return Channels(labels.axes, labels.roots(), labels.reasons(), mode.reads)


def named_once(network: nn.Module) -> Mapping[str, Tensor]:
    """Parameters and floating buffers by name; one that is shared has its first name."""
    seen: set[int] = set()
    found: dict[str, Tensor] = {}
    for prefix, module in walk(network):
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and tensor.is_floating_point() and id(tensor) not in seen:
                seen.add(id(tensor))
                found[f"{prefix}.{name}" if prefix else name] = tensor
    return found


def filter_channels(network: nn.Module, inputs: tuple[Any, ...], layouts: Mapping[str, FilterLayout]) -> FilterChannels:
    """Which output filters of the named weights make the same channel.

    inputs: what forward takes, a batch of two or more. Filters that make the network's output are fixed. Raises
    RgplugError where the network cannot be traced.
    """
    copied = plain_copy(network, inputs)
    channels = trace(copied, inputs)
    axes = {(a.name, a.dim): a for a in channels.axes}
    of: dict[str, Tensor] = {}
    fixed: dict[str, str] = {}
    for name, layout in layouts.items():
        axis = axes.get((plain_name(name), layout.dim))
        if axis is None:
            fixed[name] = (
                "its filters are the network's output" if layout.filters == 1 else "the forward does not use it"
            )
            continue
        roots = channels.of(axis)
        if any(channels.reasons.get(r) == OUTPUT for r in roots.tolist()):
            fixed[name] = "its filters are the network's output"
        else:
            of[name] = roots.repeat(layout.groups)
    return FilterChannels(of, fixed, _coupled(copied, channels))


def _coupled(network: nn.Module, channels: Channels) -> tuple[Coupled, ...]:
    """The dims of weights that make or read channels, and the gains of batch norms. Where filters or input channels
    are shared by the groups of a convolution, each entry stands for all of them."""
    tensors = named_once(network)
    norms = {
        f"{prefix}.weight".lstrip(".")
        for prefix, module in walk(network)
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    }
    order = {name: i for i, name in enumerate(tensors)}
    found = []
    for axis in sorted(channels.axes, key=lambda a: (order[a.name], a.dim)):
        role = "norm" if axis.name in norms else axis.role if tensors[axis.name].dim() > 1 else ""
        if role:
            found.append(Coupled(axis.name, axis.dim, role, channels.of(axis)))
    return tuple(found)


def plain_name(name: str) -> str:
    """What a weight under spectral or weight norm is called once the norm is folded."""
    for suffix in _NORMED:
        if name.endswith(suffix):
            return name.removesuffix(suffix) + "weight"
    return name


def _line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__

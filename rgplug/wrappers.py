"""The network inside a wrapper: one place that knows what training scripts put around a network."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from rgplug.errors import RgplugError

# classes whose inner network is `.module` (not any `.module`: a generator may call its own body so)
_BY_CLASS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
# sub-modules that only a wrapper has: torch.compile, Lightning Fabric, ema-pytorch
_BY_NAME = ("_orig_mod", "_original_module", "ema_model")
_PREFIXES = ("module", "_forward_module", *_BY_NAME)


def unwrap(network: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel, AveragedModel, torch.compile, Lightning Fabric's
    wrapper or ema-pytorch's EMA, however they are nested; a network without a wrapper is returned as it is."""
    inner = network.module if isinstance(network, _BY_CLASS) else None
    for name in _BY_NAME:
        inner = inner or network._modules.get(name) or vars(network).get(name)
    return unwrap(inner) if isinstance(inner, nn.Module) and inner is not network else network


def plain_name(name: str) -> str:
    """A parameter's name in the state dict of a wrapped network, as it is called inside: module.fc.weight -> fc.weight.

    Only for names that the network itself does not have: a layer of its own may be called `module`.
    """
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in _PREFIXES:
        parts = parts[1:]
    return ".".join(part for part in parts if part != "_orig_mod")


def plain_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a network under their names inside it, wrappers left out (mapping.fc0.weight, not
    mapping.module.fc0.weight). A tied tensor is there under each of its names. Nothing is copied."""

    def visit(module: nn.Module, prefix: str, above: tuple[int, ...]) -> Iterator[tuple[str, Tensor]]:
        module = unwrap(module)
        if id(module) in above:  # a part that holds the whole
            return
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and not nn.parameter.is_lazy(tensor):
                yield prefix + name, tensor
        for name, child in module._modules.items():
            if child is not None:
                yield from visit(child, f"{prefix}{name}.", (*above, id(module)))

    return dict(visit(network, "", ()))


def plain_state(state: Mapping[str, Any], names: Collection[str]) -> dict[str, Tensor]:
    """The tensors of a state dict under the names inside the network; what only a wrapper has (n_averaged) is left out.

    names: those of the network. A name that the network does not know stays as it is.
    """
    tensors = {n: v for n, v in state.items() if isinstance(v, Tensor) and not n.endswith("_extra_state")}
    if not any(name in names for name in tensors):  # else the network has a part that is called like a wrapper's
        for prefix in _PREFIXES:
            inside = {n.removeprefix(f"{prefix}."): v for n, v in tensors.items() if n.startswith(f"{prefix}.")}
            if inside:
                return plain_state(inside, names)
    return {_known(name, names): value for name, value in tensors.items()}


def _known(name: str, names: Collection[str]) -> str:
    bare = ".".join(part for part in name.split(".") if part not in _PREFIXES)
    return next((n for n in (name, plain_name(name), bare) if n in names), name)


def tensors_of(copied: Any, network: nn.Module) -> dict[str, Tensor]:
    """The tensors of a copy of `network` (a moving average), under their names inside it; not copied themselves.

    copied: a module, wrapped or not; a state dict, of a wrapper or not; or a list of tensors in the order of
    network.parameters(), or of those of them that require a gradient. Raises RgplugError for anything else.
    """
    if isinstance(copied, nn.Module):
        return plain_tensors(copied)
    own = plain_tensors(network)
    if isinstance(copied, Mapping):
        return plain_state(copied, own.keys())
    first_names: dict[int, str] = {}
    for name, tensor in own.items():
        if isinstance(tensor, nn.Parameter):
            first_names.setdefault(id(tensor), name)
    # the host's own order: that of named_parameters
    every = [(first_names[id(p)], p) for p in unwrap(network).parameters() if id(p) in first_names]
    if not isinstance(copied, Sequence) or isinstance(copied, str):
        raise RgplugError(f"ema is a {type(copied).__name__}; it has to be {_KINDS}")
    for wanted in (every, [(n, p) for n, p in every if p.requires_grad]):
        if len(wanted) == len(copied):
            return {name: value for (name, _), value in zip(wanted, copied)}
    raise RgplugError(f"ema: {len(copied)} tensors for {len(every)} parameters of the generator; it has to be {_KINDS}")


_KINDS = "a module, a state dict, or a list of tensors in the order of G.parameters()"

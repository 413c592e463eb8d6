"""The network inside a wrapper: one place that knows what training scripts put around a network."""

from __future__ import annotations

from torch import nn
from torch.optim.swa_utils import AveragedModel

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

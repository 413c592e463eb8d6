"""Bake: a plain copy of a network, zeros where it is pruned, no trace of rgplug."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rgplug.copies import hide_pruned
from rgplug.copying import copy_network
from rgplug.errors import RgplugError
from rgplug.metrics.isolation import aligned
from rgplug.wrappers import unwrap

if TYPE_CHECKING:
    from rgplug.network import Network


def bake(network: Any, net: Network) -> nn.Module:
    """A deep copy of `network` (the managed one, or a moving average of it) under the live mask, in eval mode.

    network: a module, or the state dict or list of tensors of an average, which a copy of the managed network takes.
    Wrappers (DDP, compile) are left out; classes, keys and pickles are the host's, and outputs are those of the masked
    network bit for bit. Raises RgplugError while the network trains dense, for another one as `network`, and for one
    that cannot be copied.
    """
    if net.method.prunes and not net.sparse:
        raise RgplugError(
            f"{net.label} trains dense at the moment (augmented regeneration) and has nothing pruned to export: "
            f'rg.detach(finish="sparse") prunes {net.label} as its sparse phases do, once training is over; or '
            f"export in a sparse phase; for the dense network take copy.deepcopy({net.label})"
        )
    module = network if isinstance(network, nn.Module) else net.module
    try:
        baked = copy_network(unwrap(module))
    except Exception as error:
        why = " ".join(str(error).split())
        raise RgplugError(
            f"{type(unwrap(module)).__name__} cannot be copied ({why}); take its state_dict() instead, which holds "
            "the zeros too: rgplug.export.save_sparse(path, state_dict)"
        ) from error
    if module is not network:
        with torch.no_grad():
            for tensor, value in aligned(baked, network):
                tensor.copy_(value)
    hide_pruned(baked, net)
    return baked.eval().requires_grad_(False)

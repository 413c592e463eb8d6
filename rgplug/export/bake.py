"""Bake: a plain copy of a network, zeros where it is pruned, no trace of rgplug."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from torch import nn

from rgplug.errors import RgplugError
from rgplug.evaluation import hide_pruned
from rgplug.select import named_tensors
from rgplug.wrappers import unwrap

if TYPE_CHECKING:
    from rgplug.network import Network


def bake(network: nn.Module, net: Network) -> nn.Module:
    """A deep copy of `network` (the managed one, or a moving average of it) under the live mask, in eval mode.

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
    try:
        baked = copy.deepcopy(unwrap(network))
    except Exception as error:
        raise RgplugError(
            f"{type(unwrap(network)).__name__} cannot be copied ({error}); run a forward under torch.no_grad() first: "
            "layers that keep a computed weight (spectral norm) can be copied then"
        ) from error
    hide_pruned(named_tensors(baked), net)
    return baked.eval().requires_grad_(False)

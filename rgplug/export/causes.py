"""Why a pruned network's outputs are not finite: which part that is wholly pruned is divided by its own norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rgplug.copying import copy_network
from rgplug.layout import FilterLayout
from rgplug.metrics.isolation import evaluation_mode, preserved_rng
from rgplug.policy import NetworkPolicy
from rgplug.select import select


@torch.no_grad()
def why_not_finite(network: nn.Module, inputs: tuple[Any, ...]) -> str:
    """Half a sentence for an error, found on a copy by filling what is empty; "" where the outputs stay as they are."""
    copied = copy_network(network).requires_grad_(False)
    weights = {c.name: (c.param, c.layout) for c in select(copied, NetworkPolicy(), "network") if c.layout is not None}
    empty = {n: (p, torch.ones_like(p, dtype=torch.bool)) for n, (p, _) in weights.items() if not p.any()}
    what = "a wholly pruned layer under spectral norm is divided by 0"
    if not empty:
        empty = {n: (p, found) for n, (p, lo) in weights.items() if (found := _empty_filters(p, lo)).any()}
        what = ""
    for p, where in empty.values():
        p.copy_(torch.where(where, torch.randn_like(p) * p.std().clamp(min=1e-3), p))
    if not empty or not _is_finite(copied, inputs):
        return ""
    names = [name for name, (p, where) in empty.items() if not _is_finite_without(copied, inputs, p, where)]
    if what:
        return f"{what}: {', '.join(names)}" if names else what
    return (
        f"an empty filter of {', '.join(names or empty)} is divided by its own norm; such filters keep their largest "
        "weight where rgplug could run the network at attach"
    )


def _empty_filters(weight: Tensor, layout: FilterLayout) -> Tensor:
    """bool, of the weight's shape: the filters whose entries are all 0."""
    found = torch.zeros_like(weight, dtype=torch.bool)
    for i in range(layout.filters):
        if not layout.filter(weight, i).any():
            layout.filter(found, i).fill_(True)
    return found


def _is_finite_without(network: nn.Module, inputs: tuple[Any, ...], weight: Tensor, where: Tensor) -> bool:
    filled = weight.clone()
    weight.masked_fill_(where, 0)
    finite = _is_finite(network, inputs)
    weight.copy_(filled)
    return finite


def _is_finite(network: nn.Module, inputs: tuple[Any, ...]) -> bool:
    with evaluation_mode(network), preserved_rng(0):
        leaves = pytree.tree_leaves(network(*inputs))
    return all(bool(x.isfinite().all()) for x in leaves if isinstance(x, Tensor))

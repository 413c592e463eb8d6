"""Deep copies of networks that were just run with gradients."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn


def copy_network(network: nn.Module) -> nn.Module:
    """`copy.deepcopy` of a network that also works while tensors in it belong to an autograd graph.

    `torch.nn.utils.weight_norm` and `spectral_norm` keep the weight that they compute as a plain attribute, and some
    networks keep activations; torch refuses to copy such a tensor. The copy gets a detached copy of it. Raises whatever
    `copy.deepcopy` raises for anything else that cannot be copied.
    """
    memo: dict[int, Any] = {id(t): t.detach().clone() for t in _tensors_with_graph(network, set())}
    return copy.deepcopy(network, memo)


def _tensors_with_graph(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Those among the attributes and buffers of modules, in lists, tuples, sets and dicts too."""
    if isinstance(value, Tensor):
        if not value.is_leaf:
            yield value
        return
    if isinstance(value, nn.Module):
        inside: Any = vars(value).values()
    elif isinstance(value, Mapping):
        inside = value.values()
    elif isinstance(value, (list, tuple, set)):
        inside = value
    else:
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    for item in inside:
        yield from _tensors_with_graph(item, seen)

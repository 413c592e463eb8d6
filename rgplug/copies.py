"""Copies of a managed network, moving averages above all, under its mask: for a time, or for good."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rgplug.errors import RgplugError
from rgplug.masking import MaskedWeight
from rgplug.methods.averages import average_, sparse_average_
from rgplug.modes import writable
from rgplug.wrappers import plain_tensors, tensors_of

if TYPE_CHECKING:
    from rgplug.network import Network

Hidden = dict[str, tuple[Tensor, Tensor]]  # weight -> (where it is pruned, what stood there in a copy)


def matched(copied: Any, net: Network) -> list[tuple[str, Tensor, MaskedWeight]]:
    """(name, tensor of the copy, managed weight) for every managed weight; a tied one whose copies are no longer tied
    is there once for each.

    copied: a module, a state dict or a list, see `tensors_of`. Raises RgplugError unless every managed weight is in it
    and has its shape: the tensors of another network, or names that match nothing.
    """
    tensors = tensors_of(copied, net.module)
    names = {id(w.param): [w.name] for w in net.weights}
    for name, tensor in plain_tensors(net.module).items():
        if id(tensor) in names and name not in names[id(tensor)]:
            names[id(tensor)].append(name)
    found = []
    for w in net.weights:
        present = {name: tensors[name].detach() for name in names[id(w.param)] if name in tensors}
        shape = next((list(t.shape) for t in present.values() if t.shape != w.param.shape), None)
        if not present or shape is not None:
            raise RgplugError(
                f"{w.name} of {net.label} has shape {list(w.param.shape)} and is "
                f"{'missing' if shape is None else f'of shape {shape}'} in the network that is to get its mask; give "
                f"a copy of {net.label}"
            )
        found += [(name, tensor, w) for name, tensor in {t.data_ptr(): (n, t) for n, t in present.items()}.values()]
    return found


@torch.no_grad()
def hide_pruned(copied: Any, net: Network) -> Hidden:
    """Exact zeros in a copy of a network (module, state dict, list) wherever the network is pruned; returns what stood
    there. While the network trains dense, nothing is looked at. RgplugError, with nothing changed, for another network.
    """
    hidden = _pruned_values(copied, net)
    _fill(copied, hidden, net)
    return hidden


def _pruned_values(copied: Any, net: Network) -> Hidden:
    hidden: Hidden = {}
    for name, tensor, w in matched(copied, net) if net.sparse else []:
        if tensor.data_ptr() != w.param.data_ptr():  # the network itself has its zeros, and trains on
            pruned = torch.logical_not(w.mask).to(tensor.device)
            hidden[name] = (pruned, tensor[pruned])
    return hidden


def _fill(copied: Any, hidden: Hidden, net: Network) -> None:
    tensors = tensors_of(copied, net.module) if hidden else {}
    for name, (pruned, _) in hidden.items():
        with writable(tensors[name]):
            tensors[name].detach().masked_fill_(pruned, 0)


@torch.no_grad()
def show_hidden(copied: Any, hidden: Hidden, net: Network) -> None:
    """Undo `hide_pruned`, bit for bit."""
    tensors = tensors_of(copied, net.module) if hidden else {}
    for name, (pruned, values) in hidden.items():
        if name in tensors:
            tensor = tensors[name].detach()
            with writable(tensor):
                tensor[pruned.to(tensor.device)] = values.to(tensor)


@contextmanager
def masked_for_now(copied: Any, net: Network) -> Iterator[Hidden]:
    """`hide_pruned`, undone at the end whatever has become of the network's mask; yields what is hidden."""
    with torch.no_grad():
        hidden = _pruned_values(copied, net)
    try:
        with torch.no_grad():
            _fill(copied, hidden, net)
        yield hidden
    finally:
        show_hidden(copied, hidden, net)


@torch.no_grad()
def masked_copy(copied: Any, net: Network) -> dict[str, Tensor]:
    """The tensors of a copy under their names inside the network; managed ones are new tensors with the mask on."""
    tensors = dict(tensors_of(copied, net.module))
    for name, tensor, w in matched(copied, net) if net.sparse else []:
        tensors[name] = tensor.masked_fill(torch.logical_not(w.mask).to(tensor.device), 0)
    return tensors


@torch.no_grad()
def update_average(average: Any, network: nn.Module, net: Network, beta: float) -> None:
    """One step of a moving average of `network`, sparse where it is managed; its buffers are averaged where `average`
    has them. RgplugError for another network."""
    copies, live = tensors_of(average, network), plain_tensors(network)
    managed = {w.name for w in net.weights}
    needed = {n: x for n, x in live.items() if n in copies or isinstance(average, nn.Module) or n in managed}
    wrong = next((n for n, x in needed.items() if n not in copies or copies[n].shape != x.shape), None)
    if wrong is not None:
        raise RgplugError(f"the average has no {wrong} of shape {list(live[wrong].shape)}; give a copy of {net.label}")
    masks = {name: w.mask for name, _, w in matched(average, net)} if net.sparse else {}
    done: set[int] = set()
    for name, value in needed.items():
        if copies[name].data_ptr() in done:  # tied: it has moved already
            continue
        done.add(copies[name].data_ptr())
        with writable(copies[name]):
            if name in masks:
                sparse_average_(copies[name], value.detach(), masks[name].to(copies[name].device), beta)
            else:
                average_(copies[name], value.detach(), beta)

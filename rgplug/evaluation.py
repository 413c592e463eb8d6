"""Measuring from inside a run: `end_epoch()` without a value, and `rg.evaluate()`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rgplug.errors import RgplugError
from rgplug.methods.averages import average_, sparse_average_
from rgplug.metrics import Evaluator, MetricValue, evaluate_generator
from rgplug.metrics.isolation import preserved_rng
from rgplug.modes import writable
from rgplug.policy import MetricPolicy
from rgplug.select import named_tensors

if TYPE_CHECKING:
    from rgplug.network import Network


class Evaluation:
    """The policy's metric; the evaluator and its real statistics are made at the first measurement."""

    def __init__(self, policy: MetricPolicy):
        self.policy = policy
        self._evaluator: Evaluator | None = None

    def measure(
        self, generator: nn.Module, net: Network, ema: Any = None, sample_fn: Callable[[int], Tensor] | None = None
    ) -> MetricValue:
        """The metric of G, or of its moving average under G's live mask; the run goes on as if nothing had happened."""
        p = self.policy
        if self._evaluator is None:
            device = next((w.param.device for w in net.weights), None)
            with preserved_rng():  # a feature network is initialized before its weights are loaded
                self._evaluator = Evaluator(
                    p.real, p.features, p.distance, p.samples, p.batch, device=device, seed=p.seed
                )
        if isinstance(ema, nn.Module):
            with masked_for_now(ema, net):
                return evaluate_generator(generator, self._evaluator, sample_fn, ema, p.z_dim)
        return evaluate_generator(generator, self._evaluator, sample_fn, masked_values(ema, generator, net), p.z_dim)


Hidden = dict[str, tuple[Tensor, Tensor]]  # weight -> (where it is pruned, what stood there in a copy)


@torch.no_grad()
def hide_pruned(copies: Mapping[str, Tensor], net: Network) -> Hidden:
    """Exact zeros in a copy's tensors (by parameter name) wherever the original is pruned; returns what stood there.

    Raises RgplugError for the tensors of another network.
    """
    weights = net.weights if net.sparse else []
    for w in weights:  # all of them first: nothing is changed in a network that does not fit
        copied = copies.get(w.name)
        if copied is None or copied.shape != w.param.shape:
            found = "missing" if copied is None else f"of shape {list(copied.shape)}"
            raise RgplugError(
                f"{w.name} of {net.label} has shape {list(w.param.shape)} and is {found} in the network that is "
                f"to get its mask; give a copy of {net.label}"
            )
    hidden: Hidden = {}
    for w in weights:
        copied = copies[w.name]
        pruned = ~w.mask.to(copied.device)
        hidden[w.name] = (pruned, copied[pruned])
        with writable(copied):
            copied.masked_fill_(pruned, 0)
    return hidden


@torch.no_grad()
def show_hidden(copies: Mapping[str, Tensor], hidden: Hidden) -> None:
    """Undo `hide_pruned`, bit for bit."""
    for name, (pruned, values) in hidden.items():
        if name in copies:
            copied = copies[name]
            with writable(copied):
                copied[pruned.to(copied.device)] = values.to(copied)


@contextmanager
def masked_for_now(network: nn.Module, net: Network) -> Iterator[None]:
    """`hide_pruned` on a copy of a network, undone at the end."""
    hidden = hide_pruned(named_tensors(network), net)
    try:
        yield
    finally:
        show_hidden(named_tensors(network), hidden)


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, net: Network, beta: float) -> None:
    """One step of a moving average of `network`, sparse where it is managed. RgplugError for another network."""
    masks = {w.name: w.mask for w in net.weights} if net.sparse else {}
    copies, live = named_tensors(average), named_tensors(network)
    wrong = next((n for n, x in live.items() if n not in copies or copies[n].shape != x.shape), None)
    if wrong is not None:
        raise RgplugError(f"the average has no {wrong} of shape {list(live[wrong].shape)}; give a copy of {net.label}")
    for name, value in live.items():
        with writable(copies[name]):
            if name in masks:
                sparse_average_(copies[name], value, masks[name].to(copies[name].device), beta)
            else:
                average_(copies[name], value, beta)


def masked_values(ema: Any, generator: nn.Module, net: Network) -> Any:
    """A state dict, or a list aligned with G.parameters(), with G's live mask applied to copies of its tensors."""
    if ema is None or not net.sparse:
        return ema
    by_param = {id(w.param): w for w in net.weights}
    if isinstance(ema, Mapping):
        names = {name: by_param.get(id(p)) for name, p in generator.named_parameters()}
        return {name: _masked(value, names.get(name)) for name, value in ema.items()}
    if isinstance(ema, Sequence) and len(ema) == len(list(generator.parameters())):
        return [_masked(value, by_param.get(id(p))) for value, p in zip(ema, generator.parameters())]
    raise RgplugError("ema has to be a module, a state dict, or a list of tensors in the order of G.parameters()")


def _masked(value: Tensor, weight: Any) -> Tensor:
    return value if weight is None else value.detach().masked_fill(~weight.mask.to(value.device), 0)

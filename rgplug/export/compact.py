"""Compact: channels that a pruned generator does not need are taken out, and it computes the same with less.

A channel goes when all filters that make it are zero, or when nothing reads it. What is left of it is the same for all
latents, made of biases and norms, and is handed on to the layers that read it. Which filters, gains and columns make up
a channel is found by running the network (`rgplug.channels`), what is left of it is looked up in the same run, and each
step is checked on the network's outputs: a channel that cannot go stays, with the reason.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rgplug.channels import plain_copy, trace
from rgplug.channels.trace import named_once
from rgplug.errors import RgplugError
from rgplug.export.arguments import refuse_attached
from rgplug.export.causes import why_not_finite
from rgplug.export.surgery import Cut, owner_of, set_size, sizes, without
from rgplug.export.unneeded import unneeded
from rgplug.metrics import default_sample_fn
from rgplug.metrics.isolation import evaluation_mode, preserved_buffers, preserved_rng
from rgplug.wrappers import unwrap

BATCH = 4  # latents that a network is traced and checked with
FRESH = 16  # others that it is checked with at the end
TRIES = 24  # of numbers that a host's forward may hold beside its layers
ROUNDS = 20  # a channel that goes can leave another one without readers


@dataclass
class Compact:
    """network: in eval mode, smaller, norms folded. difference: largest difference of an output from the given
    network's on the latents it was checked with, relative to the largest output."""

    network: nn.Module
    removed: int  # channels
    difference: float
    parameters: tuple[int, int]  # before and after
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]  # weights that became smaller
    kept: Counter[str] = field(default_factory=Counter)  # why channels without filters had to stay -> how many

    @property
    def report(self) -> str:
        """What was removed, and what could not be and why."""
        before, after = self.parameters
        share = after / max(before, 1)
        head = f"{self.removed:,} channels removed, {after:,} of {before:,} parameters left ({share:.3f})"
        lines = [f"{head}, outputs equal within {self.difference:.0e}"]
        if not self.removed and not self.kept:
            lines.append("no channel has all its filters pruned: it is no smaller and no faster than the dense network")
        lines += [f"  {name}: {_times(a)} -> {_times(b)}" for name, (a, b) in self.shapes.items()]
        lines += [f"  {n} pruned channels could not be removed: {why}" for why, n in self.kept.most_common()]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.report


def compact(network: nn.Module, inputs: tuple[Any, ...] | None = None, tolerance: float = 1e-4) -> Compact:
    """A smaller network with the same outputs, from a baked one (`rg.export()`), which stays as it is.

    inputs: what forward takes, a batch of four or more; guessed for unconditional generators, whose outputs are then
    compared on further latents, too. tolerance: relative to the largest output. Raises RgplugError for a network that
    is attached, cannot be traced, or whose inputs cannot be guessed.
    """
    network = unwrap(network)
    refuse_attached(network)
    sampler = None
    if inputs is None:
        sampler = default_sample_fn(network)
        inputs = sampler.arguments(BATCH)
    plain = plain_copy(network, inputs)
    check = _Check(network, inputs, tolerance)
    apart = check.difference(plain)
    if not apart <= tolerance:
        why = (
            f"its outputs differ by {apart:.0e} of the largest when it is run again on the same latents and random seed"
            if apart == apart
            else "its outputs are not finite" + (f" ({cause})" if (cause := why_not_finite(network, inputs)) else "")
        )
        raise RgplugError(f"{type(network).__name__} cannot be compacted: {why}")
    found, removed, kept = plain, 0, Counter[str]()
    for _ in range(ROUNDS):
        cuts, kept = unneeded(found, trace(found, inputs))
        smaller, done, refused = _apply(found, cuts, check)
        kept += refused
        if not done:
            break
        found, removed = smaller, removed + done
    if sampler is not None and removed:
        fresh = _Check(network, sampler.arguments(FRESH), tolerance).difference(found)
        if not fresh <= tolerance:
            raise RgplugError(
                f"{type(network).__name__} cannot be compacted from {BATCH} latents: on {FRESH} others its outputs "
                f"differ by {fresh:.0e} of the largest; give more, inputs=(z,), so that what is rarely read is seen"
            )
    after = dict(named_once(found))
    shapes = {
        name: (tuple(t.shape), tuple(after[name].shape))
        for name, t in named_once(plain).items()
        if t.dim() > 1 and after[name].shape != t.shape
    }
    return Compact(found.eval(), removed, check.difference(found), (_numbers(plain), _numbers(found)), shapes, kept)


class _Check:
    """Outputs of the given network, to hold others against; noise that it draws is the same each time."""

    def __init__(self, network: nn.Module, inputs: tuple[Any, ...], tolerance: float):
        self.inputs, self.tolerance = inputs, tolerance
        self.expected = self._outputs(network)

    def _outputs(self, network: nn.Module) -> list[Tensor]:
        with evaluation_mode(network), preserved_buffers(network), preserved_rng(0), torch.no_grad():
            return [x for x in pytree.tree_leaves(network(*self.inputs)) if isinstance(x, Tensor)]

    def difference(self, network: nn.Module) -> float:
        """Raises whatever the forward raises; infinite where shapes differ."""
        outputs = self._outputs(network)
        if [x.shape for x in outputs] != [x.shape for x in self.expected]:
            return float("inf")
        pairs = [(a, b) for a, b in zip(outputs, self.expected) if b.numel()]
        largest = max((float(b.abs().max()) for _, b in pairs), default=0.0)
        return max((float((a - b).abs().max()) for a, b in pairs), default=0.0) / (largest or 1.0)

    def holds(self, network: nn.Module) -> bool:
        try:
            return self.difference(network) <= self.tolerance
        except Exception:  # a forward that counts on its sizes can fail in any way
            return False


def _apply(network: nn.Module, cuts: Sequence[Cut], check: _Check) -> tuple[nn.Module, int, Counter[str]]:
    """The network without all cuts that leave its outputs as they are; channels removed; what was refused and why."""
    refused: Counter[str] = Counter()
    worth = []
    for cut in cuts:
        if _numbers(without(network, [cut])) < _numbers(network):
            worth.append(cut)
        else:
            refused["what is left of them takes more room than they do"] += cut.size
    together = Cut()
    for cut in worth:
        together.add(cut)
    if worth and (smaller := _reduced(network, together, check)) is not None:
        return smaller, sum(cut.size for cut in worth), refused
    done = 0
    for cut in worth:
        smaller = _reduced(network, cut, check)
        if smaller is None:
            where = min(name for name, _ in cut.drop)
            refused[f"the forward of {type(network).__name__} fails or differs without them ({where})"] += cut.size
        else:
            network, done = smaller, done + cut.size
    return network, done, refused


def _reduced(network: nn.Module, cut: Cut, check: _Check) -> nn.Module | None:
    return next((smaller for smaller in _variants(network, cut) if check.holds(smaller)), None)


def _variants(network: nn.Module, cut: Cut) -> Iterator[nn.Module]:
    """The network without a cut: as it is, then with some of the host's own numbers changed that equal a size which
    became smaller (the width in a view, the channels in an assertion): one, all of one name, or two."""
    yield without(network, [cut])
    tensors = dict(named_once(network))
    change = {(tensors[name].shape[dim], len(set(gone))) for (name, dim), gone in cut.drop.items()}
    around = {""} | {p for name, _ in cut.drop for p in itertools.accumulate(name.split("."), "{}.{}".format)}
    found = sizes(network).items()
    own = [(n, v - less) for n, v in found for old, less in sorted(change) if v == old and owner_of(n) in around]
    named: dict[tuple[str, int], list[tuple[str, int]]] = {}
    for name, value in own:
        named.setdefault((name.rpartition(".")[2], value), []).append((name, value))
    alike = [numbers for numbers in named.values() if len(numbers) > 1]
    for numbers in [*((n,) for n in own), *alike, *itertools.combinations(own, 2)][:TRIES]:
        smaller = without(network, [cut])
        for name, value in numbers:
            set_size(smaller, name, value)
        yield smaller


def _numbers(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))

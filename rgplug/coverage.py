"""How much of a network is managed: densities say nothing of the rest."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from rgplug.select import Candidate
from rgplug.warn import warn
from rgplug.wrappers import unwrap

log = logging.getLogger("rgplug")
SMALL = 0.5  # below this share a density describes the smaller part of the network, and is easily taken for the whole


@dataclass(frozen=True)
class Coverage:
    """Numbers in a network's parameters: all of them, those managed, and those that the policy's patterns leave out."""

    total: int
    managed: int
    left_out: int

    @property
    def share(self) -> float:
        """Of all parameters, that are managed."""
        return self.managed / self.total if self.total else 0.0

    @property
    def is_small(self) -> bool:
        """Whether less is managed than a user would expect who did not ask for that."""
        return self.total > 0 and self.managed + self.left_out < SMALL * self.total

    def __str__(self) -> str:
        return f"{self.share:.1%} of {self.total:,} parameters managed"


Aside = Mapping[str, Collection[str]]  # network -> weights that do not train, and are not managed for that


def coverage(network: nn.Module, candidates: Sequence[Candidate], aside: Collection[str] = ()) -> Coverage:
    """A parameter that several modules share counts once; lazy ones, whose size is not known, not at all.

    aside: names of candidates that do not train; they count as left out.
    """
    sizes = {id(p): p.numel() for p in unwrap(network).parameters() if not nn.parameter.is_lazy(p)}
    managed = {id(c.param) for c in candidates if not c.reason and c.name not in aside}
    left_out = {id(c.param) for c in candidates if c.by_policy or c.name in aside} - managed
    total, *parts = (sum(sizes[i] for i in ids if i in sizes) for ids in (sizes.keys(), managed, left_out))
    return Coverage(total, *parts)


def summary(
    networks: Mapping[str, nn.Module], candidates: Mapping[str, Sequence[Candidate]], aside: Aside | None = None
) -> str:
    """One line: the share of each network."""
    rest = aside or {}
    return ", ".join(
        f"{label} {coverage(networks[label], found, rest.get(label, ()))}" for label, found in candidates.items()
    )


def announce(
    networks: Mapping[str, nn.Module],
    candidates: Mapping[str, Sequence[Candidate]],
    pruned: Collection[str],
    aside: Aside | None = None,
) -> None:
    """The one line at attach, to the logger `rgplug`; a warning for networks that are `pruned` in a small part."""
    log.info("%s", summary(networks, candidates, aside))
    for label in pruned:
        covered = coverage(networks[label], candidates[label], (aside or {}).get(label, ()))
        if covered.is_small:
            warn(
                f"only {covered.share:.1%} of the {covered.total:,} parameters of {label} are managed, and the "
                f"densities are of these alone{_largest(label, candidates[label])}"
            )


def _largest(label: str, candidates: Sequence[Candidate]) -> str:
    """The largest parameters that are left alone, with reasons, and how to have the first one managed."""
    skipped = [c for c in candidates if c.reason and not c.by_policy and not nn.parameter.is_lazy(c.param)]
    skipped.sort(key=lambda c: -c.param.numel())
    if not skipped:
        return ""
    shown = ", ".join(f"{c.name} {_shape(c.param)} ({c.reason})" for c in skipped[:3])
    first = next((c for c in skipped if isinstance(c.param, nn.Parameter)), None)
    if first is None:
        return f"; left alone: {shown}"
    return f"; left alone: {shown}; networks: {{{label}: {{include: ['*', '{first.name}']}}}} manages the first one"


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape))

"""Scores of torch-pruning's criteria for the channels that rgplug has found.

torch-pruning's importances take a group: layers, each with the indices of its filters, input channels or gains that
belong together. Such a group is made here of each block of tied filters (rgplug.units) and of what else belongs to its
channels (rgplug.coupling), with stand-ins of torch.nn's layers around the parameters. So layers that
torch-pruning's own graph does not know are scored too: those under spectral norm, those of the host's own classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rgplug.channels import Coupled
from rgplug.criteria import Criterion, check_installed
from rgplug.errors import RgplugError
from rgplug.metrics.isolation import preserved_rng
from rgplug.units import Filters, Units


@dataclass(frozen=True)
class Values:
    """A parameter as a criterion sees it. weight: as it is stored, before spectral norm divides it. grad: None where
    there is none."""

    weight: Tensor
    grad: Tensor | None = None


@torch.no_grad()
def filter_scores(
    criterion: Criterion,
    units: Units,
    values: Mapping[str, Values],  # by the names of units.coupling; parameters that are missing do not count
    network: str,  # "G" or "D"; for the random numbers, and for messages
    seed: int = 0,
) -> list[Tensor | None]:
    """[units] scores of each block of tied filters, as the criterion's class gives them with its default settings: the
    larger, the more important. None for a block that the criterion cannot score (batch norms' gains, where there are
    none). A criterion that needs gradients leaves parameters without one out of the scores, as if they were no part of
    the group.

    RandomImportance draws the same numbers for the same seed, network and weights; the global random state stays. Reads
    the device. Raises RgplugError without torch-pruning, for a gradient that is not finite, and where no block at all
    can be scored.
    """
    check_installed(criterion)
    if criterion.needs == "gradients":
        values = {name: v for name, v in values.items() if v.grad is not None}
    _check_values(criterion, values, network)
    found = []
    for block in units.blocks:
        assert isinstance(block, Filters)
        digest = hashlib.sha256(f"{seed} {network}.{block.names[0]}".encode()).digest()
        with preserved_rng(int.from_bytes(digest[:6], "big")):
            found.append(_block_scores(criterion, units, block, values))
    if all(scores is None for scores in found):
        lacks = "has no batch norm of torch.nn behind a filter" if criterion.by_norms else "has no weight it can score"
        raise RgplugError(
            f"the criterion {criterion} scores no filter of {network}, which {lacks}; take another one, or leave "
            f"{network} dense (masks: {{density: {{{network}: 1.0}}}})"
        )
    return found


def ranked(scores: Sequence[Tensor | None], units: Units, device: torch.device) -> list[Tensor]:
    """Scores of every block to rank units by: infinite for a block without, which is so kept before all others."""
    every = [torch.full(b.shape, torch.inf, device=device) if s is None else s for s, b in zip(scores, units.blocks)]
    return [s.to(device) for s in every]


def _check_values(criterion: Criterion, values: Mapping[str, Values], network: str) -> None:
    """Raise RgplugError where there are no gradients to look at, or numbers that are not finite."""
    if not values:
        raise RgplugError(
            f"the criterion {criterion} needs gradients, and no weight of {network} has one; take a criterion of "
            "weights (torch-pruning:MagnitudeImportance, masks: {criterion: magnitude})"
        )
    for name, v in values.items():
        if not bool(v.weight.isfinite().all()):
            raise RgplugError(
                f"the criterion {criterion} got a weight {network}.{name} that is not finite; load another"
            )
        if criterion.needs == "gradients" and v.grad is not None and not bool(v.grad.isfinite().all()):
            raise RgplugError(
                f"the criterion {criterion} got a gradient of {network}.{name} that is not finite; begin with a "
                "smaller loss scale (GradScaler(init_scale=...)), or take a criterion of weights"
            )


def _block_scores(criterion: Criterion, units: Units, block: Filters, values: Mapping[str, Values]) -> Tensor | None:
    """torch-pruning's scores of one block."""
    from torch_pruning.pruner import importance

    score = getattr(importance, criterion.name)()
    parts = _parts(units, block, values, criterion.by_norms)
    if not parts:
        return None
    size = block.shape[0]
    # the result has as many entries as the first part has indices
    parts.sort(key=lambda part: not (part.role != "norm" and part.whole(size)))
    if not parts[0].whole(size):
        parts.insert(0, _blank(parts[0].values, size, criterion.by_norms))
    # a factor is of no account, since scores are divided by their mean; squares may overflow, or vanish, without it
    grads = [part.values.grad for part in parts if part.values.grad is not None]
    largest = max((float(grad.abs().max()) for grad in grads), default=0.0) if criterion.squared else 0.0
    factor = 1 / largest if largest > 0 else 1.0
    layers = {part.name: _stand_in(part, factor) for part in parts}
    if criterion.squared:
        score.accumulate_grad(nn.ModuleList(layers.values()))
    found: Tensor | None = score(_group(parts, layers))
    if found is None:
        return None
    # scores that are all 0 are divided by their mean, 0
    return found.detach().nan_to_num(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class _Part:
    """Entries of one dim of a parameter, and the unit that each belongs to."""

    name: str
    role: str  # of rgplug.channels.Coupled
    values: Values
    dim: int
    entries: list[int]
    of: list[int]

    def whole(self, units: int) -> bool:
        """Whether there is one entry for each unit."""
        return len(self.of) == units == len(set(self.of))


def _parts(units: Units, block: Filters, values: Mapping[str, Values], by_norms: bool) -> list[_Part]:
    """All of the network that belongs to the channels of a block, as far as the criterion looks at it."""
    assert units.coupling is not None
    channels = units.channels_of(block).cpu()
    found = []
    for axis in units.coupling.axes:
        entries = torch.isin(axis.of, channels).nonzero().flatten()
        if not len(entries) or axis.name not in values or (by_norms and axis.role != "norm"):
            continue
        own = torch.searchsorted(channels, axis.of[entries])
        found.append(_Part(axis.name, axis.role, *_plain(axis, values[axis.name]), entries.tolist(), own.tolist()))
    return found


def _plain(axis: Coupled, values: Values) -> tuple[Values, int]:
    """The parameter and the dim, of a modulated weight [1, out, in, k, k] without its first one."""
    if axis.role == "norm" or axis.dim < 2:
        return values, axis.dim
    return Values(values.weight[0], None if values.grad is None else values.grad[0]), axis.dim - 1


def _blank(like: Values, size: int, norm: bool) -> _Part:
    """A layer of zeros with one entry for each unit: it adds 0 to every score, and gives the result its length."""
    shape = (size,) if norm else (size, 1)
    zeros = like.weight.new_zeros(shape)
    units = list(range(size))
    return _Part("", "norm" if norm else "out", Values(zeros, None if like.grad is None else zeros), 0, units, units)


def _stand_in(part: _Part, factor: float) -> nn.Module:
    """A layer of torch.nn, as torch-pruning knows it, around a parameter and its gradient times `factor`, in at least
    float32."""
    transposed = part.dim == (1 if part.role == "out" else 0)
    layer: nn.Module
    if part.role == "norm":
        layer = nn.BatchNorm1d(1, device="meta")
    elif part.values.weight.dim() == 2 and not transposed:
        layer = nn.Linear(1, 1, bias=False, device="meta")
    else:
        layer = (nn.ConvTranspose2d if transposed else nn.Conv2d)(1, 1, 1, bias=False, device="meta")
    dtype = torch.promote_types(part.values.weight.dtype, torch.float32)
    weight = nn.Parameter(part.values.weight.detach().to(dtype), requires_grad=False)
    # never the training script's own tensor: HessianImportance puts squares in the place of gradients
    weight.grad = None if part.values.grad is None else part.values.grad.detach().to(dtype) * factor
    layer.weight = weight
    layer.bias = None
    return layer


def _group(parts: Sequence[_Part], layers: Mapping[str, nn.Module]) -> Any:
    """torch-pruning's group of these parts."""
    from torch_pruning import _helpers
    from torch_pruning.dependency import Dependency, Group, Node
    from torch_pruning.pruner import function

    group = Group()
    for part in parts:
        layer = layers[part.name]
        kind = "linear" if isinstance(layer, nn.Linear) else "conv"
        name = "prune_batchnorm_out_channels" if part.role == "norm" else f"prune_{kind}_{part.role}_channels"
        prune, node = getattr(function, name), Node(layer, None, part.name)
        item = _helpers.GroupItem(Dependency(prune, prune, node, node), part.entries)
        item.root_idxs = part.of
        group.items.append(item)
    return group

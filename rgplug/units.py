"""Units: what is kept or pruned as a whole (policy.granularity), and the scores that methods rank them by.

A *unit* is one entry of a weight (`weight`), one kernel of an output filter and an input channel (`kernel`), or the
filters that make one channel (`filter`): one of a weight, or several of several weights that a residual sum, a norm or
a gate ties together. A unit's score is the mean of |theta| (or of |gradient|) over it. `2:4` keeps two of every four
entries along the input channels and has no units of its own size.

A *block* is the weights whose units are ranked together: one weight, or those that ties connect. Methods see blocks:
weight-shaped tensors go in (`scores`, `kept`), decisions on units come out as masks (`masks`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rgplug.coupling import Coupling
from rgplug.layout import FilterLayout
from rgplug.masking import MaskedWeight
from rgplug.policy import Granularity

Values = Mapping[str, Tensor]  # weight name -> tensor of the weight's shape


@dataclass(frozen=True)
class Geometry:
    """Where output filters and input channels of a weight are. inputs: None for vectors, and where it is not known.

    norm_dims: what weight norm takes its norms over, None without it.
    """

    layout: FilterLayout
    inputs: int | None = None
    norm_dims: tuple[int, ...] | None = None


def filter_sums(layout: FilterLayout, x: Tensor) -> Tensor:
    """Sum of `x` (weight-shaped, also of one dim) over each output filter: [filters], in at least float32."""
    return layout.sum(x)


def spread(layout: FilterLayout, per_filter: Tensor) -> Tensor:
    """`per_filter` [filters] at every entry of its filter: of the weight's shape."""
    if layout.groups == 1:
        return layout.expand(per_filter).expand(layout.shape).contiguous()
    grouped = (layout.groups, layout.shape[0] // layout.groups, *layout.shape[1:])
    return layout.expand(per_filter).expand(grouped).reshape(layout.shape)


class Entries:
    """granularity: weight. Every entry of one weight by itself."""

    def __init__(self, name: str, geometry: Geometry):
        self.names, self.shape, self.norm_dims = (name,), geometry.layout.shape, geometry.norm_dims
        self.numel = math.prod(self.shape)

    def scores(self, values: Values) -> Tensor:
        """Unit scores from non-negative tensors of the weights' shapes; of the block's `shape`."""
        return values[self.names[0]]

    def sizes(self, device: torch.device) -> Tensor:
        """int64, of the block's `shape`: entries of each unit."""
        return torch.ones((), dtype=torch.int64, device=device).expand(self.shape)

    def kept(self, masks: Values) -> Tensor:
        """bool, of the block's `shape`: the units that the weights' masks keep."""
        return masks[self.names[0]]

    def masks(self, kept: Tensor) -> dict[str, Tensor]:
        """The reverse of `kept`."""
        return {self.names[0]: kept}


class Kernels:
    """granularity: kernel. Units are what an output filter and an input channel share, as [out, in, 1, 1].

    One entry each in a linear layer and in a vector. `grid` is the layout of the weight with one entry a kernel.
    """

    def __init__(self, name: str, geometry: Geometry):
        layout = geometry.layout
        self.names, self.norm_dims = (name,), geometry.norm_dims
        self._full = layout.shape
        self._inside = [d for d in range(len(layout.shape)) if d not in (layout.dim, geometry.inputs)]
        self.shape = tuple(1 if d in self._inside else n for d, n in enumerate(layout.shape))
        self.numel, self.size = math.prod(layout.shape), math.prod(layout.shape) // math.prod(self.shape)
        self.grid = replace(layout, shape=self.shape)

    def scores(self, values: Values) -> Tensor:
        x = values[self.names[0]]
        return x.mean(self._inside, keepdim=True, dtype=_wide(x)) if self._inside else x.to(_wide(x))

    def sums(self, x: Tensor) -> Tensor:
        """Sum of `x` (weight-shaped) over each kernel, in at least float32."""
        return x.sum(self._inside, keepdim=True, dtype=_wide(x)) if self._inside else x.to(_wide(x))

    def sizes(self, device: torch.device) -> Tensor:
        return torch.full((), self.size, device=device).expand(self.shape)

    def kept(self, masks: Values) -> Tensor:
        mask = masks[self.names[0]]
        for d in self._inside:
            mask = mask.narrow(d, 0, 1)
        return mask

    def masks(self, kept: Tensor) -> dict[str, Tensor]:
        return {self.names[0]: kept.expand(self._full).contiguous()}

    def layers(self, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        """For each weight of the block: its units, counted over the flattened scores, and the entries that each has."""
        return [(torch.arange(math.prod(self.shape), device=device), self.sizes(device).reshape(-1))]


class Filters:
    """granularity: filter. Units are channels: all filters, of the block's weights, that make one.

    of: weight -> int64 [filters], the unit of each filter, counted from 0. votes: weight -> 1.0 for the filters that a
    unit's score is the mean of, 0.0 for biases, gains and the like, which go with it without a say: they are of another
    size than weights. Only where a unit has nothing else do they count. voters: [units], filters that do.
    """

    def __init__(self, layouts: Mapping[str, FilterLayout], of: Mapping[str, Tensor]):
        self.names, self.layouts = tuple(layouts), dict(layouts)
        counts = [layout.filters for layout in layouts.values()]
        _, unit = torch.unique(torch.cat([of[name] for name in self.names]), return_inverse=True)
        self.of = dict(zip(self.names, unit.split(counts)))
        self.entries = {n: math.prod(lo.shape) // lo.filters for n, lo in layouts.items()}  # of one filter
        members = torch.bincount(unit)
        self.shape = (len(members),)
        self.numel = sum(math.prod(layout.shape) for layout in layouts.values())
        # the members of each unit as a table into the filters of all weights, filled up with one that is always 0:
        # sums over it come out the same on every rank, which atomic additions on a GPU would not
        order = unit.argsort(stable=True)
        first = members.cumsum(0) - members
        place = torch.arange(len(unit), device=unit.device) - first[unit[order]]
        self._table = unit.new_full((len(members), int(members.max())), len(unit))
        self._table[unit[order], place] = order
        self.voters = members
        weights = {n: torch.full((lo.filters,), float(len(lo.shape) > 1)) for n, lo in layouts.items()}
        silent = self.combined(weights) == 0
        self.votes = {name: torch.maximum(own, silent[self.of[name]].float()) for name, own in weights.items()}
        self.voters = self.combined(self.votes)
        self._sizes = self.combined({n: torch.full((c,), self.entries[n]) for n, c in zip(self.names, counts)})
        self._present = {name: own.unique(return_counts=True) for name, own in self.of.items()}

    def combined(self, parts: Values) -> Tensor:
        """[units]: sum over the member filters of `parts`, weight -> [filters]; weights that are missing count as 0."""
        some = next(iter(parts.values()))
        self._follow(some.device)
        filled = [
            parts[name].to(some.device) if name in parts else some.new_zeros(layout.filters)
            for name, layout in self.layouts.items()
        ]
        return torch.cat([*filled, some.new_zeros(1)])[self._table].sum(1)

    def means(self, name: str, x: Tensor) -> Tensor:
        """[filters]: mean of `x`, of the weight's shape, over each filter."""
        return filter_sums(self.layouts[name], x) / self.entries[name]

    def scores(self, values: Values) -> Tensor:
        """The mean over a unit's voting filters of each one's mean; weights that are missing count as 0."""
        return self.polled({name: self.means(name, x) for name, x in values.items()})

    def polled(self, parts: Values) -> Tensor:
        """[units]: mean over the voting filters of `parts`, weight -> [filters]; those that are missing count as 0."""
        self._follow(next(iter(parts.values())).device)
        return self.combined({name: x * self.votes[name].to(x) for name, x in parts.items()}).div_(self.voters)

    def sizes(self, device: torch.device) -> Tensor:
        self._follow(device)
        return self._sizes

    def kept(self, masks: Values) -> Tensor:
        full = {name: filter_sums(self.layouts[name], masks[name]) for name in self.names}
        return self.combined(full) > 0

    def masks(self, kept: Tensor) -> dict[str, Tensor]:
        self._follow(kept.device)
        return {name: spread(layout, kept[self.of[name]]) for name, layout in self.layouts.items()}

    def layers(self, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        self._follow(device)
        found = []
        for name in self.names:
            own, counts = self._present[name]
            found.append((own, counts * self.entries[name]))
        return found

    def _follow(self, device: torch.device) -> None:
        if self.voters.device != device:
            self.of = {name: unit.to(device) for name, unit in self.of.items()}
            self.votes = {name: own.to(device) for name, own in self.votes.items()}
            self.voters, self._table = self.voters.to(device), self._table.to(device)
            self._sizes = self._sizes.to(device)
            self._present = {n: (own.to(device), counts.to(device)) for n, (own, counts) in self._present.items()}


class Fours:
    """granularity: 2:4. Scores and decisions are [..., 4]: four consecutive input channels in the last dim."""

    def __init__(self, name: str, geometry: Geometry):
        assert geometry.inputs is not None
        self.names, self._dim = (name,), geometry.inputs
        shape = geometry.layout.shape
        self.numel = math.prod(shape)
        self.shape = (*shape[: self._dim], shape[self._dim] // 4, *shape[self._dim + 1 :], 4)

    def scores(self, values: Values) -> Tensor:
        return values[self.names[0]].unflatten(self._dim, (-1, 4)).movedim(self._dim + 1, -1)

    def sizes(self, device: torch.device) -> Tensor:
        return torch.ones((), dtype=torch.int64, device=device).expand(self.shape)

    def kept(self, masks: Values) -> Tensor:
        return self.scores(masks)

    def masks(self, kept: Tensor) -> dict[str, Tensor]:
        return {self.names[0]: kept.movedim(-1, self._dim + 1).flatten(self._dim, self._dim + 1).contiguous()}


Block = Entries | Kernels | Filters | Fours


def spared(block: Block, kept: Tensor, scores: Tensor, zeros_count: bool = True) -> Tensor:
    """Weight norm divides each filter by its own norm: one that would be empty keeps its best kernel or weight.

    kept (bool), scores: of the block's shape. zeros_count: False where a filter that keeps nothing but scores of 0 is
    empty too, as one is that has only just grown. Whole filters know no weight norm, and two of four leave none empty.
    """
    if not isinstance(block, (Kernels, Entries)) or block.norm_dims is None:
        return kept
    counted = kept if zeros_count else kept & (scores > 0)
    empty = ~counted.amax(block.norm_dims, keepdim=True)
    return kept | (empty & (scores >= scores.amax(block.norm_dims, keepdim=True)))


class Units:
    """The units of one network's managed weights, block by block, in the network's order."""

    def __init__(
        self,
        granularity: Granularity,
        parts: Mapping[str, Geometry],
        of: Mapping[str, Tensor] | None = None,
        coupling: Coupling | None = None,
        stay: frozenset[str] = frozenset(),
    ):
        """of: for `filter`, weight -> int64 [filters], the channel that each filter makes; equal ones are tied.
        coupling: what else of the network belongs to these channels; None where nobody has looked. stay: weights that
        keep all of their filters, and are here for their input columns."""
        self.granularity, self.parts = granularity, dict(parts)
        self._channels, self.coupling, self.stay = dict(of or {}), coupling, stay
        self.known = frozenset(parts)  # weights that may be managed, those that are left out at present too
        self.blocks: list[Block] = []
        if granularity == "filter":
            for names in connected({name: self._channels[name] for name in parts}):
                self.blocks.append(Filters({n: parts[n].layout for n in names}, self._channels))
        else:
            made: dict[str, type[Entries | Kernels | Fours]] = {"weight": Entries, "kernel": Kernels, "2:4": Fours}
            self.blocks = [made[granularity](name, geometry) for name, geometry in parts.items()]
        self._block = {name: block for block in self.blocks for name in block.names}
        self._weights: dict[str, MaskedWeight] = {}

    @property
    def coarse(self) -> bool:
        """Whether units are larger than an entry, of different sizes perhaps."""
        return self.granularity in ("kernel", "filter")

    def only(self, names: Sequence[str]) -> Units:
        """The same units for some of the weights."""
        parts = {name: self.parts[name] for name in names}
        of = {name: of for name, of in self._channels.items() if name in parts}
        found = Units(self.granularity, parts, of, self.coupling, self.stay)
        found._weights, found.known = self._weights, self.known
        return found

    def restrict(self, names: Sequence[str]) -> None:
        """Only these weights are managed from here on; `only` can still give units of the others."""
        found = self.only(names)
        self.blocks, self._block = found.blocks, found._block

    def bind(self, weights: Sequence[MaskedWeight]) -> None:
        """The weights that the names stand for."""
        self._weights = {w.name: w for w in weights}

    def block_of(self, weight: MaskedWeight) -> Block:
        return self._block[weight.name]

    def weights_of(self, block: Block) -> list[MaskedWeight]:
        return [self._weights[name] for name in block.names]

    def blocks_of(self, weights: Sequence[MaskedWeight]) -> list[Block]:
        """The blocks that these weights belong to, each once."""
        return list({id(b): b for b in map(self.block_of, weights)}.values())

    def tied(self, weights: Sequence[MaskedWeight]) -> list[MaskedWeight]:
        """Other weights of the same blocks, whose masks are decided with theirs."""
        if self.granularity != "filter":
            return []
        here = {w.name for w in weights}
        return [w for b in self.blocks_of(weights) for w in self.weights_of(b) if w.name not in here]

    def arrived(self, weights: Sequence[MaskedWeight]) -> Iterator[tuple[Block, int]]:
        """(block, iteration) of the blocks for which the step of `weights` is an iteration of their own.

        Weights that are tied may be stepped by several optimizers: the first one to reach an iteration counts.
        """
        here = {w.name for w in weights}
        for block in self.blocks_of(weights):
            members = self.weights_of(block)
            step = max(w.steps for w in members if w.name in here)
            if all(w.steps < step for w in members if w.name not in here):
                yield block, step

    def is_ahead(self, weight: MaskedWeight, step: int) -> bool:
        """Whether no weight of the block has made iteration `step`, which is `weight`'s next one."""
        return all(w.steps < step for w in self.weights_of(self.block_of(weight)))

    def channels_of(self, block: Filters) -> Tensor:
        """int64 [units]: the channel, as the trace has numbered it, that each unit of a block is."""
        return torch.cat([self._channels[name] for name in block.names]).unique()

    def hold(self, masks: Values) -> str:
        """Name of the first weight whose mask is not made of whole units; "" if all are."""
        for block in self.blocks:
            kept = block.kept(masks)
            whole = block.masks(kept)
            wrong = [n for n in block.names if not torch.equal(whole[n], masks[n])]
            if wrong or (isinstance(block, Fours) and not bool((kept.sum(-1) == 2).all())):
                return (wrong or list(block.names))[0]
        return ""

    def to_dict(self) -> dict[str, Any]:
        """For files: what `from_dict` makes the same units of."""
        weights = {
            name: {"shape": list(p.layout.shape), "dim": p.layout.dim, "groups": p.layout.groups, "inputs": p.inputs}
            for name, p in self.parts.items()
            if name in self._block
        }
        channels = {name: of for name, of in self._channels.items() if name in self._block}
        return {"granularity": self.granularity, "weights": weights, "channels": channels}

    @staticmethod
    def from_dict(held: Mapping[str, Any]) -> Units:
        parts = {
            name: Geometry(FilterLayout(tuple(p["shape"]), p["dim"], p["groups"]), p["inputs"])
            for name, p in held["weights"].items()
        }
        return Units(held["granularity"], parts, held["channels"])


def of_entries(shapes: Mapping[str, Sequence[int]]) -> Units:
    """Every entry a unit, for weights of which nothing but the shape is known."""
    return Units("weight", {name: Geometry(FilterLayout(tuple(shape))) for name, shape in shapes.items()})


def connected(of: Mapping[str, Tensor]) -> list[list[str]]:
    """The weights in groups that share no channel with each other; order as given."""
    groups: list[tuple[list[str], set[int]]] = []
    for name, channels in of.items():
        own = set(channels.tolist())
        touching = [g for g in groups if g[1] & own]
        groups = [g for g in groups if not g[1] & own]
        names = [n for g in touching for n in g[0]] + [name]
        groups.append((names, own.union(*(g[1] for g in touching))))
    place = {name: i for i, name in enumerate(of)}
    found = [sorted(names, key=place.__getitem__) for names, _ in groups]
    return sorted(found, key=lambda names: place[names[0]])


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)

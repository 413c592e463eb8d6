"""What is kept or pruned as a whole, for the oracles of structured masks: in numpy, from the formulas.

Nothing of rgplug is imported. A *unit* has *parts*:

    weight   one part, one entry
    kernel   one part: the entries that share an output filter and an input channel (of a vector or a Linear: one entry)
    filter   one or several parts, each one output filter of a weight; those of one channel are decided together

The score of a unit is the mean over its parts of each part's mean |value|, so that a tied filter counts alike whatever
its fan-in. Weights that ties connect, directly or through others, form a *block*; without ties each weight is a block.
2:4 has no units: of each four consecutive entries along the input dim, two are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from oracle_training import Arrays


@dataclass(frozen=True)
class Layout:
    """Which dims of a weight are its output and its input.

    Convolutions and Linear layers are Layout(), transposed convolutions Layout(1, 0, groups) (weight
    [in, out / groups, ...]), weights [1, out, in, k, k] Layout(1, 2).
    """

    output: int = 0
    input: int = 1
    groups: int = 1  # of a transposed convolution; elsewhere the output dim counts all filters


@dataclass(frozen=True)
class Units:
    """The units of a network; every array is of int."""

    part: Arrays  # name -> part of each entry, in the weight's shape
    filter: Arrays  # name -> [parts] output filter that the part belongs to
    unit: Arrays  # name -> [parts] unit of each part, 0 .. count - 1 over the whole network
    count: int

    @property
    def members(self) -> np.ndarray:
        """[units] number of parts."""
        return self.gather({name: np.ones(len(ids)) for name, ids in self.unit.items()})

    @property
    def sizes(self) -> np.ndarray:
        """[units] number of entries."""
        return self.gather({name: np.bincount(part.ravel()) for name, part in self.part.items()}).astype(int)

    @property
    def blocks(self) -> np.ndarray:
        """[units] label of the block that the unit is in: the smallest unit of that block."""
        label = np.arange(self.count)
        for _ in self.unit:  # a label travels one weight further in each turn, or more
            for ids in self.unit.values():
                label[ids] = label[ids].min()
        return label

    def gather(self, parts: Arrays) -> np.ndarray:
        """[units] sums over the parts of one number per part."""
        total = np.zeros(self.count)
        for name, values in parts.items():
            np.add.at(total, self.unit[name], values)
        return total

    def expand(self, keep: np.ndarray) -> Arrays:
        """Masks from one decision per unit."""
        return {name: keep[self.unit[name]][part] for name, part in self.part.items()}

    def collapse(self, masks: Arrays) -> np.ndarray:
        """One decision per unit from masks. Raises ValueError where a unit is kept in part."""
        share = unit_scores(masks, self)
        if not np.isin(share, (0.0, 1.0)).all():
            raise ValueError(f"units {np.flatnonzero(~np.isin(share, (0.0, 1.0)))} are kept in part")
        return share == 1


def filter_index(shape: tuple[int, ...], layout: Layout) -> np.ndarray:
    """Output filter of each entry, in `shape`. Channel g * (out / groups) + o of a transposed convolution is made from
    the input rows of group g."""
    index = np.indices(shape)
    if len(shape) == 1:
        return index[0]
    group = index[layout.input] // (shape[layout.input] // layout.groups) if layout.groups > 1 else 0
    return group * shape[layout.output] + index[layout.output]


def make_units(
    shapes: Mapping[str, tuple[int, ...]],
    layouts: Mapping[str, Layout],
    granularity: str,  # weight | kernel | filter
    channels: Mapping[str, np.ndarray] | None = None,  # filter: channel of each filter, [filters]; the same id: a tie
) -> Units:
    part, of_filter, unit = {}, {}, {}
    count = 0
    for name, shape in shapes.items():
        index, filters = np.indices(shape), filter_index(shape, layouts[name])
        if granularity == "weight" or (len(shape) == 1 and granularity == "kernel"):
            part[name] = np.arange(filters.size).reshape(shape)
        elif granularity == "kernel":
            part[name] = index[layouts[name].output] * shape[layouts[name].input] + index[layouts[name].input]
        else:
            part[name] = filters
        _, first = np.unique(part[name], return_index=True)
        of_filter[name] = filters.ravel()[first]
        own = np.arange(len(first)) + count
        unit[name] = own if channels is None else np.asarray(channels[name])[of_filter[name]]
        count += len(first)
    ids, dense = np.unique(np.concatenate(list(unit.values())), return_inverse=True)
    ends = np.cumsum([len(u) for u in unit.values()])[:-1]
    return Units(part, of_filter, dict(zip(unit, np.split(dense, ends))), len(ids))


def part_means(values: np.ndarray, part: np.ndarray) -> np.ndarray:
    """[parts] mean |value| over each part."""
    return np.bincount(part.ravel(), np.abs(values).ravel()) / np.bincount(part.ravel())


def unit_scores(values: Arrays, units: Units) -> np.ndarray:
    """[units] mean over the parts of each part's mean |value|."""
    return units.gather({name: part_means(values[name], part) for name, part in units.part.items()}) / units.members


def fours(values: np.ndarray, layout: Layout) -> np.ndarray:
    """[..., 4]: groups of four consecutive entries along the input dim, one row of groups per filter and position.

    Raises ValueError if the inputs of a filter are not a multiple of four.
    """
    if values.shape[layout.input] % (4 * layout.groups):
        raise ValueError(f"{values.shape[layout.input]} inputs in {layout.groups} groups are no multiple of four each")
    moved = np.moveaxis(values, layout.input, -1)
    return moved.reshape(*moved.shape[:-1], -1, 4)


def from_fours(groups: np.ndarray, layout: Layout) -> np.ndarray:
    """The inverse of `fours`."""
    return np.moveaxis(groups.reshape(*groups.shape[:-2], -1), -1, layout.input)

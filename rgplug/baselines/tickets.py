"""GAN tickets by iterative magnitude pruning: masks of the next round, and those of the control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rgplug.errors import RgplugError
from rgplug.filter_scores import scores_in
from rgplug.methods.magnitude import prune_remaining
from rgplug.methods.two_of_four import two_of_four
from rgplug.policy import Granularity
from rgplug.snapshot import Masks, read
from rgplug.units import Units, of_entries, spared


def next_masks(
    trained: Path,  # snapshot of the round that ended
    masks: Path | None,  # its masks; None: all weights were kept
    ratio: float | Mapping[str, float],  # share of the remaining weights that is pruned; or by network
    networks: Sequence[str],
    managed: Mapping[str, Sequence[str]],  # names of the weights that may be pruned, by network
    criterion: str | None = None,  # of torch-pruning, whose scores `trained` holds; None: by magnitude
) -> Masks:
    """Masks of the next round: globally over each network, the smallest magnitudes of what remains go.

    Magnitudes are those of the Parameter itself (under spectral norm: before the division, as published). Where the
    round was run under a granularity, `trained` says what is pruned as a whole, and means over that are ranked. With a
    criterion of torch-pruning whole filters are ranked, by the scores that the round's snapshots were asked for
    (policy.snapshots.scores). Raises RgplugError for files that do not fit.
    """
    ratios = dict(ratio) if isinstance(ratio, Mapping) else dict.fromkeys(networks, ratio)
    for own in ratios.values():
        check_rounds(1, own)
    held = read(trained)
    pair = held["pair"]
    before: Masks = {} if masks is None else read(masks, "masks")["masks"]
    after: Masks = {}
    for network in networks:
        names = list(managed.get(network, ()))
        if not names or network not in pair:
            raise RgplugError(
                f"{trained} holds no managed weights of {network}; attach it, or leave it out of networks"
            )
        earlier = before.get(network, {})
        _check_shapes(trained, masks or trained, network, names, pair[network], earlier)
        scores: list[Tensor] | None = None
        if criterion is None:
            units = held["units"].get(network) or of_entries({name: pair[network][name].shape for name in names})
        else:
            units, scores = scores_in(held, trained, network, criterion)
        after[network] = _pruned(pair[network], earlier, units, ratios[network], scores)
    return after


def _check_shapes(
    trained: Path,
    masks: Path,
    network: str,
    names: Sequence[str],
    held: Mapping[str, Tensor],
    earlier: Mapping[str, Tensor],
) -> None:
    """Raise RgplugError unless the snapshot has these weights, and the masks fit them."""
    for name in names:
        if name not in held:
            raise RgplugError(f"{trained} has no weight {network}.{name}, which was managed; it is of another run")
        if name in earlier and earlier[name].shape != held[name].shape:
            raise RgplugError(
                f"{masks}: the mask of {network}.{name} is of shape {list(earlier[name].shape)}, the weight of "
                f"{list(held[name].shape)} ({trained}); the two are of different runs"
            )


def _pruned(
    thetas: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    units: Units,
    ratio: float,
    scores: list[Tensor] | None = None,  # of the units of each block; None: their magnitudes
) -> dict[str, Tensor]:
    """One network's masks of the next round."""
    sizes = scores or [b.scores({name: thetas[name].abs() for name in b.names}) for b in units.blocks]
    if units.granularity == "2:4":
        check_rounds(1, ratio, units.granularity)
        if masks:
            raise RgplugError("granularity 2:4 has one round: what is left cannot be halved again; set rounds to 1")
        kept = [two_of_four(size) for size in sizes]
    else:
        ones = {name: torch.ones(part.layout.shape, dtype=torch.bool) for name, part in units.parts.items()}
        old = [b.kept({name: masks.get(name, ones[name]) for name in b.names}) for b in units.blocks]
        entries = [b.sizes(torch.device("cpu")) for b in units.blocks] if units.coarse else None
        kept = prune_remaining(sizes, old, ratio, entries)
    found: dict[str, Tensor] = {}
    for block, chosen, size in zip(units.blocks, kept, sizes):
        found |= block.masks(spared(block, chosen, size))
    return found


def random_masks(masks: Path, seed: int, trained: Path | None = None) -> Masks:
    """Control: random masks with as many entries in each layer as the given ones.

    trained: a snapshot of the run under these masks; where it has a granularity, as many units in each layer, and
    layers that are tied are drawn together.
    """
    generator = torch.Generator().manual_seed(seed)
    described = {} if trained is None else read(trained)["units"]
    held: Masks = read(masks, "masks")["masks"]
    drawn: Masks = {}
    for network, layers in held.items():
        drawn[network] = {}
        units = described.get(network) or of_entries({name: mask.shape for name, mask in layers.items()})
        fits = {name: tuple(part.layout.shape) for name, part in units.parts.items()}
        if any(fits.get(name) != tuple(mask.shape) for name, mask in layers.items()) or fits.keys() != layers.keys():
            raise RgplugError(f"{masks} does not fit the {network} of {trained}; the two are of different runs")
        for block in units.blocks:
            kept = block.kept({name: layers[name] for name in block.names})
            if units.granularity == "2:4":
                new = two_of_four(torch.rand(kept.shape, generator=generator))
            else:
                order = torch.randperm(kept.numel(), generator=generator)
                new = torch.zeros(kept.numel(), dtype=torch.bool)
                new[order[: int(kept.sum())]] = True
            drawn[network] |= block.masks(new.view(kept.shape))
    return drawn


def check_rounds(rounds: int, ratio: float, granularity: Granularity = "weight") -> None:
    """Raise RgplugError unless there is a round, and something to prune and to keep in it."""
    if granularity == "2:4" and (rounds != 1 or ratio != 0.5):
        raise RgplugError(
            f"granularity 2:4 prunes one half, once; tickets were asked for rounds {rounds} of ratio {ratio:g}: give "
            "rounds 1 and ratio 0.5, or another granularity"
        )
    if rounds < 1:
        raise RgplugError(f"rounds is {rounds}; tickets need at least one after the dense round")
    if not 0 < ratio < 1:
        raise RgplugError(f"ratio is {ratio}; it has to lie between 0 and 1 (exclusive)")


def ratio_for(density: float, rounds: int) -> float:
    """The share of the remaining weights that each of `rounds` rounds prunes, so that the last one keeps `density`."""
    return 1 - density ** (1 / rounds)

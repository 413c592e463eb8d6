"""Which weights were active at any time while masks explored: in-time over-parametrization (Liu et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from rgplug.masking import MaskedWeight
from rgplug.state import pack_mask, unpack_mask


class EverActive:
    """One bool per entry of each weight whose mask has changed; a weight whose mask stays takes no memory.

    Written to only where a mask changes (exploration, adjustment), without a sync; never in an ordinary step.
    """

    def __init__(self) -> None:
        self.masks: dict[str, Tensor] = {}
        self._changing: set[str] = set()  # weights that are about to get a new mask

    def clear(self) -> None:
        """Masks are drawn for the first time."""
        self.masks.clear()

    def forget(self, name: str) -> None:
        """The weight gets its first mask."""
        self.masks.pop(name, None)

    def follow(self, weight: MaskedWeight) -> None:
        """The weight has moved to another device."""
        if weight.name in self.masks:
            self.masks[weight.name] = self.masks[weight.name].to(weight.param.device)

    def changing(self, weight: MaskedWeight) -> None:
        """The weight, which has its old mask still, is about to get a new one."""
        self._changing.add(weight.name)
        if weight.name not in self.masks:
            self.masks[weight.name] = weight.mask.clone()  # the only one until now

    def drawn(self, weight: MaskedWeight) -> None:
        """The weight has a mask; a new one if `changing` was called for it."""
        if weight.name in self._changing:
            self._changing.remove(weight.name)
            self.add([weight])

    def add(self, weights: Iterable[MaskedWeight]) -> None:
        """What the masks keep now is active."""
        for w in weights:
            if w.name in self.masks:
                self.masks[w.name].logical_or_(w.mask)

    def share(self, weights: list[MaskedWeight]) -> float:
        """Share of all entries of the weights that was active at some time (R_s of the paper). Reads the device."""
        if not weights:
            return 1.0
        device = weights[0].param.device
        active = [torch.count_nonzero(self.masks.get(w.name, w.mask)).to(device) for w in weights]
        return int(torch.stack(active).sum()) / sum(w.numel for w in weights)

    def state_of(self, weight: MaskedWeight) -> Tensor | None:
        """8 entries a byte; None where the mask has not changed."""
        return pack_mask(self.masks[weight.name]) if weight.name in self.masks else None

    def load(self, weight: MaskedWeight, packed: Tensor | None) -> None:
        """The reverse. None: no mask had changed by then, or the state is from before this was kept; the mask that is
        loaded is the first one, then."""
        self.forget(weight.name)
        if packed is not None:
            self.masks[weight.name] = unpack_mask(packed.cpu(), list(weight.param.shape)).to(weight.param.device)


def misses(packed: Tensor, mask: Tensor) -> bool:
    """Whether a mask keeps entries that, by a state, were never active."""
    return bool((mask.cpu() & ~unpack_mask(packed.cpu(), list(mask.shape))).any())

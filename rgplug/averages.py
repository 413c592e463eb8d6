"""Moving averages of G that rgplug knows of, and whether they were under G's mask when the host measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from rgplug.copies import Hidden, masked_for_now
from rgplug.layers import copies_of
from rgplug.masking import MaskedWeight
from rgplug.network import Network
from rgplug.wrappers import tensors_of


class Averages:
    """Copies of a network that the host handed over, or deep-copied from it after attach. Only weak references.

    An average is told by one tensor, that of the largest managed weight.
    """

    def __init__(self, net: Network):
        self.net = net
        self._masked_at = WeakTensorKeyDictionary()  # average -> the network's iteration when it last had the mask on
        self._sums = WeakTensorKeyDictionary()  # deep copy -> sum of its values at the last evaluation

    @property
    def _weight(self) -> MaskedWeight | None:
        return max(self.net.weights, key=lambda w: w.numel, default=None)

    @contextmanager
    def masked(self, copied: Any) -> Iterator[Hidden]:
        """The mask on a copy for the time of the block, on schedule as at an evaluation; yields what it hides."""
        with torch.inference_mode(False):  # training goes on with the thresholds that may move here
            self.net.meet_target()
        with masked_for_now(copied, self.net) as hidden:
            self.know(copied, masked=True)
            yield hidden

    def know(self, copied: Any, *, masked: bool = False) -> None:
        """Take note of a copy. masked: it has the mask on now."""
        w = self._weight
        tensor = None if w is None else tensors_of(copied, self.net.module).get(w.name)
        if tensor is not None and (masked or tensor not in self._masked_at):
            self._masked_at[tensor] = self.net.iteration if masked else None

    @torch.no_grad()
    def measured_without_mask(self) -> bool:
        """Whether a value that the host gives now may be one of an average without the mask: there is an average with
        non-zeros where most of the pruned weights are, and none had the mask on since the network's last step.

        Deep copies that nobody handed over count as averages if their values changed since the last call. Reads the
        device.
        """
        w = self._weight
        if w is None or not self.net.sparse:
            return False
        moving = [copied for copied in copies_of(w) if self._moved(copied)]
        if any(at == self.net.iteration for at in self._masked_at.values()):
            return False
        pruned = torch.logical_not(w.mask)
        for average in (*self._masked_at, *moving):
            if average.shape != w.param.shape:  # of a weight that was the largest one then
                continue
            values = average.detach()[pruned.to(average.device)]
            if 2 * int(torch.count_nonzero(values)) > values.numel():
                return True
        return False

    def _moved(self, copied: torch.Tensor) -> bool:
        before, now = self._sums.get(copied), float(copied.detach().double().sum())
        self._sums[copied] = now
        return before is not None and before != now

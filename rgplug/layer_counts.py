"""What masks pruned, regenerated and restored between two evaluations, weight by weight (RG-GAN, Figure 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rgplug import expected
from rgplug.network import Network

Totals = dict[str, list[int]]  # weight -> [pruned, regenerated one by one, restored all at once], since attach


class LayerCounts:
    """The counts since the last record, by network and weight."""

    def __init__(self, networks: Mapping[str, Network]):
        self._networks = networks
        self._last: dict[str, Totals] = {label: {} for label in networks}  # a network is missing where not known

    def take(self) -> dict[str, Totals]:
        """network -> weight -> [pruned, regenerated, restored] since the last call. Reads the device.

        A network is missing at the first record after a state that does not say what was counted before.
        """
        found = {}
        for label, net in self._networks.items():
            totals, last = net.counts.changes(), self._last.get(label)
            if last is not None:
                # a weight that was set aside and joined again counts from 0
                found[label] = {
                    name: [max(a - b, 0) for a, b in zip(own, last.get(name, (0, 0, 0)))]
                    for name, own in totals.items()
                }
            self._last[label] = totals
        return found

    def state_dict(self) -> dict[str, Totals]:
        return {label: {name: list(v) for name, v in last.items()} for label, last in self._last.items()}

    def misfit(self, state: Any) -> str:
        """What is wrong with a state, as half a sentence; "" if nothing is. Older states have none."""
        count = expected.list_of(expected.whole(-expected.LARGEST), 3)

        def weights(value: Any) -> str:
            names = list(value) if isinstance(value, Mapping) else []
            return expected.keys(value, {}, dict.fromkeys(names, count))

        return "" if state is None else expected.keys(state, {}, dict.fromkeys(self._networks, weights))

    def load_state_dict(self, state: Mapping[str, Totals] | None, recorded: Mapping[str, tuple[int, int, int]]) -> None:
        """Take over a state that `misfit` finds nothing wrong with, once the networks have theirs.

        recorded: network -> (pruned, regenerated, restored) of all its weights at the last record. A state without
        counts of layers (an older one) that was saved right after a record says them: they are the present ones.
        """
        if state is not None:
            self._last = {label: {name: list(map(int, v)) for name, v in own.items()} for label, own in state.items()}
            return
        self._last = {}
        for label, net in self._networks.items():
            totals = net.counts.changes()
            if tuple(map(sum, zip(*totals.values()))) == recorded[label]:
                self._last[label] = totals

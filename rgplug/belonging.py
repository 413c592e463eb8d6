"""Whether a loaded state belongs to the weights that the host trains on with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from rgplug.observers import Observer
from rgplug.warn import warn as warn

if TYPE_CHECKING:
    from rgplug.network import Network


class Belonging(Observer):
    """The host loads its weights before or after the state, so that only the first step says what they are. They are
    compared with the state's fingerprints then, once; other weights are a warning, as a warm start may mean them."""

    def __init__(self, networks: Mapping[str, Network], states: Mapping[str, Mapping[str, Any]]):
        self._waiting = {
            net: {"fingerprint": states[label]["fingerprint"]}
            for label, net in networks.items()
            if "fingerprint" in states[label]  # states from before there were fingerprints have none
        }

    def holds(self) -> bool:
        """Whether the weights are those of the state now. Reads the device."""
        return all(net.belongs(state) for net, state in self._waiting.items())

    def before_step(self, network: str, optimizer: torch.optim.Optimizer | None) -> None:
        self.check()

    @torch.compiler.disable
    def check(self) -> None:
        """Warn if they are not. The second call, and all after it, do nothing."""
        waiting, self._waiting = self._waiting, {}
        other = [net.label for net, state in waiting.items() if not net.belongs(state)]
        if other:
            warn(
                f"the state that was loaded belongs to other weights than {' and '.join(other)} "
                f"{'has' if len(other) == 1 else 'have'} now, so this is no exact resume. Load the checkpoint that was "
                "saved together with it, before rg.load(path), which then takes the state that belongs to it from path "
                "or from the file kept beside it. If these weights are meant, go on: they are trained under the "
                "state's masks"
            )

"""Scores of a network's filters in the snapshot that a run leaves, for the rounds of tickets after it.

A round prunes what the run before it has trained, with no network at hand: what torch-pruning's criteria look at, the
groups of tied layers and the gradients, is there only while the run trains. So a run whose policy asks for it
(snapshots: {scores: [...]}) scores all filters where it writes its snapshot, masked ones too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rgplug import expected
from rgplug.criteria import check_installed, criterion_of
from rgplug.errors import RgplugError
from rgplug.importance import Values, ranked
from rgplug.importance import filter_scores as scores_of
from rgplug.units import Units
from rgplug.warn import warn


class FilterScores:
    """The scores that one network's snapshot gets.

    Gradients are those of the last step that counts as an iteration, copied at each of them while a criterion needs
    them: the training script may have zeroed its own, or put another network's loss there, by the time of the snapshot.
    """

    def __init__(self, network: str, units: Units, criteria: Sequence[str]):
        self.network, self._units = network, units
        self._criteria = [c for name in criteria if (c := criterion_of(name)) is not None]
        for criterion in self._criteria:
            check_installed(criterion)
        self._grads: dict[str, Tensor] | None = {} if any(c.needs == "gradients" for c in self._criteria) else None

    @torch.no_grad()
    def stepped(self, found_inf: Tensor | None = None) -> None:
        """The optimizer has stepped; its gradients are there still. No host-device sync.

        found_inf: of a fused optimizer under a GradScaler, 1 where it has skipped the step; its gradients do not count.
        """
        if self._grads is None:
            return
        assert self._units.coupling is not None
        for name, param in self._units.coupling.params.items():
            if param.grad is None or param.grad.is_sparse:
                continue
            held = self._grads.get(name)
            grad = param.grad.detach()
            if held is None or held.shape != grad.shape or held.device != grad.device:
                self._grads[name] = grad.clone()
            elif found_inf is not None:
                held.copy_(torch.where(found_inf.to(grad.device) > 0, held, grad))
            else:
                held.copy_(grad)

    @torch.no_grad()
    def to_dict(self) -> dict[str, Any]:
        """For the snapshot: the units, and for each criterion the scores of each block, by its first weight's name.
        Pruned weights count as the zeros that they are. Reads the device."""
        assert self._units.coupling is not None
        params, grads = self._units.coupling.params, self._grads or {}
        values = {name: Values(p.detach(), grads.get(name)) for name, p in params.items()}
        cpu = torch.device("cpu")
        found = {}
        for criterion in self._criteria:
            try:
                scores = ranked(scores_of(criterion, self._units, values, self.network), self._units, cpu)
            except RgplugError as error:  # the run is none the worse for it
                warn(f"the snapshot holds no scores of {self.network} by {criterion}: {error}")
                continue
            blocks = self._units.blocks
            found[str(criterion)] = {b.names[0]: score.double() for b, score in zip(blocks, scores)}
        return {"units": self._units.to_dict(), "scores": found}


def scores_in(held: Mapping[str, Any], path: object, network: str, criterion: str) -> tuple[Units, list[Tensor]]:
    """The units and their scores, block by block, from a snapshot that was read. Raises RgplugError without them."""
    wanted = str(criterion_of(criterion))
    own = held.get("scores", {}).get(network)
    if own is None or wanted not in own["scores"]:
        raise RgplugError(
            f"{path} holds no scores of {network} by {wanted}; let the run that makes it write them (policy.snapshots: "
            f"{{scores: [{wanted!r}]}}), in a comparison by a dense run of its own: give another --out"
        )
    units: Units = own["units"]
    return units, [own["scores"][wanted][block.names[0]] for block in units.blocks]


def described(scores: Any) -> list[tuple[str, Any]]:
    """(network, description of its units) of a snapshot's scores, whatever it is that stands there."""
    if not isinstance(scores, dict):
        return [("", None)]
    return [(label, own.get("units") if isinstance(own, dict) else None) for label, own in scores.items()]


def restore(held: dict[str, Any]) -> str:
    """The units of a snapshot's scores in place of their descriptions. What is wrong with them, as half a sentence; ""
    if nothing is."""
    for label, own in held.get("scores", {}).items():
        try:
            own["units"] = units = Units.from_dict(own["units"])
            sizes = {block.names[0]: block.shape for block in units.blocks}
            for scores in own["scores"].values():
                wrong = expected.keys(scores, {name: expected.tensor(shape) for name, shape in sizes.items()}, {})
                if wrong or any(bool(s.isnan().any()) for s in scores.values()):
                    return f"holds scores of {label} that are none ({wrong or 'not a number'})"
        except Exception as error:  # whatever comes of things that do not belong together
            return f"holds scores of {label} that cannot be read ({type(error).__name__})"
    return ""

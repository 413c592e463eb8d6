"""What a network's masks kept, regrew and pruned, weight by weight, counted where the weights are: without a sync."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rgplug import expected
from rgplug.devices import counter, widest
from rgplug.masking import MaskedWeight

_COUNTERS = ("kept", "regrown", "restored", "pruned", "written", "density_steps")
# states have always had these; counters that came later are 0 where a state lacks them
_ALWAYS = ("kept", "regrown", "pruned", "written", "density_steps")


class Counts:
    """[weights] each, on the device of the weights: float64, or int64 where that does not exist (`devices.counter`)."""

    def __init__(self, weights: list[MaskedWeight]):
        self._weights = weights
        device = weights[0].param.device if weights else torch.device("cpu")
        self.numel = torch.tensor([w.numel for w in weights], dtype=counter(device), device=device)
        self.kept = self.numel.clone()
        self.regrown = torch.zeros_like(self.kept)  # pruned -> kept by the method's rule, summed over all steps
        self.restored = torch.zeros_like(self.kept)  # pruned -> kept, all at once: augmented regeneration
        self.pruned = torch.zeros_like(self.kept)  # kept -> pruned, summed over all steps
        self.written = torch.zeros_like(self.kept)  # non-zeros that the host wrote at pruned positions (adopted)
        # density of each weight, summed over iterations
        self.density_steps = torch.zeros_like(self.kept, dtype=widest(device))

    def over(self, weights: list[MaskedWeight]) -> Counts:
        """The same counters for these weights: those that were counted before go on."""
        new = Counts(weights)
        new.follow(self.kept.device)
        place = {w.name: i for i, w in enumerate(self._weights)}
        for i, w in enumerate(weights):
            if w.name in place:
                for name in _COUNTERS:
                    getattr(new, name)[i] = getattr(self, name)[place[w.name]]
        return new

    def recount(self) -> None:
        """Kept entries from the masks themselves."""
        if self._weights:
            self.kept = torch.stack([torch.count_nonzero(w.mask) for w in self._weights]).to(self.kept)

    def drawn(self, weights: list[MaskedWeight], counts: Tensor) -> None:
        """New masks; counts: [weights, 2], the entries pruned, and those of them that were kept until now."""
        at, lost = self._index(weights), counts[:, 1]
        change = self.numel[at].sub(counts[:, 0]).sub_(self.kept[at])
        self._add("kept", at, change)
        self._add("regrown", at, change.add_(lost))
        self._add("pruned", at, lost)

    def started(self, weight: MaskedWeight) -> None:
        """A mask that a weight begins with."""
        i = self._weights.index(weight)
        kept = torch.count_nonzero(weight.mask).to(self.kept)
        self.pruned[i] += self.kept[i] - kept
        self.kept[i] = kept

    def dense(self) -> None:
        """Everything has come back."""
        self.restored += self.numel - self.kept
        self.kept.copy_(self.numel)

    def found(self, weights: list[MaskedWeight], zeros: Tensor) -> None:
        """More non-zeros than kept entries: the host wrote at pruned positions. zeros: in each weight."""
        at = self._index(weights)
        self._add("written", at, self.numel[at].sub(zeros).sub_(self.kept[at]).clamp_min_(0))

    def stepped(self, weights: list[MaskedWeight]) -> None:
        """An iteration of these weights."""
        at = self._index(weights)
        self._add("density_steps", at, self.kept[at] / self.numel[at])

    def density(self) -> float:
        """Share of all weights that is kept. Reads the device."""
        return (self.kept.sum() / self.numel.sum()).item() if self._weights else 1.0

    def layer_density(self) -> dict[str, float]:
        """The same by weight."""
        return dict(zip((w.name for w in self._weights), (self.kept / self.numel).tolist()))

    def changes(self) -> dict[str, list[int]]:
        """weight -> [pruned, regrown, restored] since attach. Reads the device."""
        totals = torch.stack([self.pruned, self.regrown, self.restored], dim=1).tolist()
        return {w.name: [int(n) for n in row] for w, row in zip(self._weights, totals)}

    def follow(self, device: torch.device) -> None:
        """The weights have moved."""
        for name in ("numel", *_COUNTERS):
            dtype = widest(device) if name == "density_steps" else counter(device)
            setattr(self, name, getattr(self, name).to(device, dtype))

    def state_dict(self) -> dict[str, Tensor]:
        """float64 in every state file, so that it can be loaded on another device."""
        return {name: getattr(self, name).to("cpu", torch.float64, copy=True) for name in _COUNTERS}

    def misfit(self, state: Any) -> str:
        """What is wrong with a state for these weights, as half a sentence; "" if nothing is."""
        check = expected.tensor(self.kept.shape, torch.float64, torch.float32, finite=True)
        later = dict.fromkeys((c for c in _COUNTERS if c not in _ALWAYS), check)
        wrong = expected.keys(state, dict.fromkeys(_ALWAYS, check), later)
        if not wrong and bool(((state["kept"] < 0) | (state["kept"] > self.numel.to(state["kept"]))).any()):
            wrong = "has a 'kept' that is not a number of each weight's entries"
        return wrong

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name in _COUNTERS:
            held: Tensor = getattr(self, name)
            held.copy_(state[name] if name in state else torch.zeros_like(held))

    def _index(self, weights: list[MaskedWeight]) -> Any:
        """Where these weights are in the counters; `...` for all of them, as nearly always: no copies, then."""
        if len(weights) == len(self._weights) and all(map(operator.is_, weights, self._weights)):
            return ...
        return [self._weights.index(w) for w in weights]  # an optimizer may list them in an order of its own

    def _add(self, name: str, at: Any, value: Tensor) -> None:
        held: Tensor = getattr(self, name)
        if at is ...:
            held.add_(value)
        else:
            held[at] += value

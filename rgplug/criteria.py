"""The criteria of torch-pruning: their names, and what each of them needs. The package itself is not imported here."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Literal

from rgplug import schema
from rgplug.errors import RgplugError

PREFIX = "torch-pruning:"
OWN = ("random", "magnitude")  # criteria of rgplug itself
Needs = Literal["weights", "gradients"]


@dataclass(frozen=True)
class Criterion:
    """A criterion of torch-pruning. name: of its class. needs: what the scores are made of; "gradients": and weights.
    by_norms: batch norms alone decide, so filters without one have no score."""

    name: str
    needs: Needs = "weights"
    squared: bool = False  # the gradients' squares, which torch-pruning gathers with `accumulate_grad`
    by_norms: bool = False

    def __str__(self) -> str:
        return PREFIX + self.name


CRITERIA = {
    c.name.removesuffix("Importance").lower(): c
    for c in (
        Criterion("MagnitudeImportance"),
        Criterion("LAMPImportance"),
        Criterion("FPGMImportance"),
        Criterion("BNScaleImportance", by_norms=True),
        Criterion("RandomImportance"),
        Criterion("TaylorImportance", "gradients"),
        Criterion("HessianImportance", "gradients", squared=True),
    )
}
_REFUSED = {
    "obdc": "it needs the activations and gradients of single images, and the training script's backward gives the "
    "gradient of the whole batch; take torch-pruning:HessianImportance, which squares that one",
    "activation": "it needs forward passes of its own, which rgplug does not make; take torch-pruning:TaylorImportance",
}


def is_of_torch_pruning(text: str) -> bool:
    """Whether a policy's criterion names one of torch-pruning."""
    return text.lower().startswith(PREFIX)


def criterion_of(text: str, key: str = "masks.criterion") -> Criterion | None:
    """The criterion of torch-pruning that a policy's text names: `torch-pruning:TaylorImportance`, `torch-pruning:
    taylor`. None for one of rgplug's own. Raises RgplugError, with the policy's key, for a text that names neither."""
    if text in OWN:
        return None
    known = [str(c) for c in CRITERIA.values()]
    if not is_of_torch_pruning(text):
        short = _short(text)
        near = str(CRITERIA[short]) if short in CRITERIA else schema.nearest(text, [*OWN, *known])
        hint = f"; did you mean {near!r}?" if near else ""
        raise RgplugError(f"policy.{key} is {schema.shown(text)}; allowed: {' | '.join((*OWN, *known))}{hint}")
    short = _short(text[len(PREFIX) :])
    if short in CRITERIA:
        return CRITERIA[short]
    if short in _REFUSED:
        raise RgplugError(f"policy.{key}: rgplug cannot rank filters by {schema.shown(text)}: {_REFUSED[short]}")
    near = schema.nearest(short, CRITERIA)
    hint = f"did you mean {str(CRITERIA[near])!r}?" if near else f"there are {', '.join(known)}"
    raise RgplugError(f"policy.{key} is {schema.shown(text)}, which is no criterion of torch-pruning; {hint}")


def check_installed(criterion: Criterion) -> None:
    """Raise RgplugError where torch-pruning is not there to be imported."""
    if importlib.util.find_spec("torch_pruning") is None:
        raise RgplugError(
            f"the criterion {criterion} needs the package torch-pruning, which is not installed here; install it (pip "
            "install torch-pruning), or set masks: {criterion: magnitude}"
        )


def _short(name: str) -> str:
    """TaylorImportance, GroupTaylorImportance, Taylor, taylor, OBD-C -> taylor, obdc."""
    plain = "".join(ch for ch in name.lower() if ch.isalnum())
    return plain.removeprefix("group").removesuffix("importance")

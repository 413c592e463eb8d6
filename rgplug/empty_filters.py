"""Weights that a network divides by their own norms: found by running it with filters zeroed.

StyleGAN3, and StyleGAN2 in float16, divide every filter by its root mean square, without an epsilon: a filter whose
weights are all 0 is 0 / 0, and the images are NaN. Names and classes do not say whether a network does that, a run
does. Such weights get `norm_dims`, as weights under weight norm have: what would be empty keeps its largest weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rgplug.errors import RgplugError
from rgplug.metrics.sampling import Latent, LatentSampler, further_arguments, guess_latent, pick_images
from rgplug.select import Candidate
from rgplug.undisturbed import undisturbed
from rgplug.wrappers import unwrap

BATCH = 2  # images of each forward
Part = Literal["filter", "input", "kernel", "entry"]
Inputs = tuple[Any, ...]


class Probe:
    """Runs the networks of one attach: G on a latent that is guessed, D on the images that G made of it."""

    def __init__(self, modules: Mapping[str, nn.Module]):
        self.modules = {label: unwrap(module) for label, module in modules.items()}
        self._output: Any = None  # of G, all finite

    def mark(self, label: str, candidates: Sequence[Candidate]) -> str:
        """Find the managed weights of one network that are divided by their own norms, and set their `norm_dims`; one
        that cannot lose a single entry gets a `reason`. Returns why it was not tried, "" if it was.

        One forward of two images where there is nothing to find. Networks, modes and random states stay as they are.
        """
        network = self.modules[label]
        tried = [c for c in candidates if not c.reason and c.norm_dims is None and c.param.dim() > 1]
        if not tried or not _own_code(network):
            return ""
        if any(_is_shared_out(m) for module in self.modules.values() for m in module.modules()):
            return "a part of it is shared out among processes"
        try:
            given = None if label == "G" else (self._images(), *further_arguments(network))
            cuts = [_Cut(c, part) for c in tried for part in ("filter", "input")]
            with undisturbed(network):
                with _made(cuts):
                    arguments, output = _run_generator(network) if given is None else (given, network(*given))
                if not _all_finite(output):
                    return _mark(network, arguments, tried, cuts)
            if label == "G":
                self._output = output
            return ""
        except Exception as error:  # whatever a forward raises; nothing depends on it
            text = " ".join(str(error).split())
            if isinstance(error, RgplugError):
                return text.rpartition("; give")[0] or text  # what to do is another thing here
            return f"{type(error).__name__}: {text}"

    def _images(self) -> Tensor:
        """Images of G: those of its own run, where that had no NaN in them."""
        if self._output is None:
            with undisturbed(self.modules["G"]):
                _, self._output = _run_generator(self.modules["G"])
        return pick_images(self._output)


def _run_generator(generator: nn.Module) -> tuple[Inputs, Any]:
    """What forward was called with, and what it returned. Raises RgplugError where neither form of latents is taken."""
    latent, extra = guess_latent(generator), further_arguments(generator)
    failure: Exception | None = None
    for spatial in (latent.spatial, not latent.spatial):
        arguments = LatentSampler(generator, Latent(latent.dim, spatial), extra=extra).arguments(BATCH)
        try:
            return arguments, generator(*arguments)
        except Exception as error:  # whatever a forward raises; the first form's is the telling one
            failure = failure or error
    raise RgplugError(f"{type(generator).__name__} does not run on a guessed latent ({failure})")


def _own_code(network: nn.Module) -> bool:
    """Whether there is any module that is not torch's: torch's divide a weight by its norms in weight norm alone."""
    return any(not type(m).__module__.startswith("torch.") for m in network.modules())


def _is_shared_out(module: nn.Module) -> bool:
    kind = type(module).__name__
    return isinstance(module, nn.parallel.DistributedDataParallel) or "FSDP" in kind or "FullySharded" in kind


@dataclass(frozen=True)
class _Cut:
    """The first filter, input channel, kernel or entry of a weight, to be zeroed. spare: all but its largest entry."""

    candidate: Candidate
    part: Part
    spare: bool = False

    def where(self) -> Tensor | None:
        """bool, of the weight's shape: what becomes 0. None where there is no such part, or nothing else would be left
        (the guard keeps layers from that)."""
        c, weight = self.candidate, self.candidate.param.detach()
        assert c.layout is not None
        found = torch.zeros_like(weight, dtype=torch.bool)
        if self.part == "filter":
            c.layout.filter(found, 0).fill_(True)
        elif self.part == "entry":
            found.view(-1)[0] = True
        elif c.inputs is None:
            return None
        else:
            row = found.select(c.inputs, 0)
            if self.part == "input":
                row.fill_(True)
            else:
                row.select(c.layout.dim - (c.layout.dim > c.inputs), 0).fill_(True)
        if self.spare:
            size = weight.abs().masked_fill(~found, -1)
            found.view(-1)[int(size.argmax())] = False
        return found if bool(weight.masked_fill(found, 0).any()) else None


def _mark(network: nn.Module, arguments: Inputs, candidates: Sequence[Candidate], cuts: Sequence[_Cut]) -> str:
    """`Probe.mark`, once it is known that the outputs are not finite with all `cuts` made."""
    if not _is_finite(network, arguments, []):
        return "its outputs are not finite as it is"
    guilty = _guilty_of(network, arguments, cuts)
    if not guilty:
        return "its outputs are not finite with an empty filter in all of its weights, and no single one does it"
    parts: dict[str, set[Part]] = {}
    for cut in guilty:
        parts.setdefault(cut.candidate.name, set()).add(cut.part)
    found = [c for c in candidates if c.name in parts]
    for part in ("kernel", "entry"):
        for cut in _guilty(network, arguments, [_Cut(c, part) for c in found]):
            parts[cut.candidate.name].add(part)
    for c in found:
        c.norm_dims = _norm_dims(c, parts[c.name])
    smallest: dict[str, set[Part]] = {name: {"kernel"} if "kernel" in own else own for name, own in parts.items()}
    spared = [_Cut(c, part, spare=True) for c in found for part in smallest[c.name] - {"entry"}]
    helpless = {cut.candidate.name for cut in _guilty(network, arguments, spared)}
    for c in found:
        if c.norm_dims is None or c.name in helpless:
            c.norm_dims = None
            c.reason = "the outputs are not finite when a part of it is 0"
    return ""


def _norm_dims(c: Candidate, parts: set[Part]) -> tuple[int, ...] | None:
    """The dims that the norm is taken over, from the parts that must not be 0; None where no dims describe it."""
    assert c.layout is not None
    ones: set[int]
    if "entry" in parts or c.layout.groups > 1:
        return None
    if "kernel" in parts:
        ones = {c.layout.dim, *(() if c.inputs is None else (c.inputs,))}
    elif parts == {"filter"}:
        ones = {c.layout.dim}
    elif parts == {"input"} and c.inputs is not None:
        ones = {c.inputs}
    else:
        return None
    return tuple(d for d in range(c.param.dim()) if d not in ones)


def _guilty(network: nn.Module, arguments: Inputs, cuts: Sequence[_Cut]) -> list[_Cut]:
    """Those cuts that, alone, make the outputs infinite or NaN. All are tried at once first."""
    return [] if not cuts or _is_finite(network, arguments, cuts) else _guilty_of(network, arguments, cuts)


def _guilty_of(network: nn.Module, arguments: Inputs, cuts: Sequence[_Cut]) -> list[_Cut]:
    """The same, of cuts that make them so together: layers of one class are tried at once, then one by one."""
    classes: dict[tuple[type, Part], list[_Cut]] = {}
    for cut in cuts:
        classes.setdefault((type(cut.candidate.module), cut.part), []).append(cut)
    suspects = [group for group in classes.values() if not _is_finite(network, arguments, group)]
    return [cut for group in suspects for cut in group if not _is_finite(network, arguments, [cut])]


def _is_finite(network: nn.Module, arguments: Inputs, cuts: Sequence[_Cut]) -> bool:
    """Whether all outputs are finite with these cuts made."""
    with _made(cuts):
        return _all_finite(network(*arguments))


def _all_finite(output: Any) -> bool:
    tensors = [x for x in pytree.tree_leaves(output) if isinstance(x, Tensor) and x.is_floating_point()]
    return all(bool(x.isfinite().all()) for x in tensors)


@contextmanager
def _made(cuts: Sequence[_Cut]) -> Iterator[None]:
    """Zeros in the weights where the cuts have them; the values are back afterwards, bit for bit."""
    changed = [(cut.candidate.param, found) for cut in cuts if (found := cut.where()) is not None]
    saved = {id(p): (p.data, p.detach().clone()) for p, _ in changed}
    try:
        for param, found in changed:
            param.data.masked_fill_(found, 0)
        yield
    finally:
        for data, value in saved.values():
            data.copy_(value)

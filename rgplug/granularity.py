"""policy.granularity: how the weights of a network are cut into units, and which of them cannot be."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rgplug.channels import FilterChannels, filter_channels
from rgplug.channels.trace import plain_name
from rgplug.coupling import Coupling, parameters
from rgplug.errors import RgplugError
from rgplug.layout import FilterLayout
from rgplug.metrics.sampling import example_inputs, further_arguments
from rgplug.policy import Granularity
from rgplug.select import Candidate
from rgplug.units import Geometry, Units
from rgplug.wrappers import unwrap

BATCH = 2  # images of the forward that a network is traced with
NORMED = "each of its filters is divided by the filter's own norm, so none can be empty"


def divide(
    granularity: Granularity,
    label: str,
    candidates: list[Candidate],
    modules: Mapping[str, nn.Module],
    columns: bool = False,  # whether input columns are pruned too: of weights whose filters have to stay as well
) -> tuple[Units, dict[str, str]]:
    """The units of a network's managed weights, and why some of these cannot be managed under the granularity.

    For `filter` the network is run once, to see which filters are tied; filters that are divided by their own norms
    stay. Raises RgplugError for weights that have no such units, and for a network that cannot be traced.
    """
    managed = {c.name: c for c in candidates if not c.reason}
    fixed: dict[str, str] = {}
    of, coupling = None, None
    readers: dict[str, Tensor] = {}
    if granularity == "filter":
        layouts = {name: layout for name, c in managed.items() if (layout := c.layout) is not None}
        channels = _channels(label, modules, layouts)
        fixed = {name: channels.fixed.get(name, "the trace does not meet it") for name in managed}
        fixed = {name: why for name, why in fixed.items() if name not in channels.of}
        fixed |= {name: NORMED for name, c in managed.items() if _is_normed(c)}
        of = {name: channels.of[name] for name in managed if name not in fixed}
        readers = _readers(managed, fixed, channels) if columns and of else {}
        fixed = {name: why for name, why in fixed.items() if name not in readers}
        of |= readers
        coupling = Coupling(channels.coupled, parameters(unwrap(modules[label])))
        managed = {name: c for name, c in managed.items() if name not in fixed}
        if not managed:
            name, why = next(iter(fixed.items()))
            raise RgplugError(
                f"no filter of {label} can be pruned as a whole ({name}: {why}); set granularity: {{{label}: kernel}} "
                "or weight"
            )
    elif granularity in ("kernel", "2:4"):
        _check_inputs(granularity, label, managed)
    parts = {name: Geometry(c.layout, c.inputs, c.norm_dims) for name, c in managed.items() if c.layout is not None}
    return Units(granularity, parts, of, coupling, frozenset(readers)), fixed


def _readers(managed: Mapping[str, Candidate], fixed: Mapping[str, str], channels: FilterChannels) -> dict[str, Tensor]:
    """Weights that read channels, and whose filters have to stay: each filter as a channel of its own, of new numbers
    (below 0). Not those that are divided by norms of their own."""
    reading = {axis.name for axis in channels.coupled if axis.role == "in"}
    found: dict[str, Tensor] = {}
    number = 0
    for name in fixed:
        layout = managed[name].layout
        if plain_name(name) in reading and layout is not None and not _is_normed(managed[name]):
            found[name] = torch.arange(-number - layout.filters, -number)
            number += layout.filters
    return found


def _channels(label: str, modules: Mapping[str, nn.Module], layouts: Mapping[str, FilterLayout]) -> FilterChannels:
    """Which filters are tied, from one forward: of G on a guessed latent, of D on G's images."""
    try:
        arguments, images = example_inputs(modules["G"], BATCH)
        if label == "D":
            arguments = (images, *further_arguments(unwrap(modules["D"])))
        return filter_channels(modules[label], arguments, layouts)
    except RgplugError as error:
        raise RgplugError(
            f"granularity: filter needs one forward of {label} to see which filters are tied, and that failed "
            f"({error}); set granularity: {{{label}: weight}}, or kernel"
        ) from error


def _is_normed(c: Candidate) -> bool:
    """Whether each filter, or a part of it, is divided by its own norm: weight norm, or one of the network's own."""
    return c.norm_dims is not None and c.layout is not None and c.layout.dim not in c.norm_dims


def _check_inputs(granularity: str, label: str, managed: Mapping[str, Candidate]) -> None:
    for name, c in managed.items():
        assert c.layout is not None
        layout, inputs = c.layout, c.inputs
        shape = list(layout.shape)
        exclude = f"networks: {{{label}: {{exclude: [{name}]}}}}"
        if inputs is None and len(shape) > 1:
            raise RgplugError(
                f"granularity {granularity} cannot tell the input channels of {label}.{name} (shape {shape}, filter "
                f"dim {layout.dim}); leave it out: {exclude}"
            )
        if granularity != "2:4":
            continue
        channels = 1 if inputs is None else shape[inputs] // (layout.groups if inputs == 0 else 1)
        if channels % 4:
            raise RgplugError(
                f"granularity 2:4 needs input channels in fours, and {label}.{name} (shape {shape}) has {channels} for "
                f"each filter; leave it out: {exclude}"
            )
        if c.norm_dims is not None and inputs not in c.norm_dims:
            raise RgplugError(
                f"{label}.{name} is under weight norm along its input channels, which 2:4 could empty; leave it out: "
                f"{exclude}"
            )

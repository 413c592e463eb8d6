"""What belongs to the channels of a network beside the filters that are managed: the columns that read them, the gains
of norms, filters that the policy leaves alone. Criteria that score whole channels (rgplug.importance) look at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from rgplug.channels.trace import Coupled, plain_name
from rgplug.select import named_parameters


@dataclass(frozen=True)
class Coupling:
    """axes: dims of parameters whose entries belong to channels. params: the network's own, by the names in `axes`."""

    axes: tuple[Coupled, ...]
    params: Mapping[str, nn.Parameter]


def parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """The Parameters of a network under the names that they have where spectral and weight norms are folded."""
    return {plain_name(name): param for name, param in named_parameters(network).items()}

"""setup.json in a run's folder: what the run was, for whoever reads its history when the process is gone.

It is written at the first evaluation, when the networks' MACs are known; in a run of a comparison at attach too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from rgplug import files
from rgplug.checks import amount, group, has, needed, whole, word
from rgplug.errors import RgplugError
from rgplug.metrics import LayerMacs
from rgplug.sealed import Damaged, read_json, sealed
from rgplug.version import __version__
from rgplug.wrappers import unwrap

if TYPE_CHECKING:
    from rgplug.network import Network
    from rgplug.policy import Policy

SETUP = "setup.json"
ADVICE = "delete this file, and run again what it belongs to"


@dataclass(frozen=True)
class NetworkFacts:
    """One network of a run. macs: multiply-accumulates for one image by layer; None where they are not known."""

    name: str  # of its class
    parameters: int  # all of the network, managed or not
    weights: Mapping[str, int] = field(repr=False)  # managed weight -> its entries
    macs: LayerMacs | None = field(default=None, repr=False)

    @property
    def managed(self) -> int:
        return sum(self.weights.values())

    def kept(self, layers: Mapping[str, float]) -> int:
        """Parameters that are not pruned, at these densities of the managed weights."""
        return self.parameters - sum(round(n * (1 - layers.get(name, 1.0))) for name, n in self.weights.items())

    def flops(self, layers: Mapping[str, float]) -> float | None:
        """FLOPs of one image through the network at these densities of its weights, 2 MAC x density of the layer."""
        return None if self.macs is None else self.macs.flops(self.macs.of_weights(layers))

    def proportional_flops(self, density: float) -> float | None:
        """The published convention (STU-GAN, Table 2): dense FLOPs x the density of the managed weights together."""
        return None if self.macs is None else self.macs.flops() * density


@dataclass(frozen=True)
class Setup:
    """What a run was: its policy, the command that started it, its networks, and how its metric is to be read."""

    version: str  # of rgplug
    command: tuple[str, ...]  # sys.argv
    policy: Mapping[str, Any]  # every key
    networks: Mapping[str, NetworkFacts]
    batch: Mapping[str, int | None]  # real images per step of D, generated ones per step of G
    samples: int | None  # generated images per evaluation, where rgplug measures
    higher_is_better: bool

    @staticmethod
    def of(
        policy: Policy,
        modules: Mapping[str, nn.Module],
        networks: Mapping[str, Network],  # those of them that are managed
        batch: Mapping[str, int | None],
        macs: Mapping[str, LayerMacs],  # as far as they are known
    ) -> Setup:
        """That of a run as it is now."""
        facts = {
            label: NetworkFacts(
                type(unwrap(module)).__name__,
                sum(p.numel() for p in module.parameters()),
                {w.name: w.numel for w in networks[label].weights} if label in networks else {},
                macs.get(label),
            )
            for label, module in modules.items()
        }
        samples = None if policy.metric is None else policy.metric.samples
        return Setup(
            __version__, tuple(sys.argv), policy.to_dict(), facts, dict(batch), samples, policy.higher_is_better
        )

    def write(self, folder: Path) -> None:
        """Write setup.json whole. OSError where that is not possible."""
        files.write_text(folder / SETUP, json.dumps(sealed(asdict(self)), indent=1, default=str) + "\n")

    @staticmethod
    def read(folder: Path) -> Setup | None:
        """What a run left in its folder; None where there is none. Raises RgplugError for a damaged file."""
        path = folder / SETUP
        if not path.is_file():
            return None
        content = read_json(path, ADVICE)
        try:
            return _read(content)
        except Damaged as error:
            raise RgplugError(f"{path} is damaged: {error}; {ADVICE}") from None


def _read(content: Mapping[str, Any]) -> Setup:
    has(content, ("version", "command", "policy", "networks", "batch", "samples", "higher_is_better"))
    command, policy, networks = content["command"], content["policy"], content["networks"]
    if not isinstance(command, list) or not all(isinstance(part, str) for part in command):
        raise Damaged("command has to be a list of texts")
    if not isinstance(policy, dict) or not isinstance(networks, dict):
        raise Damaged("policy and networks have to be objects")
    if not isinstance(content["higher_is_better"], bool):
        raise Damaged("higher_is_better has to be true or false")
    return Setup(
        word(content, "version"),
        tuple(command),
        policy,
        {label: _network(found) for label, found in networks.items()},
        {k: None if v is None else int(v) for k, v in group(content, "batch", whole).items()},
        whole(content, "samples"),
        content["higher_is_better"],
    )


def _network(found: Any) -> NetworkFacts:
    if not isinstance(found, dict):
        raise Damaged("each network has to be an object")
    has(found, ("name", "parameters", "weights", "macs"))
    weights = {name: int(n) for name, n in group(found, "weights", whole).items() if n is not None}
    macs = found["macs"]
    if macs is not None:
        if not isinstance(macs, dict):
            raise Damaged("macs has to be an object")
        layers = {name: n for name, n in group(macs, "layers", amount).items() if n is not None}
        macs = LayerMacs(layers, amount(macs, "total") or 0.0, word(macs, "source"))
    return NetworkFacts(word(found, "name"), needed(found, "parameters"), weights, macs)

"""Snapshots of a pair of networks, and files of masks: what one run leaves for the runs that build on it.

Both are safetensors with a checksum (see rgplug.state); reading one can run no code. A snapshot holds every parameter
and buffer of G and D (a pruned weight as 0), where asked for the moments of their optimizers, and what the run's
policy has pruned as a whole (granularity), which the next masks are made of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rgplug import state
from rgplug.devices import optimizer_value
from rgplug.errors import RgplugError
from rgplug.select import misfit, named_parameters, named_tensors
from rgplug.units import Units

Tensors = dict[str, Tensor]
Masks = dict[str, dict[str, Tensor]]


def moments_of(network: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, dict[str, Any]]:
    """What the optimizers keep of each parameter (exp_avg, exp_avg_sq, step, ...), by its name."""
    given = list(optimizers)
    return {
        name: dict(optimizer.state[param])
        for name, param in named_parameters(network).items()
        for optimizer in given
        if optimizer.state.get(param)
    }


def save(
    path: Path,
    networks: Mapping[str, Tensors],
    optimizers: Mapping[str, Any] | None = None,
    units: Mapping[str, Units] | None = None,
) -> None:
    """Write a snapshot, whole or not at all."""
    held = {
        "networks": {},
        "kind": "pair",
        "pair": dict(networks),
        "optimizers": dict(optimizers or {}),
        # single weights need no description
        "units": {k: u.to_dict() for k, u in (units or {}).items() if u.granularity != "weight"},
    }
    state.save(path, held)


def save_masks(path: Path, masks: Masks) -> None:
    """Write masks {network: {weight: bool tensor}}, 8 entries a byte."""
    packed = {
        label: {name: {"bits": state.pack_mask(m), "shape": list(m.shape)} for name, m in net.items()}
        for label, net in masks.items()
    }
    state.save(path, {"networks": {}, "kind": "masks", "masks": packed})


def read(path: str | Path, kind: str = "pair") -> dict[str, Any]:
    """What `save` or `save_masks` wrote. Raises RgplugError for a missing, damaged or other file."""
    if not Path(path).is_file():
        what = "snapshot of a trained pair" if kind == "pair" else "file of masks"
        raise RgplugError(
            f"there is no {what} {path}; let an earlier run leave one (policy.snapshots: {{folder: ...}}, rg.snapshot) "
            "and name it"
        )
    held = state.load(path)
    if held.get("kind") != kind:
        raise RgplugError(f"{path} is no {'snapshot' if kind == 'pair' else 'file of masks'}; it holds something else")
    if kind == "pair":
        held["units"] = {label: Units.from_dict(u) for label, u in held.get("units", {}).items()}
    if kind == "masks":
        held["masks"] = {
            label: {name: state.unpack_mask(m["bits"], m["shape"]) for name, m in net.items()}
            for label, net in held["masks"].items()
        }
    return held


def load_masks(path: str | Path, network: str, shapes: Mapping[str, tuple[int, ...]]) -> list[Tensor]:
    """Masks of one network for weights of these names and shapes, in their order; all kept where the file has none of
    the network. Raises RgplugError where names or shapes differ."""
    held: dict[str, Tensor] = read(path, "masks")["masks"].get(network, {})
    if not held:
        return [torch.ones(shape, dtype=torch.bool) for shape in shapes.values()]
    for name, shape in shapes.items():
        if name not in held or tuple(held[name].shape) != shape:
            found = f"of shape {list(held[name].shape)}" if name in held else "missing"
            raise RgplugError(
                f"{path}: the mask of {network}.{name} (shape {list(shape)}) is {found}; "
                "give masks of the same network and patterns"
            )
    extra = sorted(set(held) - set(shapes))
    if extra:
        raise RgplugError(
            f"{path} masks {network}.{extra[0]}, which this policy does not manage; use the same patterns"
        )
    empty = next((name for name in shapes if not held[name].any()), None)
    if empty is not None:
        raise RgplugError(
            f"{path} keeps no weight of {network}.{empty}; exclude that layer, or keep its largest weight"
        )
    return [held[name] for name in shapes]


class Start:
    """The snapshot that a policy starts from: checked as a whole before anything is changed."""

    def __init__(self, path: str, networks: Iterable[str], optimizers: bool):
        self.path = path
        held = read(path)
        self._pair: dict[str, Tensors] = {k: v for k, v in held["pair"].items() if k in set(networks)}
        self._moments: dict[str, dict[str, Any]] = held["optimizers"] if optimizers else {}
        if optimizers and not any(self._moments.values()):
            raise RgplugError(
                f"{path} holds no optimizer states; let the run that makes it step first and keep them "
                "(policy.snapshots: {optimizers: true}), or set start: {optimizers: false}"
            )

    def load(self, modules: Mapping[str, nn.Module]) -> None:
        """Weights and buffers into the networks, bit for bit. Raises RgplugError for other networks."""
        for label, saved in self._of(modules).items():
            wrong = misfit(saved, named_tensors(modules[label]))
            if wrong:
                raise RgplugError(f"{self.path} is of another {label}: {wrong}; give a snapshot of the same networks")
        with torch.no_grad():
            for label, saved in self._of(modules).items():
                for name, tensor in named_tensors(modules[label]).items():
                    tensor.copy_(saved[name])

    def _of(self, modules: Mapping[str, nn.Module]) -> dict[str, Tensors]:
        """The saved networks that are here; where D is not attached, its part is left out."""
        found = {label: saved for label, saved in self._pair.items() if label in modules}
        if not found:
            raise RgplugError(f"{self.path} holds {', '.join(self._pair) or 'no network'}, and no {', '.join(modules)}")
        return found

    def fill(self, optimizer: torch.optim.Optimizer, modules: Mapping[str, nn.Module]) -> None:
        """The saved moments into an optimizer that has none yet; what the host has loaded itself stays."""
        if optimizer.state:
            return
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        for label, moments in self._moments.items():
            for name, param in named_parameters(modules[label]).items() if label in modules else ():
                if name in moments and id(param) in groups:
                    group = groups[id(param)]
                    optimizer.state[param] = {k: optimizer_value(k, v, param, group) for k, v in moments[name].items()}

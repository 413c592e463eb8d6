"""Snapshots of a pair of networks, and files of masks: what one run leaves for the runs that build on it.

Both are safetensors with a checksum (see rgplug.state); reading one can run no code. A snapshot holds every parameter
and buffer of G and D (a pruned weight as 0), where asked for the moments of their optimizers, and what the run's
policy has pruned as a whole (granularity), which the next masks are made of. Scores of filters are in it where the
policy asks for them (snapshots: {scores: [...]}, rgplug.filter_scores). The best snapshots of a run also hold the
evaluation they are of, and the moving average that was measured, as a further network (AVERAGE).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from rgplug import expected, filter_scores, state
from rgplug.devices import optimizer_value
from rgplug.errors import RgplugError
from rgplug.moments import misfit_moments
from rgplug.select import misfit, named_parameters, named_tensors
from rgplug.units import Units

AVERAGE = "G_ema"  # the moving average of G in a pair
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
    evaluation: Mapping[str, Any] | None = None,  # it is of: epoch, metric, metric_name, phase
    *,
    scores: Mapping[str, Any] | None = None,  # network -> what FilterScores.to_dict gives
    keep: bool = False,  # the file before stays as files.previous_of(path)
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
    if evaluation is not None:
        held["evaluation"] = dict(evaluation)
    if scores:
        held["scores"] = dict(scores)
    state.save(path, held, keep=keep)


def epoch_of(path: Path) -> int | None:
    """The epoch of the evaluation that a snapshot says it is of, from its header alone; None where there is none."""
    try:
        with safe_open(str(path), framework="pt") as file:
            epoch = json.loads((file.metadata() or {})["state"])["evaluation"]["epoch"]
        return epoch if type(epoch) is int else None
    except Exception:  # a file that cannot be read for whatever reason is of no evaluation
        return None


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
    wrong = _misfit_pair(held) if kind == "pair" else _misfit_masks(held.get("masks"))
    if not wrong and kind == "pair":
        try:
            held["units"] = {label: Units.from_dict(u) for label, u in held.get("units", {}).items()}
        except Exception as error:  # whatever comes of numbers that do not belong together
            wrong = f"describes no granularity ({state.first_line(error)})"
    if not wrong and kind == "pair":
        wrong = filter_scores.restore(held)
    if wrong:
        raise RgplugError(f"{path} is damaged: it {wrong}; let the run that made it write it again")
    if kind == "masks":
        held["masks"] = {
            label: {name: state.unpack_mask(m["bits"], m["shape"]) for name, m in net.items()}
            for label, net in held["masks"].items()
        }
    return held


def _misfit_pair(held: Mapping[str, Any]) -> str:
    """What is wrong with a snapshot by itself, as half a sentence; "" if nothing is."""
    found, optimizers, units = held.get("pair"), held.get("optimizers", {}), held.get("units", {})
    pair: dict[str, Any] = found if isinstance(found, dict) else {}
    tensors = [net if isinstance(net, dict) else {"": None} for net in pair.values()]
    if not tensors or not all(isinstance(t, Tensor) for net in tensors for t in net.values()):
        return "holds no networks"
    moments = list(optimizers.values()) if isinstance(optimizers, dict) else [None]
    if not all(isinstance(net, dict) and all(isinstance(m, dict) for m in net.values()) for net in moments):
        return "holds no optimizer states that can be read"
    every = [*units.items()] if isinstance(units, dict) else [("", None)]
    every += filter_scores.described(held.get("scores", {}))
    for label, described in every:
        weights = described.get("weights") if isinstance(described, dict) else None
        if not isinstance(weights, dict) or label not in pair:
            return "describes no granularity that can be read"
        for name, geometry in weights.items():
            own = pair[label].get(name)
            # sizes first: memory is taken for what they say
            if own is None or not isinstance(geometry, dict) or geometry.get("shape") != list(own.shape):
                return f"describes {label}.{name} as another weight than it holds"
    return ""


def _misfit_masks(masks: Any) -> str:
    for label, net in masks.items() if isinstance(masks, dict) else [("", None)]:
        if not isinstance(net, dict):
            return "holds no masks"
        for name, mask in net.items():
            count = state.entries(mask.get("shape")) if isinstance(mask, dict) else None
            if count is None or expected.tensor([-(-count // 8)], torch.uint8)(mask.get("bits")):
                return f"holds no mask of {label}.{name} that can be read"
    return ""


def load_masks(
    path: str | Path,
    network: str,
    shapes: Mapping[str, tuple[int, ...]],
    known: Collection[str] = (),  # further weights that the file may have masks of: those that do not train at present
    undecided: Collection[str] = (),  # weights that it may lack, since they may turn out not to train
) -> list[Tensor]:
    """Masks of one network for weights of these names and shapes, in their order; all kept where the file has none of
    the network, or of an undecided weight. Raises RgplugError where names or shapes differ."""
    held: dict[str, Tensor] = read(path, "masks")["masks"].get(network, {})
    if not held:
        return [torch.ones(shape, dtype=torch.bool) for shape in shapes.values()]
    held |= {n: torch.ones(shapes[n], dtype=torch.bool) for n in undecided if n not in held}
    for name, shape in shapes.items():
        if name not in held or tuple(held[name].shape) != shape:
            found = f"of shape {list(held[name].shape)}" if name in held else "missing"
            raise RgplugError(
                f"{path}: the mask of {network}.{name} (shape {list(shape)}) is {found}; "
                "give masks of the same network and patterns"
            )
    extra = sorted(set(held) - set(shapes) - set(known))
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
            own = named_tensors(modules[label])
            wrong = misfit(saved, own) or _other_kind(saved, own)
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
        found: list[tuple[nn.Parameter, Mapping[str, Any]]] = []
        for label, moments in self._moments.items():
            for name, param in named_parameters(modules[label]).items() if label in modules else ():
                if name in moments and id(param) in groups:
                    wrong = _misfit_moments(optimizer, groups[id(param)], moments[name], param)
                    if wrong:
                        raise RgplugError(
                            f"{self.path} holds moments of {label}.{name} that are none of {type(optimizer).__name__}: "
                            f"{wrong}; use the optimizer that the snapshot was made with, or set start: "
                            "{optimizers: false}"
                        )
                    found.append((param, moments[name]))
        for param, own in found:
            group = groups[id(param)]
            optimizer.state[param] = {k: optimizer_value(k, v, param, group) for k, v in own.items()}


def _other_kind(saved: Tensors, own: Tensors) -> str:
    """Names a tensor that is whole numbers or complex on one side only, as half a sentence; "" if there is none."""

    def kind(x: Tensor) -> tuple[bool, bool]:
        return x.is_floating_point(), x.is_complex()

    name = next((n for n in own if kind(saved[n]) != kind(own[n])), None)
    return "" if name is None else f"it has {saved[name].dtype} for {name!r}, and the network has {own[name].dtype}"


def _misfit_moments(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], moments: Mapping[str, Any], param: nn.Parameter
) -> str:
    """What is wrong with moments for a parameter of an optimizer, as half a sentence; "" if nothing is."""
    settings = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    try:
        return misfit_moments(type(optimizer), settings, moments, param)
    except Exception:  # an optimizer that cannot be made from its settings alone, or steps with a closure only
        for key, value in moments.items():
            if isinstance(value, Tensor) and value.dim() and value.shape != param.shape:
                return f"{key!r} has shape {list(value.shape)}, and {list(param.shape)} is needed"
        return ""

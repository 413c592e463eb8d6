"""State files: safetensors with masks packed to bits and a checksum. Reading one can run no code.

Layout: tensors `<network>/<weight>/<what>`; `mask` as packed bits (uint8, 8 entries a byte), `dormant` as the values at
the pruned positions only, in memory order; everything that is no tensor as JSON in the file's metadata.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rgplug.errors import RgplugError

if TYPE_CHECKING:
    from rgplug.masking import MaskedWeight
    from rgplug.network import Network

FORMAT = 1


def pack_mask(mask: Tensor) -> Tensor:
    """bool of any shape -> uint8 [ceil(numel / 8)], 8 entries a byte."""
    return torch.from_numpy(np.packbits(mask.detach().cpu().contiguous().view(-1).numpy()))


def unpack_mask(packed: Tensor, shape: list[int]) -> Tensor:
    """The reverse of `pack_mask`."""
    count = int(np.prod(shape))
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=count).astype(bool)).view(shape)


def save(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write a controller's state, whole or not at all."""
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    plain = _strip({k: v for k, v in state.items() if k != "networks"}, tensors, "controller")
    plain["networks"] = {}
    for network, net in state["networks"].items():
        own = {k: v for k, v in net.items() if k != "weights"}
        plain["networks"][network] = _strip(own, tensors, network)
        plain["networks"][network]["weights"] = {}
        for name, weight in net["weights"].items():
            prefix = f"{network}/{name}"
            mask = weight["mask"].cpu()
            tensors[f"{prefix}/mask"] = pack_mask(mask)
            tensors[f"{prefix}/dormant"] = weight["dormant"].cpu()[~mask]
            rest = {k: v for k, v in weight.items() if k not in ("mask", "dormant")}
            plain["networks"][network]["weights"][name] = {"shape": list(mask.shape), **_strip(rest, tensors, prefix)}
    metadata = {"format": "rgplug", "version": str(FORMAT), "state": json.dumps(plain), "sha256": ""}
    metadata["sha256"] = _digest(tensors, metadata["state"])
    partial = path.with_name(path.name + f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        mode = partial.stat().st_mode  # what the user's umask gives; safetensors makes its files private
        save_file(tensors, str(partial), metadata=metadata)
        partial.chmod(mode)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise RgplugError(
            f"the state could not be written to {path}: {error}; an earlier file there is untouched"
        ) from error
    finally:
        if partial.is_file():
            partial.unlink()


def load(path: str | Path) -> dict[str, Any]:
    """Read what `save` wrote. Raises RgplugError for a missing, truncated, corrupt, foreign or newer file."""
    path = Path(path)
    if not path.is_file():
        raise RgplugError(f"there is no state file {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise RgplugError(f"{path} is truncated or corrupt ({error}); use an earlier state file") from error
    if metadata.get("format") != "rgplug":
        raise RgplugError(f"{path} is no rgplug state file; give the file that rg.save() wrote")
    if not metadata.get("version", "").isdigit():
        raise RgplugError(f"{path} is corrupt (it has no format number); use an earlier state file")
    if int(metadata["version"]) > FORMAT:
        raise RgplugError(
            f"{path} was written by a newer rgplug (format {metadata['version']}, this one reads {FORMAT}); update it"
        )
    if metadata.get("sha256") != _digest(tensors, metadata.get("state", "")):
        raise RgplugError(f"{path} is corrupt (its checksum does not match); use an earlier state file")
    state = _fill(json.loads(metadata["state"]), tensors)
    for network, net in state["networks"].items():
        for name, weight in net["weights"].items():
            prefix, shape = f"{network}/{name}", weight.pop("shape")
            weight["mask"] = unpack_mask(tensors[f"{prefix}/mask"], shape)
            values = tensors[f"{prefix}/dormant"]
            weight["dormant"] = torch.zeros(shape, dtype=values.dtype)
            weight["dormant"][~weight["mask"]] = values
    return state


def fit(state: Mapping[str, Any], networks: Mapping[str, Network]) -> None:
    """Raise RgplugError unless the state is one of these networks, weight by weight."""
    needed = ("policy", "epoch", "networks", "accounting", "last_counts", "regeneration")
    missing = [key for key in needed if key not in state]
    if missing:
        raise RgplugError(f"the state has no {missing[0]!r}; give what rg.state_dict() or rg.save() made")
    for label, net in networks.items():
        own = state["networks"].get(label, {}).get("weights")
        if own is None:
            raise RgplugError(f"the state holds {', '.join(state['networks']) or 'no network'}, and no {label}")
        undecided = {w.name for w in net.weights if w.waits} | set(net.aside)  # frozen until now
        for w in net.all_weights:
            if w.name in undecided and w.name not in own:
                continue
            shape = list(w.param.shape)
            if w.name not in own:
                held = ", ".join(f"{k} {list(v['mask'].shape)}" for k, v in list(own.items())[:3])
                raise RgplugError(
                    f"the state has no weight {label}.{w.name} (shape {shape} in this network; the state holds "
                    f"{held}); "
                    "load a state of the same network and patterns"
                )
            saved = list(own[w.name]["mask"].shape)
            if saved != shape:
                raise RgplugError(
                    f"the state's {label}.{w.name} has shape {saved}, this network's has {shape}; "
                    "load a state of the same network"
                )
            _complete(own[w.name], w, f"{label}.{w.name}")
        for key in ("sparse", "iteration", "counters"):
            if key not in state["networks"][label]:
                raise RgplugError(f"the state of {label} has no {key!r}; it is damaged")
        extra = sorted(set(own) - {w.name for w in net.all_weights})
        if extra:
            raise RgplugError(
                f"the state manages {label}.{extra[0]} (shape {list(own[extra[0]]['mask'].shape)}), which this policy "
                "does not; attach with the patterns that the state was made with"
            )


def _complete(own: Mapping[str, Any], weight: MaskedWeight, name: str) -> None:
    shapes = {"dormant": tuple(weight.param.shape), "steps": None}
    if weight.threshold is not None:
        shapes["threshold"] = (weight.layout.filters,)
    for key, shape in shapes.items():
        if key not in own or (shape is not None and tuple(own[key].shape) != shape):
            raise RgplugError(f"the state's {name} has no fitting {key!r}; it is damaged")


def _strip(value: Any, tensors: dict[str, Tensor], path: str) -> Any:
    """`value` with every tensor moved to `tensors` and a reference to it left in its place."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {"tensor": path}
    if isinstance(value, Mapping):
        return {k: _strip(v, tensors, f"{path}/{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strip(v, tensors, f"{path}/{i}") for i, v in enumerate(value)]
    return value


def _fill(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if set(value) == {"tensor"}:
            return tensors[value["tensor"]]
        return {k: _fill(v, tensors) for k, v in value.items()}
    return [_fill(v, tensors) for v in value] if isinstance(value, list) else value


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for key in sorted(tensors):
        t = tensors[key]
        digest.update(f"{key} {t.dtype} {list(t.shape)}".encode())
        digest.update(t.contiguous().view(torch.uint8).numpy().tobytes() if t.dim() else t.numpy().tobytes())
    return digest.hexdigest()

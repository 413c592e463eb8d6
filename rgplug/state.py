"""State files: safetensors with masks packed to bits and a checksum. Reading one can run no code.

Layout: tensors `<network>/<weight>/<what>`; `mask` as packed bits (uint8, 8 entries a byte), `dormant` as the values at
the pruned positions only, in memory order; everything that is no tensor as JSON in the file's metadata.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rgplug import files
from rgplug.errors import RgplugError
from rgplug.expected import short, whole
from rgplug.meaning import difference

if TYPE_CHECKING:
    from rgplug.network import Network
    from rgplug.policy import Policy

FORMAT = 1


def pack_mask(mask: Tensor) -> Tensor:
    """bool of any shape -> uint8 [ceil(numel / 8)], 8 entries a byte."""
    return torch.from_numpy(np.packbits(mask.detach().cpu().contiguous().view(-1).numpy()))


def unpack_mask(packed: Tensor, shape: list[int]) -> Tensor:
    """The reverse of `pack_mask`."""
    count = int(np.prod(shape))
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=count).astype(bool)).view(shape)


def save(path: str | Path, state: Mapping[str, Any], *, keep: bool = False) -> None:
    """Write a controller's state, whole or not at all. keep: the file before stays as `files.previous_of(path)`, unless
    it belongs to the same weights (a snapshot belongs to none), or is damaged."""
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
    before = fingerprints(path) if keep else None
    keep = before is not None and (not before or before != fingerprints_of(plain))
    try:
        files.write_whole(path, lambda partial: save_file(tensors, str(partial), metadata=metadata), keep=keep)
    except (OSError, SafetensorError) as error:
        raise RgplugError(
            f"the state could not be written to {path}: {error}; an earlier file there is untouched"
        ) from error


def load(path: str | Path, networks: Mapping[str, Network] | None = None) -> dict[str, Any]:
    """Read what `save` wrote. Raises RgplugError for a missing, truncated, corrupt, foreign or newer file, and, before
    its tensors are read, where `networks` are given and have other weights."""
    path = Path(path)
    if not path.is_file():
        raise RgplugError(f"there is no state file {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            _check_version(path, metadata)
            plain = _parsed(path, metadata)
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
            _check_weights(path, plain, shapes)
            if networks is not None:
                same_weights(_shapes(plain), networks, _aside(plain))
            tensors = {key: file.get_tensor(key) for key in shapes}
    except RgplugError:
        raise
    except Exception as error:  # whatever the reader makes of a file that anybody may have written
        raise RgplugError(f"{path} is truncated or corrupt ({first_line(error)}); use an earlier state file") from error
    if metadata.get("sha256") != _digest(tensors, metadata["state"]):
        raise RgplugError(f"{path} is corrupt (its checksum does not match); use an earlier state file")
    try:
        state: dict[str, Any] = _fill(plain, tensors)
        for network, net in state["networks"].items():
            for name, weight in net["weights"].items():
                shape = weight.pop("shape")
                weight["mask"], weight["dormant"] = _mask_and_dormant(tensors, f"{network}/{name}", shape)
    except (KeyError, ValueError, RecursionError) as error:
        raise RgplugError(f"{path} is damaged ({first_line(error)}); use an earlier state file") from error
    return state


def fingerprints(path: Path) -> dict[str, int] | None:
    """Of the weights that a state file belongs to, by network, from its header alone; None where it is no state."""
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
        return fingerprints_of(json.loads(metadata["state"])) if metadata.get("format") == "rgplug" else None
    except Exception:  # a file that cannot be read for whatever reason belongs to no weights
        return None


def fingerprints_of(state: Mapping[str, Any]) -> dict[str, int]:
    """The same of a state; {} of one from before there were fingerprints."""
    return {label: net["fingerprint"] for label, net in state["networks"].items() if "fingerprint" in net}


def fit(
    state: Any,
    policy: Policy,
    networks: Mapping[str, Network],
    parts: Mapping[str, Callable[[Any], str] | None],
) -> None:
    """Raise RgplugError unless all of a state can be taken over. Nothing is changed.

    parts: what else the state is of; each says what is wrong with its piece, as half a sentence. None: this controller
    has no such part, and the state may have none.
    """
    needed = ("policy", "epoch", "networks", "accounting", "last_counts", "regeneration")
    missing = needed if not isinstance(state, Mapping) else [key for key in needed if key not in state]
    if missing:
        raise RgplugError(f"the state has no {missing[0]!r}; give what rg.state_dict() or rg.save() made")
    if not isinstance(state["networks"], Mapping):
        raise RgplugError("the state's networks are no dict; it is damaged")
    for label, net in state["networks"].items():
        weights = net.get("weights") if isinstance(net, Mapping) else None
        if not isinstance(weights, Mapping) or not all(isinstance(w, Mapping) for w in weights.values()):
            raise RgplugError(f"the state of {label} holds no weights; it is damaged")
    same_weights(_shapes(state), networks, _aside(state))
    unlike = difference(state["policy"], policy.to_dict(), networks)
    if unlike:
        raise RgplugError(f"{unlike}; attach with the policy that the state was made with")
    extra = next((label for label in state["networks"] if label not in networks), None)
    if extra is not None:
        raise RgplugError(f"the state also holds {extra}, which is not managed here; attach the same networks")
    for label, net in networks.items():
        wrong = net.misfit(state["networks"][label])
        if wrong:
            raise RgplugError(f"{wrong}; give a state of the same set-up, undamaged")
    for key, misfit in {"epoch": whole(), **parts}.items():
        value = state.get(key)
        if misfit is None:
            wrong = "" if value is None else "is of something that this policy does not have"
        else:
            wrong = misfit(value)
        if wrong:
            raise RgplugError(f"the state's {key} {wrong}; give a state of the same set-up, undamaged")


def same_weights(
    saved: Mapping[str, Mapping[str, list[int]]], networks: Mapping[str, Network], aside: Mapping[str, Any]
) -> None:
    """Raise RgplugError unless the saved weights, network -> name -> shape, are those of the networks.

    aside: network -> those that were set aside when the state was saved, since they did not train.
    """
    for label, net in networks.items():
        if label not in saved:
            raise RgplugError(f"the state holds {', '.join(map(str, saved)) or 'no network'}, and no {label}")
        own = saved[label]
        undecided = net.undecided() | set(aside.get(label, ()))
        for w in net.all_weights:
            if w.name in undecided and w.name not in own:
                continue
            shape = list(w.param.shape)
            if w.name not in own:
                held = ", ".join(f"{k} {v}" for k, v in list(own.items())[:3])
                raise RgplugError(
                    f"the state has no weight {label}.{w.name} (shape {shape} in this network; the state holds "
                    f"{held}); "
                    "load a state of the same network and patterns"
                )
            if own[w.name] != shape:
                raise RgplugError(
                    f"the state's {label}.{w.name} has shape {own[w.name]}, this network's has {shape}; "
                    "load a state of the same network"
                )
        extra = sorted(set(map(str, own)) - {w.name for w in net.all_weights})
        if extra:
            raise RgplugError(
                f"the state manages {label}.{extra[0]} (shape {own.get(extra[0])}), which this policy "
                "does not; attach with the patterns that the state was made with"
            )


def _shapes(state: Mapping[str, Any]) -> dict[str, dict[str, list[int]]]:
    """network -> weight -> shape, of a state or of the text in a file."""

    def shape(weight: Mapping[str, Any]) -> list[int]:
        mask = weight.get("mask")
        return list(mask.shape) if isinstance(mask, Tensor) else weight.get("shape", [])

    return {label: {name: shape(w) for name, w in net["weights"].items()} for label, net in state["networks"].items()}


def _aside(state: Mapping[str, Any]) -> dict[str, list[str]]:
    """network -> weights that were set aside; none in states from before that was kept."""
    held = {label: net.get("aside") for label, net in state["networks"].items()}
    return {label: list(map(str, names)) for label, names in held.items() if isinstance(names, Mapping)}


def _check_version(path: Path, metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != "rgplug":
        raise RgplugError(f"{path} is no rgplug state file; give the file that rg.save() wrote")
    version = metadata.get("version", "")
    if not (version.isascii() and version.isdigit() and len(version) < 10):
        raise RgplugError(f"{path} is corrupt (it has no format number); use an earlier state file")
    if int(version) > FORMAT:
        raise RgplugError(
            f"{path} was written by a newer rgplug (format {version}, this one reads {FORMAT}); update it"
        )


def _parsed(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Everything that is no tensor: a dict with `networks`, and in each of them `weights`."""
    try:
        plain = json.loads(metadata.get("state", ""))
    except (ValueError, RecursionError) as error:
        raise RgplugError(f"{path} is corrupt ({first_line(error)}); use an earlier state file") from error
    networks = plain.get("networks") if isinstance(plain, dict) else None
    nets = list(networks.values()) if isinstance(networks, dict) else [None]
    weights = [net.get("weights") if isinstance(net, dict) else None for net in nets]
    if not all(isinstance(own, dict) and all(isinstance(w, dict) for w in own.values()) for own in weights):
        raise RgplugError(f"{path} is damaged (it names no networks with their weights); use an earlier state file")
    found: dict[str, Any] = plain
    return found


def _check_weights(path: Path, plain: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> None:
    """The shapes that weights are said to have come to what is in the file, before memory is taken for them."""
    for label, net in plain["networks"].items():
        for name, weight in net["weights"].items():
            shape, packed = weight.get("shape"), shapes.get(f"{label}/{name}/mask")
            count = entries(shape)
            if count is None or packed is None or list(packed) != [-(-count // 8)]:
                raise RgplugError(
                    f"{path} is damaged ({label}.{name} has the shape {short(shape)}, and no mask of as many bits); "
                    "use an earlier state file"
                )
            dormant = shapes.get(f"{label}/{name}/dormant")
            if dormant is None or len(dormant) != 1 or dormant[0] > count:
                raise RgplugError(
                    f"{path} is damaged ({label}.{name} has no fitting dormant values); use an earlier state file"
                )


def entries(shape: Any) -> int | None:
    """How many entries a shape from a file has; None where it is no list of sizes."""
    if not isinstance(shape, (list, tuple)) or not all(type(n) is int and 0 <= n < 2**62 for n in shape):
        return None
    return math.prod(shape)


def _mask_and_dormant(tensors: Mapping[str, Tensor], prefix: str, shape: list[int]) -> tuple[Tensor, Tensor]:
    packed, values = tensors[f"{prefix}/mask"], tensors[f"{prefix}/dormant"]
    if packed.dtype != torch.uint8 or not values.is_floating_point() or values.element_size() == 1:
        raise ValueError(f"{prefix} has a mask of {packed.dtype} and dormant values of {values.dtype}")
    mask = unpack_mask(packed, shape)
    if int((~mask).sum()) != values.numel():
        raise ValueError(f"{prefix} has {values.numel()} dormant values and another number of pruned entries")
    dormant = torch.zeros(shape, dtype=values.dtype)
    dormant[~mask] = values
    return mask, dormant


def first_line(error: BaseException) -> str:
    """For a sentence: the reason without what hangs below it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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
        if set(value) == {"tensor"} and isinstance(value["tensor"], str):
            return tensors[value["tensor"]]
        return {k: _fill(v, tensors) for k, v in value.items()}
    return [_fill(v, tensors) for v in value] if isinstance(value, list) else value


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for key in sorted(tensors):
        t = tensors[key]
        digest.update(f"{key} {t.dtype} {list(t.shape)}".encode())
        digest.update(t.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

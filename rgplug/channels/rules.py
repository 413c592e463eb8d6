"""What other operations do to labels: views and concatenations move them, norms and gates tie them, sums lose them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rgplug.channels.contractions import read
from rgplug.channels.labels import compressed, joined, varying

if TYPE_CHECKING:
    from rgplug.channels.mode import LabelMode


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


SHAPES = _names(
    "view _unsafe_view reshape permute transpose t expand slice select unsqueeze squeeze clone alias detach contiguous "
    "flip repeat index_select roll pixel_shuffle pixel_unshuffle split split_with_sizes unbind chunk narrow diagonal "
    "_to_copy lift_fresh lift_fresh_copy embedding index gather unflatten flatten _reshape_alias"
)
SPATIAL = _names(
    "avg_pool2d max_pool2d_with_indices adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d "
    "upsample_nearest2d _upsample_nearest_exact2d upsample_bilinear2d _upsample_bilinear2d_aa upsample_bicubic2d "
    "_upsample_bicubic2d_aa reflection_pad2d replication_pad2d grid_sampler_2d"
)
REDUCTIONS = _names(
    "sum mean var std var_mean std_mean amax amin linalg_vector_norm norm logsumexp prod max min argmax all any "
    "_softmax _log_softmax"
)
BATCH_NORMS = _names(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_with_update "
    "_batch_norm_no_update cudnn_batch_norm miopen_batch_norm"
)


SUMS = ("sum", "linalg_vector_norm")  # 0 adds nothing to them


def reshape(mode: LabelMode, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> list[Tensor]:
    """Views, permutations, slices: labels move with the elements."""
    at = next(i for i, a in enumerate(args) if isinstance(a, Tensor) and mode.slots(a))
    for i, other in enumerate(args):
        if i != at:
            mode.lose(other, name)
    results: list[list[Tensor]] = [[] for _ in (out if isinstance(out, (list, tuple)) else (out,))]
    plain = {k: v for k, v in kwargs.items() if k not in ("dtype", "device", "layout", "pin_memory")}
    for slot in mode.slots(args[at]):
        moved = [*args]
        moved[at] = slot.to(args[at].device).expand(args[at].shape)
        # a slot's strides are not the tensor's: what is a view there may be a copy here
        done = (
            moved[at].reshape(args[1]) if name in ("view", "_unsafe_view", "_reshape_alias") else func(*moved, **plain)
        )
        for parts, part in zip(results, done if isinstance(done, (list, tuple)) else (done,)):
            parts.append(compressed(part).cpu())
    for x, parts in zip(out if isinstance(out, (list, tuple)) else (out,), results):
        mode.remember(x, parts)
    return results[0]


def cat(mode: LabelMode, given: dict[str, Any], out: Tensor) -> list[Tensor]:
    parts, dim = given["tensors"], given.get("dim", 0)
    rows = []
    for i in range(max(len(mode.slots(p)) for p in parts)):
        pieces = []
        for p in parts:
            slots = mode.slots(p)
            pieces.append(
                slots[i].expand(p.shape) if i < len(slots) else torch.full(p.shape, -1.0, dtype=torch.float64)
            )
        rows.append(compressed(torch.cat(pieces, dim)))
    return rows


def stack(mode: LabelMode, given: dict[str, Any], out: Tensor) -> list[Tensor]:
    mode.lose(given["tensors"], "stack")
    return []


def constant_pad_nd(mode: LabelMode, given: dict[str, Any], out: Tensor) -> list[Tensor]:
    pad, x = given["pad"], given["self"]
    dims = {x.dim() - 1 - i // 2 for i, n in enumerate(pad) if n}
    found = []
    for slot in mode.slots(x):
        if dims & set(varying(slot)):
            slot = compressed(torch.constant_pad_nd(slot.expand(x.shape), pad, -1.0))
        found.append(slot)
    return found


def glu(mode: LabelMode, given: dict[str, Any], out: Tensor) -> list[Tensor]:
    """The first half of the channels times a gate made of the second."""
    found = []
    for slot in mode.slots(given["self"]):
        value, gate = slot.expand(given["self"].shape).chunk(2, given.get("dim", -1))
        found += joined(mode.labels, [[compressed(value)], [compressed(gate)]], out.dim(), "glu")
    return found


def norm(mode: LabelMode, given: dict[str, Any], dim: int) -> list[Tensor]:
    """Batch norm: gain, bias and running statistics belong to the channel."""
    x = given["input"]
    slots = mode.each_along(x, dim)
    for key in ("weight", "bias", "running_mean", "running_var"):
        for own in mode.slots(given.get(key)):
            for slot in slots:
                mode.labels.tie(slot.flatten(), own.flatten())
            if not slots:
                mode.labels.fix(own, "it normalizes something other than channels")
    return slots


def native_group_norm(mode: LabelMode, given: dict[str, Any], out: Any) -> list[Tensor]:
    slots = norm(mode, given, 1)
    if given["group"] != given["C"]:
        mode.lose(given["input"], "group norm")
    return slots


def native_layer_norm(mode: LabelMode, given: dict[str, Any], out: Any) -> list[Tensor]:
    x = given["input"]
    last = range(x.dim() - len(given["normalized_shape"]), x.dim())
    kept = [s for s in mode.slots(x) if not set(last) & set(varying(s))]
    mode.lose([x, given.get("weight"), given.get("bias")], "layer norm")
    return kept


def reduce(mode: LabelMode, name: str, given: dict[str, Any], out: Any) -> list[Tensor]:
    """Sums and norms leave out a channel that is 0; means and softmax count it."""
    x = given["self"]
    dim = given.get("dim")
    dims = (
        range(x.dim()) if dim is None or dim == [] else [d % x.dim() for d in (dim if isinstance(dim, list) else [dim])]
    )
    keeps = "softmax" in name or given.get("keepdim", False)
    found = []
    for slot in mode.slots(x):
        if along := [d for d in varying(slot) if d in dims]:
            if name in SUMS and len(varying(slot)) == 1:
                values = x.detach().movedim(along[0], 0).flatten(1)
                read(mode, slot.flatten(), values, torch.ones(len(values)), by=name)
            else:
                mode.labels.fix(slot, f"{name.strip('_')} counts it among other channels")
        elif keeps:
            found.append(slot)
        else:
            found.append(slot.reshape([n for d, n in enumerate(slot.shape) if d not in dims]))
    return found


RULES = {
    "cat": cat,
    "stack": stack,
    "constant_pad_nd": constant_pad_nd,
    "glu": glu,
    "native_group_norm": native_group_norm,
    "native_layer_norm": native_layer_norm,
}

"""What convolutions and products do to labels: channels are summed over, and others come out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rgplug.channels.labels import joined, varying

if TYPE_CHECKING:
    from rgplug.channels.mode import LabelMode

LAST = "a layer keeps at least one channel"


@dataclass(frozen=True)
class Read:
    """What a weight, or a sum, reads of each channel: smallest and largest value, over the batch and the image, and the
    largest magnitude that it is multiplied with (1 in a sum)."""

    labels: Tensor  # int64 [channels], of the weight's own input axis
    low: Tensor  # [channels]
    high: Tensor  # [channels]
    factor: Tensor  # [channels]
    by: str  # the operation, where it cannot hand on what is left of a channel: a sum, a modulated weight; else ""
    images: dict[int, Tensor]  # label -> [height, width] of channels that vary over the image and not over the batch


def convolution(mode: LabelMode, given: dict[str, Any], out: Tensor) -> list[Tensor]:
    """Plain, transposed and depthwise ones, and those whose groups are the images of a batch (modulated weights)."""
    x, w, groups, transposed = given["input"], given["weight"], given["groups"], given["transposed"]
    reads, makes = (0, 1) if transposed else (1, 0)
    rows, columns = weight_labels(mode, w, makes), weight_labels(mode, w, reads)
    if tuple(w.shape[:2]) == (1, 1) and not (rows or columns):  # a filter over images, each a channel of its own
        return mode.over_images(x, 0)
    inputs = [s.flatten() for s in mode.each_along(x, 1)]
    inputs = [s if len(s) > 1 else s.expand(x.shape[1]) for s in inputs]
    each = x.shape[1] // groups
    if groups > 1 and each == 1:
        if w.shape[makes] != (1 if transposed else groups):
            mode.lose([x, w], "a convolution with a channel multiplier")
            return []
        for own in (*(columns if transposed else rows), *mode.slots(given.get("bias"))):
            for slot in inputs:
                mode.labels.tie(slot, own)
        return [s.view(1, -1, *[1] * (out.dim() - 2)) for s in inputs]
    repeated = all(torch.equal(s.view(groups, each), s.view(groups, each)[:1].expand(groups, each)) for s in inputs)
    if groups > 1 and not (repeated and inputs):
        mode.lose([x, w], "a grouped convolution")
        return [] if transposed else [s.view(1, -1, *[1] * (out.dim() - 2)) for s in rows]
    inputs = [s.view(groups, each)[0] for s in inputs]
    values = x.detach().transpose(0, 1).reshape(groups, each, -1).transpose(0, 1).reshape(each, -1)
    factors = w.detach().reshape(groups, each, -1) if transposed else w.detach().transpose(0, 1)
    factor = factors.abs().amax((0, 2)) if transposed else factors.flatten(1).abs().amax(1)
    contract(mode, inputs, [c[:each] for c in columns], values, factor, rows, "a convolution", w, x)
    found = [r.repeat(groups) if transposed else r for r in rows]
    for slot in found:
        for own in mode.slots(given.get("bias")):
            mode.labels.tie(slot, own.flatten())
    return [s.view(1, -1, *[1] * (out.dim() - 2)) for s in found]


def weight_labels(mode: LabelMode, w: Tensor, dim: int) -> list[Tensor]:
    """Labels [size] along `dim` of a weight, from the slots that vary along nothing else."""
    found = []
    for slot in mode.slots(w):
        if varying(slot) == [dim]:
            found.append(slot.flatten())
        elif dim in varying(slot):
            mode.labels.fix(slot, "its weight is made of several channels in one")
    return found


def mm(mode: LabelMode, given: dict[str, Any], out: Tensor) -> list[Tensor]:
    return product(mode, given["self"], given["mat2"], out)


def addmm(mode: LabelMode, given: dict[str, Any], out: Tensor) -> list[Tensor]:
    found = product(mode, given["mat1"], given["mat2"], out)
    return joined(mode.labels, [found, mode.slots(given["self"])], out.dim(), "addmm")


def baddbmm(mode: LabelMode, given: dict[str, Any], out: Tensor) -> list[Tensor]:
    found = product(mode, given["batch1"], given["batch2"], out)
    return joined(mode.labels, [found, mode.slots(given["self"])], out.dim(), "baddbmm")


def product(mode: LabelMode, a: Tensor, b: Tensor, out: Tensor) -> list[Tensor]:
    """a [.., m, k] times b [.., k, n]: k is summed over."""
    rank = a.dim()
    summed: list[list[Tensor]] = [[], []]
    stay: list[list[Tensor]] = [[], []]
    for i, (x, k) in enumerate(((a, rank - 1), (b, rank - 2))):
        for slot in mode.slots(x):
            if k not in varying(slot):
                stay[i].append(slot)
            elif varying(slot) == [k]:
                summed[i].append(slot.flatten())
            else:
                mode.labels.fix(slot, "a product mixes it with other channels")
    weight = 1 if stay[1] or not stay[0] else 0  # which of the two is the weight
    if summed[1 - weight] and stay[1 - weight] and not summed[weight]:
        weight = 1 - weight
    x = a if weight == 1 else b.transpose(-1, -2)
    w = b if weight == 1 else a.transpose(-1, -2)
    values = x.detach().reshape(-1, x.shape[-1]).t()
    factor = w.detach().transpose(-1, -2).abs().flatten(0, -2).amax(0)
    rows = [s.flatten() for s in stay[weight]]
    contract(mode, summed[1 - weight], summed[weight], values, factor, rows, "a product", w)
    return [*stay[0], *stay[1]]


def contract(
    mode: LabelMode,
    inputs: list[Tensor],
    columns: list[Tensor],
    values: Tensor,  # [channels, rest]: what is read
    factor: Tensor,  # [channels]: the largest magnitude of the weight's column
    rows: list[Tensor],
    operation: str,
    weight: Tensor,
    images: Tensor | None = None,  # [N, channels, ...]: what is read, where it has the shape of images
) -> None:
    """Channels that are summed over: those of the input belong to those that the weight reads."""
    if not columns:
        last = len(values) == 1
        for slot in inputs:
            mode.labels.fix(slot, LAST if last else f"{operation} without a weight of the network reads it")
    for slot in columns:
        mode.labels.set_role(slot, "in")
    for slot in rows:
        mode.labels.set_role(slot, "out")
    for slot in inputs:
        mode.labels.set_role(slot, "out")
    for own in columns:
        for slot in inputs:
            mode.labels.tie(slot, own)
        if not inputs:
            mode.labels.fix(own, "it reads the network's input")
        computed = "" if mode.is_plain(weight) else f"{operation} with a computed weight"
        read(mode, own, values, factor, computed, images)


def read(mode: LabelMode, slot: Tensor, values: Tensor, factor: Tensor, by: str, images: Tensor | None = None) -> None:
    """Note what is read of the channels that a slot [channels] labels; see `Read`."""
    low, high = values.amin(1).cpu().double(), values.amax(1).cpu().double()
    known = slot >= 0
    if bool(known.any()):
        factor = factor.cpu().double()[known]
        labels = slot[known].long()
        steady = {} if images is None or len(images) < 2 else _steady(images, slot.long())
        mode.reads.append(Read(labels, low[known], high[known], factor, by, steady))


def _steady(images: Tensor, labels: Tensor) -> dict[int, Tensor]:
    """Channels [height, width] that are the same in all images, and not the same all over; none at label -1."""
    low, high = images.detach().amin(0), images.detach().amax(0)
    same = (high - low <= 1e-6 * torch.maximum(high.abs(), low.abs())).flatten(1).all(1)
    flat = (low.flatten(1) == low.flatten(1)[:, :1]).all(1)
    return {int(labels[i]): low[i].cpu() for i in (same & ~flat).nonzero().flatten().tolist() if labels[i] >= 0}


RULES = {"convolution": convolution, "mm": mm, "bmm": mm, "addmm": addmm, "baddbmm": baddbmm}

"""What the operations of a forward pass do to labels: a dispatch mode with one rule for each kind of operation.

The forward runs as it is, on real latents, in eval mode and without gradients; beside each result its slots are worked
out. An operation that no rule knows loses its inputs' labels: these channels have to stay, and the report names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from rgplug.channels.labels import Labels, compressed, joined, varying


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


class LabelMode(TorchDispatchMode):
    """While it is active, every operation's result gets its slots."""

    def __init__(self, labels: Labels, names: Mapping[int, str]):
        super().__init__()
        self.labels = labels
        self.reads: list[Read] = []
        self._names = names  # id of a parameter or buffer -> its name
        self._slots: WeakIdKeyDictionary = WeakIdKeyDictionary()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nobody compiles under this mode, and asking dynamo takes the seconds of its import

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = self.slots(args[0]) if args and isinstance(args[0], Tensor) else []
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        inplace = name.endswith("_") and not name.endswith("__")
        found = self._apply(name.rstrip("_") if inplace else name, func, args, kwargs, out)
        if inplace and isinstance(args[0], Tensor):
            self._slots[args[0]] = found if found else (before if name in ("zero_", "fill_") else [])
        return out

    def slots(self, x: Any) -> list[Tensor]:
        if not isinstance(x, Tensor):
            return []
        if x not in self._slots:
            name = self._names.get(id(x))
            self._slots[x] = [] if name is None else self.labels.slots(name)
        found: list[Tensor] = self._slots[x]
        return found

    def lose(self, x: Any, operation: str) -> None:
        """The labels of a tensor, or of all tensors in a list, have to stay."""
        for part in x if isinstance(x, (list, tuple)) else (x,):
            for slot in self.slots(part):
                self.labels.fix(slot, f"{operation} mixes it with other channels")

    # ---- rules -------------------------------------------------------------------------------------------------------

    def _apply(self, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> list[Tensor]:
        given = dict(zip((a.name for a in func._schema.arguments), args)) | kwargs
        tensors = [x for x in given.values() if isinstance(x, (Tensor, list, tuple)) and self._labelled(x)]
        if not tensors or name.endswith("_like") or name.startswith("new_"):
            return []
        rule: Callable[..., list[Tensor]] | None = getattr(self, f"_{name}", None)
        if rule is not None:
            return self._set(out, rule(given, out))
        if name in SHAPES:
            return self._reshape(name, func, args, kwargs, out)
        if name in SPATIAL:
            return self._set(out, self._over_images(args[0], args[0].dim() - 3))
        if name in BATCH_NORMS:
            return self._set(out, self._norm(given, 1))
        if name in REDUCTIONS:
            return self._set(out, self._reduce(name, given, out))
        if name == "copy":
            return self._set(out, self.slots(args[1]))
        if torch.Tag.pointwise in func.tags or torch.Tag.pointwise in _outofplace(name).tags:
            operands = [self.slots(x) for x in given.values()]
            return self._set(out, joined(self.labels, operands, out.dim(), name))
        for x in tensors:
            self.lose(x, name)
        return []

    def _labelled(self, x: Any) -> bool:
        return any(self.slots(part) for part in (x if isinstance(x, (list, tuple)) else (x,)))

    def _set(self, out: Any, slots: list[Tensor]) -> list[Tensor]:
        first = out[0] if isinstance(out, (tuple, list)) else out
        self._slots[first] = slots
        return slots

    def _reshape(self, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> list[Tensor]:
        """Views, permutations, slices: labels move with the elements."""
        at = next(i for i, a in enumerate(args) if isinstance(a, Tensor) and self.slots(a))
        for i, other in enumerate(args):
            if i != at:
                self.lose(other, name)
        results: list[list[Tensor]] = [[] for _ in (out if isinstance(out, (list, tuple)) else (out,))]
        plain = {k: v for k, v in kwargs.items() if k not in ("dtype", "device", "layout", "pin_memory")}
        for slot in self.slots(args[at]):
            moved = [*args]
            moved[at] = slot.to(args[at].device).expand(args[at].shape)
            # a slot's strides are not the tensor's: what is a view there may be a copy here
            done = (
                moved[at].reshape(args[1])
                if name in ("view", "_unsafe_view", "_reshape_alias")
                else func(*moved, **plain)
            )
            for parts, part in zip(results, done if isinstance(done, (list, tuple)) else (done,)):
                parts.append(compressed(part).cpu())
        for x, parts in zip(out if isinstance(out, (list, tuple)) else (out,), results):
            self._slots[x] = parts
        return results[0]

    def _cat(self, given: dict[str, Any], out: Tensor) -> list[Tensor]:
        parts, dim = given["tensors"], given.get("dim", 0)
        rows = []
        for i in range(max(len(self.slots(p)) for p in parts)):
            pieces = []
            for p in parts:
                slots = self.slots(p)
                pieces.append(
                    slots[i].expand(p.shape) if i < len(slots) else torch.full(p.shape, -1.0, dtype=torch.float64)
                )
            rows.append(compressed(torch.cat(pieces, dim)))
        return rows

    def _stack(self, given: dict[str, Any], out: Tensor) -> list[Tensor]:
        self.lose(given["tensors"], "stack")
        return []

    def _constant_pad_nd(self, given: dict[str, Any], out: Tensor) -> list[Tensor]:
        pad, x = given["pad"], given["self"]
        dims = {x.dim() - 1 - i // 2 for i, n in enumerate(pad) if n}
        found = []
        for slot in self.slots(x):
            if dims & set(varying(slot)):
                slot = compressed(torch.constant_pad_nd(slot.expand(x.shape), pad, -1.0))
            found.append(slot)
        return found

    def _glu(self, given: dict[str, Any], out: Tensor) -> list[Tensor]:
        """The first half of the channels times a gate made of the second."""
        found = []
        for slot in self.slots(given["self"]):
            value, gate = slot.expand(given["self"].shape).chunk(2, given.get("dim", -1))
            found += joined(self.labels, [[compressed(value)], [compressed(gate)]], out.dim(), "glu")
        return found

    def _norm(self, given: dict[str, Any], dim: int) -> list[Tensor]:
        """Batch norm: gain, bias and running statistics belong to the channel."""
        x = given["input"]
        slots = self._each_along(x, dim)
        for key in ("weight", "bias", "running_mean", "running_var"):
            for own in self.slots(given.get(key)):
                for slot in slots:
                    self.labels.tie(slot.flatten(), own.flatten())
                if not slots:
                    self.labels.fix(own, "it normalizes something other than channels")
        return slots

    def _native_group_norm(self, given: dict[str, Any], out: Any) -> list[Tensor]:
        slots = self._norm(given, 1)
        if given["group"] != given["C"]:
            self.lose(given["input"], "group norm")
        return slots

    def _native_layer_norm(self, given: dict[str, Any], out: Any) -> list[Tensor]:
        x = given["input"]
        last = range(x.dim() - len(given["normalized_shape"]), x.dim())
        kept = [s for s in self.slots(x) if not set(last) & set(varying(s))]
        self.lose([x, given.get("weight"), given.get("bias")], "layer norm")
        return kept

    def _reduce(self, name: str, given: dict[str, Any], out: Any) -> list[Tensor]:
        """Sums and norms leave out a channel that is 0; means and softmax count it."""
        x = given["self"]
        dim = given.get("dim")
        dims = (
            range(x.dim())
            if dim is None or dim == []
            else [d % x.dim() for d in (dim if isinstance(dim, list) else [dim])]
        )
        keeps = "softmax" in name or given.get("keepdim", False)
        found = []
        for slot in self.slots(x):
            if along := [d for d in varying(slot) if d in dims]:
                if name in SUMS and len(varying(slot)) == 1:
                    values = x.detach().movedim(along[0], 0).flatten(1)
                    self._read(slot.flatten(), values, torch.ones(len(values)), by=name)
                else:
                    self.labels.fix(slot, f"{name.strip('_')} counts it among other channels")
            elif keeps:
                found.append(slot)
            else:
                found.append(slot.reshape([n for d, n in enumerate(slot.shape) if d not in dims]))
        return found

    # ---- contractions ------------------------------------------------------------------------------------------------

    def _convolution(self, given: dict[str, Any], out: Tensor) -> list[Tensor]:
        x, w, groups, transposed = given["input"], given["weight"], given["groups"], given["transposed"]
        reads, makes = (0, 1) if transposed else (1, 0)
        rows, columns = self._weight(w, makes), self._weight(w, reads)
        if tuple(w.shape[:2]) == (1, 1) and not (rows or columns):  # a filter over images, each a channel of its own
            return self._over_images(x, 0)
        inputs = [s.flatten() for s in self._each_along(x, 1)]
        inputs = [s if len(s) > 1 else s.expand(x.shape[1]) for s in inputs]
        each = x.shape[1] // groups
        if groups > 1 and each == 1:
            if w.shape[makes] != (1 if transposed else groups):
                self.lose([x, w], "a convolution with a channel multiplier")
                return []
            for own in (*(columns if transposed else rows), *self.slots(given.get("bias"))):
                for slot in inputs:
                    self.labels.tie(slot, own)
            return [s.view(1, -1, *[1] * (out.dim() - 2)) for s in inputs]
        repeated = all(torch.equal(s.view(groups, each), s.view(groups, each)[:1].expand(groups, each)) for s in inputs)
        if groups > 1 and not (repeated and inputs):
            self.lose([x, w], "a grouped convolution")
            return []
        inputs = [s.view(groups, each)[0] for s in inputs]
        values = x.detach().transpose(0, 1).reshape(groups, each, -1).transpose(0, 1).reshape(each, -1)
        factors = w.detach().reshape(groups, each, -1) if transposed else w.detach().transpose(0, 1)
        factor = factors.abs().amax((0, 2)) if transposed else factors.flatten(1).abs().amax(1)
        self._contract(inputs, [c[:each] for c in columns], values, factor, rows, "a convolution", w, x)
        found = [r.repeat(groups) if transposed else r for r in rows]
        for slot in found:
            for own in self.slots(given.get("bias")):
                self.labels.tie(slot, own.flatten())
        return [s.view(1, -1, *[1] * (out.dim() - 2)) for s in found]

    def _weight(self, w: Tensor, dim: int) -> list[Tensor]:
        """Labels [size] along `dim` of a weight, from the slots that vary along nothing else."""
        found = []
        for slot in self.slots(w):
            if varying(slot) == [dim]:
                found.append(slot.flatten())
            elif dim in varying(slot):
                self.labels.fix(slot, "its weight is made of several channels in one")
        return found

    def _mm(self, given: dict[str, Any], out: Tensor) -> list[Tensor]:
        return self._product(given["self"], given["mat2"], out)

    def _bmm(self, given: dict[str, Any], out: Tensor) -> list[Tensor]:
        return self._product(given["self"], given["mat2"], out)

    def _addmm(self, given: dict[str, Any], out: Tensor) -> list[Tensor]:
        found = self._product(given["mat1"], given["mat2"], out)
        return joined(self.labels, [found, self.slots(given["self"])], out.dim(), "addmm")

    def _baddbmm(self, given: dict[str, Any], out: Tensor) -> list[Tensor]:
        found = self._product(given["batch1"], given["batch2"], out)
        return joined(self.labels, [found, self.slots(given["self"])], out.dim(), "baddbmm")

    def _product(self, a: Tensor, b: Tensor, out: Tensor) -> list[Tensor]:
        """a [.., m, k] times b [.., k, n]: k is summed over."""
        rank = a.dim()
        summed: list[list[Tensor]] = [[], []]
        stay: list[list[Tensor]] = [[], []]
        for i, (x, k) in enumerate(((a, rank - 1), (b, rank - 2))):
            for slot in self.slots(x):
                if k not in varying(slot):
                    stay[i].append(slot)
                elif varying(slot) == [k]:
                    summed[i].append(slot.flatten())
                else:
                    self.labels.fix(slot, "a product mixes it with other channels")
        weight = 1 if stay[1] or not stay[0] else 0  # which of the two is the weight
        if summed[1 - weight] and stay[1 - weight] and not summed[weight]:
            weight = 1 - weight
        x = a if weight == 1 else b.transpose(-1, -2)
        w = b if weight == 1 else a.transpose(-1, -2)
        values, factor = (
            x.detach().reshape(-1, x.shape[-1]).t(),
            w.detach().transpose(-1, -2).abs().flatten(0, -2).amax(0),
        )
        rows = [s.flatten() for s in stay[weight]]
        self._contract(summed[1 - weight], summed[weight], values, factor, rows, "a product", w)
        return [*stay[0], *stay[1]]

    def _contract(
        self,
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
                self.labels.fix(slot, LAST if last else f"{operation} without a weight of the network reads it")
        for slot in columns:
            self.labels.set_role(slot, "in")
        for slot in rows:
            self.labels.set_role(slot, "out")
        for slot in inputs:
            self.labels.set_role(slot, "out")
        for own in columns:
            for slot in inputs:
                self.labels.tie(slot, own)
            if not inputs:
                self.labels.fix(own, "it reads the network's input")
            computed = "" if self._plain(weight) else f"{operation} with a computed weight"
            self._read(own, values, factor, computed, images)

    def _read(self, slot: Tensor, values: Tensor, factor: Tensor, by: str, images: Tensor | None = None) -> None:
        low, high = values.amin(1).double().cpu(), values.amax(1).double().cpu()
        known = slot >= 0
        if bool(known.any()):
            factor = factor.double().cpu()[known]
            labels = slot[known].long()
            steady = {} if images is None or len(images) < 2 else _steady(images, slot.long())
            self.reads.append(Read(labels, low[known], high[known], factor, by, steady))

    def _plain(self, weight: Tensor) -> bool:
        """Whether it is a parameter as it is, or a view of one, not one that was multiplied with something."""
        base = weight if weight._base is None else weight._base
        return id(weight) in self._names or id(base) in self._names

    def _along(self, slot: Tensor, dim: int, size: int) -> Tensor | None:
        """A slot that varies along `dim` alone, of that size: labels that share a place there are tied. None where it
        varies along other dims alone."""
        dims = varying(slot)
        if dims == [dim] or (size == 1 and not dims):
            return slot
        if dim not in dims and size > 1:
            self.labels.fix(slot, "its entries are no channels")
            return None
        rows = slot.movedim(dim, 0).flatten(1)
        first = rows[:, :1].expand_as(rows)
        self.labels.tie(first, rows)
        shape = [slot.shape[dim] if d == dim else 1 for d in range(slot.dim())]
        return rows[:, 0].reshape(shape)

    def _each_along(self, x: Tensor, dim: int) -> list[Tensor]:
        found = (self._along(slot, dim, x.shape[dim]) for slot in self.slots(x))
        return [slot for slot in found if slot is not None]

    def _over_images(self, x: Tensor, dim: int) -> list[Tensor]:
        """Slots for an operation over the last two dims: where they vary over these, they are brought to `dim`."""
        found = []
        for slot in self.slots(x):
            flat = all(d < slot.dim() - 2 for d in varying(slot))
            found.append(slot if flat else self._along(slot, dim, x.shape[dim]))
        return [slot for slot in found if slot is not None]


def _steady(images: Tensor, labels: Tensor) -> dict[int, Tensor]:
    """Channels [height, width] that are the same in all images, and not the same all over; none at label -1."""
    low, high = images.detach().amin(0), images.detach().amax(0)
    same = (high - low <= 1e-6 * torch.maximum(high.abs(), low.abs())).flatten(1).all(1)
    flat = (low.flatten(1) == low.flatten(1)[:, :1]).all(1)
    return {int(labels[i]): low[i].cpu() for i in (same & ~flat).nonzero().flatten().tolist() if labels[i] >= 0}


def _outofplace(name: str) -> Any:
    packet = getattr(torch.ops.aten, name, None)
    return _Untagged if packet is None else getattr(packet, packet.overloads()[0])


class _Untagged:
    tags: tuple[torch.Tag, ...] = ()

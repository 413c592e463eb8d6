"""Taking channels out of a network: parameters sliced, layers' sizes set, constants handed to what read them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rgplug.copying import copy_network
from rgplug.devices import widest
from rgplug.select import walk

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
Owners = dict[str, list[tuple[nn.Module, str]]]  # first name of a tensor -> modules that hold it, and its name there
_TRANSPOSE = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


@dataclass
class Cut:
    """Channels to take out together. drop: (parameter, dim) -> indices. left: (weight, dim) -> index -> what the weight
    reads there for all latents alike, a number or an image [height, width], which is to be handed on."""

    drop: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    left: dict[tuple[str, int], dict[int, float | Tensor]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Channels: the fewest entries that an axis loses (a linear layer before a view loses several each)."""
        return min(len(set(indices)) for indices in self.drop.values())

    def add(self, other: Cut) -> None:
        """Take over what another cut has."""
        for axis, indices in other.drop.items():
            self.drop.setdefault(axis, []).extend(indices)
        for axis, left in other.left.items():
            self.left.setdefault(axis, {}).update(left)


class Carrying(nn.Module):
    """A convolution that also holds what input channels contributed to it that were the same for all latents.

    A channel of the constant c contributes c * conv(ones, W[:, i]); with zero padding that is no constant near the
    border. So the sum over the removed channels is one more convolution, of a single image of ones with the parameter
    `carrier` = sum_i c_i W[:, i]: [filters, 1, ...], or [1, filters, ...] where it is transposed. Where channels repeat
    every p pixels (a pixel shuffle of constants), it has p * p in place of 1, for as many images with ones at one phase
    each. Channels that vary otherwise contribute the image `offset` [1, filters, height, width]. Either may be None.
    """

    carrier: nn.Parameter | None
    offset: nn.Parameter | None

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """x: [N, channels, ...], as the convolution takes it; of one size only where there is an offset."""
        y: Tensor = super().forward(x, *args)
        if self.carrier is not None:
            number = self.carrier.shape[0 if isinstance(self, TRANSPOSED) else 1]
            y = y + convolve(self, phases(x, number), self.carrier)
        return y if self.offset is None else y + self.offset


def phases(x: Tensor, number: int) -> Tensor:
    """[1, p * p, height, width] for number = p * p: ones at the pixels of each phase of p by p; all ones for 1."""
    if number == 1:
        return x.new_ones(1, 1, *x.shape[2:])
    period = math.isqrt(number)
    tile = torch.eye(number, dtype=x.dtype, device=x.device).view(1, number, period, period)
    return tile.repeat(1, 1, x.shape[2] // period, x.shape[3] // period)


def tile_of(image: Tensor) -> Tensor | None:
    """The smallest square, of 1, 2 or 4 pixels a side, that fills an image [height, width] again and again; or None."""
    for period in (1, 2, 4):
        if image.dim() == 2 and all(n % period == 0 and n > period for n in image.shape):
            tile = image[:period, :period]
            if torch.equal(tile.repeat(image.shape[0] // period, image.shape[1] // period), image):
                return tile
    return None


def convolve(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """What a convolution makes of x with another weight, without bias."""
    own: Any = layer
    if isinstance(layer, TRANSPOSED):
        function: Any = _TRANSPOSE[x.dim() - 3]
        return function(x, weight, None, own.stride, own.padding, own.output_padding, 1, own.dilation)
    return own._conv_forward(x, weight, None)


class CarryingConv1d(Carrying, nn.Conv1d):
    pass


class CarryingConv2d(Carrying, nn.Conv2d):
    pass


class CarryingConv3d(Carrying, nn.Conv3d):
    pass


class CarryingConvTranspose1d(Carrying, nn.ConvTranspose1d):
    pass


class CarryingConvTranspose2d(Carrying, nn.ConvTranspose2d):
    pass


class CarryingConvTranspose3d(Carrying, nn.ConvTranspose3d):
    pass


_CARRYING: dict[type[nn.Module], type[Carrying]] = {
    nn.Conv1d: CarryingConv1d,
    nn.Conv2d: CarryingConv2d,
    nn.Conv3d: CarryingConv3d,
    nn.ConvTranspose1d: CarryingConvTranspose1d,
    nn.ConvTranspose2d: CarryingConvTranspose2d,
    nn.ConvTranspose3d: CarryingConvTranspose3d,
}


def carry(layer: nn.Module) -> None:
    """Make a convolution a carrying one; names and order of its parameters stay, the two others come after them."""
    if not isinstance(layer, Carrying):
        layer.__class__ = next(own for kind, own in _CARRYING.items() if isinstance(layer, kind))
        layer.register_parameter("carrier", None)
        layer.register_parameter("offset", None)


def takes_constants(module: nn.Module) -> bool:
    """Whether a module can hand on what its weight reads of a steady channel: a plain convolution or linear layer."""
    kinds: tuple[Any, ...] = (*_CARRYING, nn.Linear)
    own = getattr(type(module), "forward", None)
    plain = any(isinstance(module, kind) and own in (kind.forward, Carrying.forward) for kind in kinds)
    return plain and getattr(module, "groups", 1) == 1


def without(network: nn.Module, cuts: Iterable[Cut]) -> nn.Module:
    """A copy of a network without the channels of `cuts`; the network stays as it is."""
    changed = copy_network(network)
    owners = _owners(changed)
    dropped: dict[tuple[str, int], set[int]] = {}
    for cut in cuts:
        for axis, indices in cut.drop.items():
            dropped.setdefault(axis, set()).update(indices)
    for cut in cuts:
        for (name, dim), left in cut.left.items():
            for axis in _hand_on(owners, name, dim, left):  # the layer's own filters that go, go there too
                dropped.setdefault(axis, set()).update(dropped.get((name, 1 - dim), set()))
    touched: dict[int, nn.Module] = {}
    for (name, dim), gone in dropped.items():
        tensor = _tensor(owners, name)
        kept = torch.tensor([i for i in range(tensor.shape[dim]) if i not in gone], device=tensor.device)
        smaller = tensor.detach().index_select(dim, kept)
        for module, own in owners[name]:
            if own in module._parameters:
                module._parameters[own] = nn.Parameter(smaller, requires_grad=False)
            else:
                module._buffers[own] = smaller
            touched[id(module)] = module
    for module in touched.values():
        set_sizes(module)
    return changed


def set_sizes(module: nn.Module) -> None:
    """The sizes that a layer of torch.nn keeps beside its weight, from the weight."""
    weight = module._parameters.get("weight")
    if weight is None:
        return
    shape = weight.shape
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
        if module.groups > 1 and module.groups == module.in_channels == module.out_channels:  # depthwise
            module.groups = shape[0]
        transposed = isinstance(module, TRANSPOSED)
        module.in_channels = shape[0] if transposed else shape[1] * module.groups
        module.out_channels = shape[1] * module.groups if transposed else shape[0]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = shape[0]
    elif isinstance(module, nn.GroupNorm):
        if module.num_groups == module.num_channels:
            module.num_groups = shape[0]
        module.num_channels = shape[0]
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = shape


def owner_of(name: str) -> str:
    """The module that a parameter, or an attribute, is in."""
    return name.rpartition(".")[0]


def sizes(network: nn.Module) -> dict[str, int]:
    """The whole numbers that a host's own modules keep as attributes, by "module.attribute"."""
    return {
        f"{name}.{own}" if name else own: value
        for name, module in walk(network)
        for own, value in vars(module).items()
        if type(value) is int and not isinstance(module, Carrying) and not type(module).__module__.startswith("torch.")
    }


def set_size(network: nn.Module, name: str, value: int) -> None:
    """Set such a number. Raises KeyError where there is none."""
    module, _, own = name.rpartition(".")
    owner = network.get_submodule(module)
    if type(vars(owner).get(own)) is not int:
        raise KeyError(name)
    setattr(owner, own, value)


def _hand_on(owners: Owners, name: str, dim: int, left: Mapping[int, float | Tensor]) -> list[tuple[str, int]]:
    """What steady input channels contribute to a layer: into its bias, its carrier where it is padded, or its offset.
    Returns the (parameter, filter dim) that have it now."""
    layer, weight = owners[name][0][0], _tensor(owners, name).detach()
    tiles: dict[int, Tensor] = {}
    images: dict[int, Tensor] = {}
    for i, value in left.items():
        tile = tile_of(value) if isinstance(value, Tensor) else torch.full((1, 1), value, dtype=torch.float64)
        if tile is not None:
            tiles[i] = tile.cpu().double()
        elif isinstance(value, Tensor):
            images[i] = value
    changed: list[tuple[str, int]] = []

    def add(own: str, value: Tensor, at: int) -> None:
        before = layer._parameters.get(own)
        new = nn.Parameter((value if before is None else before + value).to(weight.dtype), requires_grad=False)
        layer.register_parameter(own, new)
        full = f"{owner_of(name)}.{own}".lstrip(".")
        owners[full] = [(layer, own)]
        changed.append((full, at))

    if tiles:
        before = layer._parameters.get("carrier")
        number = max([t.numel() for t in tiles.values()] + ([] if before is None else [before.shape[dim]]))
        period = math.isqrt(number)
        index = torch.tensor(list(tiles), device=weight.device)
        factors = torch.stack([t.repeat(period // len(t), period // len(t)).flatten() for t in tiles.values()])
        columns = weight.index_select(dim, index).to(widest(weight.device)).movedim(dim, -1)
        sums = (columns @ factors.to(columns)).movedim(-1, dim)
        if number == 1 and (isinstance(layer, nn.Linear) or _uniform(layer)):
            add("bias", sums.reshape(len(sums), -1).sum(1), 0)
        else:
            carry(layer)
            if before is not None and before.shape[dim] < number:  # on a finer grid each phase is that of the coarser
                old = math.isqrt(before.shape[dim])
                grid = torch.arange(before.shape[dim]).view(old, old).repeat(period // old, period // old).flatten()
                layer.register_parameter("carrier", nn.Parameter(before.index_select(dim, grid), requires_grad=False))
            add("carrier", sums, 1 - dim)
    if images:
        carry(layer)
        index = torch.tensor(list(images), device=weight.device)
        stack = torch.stack(list(images.values())).unsqueeze(0).to(weight)
        add("offset", convolve(layer, stack, weight.index_select(dim, index)), 1)
    return changed


def _uniform(layer: nn.Module) -> bool:
    """Whether a constant image stays constant: no zeros are padded, and every output sees the whole kernel."""
    if not isinstance(layer, CONVOLUTIONS):
        return False
    return layer.padding_mode != "zeros" or (not isinstance(layer.padding, str) and not any(layer.padding))


def _owners(network: nn.Module) -> Owners:
    """First name of each tensor -> all modules that hold it, with its name there."""
    first: dict[int, str] = {}
    found: Owners = {}
    for prefix, module in walk(network):
        for own, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                name = first.setdefault(id(tensor), f"{prefix}.{own}" if prefix else own)
                found.setdefault(name, []).append((module, own))
    return found


def _tensor(owners: Owners, name: str) -> Tensor:
    module, own = owners[name][0]
    tensor = module._parameters[own] if own in module._parameters else module._buffers[own]
    assert tensor is not None
    return tensor

"""What training costs: multiply-accumulates of a network by layer, and FLOPs of a GAN training step."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rgplug.errors import RgplugError
from rgplug.metrics.isolation import (
    evaluation_mode,
    preserved_buffers,
    preserved_hooks,
    preserved_rng,
)
from rgplug.wrappers import unwrap

FVCORE_OPS = ("conv", "linear", "addmm", "mm", "matmul", "bmm", "einsum")  # what multiplies; not norms, not resizes
Density = float | Mapping[str, float]


@dataclass(frozen=True)
class LayerMacs:
    """Multiply-accumulates for one image. layers: module that owns parameters -> MACs of its own convolutions and
    products. total: of the whole network (more than the sum where functions without parameters multiply, as in
    attention). source: "fvcore" or "torch.utils.flop_counter"."""

    layers: Mapping[str, float]
    total: float
    source: str

    def flops(self, density: Density = 1.0) -> float:
        """FLOPs of one forward pass of one image: 2 MAC x density of its layer.

        density: one number for every layer, or by layer name (1 where it is not named); what belongs to no layer is
        dense. RgplugError for a name that is no layer.
        """
        if isinstance(density, Mapping):
            if unknown := sorted(set(density) - set(self.layers)):
                raise RgplugError(f"density of {unknown[0]!r}: there is no such layer; see LayerMacs.layers")
            kept = {name: density.get(name, 1.0) for name in self.layers}
        else:
            kept = dict.fromkeys(self.layers, density)
        rest = self.total - sum(self.layers.values())
        return 2.0 * (rest + sum(macs * kept[name] for name, macs in self.layers.items()))

    def of_weights(self, densities: Mapping[str, float]) -> dict[str, float]:
        """Densities of weights, by their names, as densities of the layers that own them, for `flops`."""
        found: dict[str, float] = {}
        for weight, density in densities.items():
            layer = weight.rpartition(".parametrizations.")[0] or weight.rpartition(".")[0]
            if layer in self.layers:
                found.setdefault(layer, density)  # a managed bias comes after its weight
        return found

    def __str__(self) -> str:
        width = max([len(name) for name in self.layers] + [5])
        rows = [f"{name:<{width}}  {macs:>16,.0f}" for name, macs in self.layers.items()]
        return "\n".join([*rows, f"{'total':<{width}}  {self.total:>16,.0f}  MACs per image ({self.source})"])


def layer_macs(module: nn.Module, inputs: Tensor | tuple[object, ...]) -> LayerMacs:
    """MACs of a module, by layer, traced with the given inputs and divided by their batch size.

    inputs: what forward takes; the length of the first tensor is the batch. Traced in eval mode by fvcore, or, where
    its trace fails, counted by torch.utils.flop_counter (which counts 2 per MAC: halved here); the module's modes and
    buffers and the random states stay as they are. RgplugError when forward itself fails.
    """
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    batch = next((len(a) for a in arguments if isinstance(a, Tensor)), 1)
    module = unwrap(module)
    with evaluation_mode(module), preserved_buffers(module), preserved_rng(), torch.no_grad():
        try:
            with preserved_hooks(module):
                counts, source = _count_with_fvcore(module, arguments), "fvcore"
        except Exception:  # a trace can fail in as many ways as there are forward functions
            try:
                counts, source = _count_with_torch(module, arguments), "torch.utils.flop_counter"
            except Exception as error:
                raise RgplugError(f"cannot count {type(module).__name__}: its forward failed ({error})") from error
    names = {part: name for name, part in module.named_modules()}  # the first name of each, where it has several
    layers = {}
    for part, name in names.items():
        own = counts.get(name, 0.0) - sum(counts.get(names[child], 0.0) for child in part.children())
        if own > 0 and _owns_parameters(name, part):
            layers[name] = own / batch
    return LayerMacs(layers, counts.get("", 0.0) / batch, source)


def _owns_parameters(name: str, module: nn.Module) -> bool:
    """Whether a module has parameters of its own; a parametrized one has, its ParametrizationList has not."""
    if ".parametrizations" in f".{name}":
        return False
    return next(module.parameters(recurse=False), None) is not None or nn.utils.parametrize.is_parametrized(module)


def _count_with_fvcore(module: nn.Module, arguments: tuple[object, ...]) -> dict[str, float]:
    """MACs of the whole batch by module name, children included; "" is the module itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.jit, which is deprecated
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(module, arguments)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        by_module = analysis.by_module_and_operator()
    return {name: float(sum(ops.get(op, 0) for op in FVCORE_OPS)) for name, ops in by_module.items()}


def _count_with_torch(module: nn.Module, arguments: tuple[object, ...]) -> dict[str, float]:
    """The same from torch's dispatcher."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        module(*arguments)
    root = type(module).__name__
    names = {part: name for name, part in module.named_modules()}
    aliases = {f"{root}.{n}": names[part] for n, part in module.named_modules(remove_duplicate=False)}
    counts = {"": counter.get_total_flops() / 2.0}
    for name, ops in counter.get_flop_counts().items():
        if name in aliases:
            counts[aliases[name]] = sum(ops.values()) / 2.0
    return counts


@dataclass(frozen=True)
class TrainingFlops:
    """FLOPs of training: one discriminator step, one generator step, and the schedule they follow."""

    d_step: float
    g_step: float
    n_critic: int  # discriminator steps per generator step
    batch: int  # real images per discriminator step

    @property
    def per_iteration(self) -> float:
        """n_critic discriminator steps and one generator step."""
        return self.n_critic * self.d_step + self.g_step

    @property
    def per_real_image(self) -> float:
        """Divided by the real images that the discriminator sees; times #RI it is the cost of a run."""
        return self.per_iteration / (self.n_critic * self.batch)


def training_flops_per_step(
    macs_g: LayerMacs,
    macs_d: LayerMacs,
    *,
    batch: int,  # B: real (and as many fake) images per discriminator step
    batch_g: int | None = None,  # B_g: fake images per generator step; None: B
    n_critic: int = 1,  # discriminator steps per generator step
    density_g: Density = 1.0,  # see LayerMacs.flops
    density_d: Density = 1.0,
    dense_gradient: Collection[str] = (),  # networks ("G", "D") whose weight gradient is computed densely
    d_weight_gradient: bool = True,  # False: the host freezes D in the generator step (requires_grad_(False))
) -> TrainingFlops:
    """FLOPs of a training step by an explicit count; regularizers, optimizers and elementwise work are not in it.

        F_X = sum over layers 2 MAC density       one forward pass of one image
        T_X = 3 F_X                               forward, gradient w.r.t. input, gradient w.r.t. weight
        T_X = 2 F_X + F_X(dense)                  the same with a dense weight gradient (X in dense_gradient)
        discriminator step = T_D 2 B + F_G B      real and fake images; the fakes need one forward of G
        generator step     = T_G B_g + T_D B_g    or 2 F_D B_g without D's weight gradient

    For the 32x32 SNGAN with B = B_g = 64 and n_critic = 5 that is 8.97e9 FLOPs per real image, dense. The variant with
    a dense gradient is what methods pay that grow weights by gradient or train thresholds or dormant weights.
    """
    if batch < 1 or n_critic < 1 or (batch_g is not None and batch_g < 1):
        raise RgplugError(f"batch, batch_g and n_critic must be at least 1: {batch}, {batch_g}, {n_critic}")
    if unknown := sorted(set(dense_gradient) - {"G", "D"}):
        raise RgplugError(f"dense_gradient: there is no network {unknown[0]!r}; there are 'G' and 'D'")
    generated = batch if batch_g is None else batch_g
    forward_g, forward_d = macs_g.flops(density_g), macs_d.flops(density_d)
    train_g = 2 * forward_g + (macs_g.flops() if "G" in dense_gradient else forward_g)
    train_d = 2 * forward_d + (macs_d.flops() if "D" in dense_gradient else forward_d)
    d_step = train_d * 2 * batch + forward_g * batch
    g_step = train_g * generated + (train_d if d_weight_gradient else 2 * forward_d) * generated
    return TrainingFlops(d_step, g_step, n_critic, batch)

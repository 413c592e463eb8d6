"""Which parameters of a network are managed: found by what they are called and how they are shaped, not by class.

Host-made layers (StyleGAN2's FullyConnectedLayer, BigGAN's SNConv2d) are no subclasses of nn.Conv2d or nn.Linear, so an
isinstance walk finds nothing in them. The rule that finds all: an own Parameter called `weight`, `weight_orig` (old
spectral norm), `weight_bar`, `weight_v` beside a `weight_g` (old weight norm), or the original of a parametrized
`weight`, or as torch's attention and recurrent layers call theirs; of two or more dims; not of a norm, not of an
embedding. Every other Parameter of two or more dims is in the table as well, with the reason why it is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.utils import parametrize

from rgplug import kinds
from rgplug.errors import RgplugError
from rgplug.layout import FilterLayout
from rgplug.policy import NetworkPolicy
from rgplug.wrappers import unwrap

_WILD = set("*?[")
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass
class Candidate:
    """A parameter that could be pruned, and what was decided: `reason` is empty when it is managed."""

    name: str
    module: nn.Module
    param: torch.Tensor
    reason: str
    layout: FilterLayout | None = None
    norm_dims: tuple[int, ...] | None = None  # dims that weight norm sums over; None: no weight norm
    by_policy: bool = False  # the policy's own patterns leave it out

    @property
    def inputs(self) -> int | None:
        """Dim of the input channels; None for vectors, and beside an output dim that the policy has named."""
        assert self.layout is not None
        shape, dim = self.layout.shape, self.layout.dim
        if len(shape) < 2 or dim > 1:
            return None
        modulated = len(shape) == 5 and shape[0] == 1 and not isinstance(self.module, nn.ConvTranspose3d)
        return (2 if modulated else 0) if dim == 1 else 1


def walk(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) for every module once, wrappers left out of the names (mapping.fc0, not mapping.module.fc0)."""
    seen: set[int] = set()

    def visit(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
        module = unwrap(module)
        if id(module) in seen:
            return
        seen.add(id(module))
        yield prefix, module
        for name, child in module._modules.items():
            if child is not None:
                yield from visit(child, f"{prefix}.{name}" if prefix else name)

    return visit(network, "")


def named_tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers under the names that managed weights have (wrappers left out); not copied."""
    return {
        f"{prefix}.{name}" if prefix else name: tensor.detach()
        for prefix, module in walk(network)
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None and not nn.parameter.is_lazy(tensor)
    }


def misfit(saved: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> str:
    """What does not fit between saved tensors and a network's, by name and shape, as half a sentence; "" if all do."""
    for name in dict.fromkeys([*saved, *own]):
        a, b = saved.get(name), own.get(name)
        if a is None or b is None or a.shape != b.shape:
            has = "nothing" if a is None else f"shape {list(a.shape)}"
            needs = "has no such tensor" if b is None else f"needs shape {list(b.shape)}"
            return f"it has {has} for {name!r}, and the network {needs}"
    return ""


def named_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters alone, under the same names."""
    return {
        f"{prefix}.{name}" if prefix else name: param
        for prefix, module in walk(network)
        for name, param in module._parameters.items()
        if param is not None and not nn.parameter.is_lazy(param)
    }


def select(network: nn.Module, policy: NetworkPolicy, label: str) -> list[Candidate]:
    """Every candidate of a network, managed ones and skipped ones with the reason.

    Raises RgplugError when a pattern matches nothing, when one of `include` brings nothing in, or when no weight is
    left to manage.
    """
    unused = {p for p in (*policy.include, *policy.exclude, *policy.filter_dim) if p != "*"}
    included: dict[str, list[Candidate]] = {p: [] for p in policy.include if p != "*"}
    found: list[Candidate] = []
    first_name: dict[int, str] = {}
    for module_name, module in walk(network):
        for own, param, conventional in (*own_parameters(module), *(own_vectors(module) if policy.vectors else ())):
            name = f"{module_name}.{own}" if module_name else own
            matches = [
                p for p in (*policy.include, *policy.exclude, *policy.filter_dim) if _matches(p, name, module_name)
            ]
            unused.difference_update(matches)
            named = any(_names(p, name, own, param, conventional) for p in matches if p in policy.include)
            left_out = _pattern_reason(policy, matches)
            reason = _reason(param, module, own, conventional, named) or left_out
            for p in included.keys() & set(matches):
                included[p].append(Candidate(name, module, param, "" if reason == left_out else reason))
            if not reason and id(param) in first_name:
                reason = f"shared with {first_name[id(param)]}"
            candidate = Candidate(name, module, param, reason, by_policy=bool(left_out))
            if not reason:
                first_name[id(param)] = name
                dims = [d for pattern, d in policy.filter_dim.items() if pattern in matches]
                candidate.layout = _layout(param, module, name, dims[-1] if dims else None)
                candidate.norm_dims = _norm_dims(module, own, param)
            found.append(candidate)
    if unused:
        raise RgplugError(
            f"the pattern {sorted(unused)[0]!r} in policy.networks.{label} matches no weight of {label}; "
            f"`rgplug inspect` lists their names, e.g. {found[0].name if found else 'none'}"
        )
    for pattern, matched in included.items():
        _check_effect(pattern, matched, label)
    if policy.include and not any(not c.reason for c in found):
        why = f"; skipped: {', '.join(f'{c.name} ({c.reason})' for c in found[:3])}" if found else ""
        raise RgplugError(
            f"{label} ({type(network).__name__}) has no weight that rgplug can manage{why}; "
            f"give networks: {{{label}: null}} in the policy to leave it dense"
        )
    return found


def own_parameters(module: nn.Module) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """(name below the module, tensor, whether it is called as weights are) for every own tensor of 2 or more dims."""
    if isinstance(module, parametrize.ParametrizationList):
        return  # its originals belong to the module that is parametrized, and come with it
    for name, param in module._parameters.items():
        weight = kinds.is_called_as_weights_are(module, name)
        if param is not None and (weight if _lazy(param) else param.dim() >= 2):
            yield name, param, weight
    buffer = module._buffers.get("weight")
    if buffer is not None and buffer.dim() >= 2:
        yield "weight", buffer, True
    for name, group in getattr(module._modules.get("parametrizations"), "_modules", {}).items():
        called = kinds.is_called_as_weights_are(module, name)
        for key, param in group._parameters.items() if group is not None else ():
            if param is not None and key.startswith("original") and param.dim() >= 2:
                # weight norm keeps the magnitude as original0 and the direction as original1
                yield f"parametrizations.{name}.{key}", param, called and key in ("original", "original1")


def own_vectors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """The same for own Parameters of one dim: biases, gains."""
    for name, param in module._parameters.items():
        if param is not None and not nn.parameter.is_lazy(param) and param.dim() == 1:
            yield name, param, True


def _reason(param: torch.Tensor, module: nn.Module, own: str, conventional: bool, named: bool) -> str:
    """Why a tensor cannot, or by default should not, be managed."""
    if isinstance(param, nn.parameter.UninitializedParameter):
        return "lazy and not yet initialized: run one forward before attach"
    if not isinstance(param, nn.Parameter):
        return "a buffer, not a Parameter (frozen by the host)"
    if not param.is_floating_point() or param.device.type == "meta":
        return f"{param.dtype} on {param.device}"
    if param.numel() == 0:
        return "has no entries"
    if isinstance(module, torch.jit.ScriptModule):
        return "inside a ScriptModule"
    if type(param.data) is not torch.Tensor:
        return f"a sharded or wrapped tensor ({type(param.data).__name__})"
    if named:
        return ""
    if kinds.is_embedding(module):
        return "an embedding"
    if param.dim() < 2:
        return ""
    if kinds.is_norm(module, param):
        return "a norm"
    if conventional:
        return ""
    if kinds.is_magnitude(own):
        return "the norms of a weight norm"
    if kinds.is_vector(param):
        return "one number per channel, as gains and biases have"
    return f"called {own!r} and not weight; name it in include to manage it"


def _names(pattern: str, name: str, own: str, param: torch.Tensor, conventional: bool) -> bool:
    """Whether a pattern of `include` that matches a parameter asks for it although it is left out by default.

    A name without wildcards does, the parameter's or its module's (of a module: not the norms of a weight norm, nor
    gains and biases). A pattern that ends on the parameter's own name (`*.weights`) does for names that are not a
    weight's.
    """
    if not _WILD & set(pattern):
        return pattern == name or conventional or not (kinds.is_magnitude(own) or kinds.is_vector(param))
    last = pattern.rpartition(".")[2]
    return not conventional and "." in pattern and not _WILD & set(last) and last == name.rpartition(".")[2]


def _check_effect(pattern: str, matched: list[Candidate], label: str) -> None:
    """RgplugError for a pattern of `include` all of whose parameters are left alone for reasons of their own."""
    if not matched or any(not c.reason for c in matched):
        return
    found = ", ".join(f"{c.name}: {c.reason}" for c in matched[:3])
    advice = "take it out" if not _WILD & set(pattern) else f"write a parameter's name, e.g. {matched[0].name!r}"
    raise RgplugError(
        f"the pattern {pattern!r} in policy.networks.{label}.include brings nothing in ({found}); {advice}"
    )


def _pattern_reason(policy: NetworkPolicy, matches: list[str]) -> str:
    excluded = [p for p in policy.exclude if p in matches]
    if excluded:
        return f"excluded by {excluded[0]!r}"
    return "" if any(p in matches for p in policy.include) else "not included"


def _norm_dims(module: nn.Module, own: str, param: torch.Tensor) -> tuple[int, ...] | None:
    """The dims over which weight norm takes its norms: those in which its magnitude has size 1."""
    if own == "weight_v":
        magnitude = module._parameters["weight_g"]
    elif own.endswith("weight.original1"):
        magnitude = module.get_parameter(own[:-1] + "0")
    else:
        return None
    assert magnitude is not None
    shape = magnitude.shape if magnitude.dim() == param.dim() else (1,) * param.dim()
    return tuple(d for d in range(param.dim()) if shape[d] == 1)


def _matches(pattern: str, name: str, module_name: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(module_name, pattern)


def _layout(param: torch.Tensor, module: nn.Module, name: str, dim: int | None) -> FilterLayout:
    shape = tuple(param.shape)
    if dim is not None:
        if not 0 <= dim < len(shape):
            raise RgplugError(f"policy filter_dim {dim} does not exist in {name} of shape {list(shape)}")
        return FilterLayout(shape, dim)
    if len(shape) == 1:
        return FilterLayout(shape)
    if isinstance(module, _TRANSPOSED):
        return FilterLayout(shape, 1, module.groups)
    if "transpose" in kinds.class_name(module).lower() and len(shape) >= 3:
        groups = getattr(module, "groups", 1)
        return FilterLayout(shape, 1, groups if isinstance(groups, int) else 1)
    if len(shape) == 5 and shape[0] == 1 and not isinstance(module, nn.Conv3d):
        return FilterLayout(shape, 1)  # modulated convolutions keep [1, out, in, k, k]
    return FilterLayout(shape)


def table(
    candidates: Mapping[str, list[Candidate]],
    densities: Mapping[str, Mapping[str, float]],
    notes: Mapping[str, Mapping[str, str]] | None = None,  # of weights that are not managed although they could be
) -> str:
    """The attach report as text: each candidate, managed or skipped and why, shape, filter dim, density."""
    rows = [("network", "weight", "shape", "filter dim", "density", "")]
    for network, found in candidates.items():
        for c in found:
            dim = (
                "" if c.layout is None else str(c.layout.dim) + (f" x{c.layout.groups}" if c.layout.groups > 1 else "")
            )
            density = densities.get(network, {}).get(c.name)
            shape = "x".join(map(str, c.param.shape)) if not _lazy(c.param) else "?"
            status = f"skipped: {c.reason}" if c.reason else (notes or {}).get(network, {}).get(c.name, "managed")
            rows.append((network, c.name, shape, dim, "" if density is None else f"{density:.4f}", status))
    widths = [max(len(r[i]) for r in rows) for i in range(6)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)


def _lazy(param: torch.Tensor) -> bool:
    return isinstance(param, nn.parameter.UninitializedParameter)

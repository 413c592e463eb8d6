"""What a parameter is, as far as its module's class, its name and its shape tell: a weight, a gain, an embedding.

A parameter is *called as weights are* when its name is one that PyTorch, or the usual hand-written spectral and weight
norms, give to the weight of a layer. Only these are managed by default. Others (`const`, `pos_embed`, but `weights` and
`kernel` too) are listed and left alone: their names do not say whether they are weights, nor which of their dims is
the output, so managing them is the user's choice (`include`).
"""

from __future__ import annotations

import torch
from torch import nn

_NAMES = frozenset({"weight", "weight_orig", "weight_bar"})
_ATTENTION = frozenset({"in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"})
_MATRICES = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)
_NORMS: tuple[type, ...] = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._NormBase,
    *([nn.RMSNorm] if hasattr(nn, "RMSNorm") else []),
)
_MATRIX_WORDS = ("conv", "linear", "dense", "spectral", "weight")


def is_called_as_weights_are(module: nn.Module, name: str) -> bool:
    """Whether `name` is a weight's in this module. torch's attention and recurrent layers have names of their own for
    weights of the layout [out, in]."""
    if name == "weight_v":
        return "weight_g" in module._parameters  # old weight norm; else a vector of a hand-written spectral norm
    if isinstance(module, nn.MultiheadAttention) and name in _ATTENTION:
        return True
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)) and name.startswith(("weight_ih", "weight_hh", "weight_hr")):
        return not name.endswith(("_g", "_v", "_orig"))  # those of a norm around them are left alone
    return name in _NAMES


def is_magnitude(name: str) -> bool:
    """Whether `name` is what weight norm, old or new, keeps the norms of the filters in."""
    return name.endswith(("weight_g", ".original0"))


def is_vector(param: torch.Tensor) -> bool:
    """Whether a tensor of two or more dims has one number per channel, as gains and biases have: [1, C, 1, 1]."""
    return not nn.parameter.is_lazy(param) and sum(size > 1 for size in param.shape) <= 1


def is_embedding(module: nn.Module) -> bool:
    """By class, or by the word in the name of a class that is no convolution."""
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return True
    return "embed" in class_name(module).lower() and not isinstance(module, nn.modules.conv._ConvNd)


def is_norm(module: nn.Module, param: torch.Tensor) -> bool:
    """By class; else by the word in its class's name, unless class or shape are those of a layer that multiplies.

    A norm's gain has the shape of what it scales: one number per channel, class or position. A weight with kernels
    [out, in, k, k] is a convolution's, whatever somebody called the class.
    """
    if isinstance(module, _NORMS):
        return True
    name = class_name(module).lower()
    if isinstance(module, _MATRICES) or "norm" not in name or any(word in name for word in _MATRIX_WORDS):
        return False
    return not _has_kernels(module, param)


def _has_kernels(module: nn.Module, param: torch.Tensor) -> bool:
    shape = param.shape[1:] if param.dim() == 5 and param.shape[0] == 1 else param.shape  # [1, out, in, k, k]
    if len(shape) < 4 or 1 in shape[:2]:
        return False
    return max(shape[2:]) > 1 or hasattr(module, "kernel_size") or hasattr(module, "stride")


def class_name(module: nn.Module) -> str:
    """The name of a module's class, without what a parametrization put before it."""
    return type(module).__name__.removeprefix("Parametrized")

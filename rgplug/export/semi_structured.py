"""2:4: weights of which two in four are zero, in the form of sparse tensor cores (NVIDIA Ampere and later).

torch has kernels for linear layers in half precision (`torch.sparse.to_sparse_semi_structured`); convolutions keep
their dense form here, and are taken up by engines that look for the pattern themselves (TensorRT, from an ONNX file).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.sparse import _semi_structured_conversions as conversions

from rgplug.errors import RgplugError
from rgplug.select import walk

ROWS, COLUMNS = 32, 64  # a weight has to be a multiple of these, by the kernels
DTYPES = (torch.float16, torch.bfloat16)


def is_two_to_four(weight: Tensor) -> bool:
    """Whether of every four consecutive entries along dim 1 at most two are not zero. weight: [out, in, ...]."""
    if weight.dim() < 2 or weight.shape[1] % 4:
        return False
    fours = weight.movedim(1, -1).reshape(-1, 4)
    return bool((torch.count_nonzero(fours, dim=1) <= 2).all())


def compress(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(values [out, in / 2], metadata int16 [out, in / 16]) of a 2:4 weight [out, in] in half precision, as CUTLASS has
    them. On any device. Raises RgplugError for a weight that does not fit."""
    if why := _misfit(weight):
        raise RgplugError(f"a weight of shape {list(weight.shape)} has no 2:4 form: {why}")
    values, metadata = conversions.sparse_semi_structured_from_dense_cutlass(weight)
    return values, metadata


def expand(values: Tensor, metadata: Tensor) -> Tensor:
    """The dense weight [out, in] again: the reverse of `compress`."""
    dense: Tensor = conversions.sparse_semi_structured_to_dense_cutlass(values, metadata)
    return dense


def accelerate(network: nn.Module) -> dict[str, str]:
    """Give the linear layers of a baked network on a GPU torch's 2:4 weights, in place.

    Returns weight -> why it stays dense, "" for those that do not. Raises RgplugError where there is no GPU for them.
    """
    left: dict[str, str] = {}
    for prefix, module in walk(network):
        weight = module._parameters.get("weight")
        if weight is None or not isinstance(module, (nn.Linear, nn.Conv2d)):
            continue
        name = f"{prefix}.weight".lstrip(".")
        left[name] = _misfit(weight.detach()) if isinstance(module, nn.Linear) else "torch has no 2:4 convolution"
        if left[name]:
            continue
        if not weight.is_cuda or torch.cuda.get_device_capability(weight.device) < (8, 0):
            raise RgplugError(
                f"{name} is on {weight.device}, and 2:4 kernels need an NVIDIA GPU of compute capability 8.0 or more; "
                "move the network to one first"
            )
        sparse = torch.sparse.to_sparse_semi_structured(weight.detach().contiguous())
        module.weight = nn.Parameter(sparse, requires_grad=False)
    return left


def _misfit(weight: Tensor) -> str:
    if weight.dim() != 2 or weight.shape[0] % ROWS or weight.shape[1] % COLUMNS:
        return f"its sizes are no multiples of {ROWS} and {COLUMNS}"
    if weight.dtype not in DTYPES:
        return f"it is {str(weight.dtype).removeprefix('torch.')}, not half precision"
    return "" if is_two_to_four(weight) else "more than two of some four entries are not zero"

"""What differs from device to device: the widest numbers there, and where optimizers keep their step count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_WITHOUT_DOUBLE = frozenset({"mps"})  # types of devices that have no float64


def widest(device: torch.device) -> torch.dtype:
    """The widest floating point dtype of a device: float64, except on MPS, which has none: float32."""
    return torch.float32 if device.type in _WITHOUT_DOUBLE else torch.float64


def counter(device: torch.device) -> torch.dtype:
    """A dtype that holds counts of entries exactly: float64, which the compiled loops write; int64 where there is none.

    float32 would be exact up to 2^24 only.
    """
    return torch.int64 if device.type in _WITHOUT_DOUBLE else torch.float64


def optimizer_value(key: str, value: Any, param: Tensor, group: Mapping[str, Any]) -> Any:
    """A copy of an optimizer's saved value where `torch.optim` keeps it: `step` on the parameter's device if the group
    is fused or capturable and on the CPU if not, everything else with the parameter.

    key: its name in the optimizer's state. param: the parameter it belongs to. group: the parameter's group.
    """
    if not isinstance(value, Tensor):
        return value
    if key != "step":
        return value.to(device=param.device, copy=True)
    return value.to(device=param.device if group.get("fused") or group.get("capturable") else "cpu", copy=True)

"""What an optimizer keeps of a parameter (its moments): found out by letting one of its class step once."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rgplug import expected

_OF_DEVICES = {"fused", "capturable", "foreach"}  # settings that say how to step, not what is kept
CLASS = "class"  # beside the moments in a state: the name of their optimizer's class


def misfit_moments(cls: type, settings: Mapping[str, Any], moments: Mapping[str, Any], like: Tensor) -> str:
    """What is wrong with `moments` for an optimizer of a class, as half a sentence; "" if nothing is.

    settings: of its param group. like: what it steps; shape and dtype count, the trial is made on the CPU. No moments
    fit any class. Raises what the class raises where it cannot be made from `settings`.
    """
    if not moments:
        return ""
    param = torch.zeros(like.shape, dtype=like.dtype)
    settings = {key: value for key, value in settings.items() if key not in _OF_DEVICES}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer: torch.optim.Optimizer = cls([{"params": [param], **settings}])
        param.grad = torch.zeros_like(param)
        optimizer.step()
    needed = optimizer.state.get(param, {})
    for key, value in needed.items():
        if value is None:
            continue
        if key not in moments:
            return f"there is no {key!r}"
        found = moments[key]
        if isinstance(value, Tensor) and value.dim():
            wrong = expected.tensor(value.shape, value.dtype)(found)
        else:
            wrong = expected.number(0, expected.LARGEST)(found.item() if _is_scalar(found) else found)
        if wrong:
            return f"{key!r} {wrong}"
    for key, value in moments.items():  # what such an optimizer comes to have in later steps
        if key not in needed and isinstance(value, Tensor) and value.dim():
            wrong = expected.tensor(param.shape)(value)
            if wrong:
                return f"{key!r} {wrong}"
    return ""


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 0 and not value.is_complex()

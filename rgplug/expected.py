"""What a part of a state has to look like.

A check takes a value and answers with half a sentence that says what is wrong with it, or with "". States come from
files that anybody may have made, so types, shapes and ranges are looked at before anything of them is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Check = Callable[[Any], str]
LARGEST = 2**53  # of whole numbers: every one up to it is a float64, too


def keys(state: Any, needed: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> str:
    """A mapping with all of `needed`, perhaps some of `optional`, and nothing else; each value passes its check."""
    if not isinstance(state, Mapping):
        return f"is a {type(state).__name__}, not a dict"
    known = {**needed, **(optional or {})}
    missing = next((key for key in needed if key not in state), None)
    if missing is not None:
        return f"has no {missing!r}"
    for key, value in state.items():
        if key not in known:
            return f"has {key!r}, which is unknown here"
        wrong = known[key](value)
        if wrong:
            return f"has a {key!r} that {wrong}"
    return ""


def whole(low: int = 0, high: int = LARGEST) -> Check:
    """An int within [low, high]."""

    def check(value: Any) -> str:
        good = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        return "" if good else f"is {short(value)}, not a whole number from {low} to {high}"

    return check


def number(low: float = -math.inf, high: float = math.inf) -> Check:
    """A finite int or float within [low, high]."""

    def check(value: Any) -> str:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and -1e300 < value < 1e300:
            return "" if low <= value <= high else f"is {short(value)}, not within {low:g} and {high:g}"
        return f"is {short(value)}, not a number"

    return check


def flag(value: Any) -> str:
    """True or False."""
    return "" if isinstance(value, bool) else f"is {short(value)}, not true or false"


def text(value: Any) -> str:
    return "" if isinstance(value, str) else f"is {short(value)}, not a text"


def optional(check: Check) -> Check:
    """None, or what `check` lets pass."""
    return lambda value: "" if value is None else check(value)


def list_of(check: Check, length: int | None = None) -> Check:
    """A list or tuple (of a length) of values that pass."""

    def checked(value: Any) -> str:
        if not isinstance(value, (list, tuple)) or (length is not None and len(value) != length):
            return f"is {short(value)}, not a list" + ("" if length is None else f" of {length}")
        return next((f"holds a value that {wrong}" for v in value if (wrong := check(v))), "")

    return checked


def tensor(shape: Sequence[int] | None = None, *dtypes: torch.dtype, finite: bool = False) -> Check:
    """A tensor of a shape (None: any) and of one of the dtypes (none given: any floating one)."""

    def check(value: Any) -> str:
        if not isinstance(value, Tensor):
            return f"is {short(value)}, not a tensor"
        if shape is not None and tuple(value.shape) != tuple(shape):
            return f"has shape {list(value.shape)}, and {list(shape)} is needed"
        # a dtype of 8 bits has hardly any arithmetic
        if not (value.dtype in dtypes if dtypes else value.is_floating_point() and value.element_size() > 1):
            kinds = " or ".join(str(d)[6:] for d in dtypes) or "floating"
            return f"is of {str(value.dtype)[6:]}, not of {kinds}"
        return "is not finite" if finite and not bool(torch.isfinite(value).all()) else ""

    return check


def generator(value: Any) -> str:
    """The state of a torch.Generator on the CPU."""
    wrong = tensor(None, torch.uint8)(value)
    if wrong:
        return wrong
    try:
        torch.Generator().set_state(value.cpu())
    except (RuntimeError, TypeError):
        return "is no state of a random number generator"
    return ""


def short(value: Any) -> str:
    """A value in a message: enough to be recognised."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    shown = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "a huge number"
    return shown if len(shown) <= 40 else f"{shown[:40]}..."

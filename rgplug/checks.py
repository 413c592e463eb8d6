"""Values out of files that anybody can have changed: each is what its name says, or named with what is wrong."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rgplug.sealed import Damaged

LARGEST = 1e100  # no metric, count or cost of a training is larger; squares of it are still float64
LONGEST = 200  # characters of a name
SHARE_SLACK = 1e-6  # a share may be above 1 by rounding


def has(line: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Raise Damaged for the first of the keys that is not there."""
    for key in keys:
        if key not in line:
            raise Damaged(f"it has no {key!r}")


def number(line: Mapping[str, Any], key: str) -> float | None:
    """A finite number, or None."""
    value = line.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Damaged(f"{key} has to be a number or null, not {shown(value)}")
    if not abs(value) <= LARGEST:  # NaN too
        raise Damaged(f"{key} is {shown(value)}, which no training gives")
    return float(value)


def amount(line: Mapping[str, Any], key: str) -> float | None:
    """A number from 0 on, or None."""
    value = number(line, key)
    if value is not None and value < 0:
        raise Damaged(f"{key} is {value:g}; it cannot be negative")
    return value


def share(line: Mapping[str, Any], key: str) -> float | None:
    """A number from 0 to 1, or None."""
    value = amount(line, key)
    if value is not None and value > 1 + SHARE_SLACK:
        raise Damaged(f"the density of {key} is {value:g}; it lies between 0 and 1")
    return value


def whole(line: Mapping[str, Any], key: str, least: int = 0) -> int | None:
    """A whole number from `least` on, or None."""
    value = number(line, key)
    if value is None:
        return None
    if value != math.floor(value) or value < least or value > 2**53:
        raise Damaged(f"{key} is {shown(line[key])}; it has to be a whole number from {least} on")
    return int(value)


def needed(line: Mapping[str, Any], key: str, least: int = 0) -> int:
    """A whole number that has to be there."""
    value = whole(line, key, least)
    if value is None:
        raise Damaged(f"{key} is missing")
    return value


def word(line: Mapping[str, Any], key: str) -> str:
    """Text that can be written and shown."""
    value = line.get(key)
    if not isinstance(value, str) or not value:
        raise Damaged(f"{key} has to be text, not {shown(value)}")
    if len(value) > LONGEST or not printable(value):
        raise Damaged(f"{key} {shown(value)} is too long, or holds characters that cannot be printed")
    return value


def word_or_none(line: Mapping[str, Any], key: str) -> str | None:
    return None if line.get(key) is None else word(line, key)


def group(
    line: Mapping[str, Any], key: str, read: Callable[[Mapping[str, Any], str], float | None]
) -> dict[str, float | None]:
    """An object whose values are all read by `read`; {} for null."""
    found = line.get(key)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise Damaged(f"{key} has to be an object, not {shown(found)}")
    for name in found:
        if not printable(name):
            raise Damaged(f"{key} has a name with characters that cannot be printed: {shown(name)}")
    return {name: read(found, name) for name in found}


def shown(value: object) -> str:
    """A value in a sentence: never longer than a few words."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits, lists without end
        return f"a {type(value).__name__} that is too large to show"
    return text if len(text) <= 60 else f"{text[:50]}... ({type(value).__name__})"


def printable(text: str) -> bool:
    """Whether a text holds no control, format, private or unpaired surrogate character, and no line break."""
    return not any(unicodedata.category(c)[0] == "C" or unicodedata.category(c) in ("Zl", "Zp") for c in text)

"""Warnings point to the line of the training script that called rgplug."""

from __future__ import annotations

import sys


def level_of_host() -> int:
    """`stacklevel` for a `warnings.warn` in the calling function that names the first line outside of rgplug."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] == "rgplug":
        level, frame = level + 1, frame.f_back
    return level

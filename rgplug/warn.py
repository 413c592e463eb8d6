"""Warnings that point at the line of the training script that called rgplug."""

from __future__ import annotations

import sys
import warnings


def warn(text: str) -> None:
    """Warn at the line of the training script that called rgplug, or made the step."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("rgplug", "torch"):
        level, frame = level + 1, frame.f_back
    warnings.warn(f"rgplug: {text}", stacklevel=level)

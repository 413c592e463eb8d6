"""The one exception type of the package."""

from __future__ import annotations


class RgplugError(ValueError):
    """Something the caller can put right: one sentence that says what was wrong, where, and what to do."""

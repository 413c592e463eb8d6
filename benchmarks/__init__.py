"""Measurements of what rgplug costs and what it saves; `python -m benchmarks` writes docs/performance.md."""

from __future__ import annotations

import os
import sys

_KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


def keep_memory() -> None:
    """Start this script once more with a C library (glibc) that keeps freed memory.

    Otherwise tens of thousands of page faults an iteration, in no order, drown the differences that are measured.
    """
    if not _KEEP.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | _KEEP)

"""Which process trains a run: a lock on its folder, which the process holds as long as it or a child of it lives.

Several processes may work on one comparison, on one machine or on several that share the folder. The lock is the
operating system's (flock), so a process that is killed leaves none behind; what the file says is for people.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from rgplug.errors import RgplugError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK = "running.lock"
PAUSE = 0.2  # seconds between two looks at a lock that another process holds


class Claim:
    """The lock of one run's folder. A child that gets `descriptor` (subprocess's pass_fds) holds it too: a run that
    outlives the process that started it stays claimed until it ends."""

    def __init__(self, folder: Path):
        self.path = folder / LOCK
        self.descriptor: int | None = None

    def take(self) -> bool:
        """Whether this process has it now; False where another one holds it. Does not wait."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        opened = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        if not _lock(opened):
            os.close(opened)
            return False
        os.truncate(opened, 0)
        says = {"host": platform.node(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.write(opened, json.dumps(says).encode())
        self.descriptor = opened
        return True

    def wait(self) -> None:
        """Take it as soon as whoever holds it lets go."""
        while not self.take():
            time.sleep(PAUSE)

    def drop(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.drop()


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """The lock of a file while a block runs; waits for whoever holds it. The file is made, and stays empty."""
    opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        while not _lock(opened):
            time.sleep(PAUSE / 10)
        yield
    finally:
        os.close(opened)


def holder(folder: Path) -> str:
    """Who trains a run at present, as text; "" where nobody does."""
    path = folder / LOCK
    try:
        opened = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise RgplugError(f"{path} cannot be opened ({error.strerror}); make it writable") from None
    try:
        return "" if _lock(opened) else _says(path)
    finally:
        os.close(opened)


def _says(path: Path) -> str:
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        return f"process {int(found['process'])} on {found['host']}, since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True

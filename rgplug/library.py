"""Shared libraries in a cache folder: code that is run, so that none is loaded but what this user has compiled.

A cache folder may be shared with other users, and a file in it may be cut off. A library's name ends in the hash of its
contents. It is opened once; owner, mode and hash are looked at, and the very file that was looked at is loaded,
whatever has taken its name meanwhile.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rgplug import files

_opened: list[int] = []  # of loaded libraries: the loader knows them by these numbers, which must not be used again
_temporary: dict[Path, int] = {}  # folders of this process alone -> the process


def folder(cache: Path) -> Path:
    """The cache folder, or one that lasts no longer than this process where that cannot be written to."""
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        writable = os.access(cache, os.W_OK)
    except OSError:
        writable = False
    if writable:
        return cache
    own = Path(tempfile.mkdtemp(prefix="rgplug-"))
    _temporary[own] = os.getpid()
    return own


def find(folder: Path, name: str) -> Path | None:
    """A library of a name that may be loaded. Those that may not are removed, where that is possible."""
    for path in sorted(folder.glob(f"{name}-*.so")):
        try:
            with _checked(path):
                return path
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink()
    return None


def store(folder: Path, name: str, built: Path) -> Path:
    """Put a library that was just built into the folder, whole or not at all. Raises OSError."""
    contents = built.read_bytes()
    path = folder / f"{name}-{_digest(contents)}.so"
    # a name that nobody can foresee: others may write into the folder, and could have put a link there
    opened, partial = tempfile.mkstemp(dir=folder, prefix=f".{name}-")
    try:
        with os.fdopen(opened, "wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        files.rename(Path(partial), path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
    return path


def load(path: Path) -> ctypes.CDLL:
    """The library, ready to be called. Raises OSError for one that may not be loaded, or cannot be."""
    with _checked(path) as opened:
        by_number = Path(f"/proc/self/fd/{opened}")
        if by_number.exists():
            _opened.append(os.dup(opened))
            by_number = by_number.with_name(str(_opened[-1]))
        library = ctypes.CDLL(str(by_number if by_number.exists() else path))
    if path.parent in _temporary:
        _remove(path.parent)  # it is in memory now
    return library


@contextlib.contextmanager
def _checked(path: Path) -> Iterator[int]:
    """The open file, once it is known to be of this user (or root), of nobody else's to write, and whole."""
    opened = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    try:
        about = os.fstat(opened)
        if hasattr(os, "getuid") and about.st_uid not in (os.getuid(), 0):
            raise OSError(f"{path} belongs to another user")
        if os.name == "posix" and about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise OSError(f"{path} can be written to by others")
        with os.fdopen(os.dup(opened), "rb") as file:
            if _digest(file.read()) != path.stem.rpartition("-")[2]:
                raise OSError(f"{path} is not what was compiled (cut off?)")
        yield opened
    finally:
        os.close(opened)


def _digest(contents: bytes) -> str:
    return hashlib.blake2b(contents, digest_size=16).hexdigest()


def _remove(own: Path) -> None:
    if _temporary.pop(own, None) == os.getpid():  # a forked process leaves its parent's alone
        shutil.rmtree(own, ignore_errors=True)


@atexit.register
def _remove_all() -> None:
    for own in list(_temporary):
        _remove(own)

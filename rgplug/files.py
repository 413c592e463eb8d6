"""Files that are written whole or not at all, whenever the process is killed or the disk is full."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path

_PARTIAL = ".partial"
_ABANDONED = 86400.0  # seconds after which an unfinished file of another machine is taken for left behind


def write_whole(path: Path, write: Callable[[Path], object], *, keep: bool = False) -> None:
    """Replace `path` by what `write` makes; whoever reads it sees the old file or the new one.

    write(partial): writes all of the file under another name in the same folder. The file, and then its folder, are
    forced to disk. keep: the file that was there stays as `previous_of(path)`. Folders are made. Any error of `write`
    and any OSError is raised on, and `path` is untouched then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    partial = path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}{_PARTIAL}")
    try:
        partial.touch()
        mode = partial.stat().st_mode  # what the user's umask gives; some writers make their files private
        write(partial)
        partial.chmod(mode)
        _force(partial)
        if keep and path.is_file():
            _keep(path, partial.with_name(f"{partial.name[: -len(_PARTIAL)]}.kept{_PARTIAL}"))
        os.replace(partial, path)
        _force(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_whole` of a text (UTF-8)."""
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8", newline="\n"))


def rename(old: Path, new: Path) -> None:
    """Rename within a folder, so that it holds after a power cut."""
    os.replace(old, new)
    _force(new.parent)


def previous_of(path: Path) -> Path:
    """Where `write_whole` keeps the file before: rgplug.safetensors -> rgplug.previous.safetensors."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def force(file: Path) -> None:
    """Wait until a file's contents are on disk."""
    _force(file)


def _keep(path: Path, name: Path) -> None:
    """The present file under the name of the previous one as well: at no time is `path` missing."""
    name.unlink(missing_ok=True)
    try:
        try:
            os.link(path, name)
        except OSError:  # a file system without hard links
            shutil.copy2(path, name)
            _force(name)
        os.replace(name, previous_of(path))
    finally:
        name.unlink(missing_ok=True)


def _force(path: Path) -> None:
    """fsync of a file or a folder. Some systems cannot do it to a folder, which is no reason to fail."""
    try:
        opened = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(opened)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(opened)


def _remove_abandoned(path: Path) -> None:
    """Unfinished files for `path` whose process is dead."""
    for left in path.parent.glob(f"{_escaped(path.name)}.*{_PARTIAL}"):
        middle = left.name[len(path.name) + 1 : -len(_PARTIAL)].removesuffix(".kept")
        machine, _, number = middle.rpartition(".")
        with contextlib.suppress(OSError):
            if not number.isdigit():
                continue
            if machine == platform.node():
                abandoned = not _alive(int(number))
            else:  # of another machine that writes into the same folder
                abandoned = time.time() - left.stat().st_mtime > _ABANDONED
            if abandoned:
                left.unlink()


def _alive(process: int) -> bool:
    if process == os.getpid():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _escaped(name: str) -> str:
    """For glob, which takes brackets, stars and question marks for patterns."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)

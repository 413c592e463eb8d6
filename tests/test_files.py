"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rgplug import files


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def dead_process() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_file_and_folder_are_on_disk_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace

    def forced(opened: int) -> None:
        order.append(f"force {Path(os.readlink(f'/proc/self/fd/{opened}')).name.split('.')[0]}")
        fsync(opened)

    def renamed(old: Any, new: Any) -> None:
        order.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", forced)
    monkeypatch.setattr(os, "replace", renamed)
    files.write_text(tmp_path / "folder" / "file.txt", "new")
    assert order == ["force file", "rename", "force folder"]


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def half(partial: Path) -> None:
        partial.write_text("ne")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        files.write_whole(path, half, keep=True)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_the_file_before_is_kept_where_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.state"
    for number in range(3):
        files.write_whole(path, lambda p, n=number: p.write_text(str(n)), keep=True)
    assert (path.read_text(), files.previous_of(path).read_text()) == ("2", "1")

    def no_links(*args: Any) -> None:
        raise OSError("Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    files.write_whole(path, lambda p: p.write_text("3"), keep=True)
    assert (path.read_text(), files.previous_of(path).read_text()) == ("3", "2")
    assert names(tmp_path) == ["a.previous.state", "a.state"]


def test_unfinished_files_of_dead_processes_go(tmp_path: Path) -> None:
    dead = dead_process()
    path = tmp_path / "odd[1]*.txt"
    gone = [f"{path.name}.{platform.node()}.{dead}.partial", f"{path.name}.{platform.node()}.{dead}.kept.partial"]
    gone.append(f"{path.name}.elsewhere.{dead}.partial")
    stay = [f"{path.name}.{platform.node()}.{os.getppid()}.partial", f"{path.name}.elsewhere.7.partial", "b.1.partial"]
    for name in (*gone, *stay):
        (tmp_path / name).touch()
    long_ago = time.time() - 2 * 86400
    os.utime(tmp_path / gone[-1], (long_ago, long_ago))
    files.write_text(path, "new")
    assert names(tmp_path) == sorted([path.name, *stay])

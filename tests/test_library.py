"""Compiled loops in a cache folder: only what this user has compiled, whole, is loaded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rgplug import fused, library
from rgplug.methods import FIXED

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("cc", "gcc", "clang")), reason="there is no C compiler"
)
PLANTED = """
#include <stdio.h>
__attribute__((constructor)) static void run(void) { FILE* f = fopen("%s", "w"); if (f) fclose(f); }
void before(void) {} void after(void) {} void restore(void) {} void refresh(void) {} void variance(void) {}
void margins(void) {}
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(fused, "_loaded", {})
    monkeypatch.setenv("RGPLUG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def compiled(cache: Path) -> Path:
    (path,) = cache.glob("fused-float-*.so")
    return path


def plant(path: Path, mark: Path, mode: int) -> None:
    source = mark.with_suffix(".c")
    source.write_text(PLANTED % mark)
    subprocess.run(["cc", "-shared", "-fPIC", str(source), "-o", str(path)], check=True)
    path.chmod(mode)


@needs_compiler
@pytest.mark.parametrize("mode", [0o600, 0o666])
def test_code_that_was_planted_in_the_cache_is_not_run(cache: Path, tmp_path: Path, mode: int) -> None:
    path = fused._compile("float")
    honest = path.read_bytes()
    path.unlink()
    plant(path, tmp_path / "ran", mode)
    assert fused.load(torch.float32) is not None
    assert not (tmp_path / "ran").exists()
    assert path.read_bytes() == honest


@needs_compiler
def test_a_file_that_others_may_write_to_is_compiled_anew(cache: Path) -> None:
    path = fused._compile("float")
    path.chmod(0o666)
    assert library.find(cache, path.stem.rpartition("-")[0]) is None
    assert fused._compile("float") == path
    assert path.stat().st_mode & 0o022 == 0


@needs_compiler
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_not_loaded(cache: Path) -> None:
    path = fused._compile("float")
    os.chown(path, 12345, -1)
    with pytest.raises(OSError, match="another user"):
        library.load(path)  # as root, which owns nothing of user 12345


@needs_compiler
@pytest.mark.parametrize("length", [0, 100, 4096])
def test_a_file_that_was_cut_off_is_compiled_anew(cache: Path, length: int) -> None:
    """Loading one kills the process (SIGBUS), so in a process of its own."""
    path = fused._compile("float")
    whole = path.read_bytes()
    path.write_bytes(whole[:length])
    code = "import torch; from rgplug import fused; assert fused.load(torch.float32) is not None"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "RGPLUG_CACHE": str(cache)})
    assert compiled(cache).read_bytes() == whole


@needs_compiler
def test_without_a_usable_cache_nothing_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "tmp").mkdir()
    changed = {"RGPLUG_CACHE": str(tmp_path / "file" / "cache"), "TMPDIR": str(tmp_path / "tmp")}
    code = "import os, torch; from rgplug import fused; assert fused.load(torch.float32); "
    for end in ("", "os._exit(0)", "fused._compile('double')"):
        subprocess.run([sys.executable, "-c", code + end], check=True, env={**os.environ, **changed})
        assert list((tmp_path / "tmp").iterdir()) == []


@needs_compiler
def test_two_libraries_are_two(cache: Path) -> None:
    """The loader knows libraries by name: one under the name of another that is loaded would be that other one."""
    single, double = fused.load(torch.float32), fused.load(torch.float64)
    assert single is not None
    assert double is not None
    assert single._after is not double._after
    for loops in (single, double):
        zeros = torch.zeros((), dtype=torch.float64)
        weight = torch.ones(2, 3, dtype=loops.dtype)
        grad = torch.full((2, 3), 4.0, dtype=loops.dtype)
        shape = fused.Shape(2, 3, 2, 2, 1)
        loops.before(shape, weight, torch.zeros_like(weight), grad, FIXED, zeros)
        assert grad.eq(4).all()

"""The two lines, put into a copy of a host's train.py."""

from __future__ import annotations

import ast
import difflib
from pathlib import Path

from rgplug.errors import RgplugError


def two_lines(adapter: str, policy: str = "rg-gan", **options: object) -> list[str]:
    """The import and the call, for an adapter of this package."""
    extra = "".join(f", {name}={value!r}" for name, value in options.items() if value is not None)
    return [f"from rgplug.adapters import {adapter}", f"{adapter}.install(policy={policy!r}{extra})"]


def with_two_lines(source: str, adapter: str, policy: str = "rg-gan", **options: object) -> str:
    """A script with the two lines after its last import at module top level. Raises RgplugError if they are there."""
    tree = ast.parse(source)
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    if not imports:
        raise RgplugError("the script imports nothing at its top level; it is no train.py that rgplug knows")
    if any((getattr(node, "module", None) or "").startswith("rgplug") for node in imports):
        raise RgplugError("the script imports rgplug already; give the file as its authors published it")
    lines = source.splitlines(keepends=True)
    end = imports[-1].end_lineno or 0
    added = [line + "\n" for line in two_lines(adapter, policy, **options)]
    return "".join(lines[:end] + added + lines[end:])


def diff(source: str, patched: str, name: str = "train.py") -> str:
    """Unified diff with little context, as a user would make it."""
    lines = difflib.unified_diff(source.splitlines(), patched.splitlines(), name, f"{name} (patched)", n=2, lineterm="")
    return "\n".join(lines)


def patched_copy(
    script: Path, adapter: str, policy: str = "rg-gan", suffix: str = "_rgplug", **options: object
) -> Path:
    """Write the patched copy beside the script (train.py -> train_rgplug.py); the script itself is not touched."""
    source = script.read_text(encoding="utf-8-sig")
    copy = script.with_name(script.stem + suffix + script.suffix)
    copy.write_text(with_two_lines(source, adapter, policy, **options), encoding="utf-8")
    return copy

"""Small text files of runs and comparisons: written whole or not at all, read with one sentence for what is damaged.

A JSON file or line carries the SHA-256 of its own content under the key `check`. So a digit that was changed later, by
a disk or by a hand, is found when the file is read. A file without that key (earlier versions wrote none) is read too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rgplug import files
from rgplug.errors import RgplugError

CHECK = "check"


class Damaged(ValueError):
    """What is wrong with a file's content, without its name and advice, which the reader of the file adds."""


class NoJson(Damaged):
    """Text that is no JSON, as a line is that a kill cut off."""


def write_whole(path: Path, text: str) -> None:
    """Write one file whole or not at all, whenever the process is killed. Raises RgplugError where it cannot be."""
    write_all({path: text})


def write_all(texts: Mapping[Path, str]) -> None:
    """Write several files. All of them are on the disk before the first takes its place, so a full disk changes none.

    A link that stands in a file's place is replaced, never followed. Raises RgplugError (full disk, no permission).
    """
    try:
        files.write_together({path: partial(_write, text) for path, text in texts.items()})
    except OSError as error:
        names = ", ".join(map(str, texts))
        raise RgplugError(
            f"{names} could not be written: {error.strerror or error}; what was there before is untouched"
        ) from error


def _write(text: str, path: Path) -> None:
    path.write_bytes(text.encode("utf-8", "backslashreplace"))


def digest(content: Any) -> str:
    """SHA-256 (hexadecimal) of a JSON value, whatever the order of its keys. Raises Damaged where it has none."""
    try:
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    except (RecursionError, ValueError, TypeError) as error:
        raise Damaged(f"it cannot be read as JSON ({type(error).__name__})") from None
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The same keys, and `check`."""
    plain = json.loads(json.dumps({key: value for key, value in content.items() if key != CHECK}))
    return {**plain, CHECK: digest(plain)}


def parsed(text: str) -> Any:
    """A JSON value. Raises Damaged for what is none, for NaN and infinity, and for nesting without end."""

    def no_number(name: str) -> Any:
        raise Damaged(f"it holds {name}, which is no number")

    try:
        return json.loads(text, parse_constant=no_number)
    except Damaged:
        raise
    except RecursionError:
        raise Damaged("it is nested too deeply") from None
    except ValueError as error:
        raise NoJson(f"it is no JSON: {error}") from None


def opened(content: Any) -> dict[str, Any]:
    """The object without its `check`. Raises Damaged where it is no object, or was changed after it was written."""
    if not isinstance(content, dict):
        raise Damaged("it is not an object")
    kept = {key: value for key, value in content.items() if key != CHECK}
    if CHECK in content and content[CHECK] != digest(kept):
        raise Damaged(f"it was changed after it was written: its {CHECK!r} does not fit")
    return kept


def is_sealed(path: Path) -> bool:
    """Whether a JSON file carries its check."""
    return CHECK in parsed(read_text(path))


def read_text(path: Path) -> str:
    """A file's text. Raises Damaged for bytes that are no UTF-8, RgplugError where it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise Damaged(f"it is no text: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise RgplugError(f"{path} cannot be read: {error.strerror}; make it readable") from None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """An object as a file, with its check."""
    write_whole(path, json.dumps(sealed(content), indent=1) + "\n")


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """The object in a file. Raises RgplugError, which ends in `advice`, where it is damaged."""
    try:
        return opened(parsed(read_text(path)))
    except Damaged as error:
        raise RgplugError(f"{path} is damaged: {error}; {advice}") from None

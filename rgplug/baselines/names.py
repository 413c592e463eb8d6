"""Names of methods become names of folders: which ones are taken, everywhere and on every file system."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path

from rgplug.checks import printable
from rgplug.errors import RgplugError

LONGEST = 100  # bytes; file systems take 255, and files beside a run's folder are named after it
FORBIDDEN = set('/\\:*?"<>|')
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in "123456789¹²³")}
TAKEN = {"results.jsonl", "report.html", "table.csv", "table.md"}  # files of the comparison itself


def check_names(names: Iterable[object], root: Path) -> None:
    """Raise RgplugError unless each name can be a folder below `root`, and no two of them are one where case is not
    told apart. Folders of earlier comparisons in `root` count too."""
    seen: dict[str, str] = {}
    for name in names:
        reason = why_not(name)
        if reason:
            raise RgplugError(
                f"the method's name {name!r} {reason}; it becomes a folder's name: use letters, digits, - and _"
            )
        other = seen.setdefault(_folded(str(name)), str(name))
        if other != name:
            raise RgplugError(
                f"the methods {other!r} and {name!r} differ only in case or in how letters are composed, which many "
                "file systems do not tell apart; rename one"
            )
    for folder in sorted(root.glob("*/seed_*")) if root.is_dir() else ():
        there = folder.parent.name
        asked = seen.get(_folded(there), there)
        if asked != there:
            raise RgplugError(
                f"{root} holds runs of a method {there!r}, which differs from {asked!r} only in case; rename one, or "
                "give another --out"
            )


def why_not(name: object) -> str:
    """What keeps a name from being a folder's; "" where nothing does."""
    if not isinstance(name, str):
        return f"is a {type(name).__name__} and no text"
    if not name.strip():
        return "is empty"
    if name != name.strip() or name.endswith("."):
        return "begins or ends with a space, or ends with a dot"
    if name.startswith("."):
        return "begins with a dot"
    if not printable(name):
        return "holds characters that cannot be printed"
    if FORBIDDEN & set(name):
        return f"holds {min(FORBIDDEN & set(name))!r}"
    if name.split(".")[0].strip().casefold() in RESERVED or _folded(name) in TAKEN:
        return "is reserved"
    if len(name.encode()) > LONGEST:
        return f"is longer than {LONGEST} bytes"
    return ""


def is_run(folder: Path) -> bool:
    """Whether a folder is called seed_N, as those of runs are; others that look alike are nobody's."""
    return folder.name.startswith("seed_") and folder.name.removeprefix("seed_").removeprefix("-").isdecimal()


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())

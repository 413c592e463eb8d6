"""Where the runs of a report lie: comparisons and single runs in the folders given, and at any depth below them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rgplug.baselines.outcome import outcome_of
from rgplug.baselines.records import records_of
from rgplug.baselines.results import RESULTS, Result, results_and_notes, to_result
from rgplug.errors import RgplugError
from rgplug.history import HISTORY
from rgplug.presets import PRESETS
from rgplug.report.naming import method_of, seed_of
from rgplug.run_setup import SETUP, Setup
from rgplug.sealed import Damaged


@dataclass(frozen=True)
class Source:
    """A comparison, or a run by itself, with its results."""

    folder: Path
    place: str  # what tells it from the others; "" for the only one
    results: tuple[Result, ...]
    given: str = ""  # the folder that it was found in, by name, where several were given


def sources_of(folders: Sequence[Path]) -> tuple[list[Source], list[str]]:
    """What the folders hold, and what a reader has to know of it. Raises RgplugError for a folder without runs."""
    found: list[Source] = []
    notes: list[str] = []
    seen: set[Path] = set()
    names = _names(folders)
    for folder in folders:
        below = [p for p in _with_runs(folder) if p.resolve() not in seen]
        sources = []
        for path in below:
            seen.add(path.resolve())
            inner = path.relative_to(folder).as_posix()
            place = names[folder] if inner == "." else f"{names[folder]}/{inner}" if len(folders) > 1 else inner
            source, said = _source(path, place)
            notes += said if len(folders) == 1 and len(below) == 1 else [f"{path}: {text}" for text in said]
            if source is not None:
                sources.append(replace(source, given=names[folder]) if len(folders) > 1 else source)
        if not sources and below:
            raise RgplugError(f"{folder} holds no run that was evaluated yet; report when there is one")
        if not sources:
            raise RgplugError(
                f"{folder} has neither {RESULTS} nor {HISTORY}, and no folder below it has; give the folder that a "
                "comparison or a training run wrote"
            )
        found += sources
    return [replace(found[0], place="")] if len(found) == 1 else found, notes


def _names(folders: Sequence[Path]) -> dict[Path, str]:
    """A name for each folder: the end of its path that no other one has."""
    parts = {folder: folder.resolve().parts for folder in folders}
    names = {}
    for folder, own in parts.items():
        length = 1
        others = [p for f, p in parts.items() if f != folder and p != own]
        while length < len(own) and any(p[-length:] == own[-length:] for p in others):
            length += 1
        names[folder] = "/".join(own[-length:])
    return names


def _with_runs(folder: Path) -> Iterator[Path]:
    """Folders with results or a history, from the top down. Nothing below one is looked at; no link is followed."""
    for path, inside, files in os.walk(folder):
        here = Path(path)
        if (RESULTS in files or HISTORY in files or SETUP in files) and any(
            is_within(here / name, folder) for name in (RESULTS, HISTORY, SETUP)
        ):
            inside.clear()
            yield here
        inside.sort()


def is_within(path: Path, folder: Path) -> bool:
    """Whether there is a file below `folder`; a link out of it is none."""
    try:
        return path.is_file() and path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a name that no file system takes, links in a circle
        return False


def _source(folder: Path, place: str) -> tuple[Source | None, list[str]]:
    if is_within(folder / RESULTS, folder):
        results, notes = results_and_notes(folder)
        return Source(folder, place, tuple(results)), notes
    if not is_within(folder / HISTORY, folder) or not records_of(folder):
        return None, ["this run holds no evaluation yet, and is left out here."]
    return Source(folder, place, (single_run(folder),)), []


def single_run(folder: Path) -> Result:
    """The result of a run by itself: what its history and its setup say, under its policy's name. Raises RgplugError
    for damaged files, and a run without any value."""
    setup = Setup.read(folder) if is_within(folder / SETUP, folder) else None
    try:
        name = method_of(setup, PRESETS)
        found = outcome_of(folder, ".", name, seed_of(setup))
        found["keys"]["method"] = name  # the policy's own key of that name is the family's
        return to_result({**found, "before": {"real_images": 0, "flops": 0, "flops_proportional": 0},
                          "seconds_before": 0, "rounds": []})  # fmt: skip
    except (RgplugError, Damaged) as error:
        raise RgplugError(str(error) if str(folder) in str(error) else f"{folder}: {error}") from None

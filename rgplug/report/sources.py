"""Where the runs of a report lie: comparisons and single runs in the folders given, and at any depth below them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rgplug import schema
from rgplug.baselines.outcome import outcome_of
from rgplug.baselines.records import records_of
from rgplug.baselines.results import RESULTS, Result, results_and_notes, to_result
from rgplug.baselines.run import SPEC
from rgplug.checks import needed, word
from rgplug.errors import RgplugError
from rgplug.history import HISTORY
from rgplug.presets import PRESETS
from rgplug.report.naming import method_of, seed_of
from rgplug.run_setup import ADVICE, SETUP, Setup
from rgplug.sealed import Damaged, read_json

FROM_ANOTHER = (
    "this run starts from weights or masks of another one, whose cost is not known, so its own is left out; give the "
    "folder of the whole comparison once that has finished."
)


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
        everything = list(_with_runs(folder))
        below = [p for p in everything if p.resolve() not in seen]
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
        if not everything:
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
    result = single_run(folder)
    notes = [] if result.before["flops"] is not None else [FROM_ANOTHER]
    return Source(folder, place, (result,)), notes


def single_run(folder: Path) -> Result:
    """The result of a run by itself: what its history and its setup say, under its policy's name, or under that of the
    comparison that it is a part of. Raises RgplugError for damaged files, and a run without any value."""
    setup = Setup.read(folder) if is_within(folder / SETUP, folder) else None
    try:
        name, seed = method_of(setup, PRESETS), seed_of(setup)
        if is_within(folder / SPEC, folder):  # of a comparison that has not collected its results yet
            spec = read_json(folder / SPEC, ADVICE)
            name, seed = word(spec, "method"), needed(spec, "seed", -(2**53))
        found = outcome_of(folder, ".", name, seed)
        known = None if setup is not None and _builds_on_another(setup) else 0
        found["keys"]["method"] = name.partition("@")[0]  # the policy's own key of that name is the family's
        before = {"real_images": known, "flops": known, "flops_proportional": known}
        return to_result({**found, "before": before, "seconds_before": known, "rounds": []})
    except (RgplugError, Damaged) as error:
        raise RgplugError(str(error) if str(folder) in str(error) else f"{folder}: {error}") from None


def _builds_on_another(setup: Setup) -> bool:
    """Whether a run starts from weights, or trains under masks, that another run has left."""
    policy = schema.leaves(setup.policy)
    return bool(policy.get("start.weights") or policy.get("masks.file"))

"""One training of a host under one policy, in a folder of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rgplug import schema
from rgplug.baselines.claims import LOCK
from rgplug.baselines.command import OUTPUT, POLICY
from rgplug.baselines.host import Host
from rgplug.baselines.job import Job
from rgplug.baselines.methods import applicable
from rgplug.baselines.outcome import outcome_of
from rgplug.baselines.results import RESULT, read_result
from rgplug.checks import shown
from rgplug.errors import RgplugError
from rgplug.history import HISTORY
from rgplug.policy import PRESETS, Policy
from rgplug.sealed import read_json, write_json

OUTCOME = "outcome.json"
SPEC = "run.json"
FAILED = "failed.json"
BEFORE_TRAINING = frozenset((SPEC, FAILED, OUTPUT, POLICY, LOCK))  # of runs that never attached
ASIDE = ("log", "snapshots")  # keys of a policy that change nothing about the result


@dataclass(frozen=True, kw_only=True)
class Training(Job):
    """A job for a host, which is done once: everything that decides what comes out."""

    host: Host
    root: Path  # of the comparison
    keys: Mapping[str, Any] = field(default_factory=dict)  # what its result is known by besides its policy

    @property
    def spec(self) -> dict[str, Any]:
        """For telling whether a folder holds this training: paths are relative to the comparison's folder."""
        text = json.dumps(
            {
                "method": self.method,
                "seed": self.seed,
                "init_seed": self.init_seed,
                "host": self.host.identity,
                "common": schema.plain(self.common),
                "policy": schema.plain(self.policy),
            },
            default=str,
            ensure_ascii=False,
        )
        loaded: dict[str, Any] = json.loads(text.replace(str(self.root) + os.sep, ""))
        return loaded

    def run(self, held: int | None = None) -> dict[str, Any]:
        """Train, or go on with a training that was interrupted; at once if it is finished. Returns the outcome.

        held: descriptor of the claim on the folder, for what the host starts.
        """
        path = self.folder / OUTCOME
        if not self.check():
            write_json(self.folder / SPEC, self.spec)
        if path.is_file():
            return read_result(path, self.method, self.seed, self.root)
        self.host.train(self, held)
        self._restore_spec()
        outcome = self._outcome()
        write_json(path, outcome)
        return outcome

    def _restore_spec(self) -> None:
        """Write the settings again where the host has put a file of its own in their place, or taken them away."""
        try:
            intact = self.check()
        except RgplugError:
            intact = False
        if not intact:
            write_json(self.folder / SPEC, self.spec)

    def check(self) -> bool:
        """Whether the folder says which training it holds. Raises RgplugError where that is another than this one, or
        where it holds one and does not say which. A run that ended before it attached (a mistyped command) trained
        nothing: the next one takes its place."""
        path = self.folder / SPEC
        if self.folder.is_dir() and {p.name for p in self.folder.iterdir()} <= BEFORE_TRAINING:
            return False
        if path.is_file():
            same_settings(
                self.folder, read_json(path, f"delete {self.folder} and run the same command again"), self.spec
            )
            return True
        for name in (OUTCOME, RESULT, HISTORY):
            if (self.folder / name).is_file():
                raise RgplugError(
                    f"{self.folder} holds {name} and no {SPEC}, so nothing says with which settings it was trained; "
                    "give another --out, or delete that folder"
                )
        return False

    def _outcome(self) -> dict[str, Any]:
        said = self.common.get("regeneration", {})  # for all methods, those that do not regenerate too
        said = (said.get("augmented") or {}).get("higher_is_better") if isinstance(said, Mapping) else None
        run = self.folder.relative_to(self.root).as_posix()
        return outcome_of(
            self.folder, run, self.method, self.seed, None if said is None else bool(said), keys=self.keys
        )


def policy_of(common: Mapping[str, Any], method: Mapping[str, Any]) -> Policy:
    """The policy that a training will have, but for what the host adds; wrong keys are found before anything runs."""
    keys = schema.resolve(dict(common), PRESETS)
    if keys.get("snapshots"):  # they go to the run's own folder
        keys = schema.merge(keys, {"snapshots": {"folder": "."}})
    return Policy.pooled(applicable(keys, method), method)


def same_settings(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise RgplugError, with the first key that differs, unless a folder's settings are the ones that are asked for.

    What a host says of itself beyond the file's keys was not stored by the version that wrote it: it is not compared.
    """
    for key in now:
        if key not in before:
            raise RgplugError(
                f"the settings in {folder} lack {key!r}, so nothing says whether they are the ones that are asked for; "
                "give another --out, or delete that folder"
            )
        old, new = _without_aside(before[key]), _without_aside(now[key])
        if key == "host" and isinstance(old, dict):
            new = {k: v for k, v in new.items() if k in old or k != "build"}
        name, old, new = _first_difference(key, old, new)
        if old != new:
            raise RgplugError(
                f"{folder} holds a run with other settings ({name} was {shown(old)}, now it is {shown(new)}); "
                "give another --out, or delete that folder"
            )


def _without_aside(settings: Any) -> Any:
    return {k: v for k, v in settings.items() if k not in ASIDE} if isinstance(settings, dict) else settings


def _first_difference(key: str, old: Any, new: Any) -> tuple[str, Any, Any]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            if old.get(name) != new.get(name):
                return _first_difference(f"{key}.{name}", old.get(name), new.get(name))
    return key, old, new

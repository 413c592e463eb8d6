"""A host of a comparison that is a command: a training script with the two lines in it, run once for each training.

The script's own policy stays what it is; keys of the method, and those common to all methods, reach it through the
environment variable RGPLUG_POLICY and count over it. What it leaves in the run's folder (setup.json, history.jsonl,
snapshots) is all that the comparison reads.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rgplug import reading, schema
from rgplug.baselines.job import Job
from rgplug.baselines.methods import applicable
from rgplug.baselines.over_host import over_host
from rgplug.errors import RgplugError
from rgplug.history import HISTORY
from rgplug.policy import ENVIRONMENT, SEED
from rgplug.run_setup import SETUP
from rgplug.sealed import write_whole

OUTPUT = "output.txt"
POLICY = "policy.yaml"
FIRST = "first_weights"  # folder of a start that is ended once it has left initial.safetensors
PLACEHOLDER = re.compile(r"(?<!\{)\{([A-Za-z_][\w.-]*)\}(?!\})")
LITERAL = re.compile(r"\{(\{[A-Za-z_][\w.-]*\})\}")  # {{name}} stands for {name}
OWN = ("out", "seed", "round")
# what a method does not ask for is off, whatever the script's policy says: its masks do not explore because the
# script's would
OFF: dict[str, Any] = {"exploration": None, "balance": None, "start": None, "snapshots": None}


@dataclass(frozen=True)
class Command:
    """command: words, with {out}, {seed}, {round} and names of the grid in them, to be replaced in each run."""

    command: tuple[str, ...]
    values: Mapping[str, Any] = field(default_factory=dict)  # of the grid's names
    folder: str | None = None  # where it is run; None: where the comparison is
    checkpoint: str = ""  # pattern of the files, below {out}, that a run which was broken off can go on from
    resume: tuple[str, ...] = ()  # words that are added then, with {checkpoint} for the newest of them

    @property
    def identity(self) -> dict[str, Any]:
        """What tells two hosts apart in a folder of results."""
        return {"command": ["python" if word == sys.executable else word for word in self.words]}

    def check(self, seeds: Sequence[int]) -> None:
        """Raise RgplugError for a command that cannot be run for each method and seed by itself."""
        if not self.command or not self.command[0].strip():
            raise RgplugError(
                "there is no command to run; give the host's own after --, e.g. -- python train.py --outdir {out}"
            )
        if bool(self.checkpoint) != bool(self.resume):
            raise RgplugError(
                "a command goes on from a checkpoint where both are given: a pattern of its files (--checkpoint) and "
                "the words that are added then (--resume)"
            )
        names = set(self.names)
        if "out" not in names:
            raise RgplugError(
                f"the command {' '.join(self.command)!r} has no {{out}} in it, so all runs would write into the same "
                "folder; put {out} where the script takes its folder"
            )
        if len(seeds) > 1 and "seed" not in names:
            raise RgplugError(
                f"the command {' '.join(self.command)!r} has no {{seed}} in it, so its {len(seeds)} seeds would be the "
                "same run; put {seed} where the script takes its seed (where it reads RGPLUG_SEED itself, write env "
                "RGPLUG_SEED={seed} before it), or ask for one seed"
            )
        unknown = [name for name in self.names if name not in OWN and name not in self.values]
        if unknown:
            raise RgplugError(
                f"the command has {{{unknown[0]}}} in it, which nothing fills in; there are {{out}}, {{seed}}, "
                f"{{round}} and the keys of --grid ({', '.join(self.values) or 'none'})"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Placeholders in the command."""
        return placeholders(self.command)

    @property
    def words(self) -> tuple[str, ...]:
        """The command, the grid's values filled in."""
        return tuple(filled(self.command, self.values))

    def with_values(self, values: Mapping[str, Any]) -> Command:
        return replace(self, values=values)

    def train(self, job: Job, held: int | None) -> None:
        """Run the command once. held: the claim's descriptor. Raises RgplugError where it fails or leaves nothing."""
        folder = job.folder
        policy = self._policy(job)
        if job.init_seed is not None:
            policy["start"] = {"weights": str(self._first_weights(job, held))}
        if not (folder / HISTORY).is_file():
            (folder / SETUP).unlink(missing_ok=True)  # of a run that ended before its first evaluation
        before = _written_at(folder / SETUP)
        begun_at = self._newest(folder)
        status, said = self._run(job, folder, job.seed, policy, held)
        if not (folder / POLICY).is_file():
            raise RgplugError(
                f"the command has emptied or removed its folder {folder}, which holds rgplug's own files too; give it "
                "a folder below, {out}/run in place of {out}"
            )
        if status:
            damaged = f" (begun at {begun_at}; delete that file if it is damaged)" if begun_at else ""
            raise RgplugError(f"the command {_ended(status)}{said}{damaged}; its output is in {folder / OUTPUT}")
        if not (folder / SETUP).is_file():
            raise RgplugError(
                "the command ended and has attached nothing: put the two lines into the script "
                f"(rgplug.attach and rg.end_epoch, or an adapter's install); its output is in {folder / OUTPUT}"
            )
        if before is not None and _written_at(folder / SETUP) == before:
            raise RgplugError(
                "the command ended and has attached nothing, while the training in its folder was broken off before; "
                f"delete {folder} to have it trained anew; its output is in {folder / OUTPUT}"
            )
        if not (folder / HISTORY).is_file():
            raise RgplugError(
                "the command ended without an evaluation: rg.end_epoch(...) was never called, so there is no "
                f"{HISTORY}; its output is in {folder / OUTPUT}"
            )

    def _newest(self, folder: Path) -> Path | None:
        """The checkpoint that a run which was broken off goes on from."""
        return newest_of(folder, self.checkpoint) if self.checkpoint and (folder / HISTORY).is_file() else None

    def _policy(self, job: Job) -> dict[str, Any]:
        """Keys that replace those of the script's policy in this run."""
        common = applicable(schema.resolve(dict(job.common), {}), job.policy)
        keys = schema.merge(OFF, over_host(common, job.policy))
        return {**keys, "run_dir": str(job.folder)}

    def _run(self, job: Job, folder: Path, seed: int, policy: Mapping[str, Any], held: int | None) -> tuple[int, str]:
        """Exit status, and the last line that it printed, as a part of a sentence."""
        with self._started(job, folder, seed, policy, held) as child:
            try:
                status = child.wait()
            except BaseException:  # Ctrl-C, whatever else: nothing is left running
                _end(child)
                raise
        last = _last_line(folder / OUTPUT)
        return status, f" ({last})" if last else ""

    def _started(
        self, job: Job, folder: Path, seed: int, policy: Mapping[str, Any], held: int | None
    ) -> subprocess.Popen[bytes]:
        write_whole(folder / POLICY, reading.dump(schema.plain(policy)))
        values = {"out": folder, "seed": seed, "round": job.round}
        words = filled(self.words, values)
        newest = self._newest(folder)
        if newest is not None:
            words += filled(self.resume, {**values, "checkpoint": newest})
        words = [LITERAL.sub(r"\1", word) for word in words]
        environment = {**os.environ, ENVIRONMENT: str(folder / POLICY), SEED: str(seed)}
        with (folder / OUTPUT).open("ab") as output:
            output.write(f"$ {' '.join(words)}\n".encode("utf-8", "replace"))
            output.flush()
            try:
                return subprocess.Popen(
                    words,
                    env=environment,
                    cwd=self.folder,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    pass_fds=() if held is None or os.name == "nt" else (held,),
                    start_new_session=True,  # so that all of it can be ended: the command may be a shell script
                )
            except OSError as error:
                raise RgplugError(f"the command {words[0]!r} cannot be run: {error.strerror}") from error

    def _first_weights(self, job: Job, held: int | None) -> Path:
        """The networks of another seed before their first step: the command is started with that seed, and ended as
        soon as it has stepped once."""
        if "seed" not in self.names:
            raise RgplugError(
                f"{job.method} needs the networks of another initialization: put {{seed}} into the command where "
                "the script takes its seed"
            )
        assert job.init_seed is not None
        folder = job.folder / FIRST
        path = folder / "initial.safetensors"
        if path.is_file():
            return path
        policy = {
            **self._policy(job),
            "method": "dense",
            "masks": {},
            "run_dir": str(folder),
            "snapshots": {"folder": str(folder), "optimizers": False},
        }
        del policy["masks"]
        with self._started(job, folder, job.init_seed, policy, held) as child:
            try:
                while child.poll() is None and not path.is_file():
                    time.sleep(0.05)
            finally:
                _end(child)
        if not path.is_file():
            raise RgplugError(
                f"the command with seed {job.init_seed} ended before its first step; its output is in {folder / OUTPUT}"
            )
        return path


def newest_of(folder: Path, pattern: str) -> Path | None:
    """Of the files below a folder that a pattern names, the last by the numbers in its name (all_900 < all_1000)."""

    def order(path: Path) -> list[tuple[int, int | str]]:
        parts = re.split(r"(\d+)", path.relative_to(folder).as_posix())
        return [(1, int(part)) if part.isdigit() else (0, part) for part in parts]

    try:
        found = [path for path in folder.glob(pattern) if path.is_file()]
    except (ValueError, NotImplementedError) as error:
        raise RgplugError(f"--checkpoint {pattern!r} is no pattern of files below a run's folder ({error})") from None
    return max(found, key=order, default=None)


def placeholders(words: Sequence[str]) -> tuple[str, ...]:
    """Names in braces: {out}, {seed}."""
    return tuple(name for word in words for name in PLACEHOLDER.findall(word))


def filled(words: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    """The words with values in the place of names in braces; names that have none stay as they are."""

    def value(found: re.Match[str]) -> str:
        return text_of(values[found[1]]) if found[1] in values else found[0]

    return [PLACEHOLDER.sub(value, word) for word in words]


def text_of(value: Any) -> str:
    """A value as it is typed: true, false and null as in YAML, where the command line has them from."""
    return reading.dump(value).split()[0] if isinstance(value, bool) or value is None else str(value)


def _written_at(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.is_file() else None


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a command and what it has started; after ten seconds without asking."""
    if child.poll() is not None:
        return
    _signal(child, signal.SIGTERM)
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        pass
    finally:
        _signal(child, getattr(signal, "SIGKILL", signal.SIGTERM))
        child.wait()


def _signal(child: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(OSError):  # it has ended
        if os.name == "nt":
            child.terminate()
        else:
            os.killpg(child.pid, number)


def _ended(status: int) -> str:
    if status < 0:
        try:
            return f"was ended by {signal.Signals(-status).name}"
        except ValueError:
            return f"was ended by signal {-status}"
    return f"ended with status {status}"


def _last_line(path: Path, most: int = 200) -> str:
    """The last line of text that a command printed, "" where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - 4096, 0))
            lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    except OSError:
        return ""
    said = lines[-1] if lines and not lines[-1].startswith("$ ") else ""
    return said if len(said) <= most else f"{said[:most]}..."

"""compare: all methods on one host, every run resumable, one file of results, whoever runs which of them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from rgplug import schema
from rgplug.baselines.command import Command
from rgplug.baselines.grid import Cell, affecting, cells, check_keys
from rgplug.baselines.host import Build, Functions, Host, Train
from rgplug.baselines.keys import options_of
from rgplug.baselines.methods import (
    METHODS,
    Baseline,
    Density,
    Scale,
    check_common,
    find,
    own_keys,
    with_common,
    with_scores,
)
from rgplug.baselines.names import check_names
from rgplug.baselines.procedures import Task
from rgplug.baselines.results import Result, collect, finished_results, read_results
from rgplug.baselines.run import policy_of
from rgplug.baselines.tickets import check_rounds, ratio_for
from rgplug.baselines.workers import run_all
from rgplug.errors import RgplugError
from rgplug.policy import PRESETS, Policy, keys_of_user

LARGEST_SEED = 2**53  # whole numbers up to here stay what they are in any JSON reader
Ratio = float | Literal["density"]


def compare(
    methods: Sequence[str | Baseline] | Mapping[str, Any],  # names, or {name: policy, or None for that name's method}
    train: Train | None = None,  # train(build, attach, seed, run_dir): the host's training, with attach and end_epoch
    build: Build | None = None,  # build() -> (G, D), freshly initialized
    *,
    command: Sequence[str] | None = None,  # in place of the two: words of a command, with {out} and {seed} in them
    out: str | Path,
    seeds: int | Iterable[int] = 1,  # how many, or which
    policy: Any = None,  # keys common to all methods: metric, batch_size, networks; dict, preset or YAML
    density: Density | None = None,  # asked of every method that can be asked for one
    length: int | None = None,  # iterations of G in a run, to which schedules are scaled; None: as published
    n_critic: int = 1,  # steps of D per iteration of G, for the same purpose
    rounds: int = 10,  # of tickets
    ratio: Ratio = 0.2,  # of the remaining weights that a round of tickets prunes; "density": so that the last has it
    early: int | None = None,  # iterations of G after which tickets-early rewinds to; None: 5 % of length
    jobs: int = 1,  # processes; more than one needs functions that can be pickled
    grid: Mapping[str, Sequence[Any]] | None = None,  # key -> values: of a policy, density.G, or {key} in the command
    only: Sequence[str] | None = None,  # "METHOD:SEED" of the runs to make; None: all
    checkpoint: str = "",  # of a command: pattern of the files below {out} that a broken run can go on from
    resume: Sequence[str] = (),  # and the words that are added to the command then, with {checkpoint} in them
) -> list[Result]:
    """Train a host under every method and seed, and return the results.

    Each run has a folder out/METHOD/seed_N, results are in out/results.jsonl. What is finished is not run again, an
    interrupted run goes on where its host can; a run that fails does not keep the others from running, and is named in
    the RgplugError at the end. Methods that build on a dense run (pf-*, tickets*) have it trained first.

    A command is the host's own, with the two lines in its script. {out}, {seed} and {round} (of tickets) in it become
    the run's own; its policy reaches it through the environment variable RGPLUG_POLICY. Several processes, on several
    machines too, may work in one folder: each run is trained by one of them.

    Before anything is trained RgplugError names a method whose name can be no folder, a run in `out` that was made
    under other settings than the ones asked for, and a damaged file of a run.
    """
    host = _host(train, build, command, checkpoint, resume)
    scale = Scale(density, length, n_critic)
    return run(methods, host, out, seeds, policy, scale, rounds, ratio, early, jobs, grid or {}, only)


def _host(
    train: Train | None, build: Build | None, command: Sequence[str] | None, checkpoint: str, resume: Sequence[str]
) -> Host:
    if command is not None:
        if train is not None or build is not None:
            raise RgplugError("compare got a command and functions; give train and build, or command=[...]")
        if isinstance(command, str):
            raise RgplugError(
                f"command is the text {command!r}; give a list of words, e.g. ['python', 'train.py', ...]"
            )
        return Command(tuple(map(str, command)), checkpoint=checkpoint, resume=tuple(resume))
    if checkpoint or resume:
        raise RgplugError("checkpoint and resume are of a command; functions go on from what they find in run_dir")
    if train is None or build is None:
        raise RgplugError("compare needs a host: train and build, or command=[...]")
    return Functions(build, train)


def run(
    methods: Sequence[str | Baseline] | Mapping[str, Any],
    host: Host,
    out: str | Path,
    seeds: int | Iterable[int],
    policy: Any,
    scale: Scale,
    rounds: int = 10,
    ratio: Ratio = 0.2,
    early: int | None = None,
    jobs: int = 1,
    grid: Mapping[str, Sequence[Any]] | None = None,
    only: Sequence[str] | None = None,
) -> list[Result]:
    """`compare` for a host in whatever form."""
    root = Path(out).resolve()
    tasks = plan(methods, host, root, seeds, policy, scale, rounds, ratio, early, jobs, grid or {}, only)
    _make_folder(root)
    finished_results(root)  # a damaged one is named now, not when the first run has ended
    done = sum([task.finished for task in tasks])
    _warn_of_earlier_versions(tasks)
    failures: dict[str, str] = {}
    with tqdm(total=len(tasks), desc="compare", unit="run", initial=done) as bar:
        for stage in _stages(tasks):
            for task, error in run_all(stage, jobs, bar.write):
                bar.update()
                if error:
                    failures[task.label] = error
                    bar.write(f"rgplug: {task.label} failed: {error}", file=sys.stderr)
                else:
                    collect(root)
    collect(root)
    if failures:
        label, error = next(iter(failures.items()))
        raise RgplugError(
            f"{len(failures)} of {len(tasks)} runs failed, the first was {label}: {error}; finished runs "
            f"are in {root}, and the same command goes on from there"
        )
    return [r for r in read_results(root) if r.method in {task.name for task in tasks}]


def plan(
    methods: Sequence[str | Baseline] | Mapping[str, Any],
    host: Host,
    root: Path,
    seeds: int | Iterable[int],
    policy: Any,
    scale: Scale,
    rounds: int,
    ratio: Ratio,
    early: int | None,
    jobs: int,
    grid: Mapping[str, Sequence[Any]],
    only: Sequence[str] | None,
) -> list[Task]:
    """The runs that are asked for, with those that they build on. Raises RgplugError for what cannot be compared;
    nothing is written."""
    check_rounds(rounds, 0.2 if ratio == "density" else ratio)
    _check_numbers(scale, early, jobs)
    common, own = schema.resolve(policy or {}, PRESETS), keys_of_user(policy or {})
    if common.get("snapshots"):  # they go to each run's own folder
        common = schema.merge(common, {"snapshots": {"folder": str(root)}})
    check_keys(grid, host.names, Policy.of_keys)
    chosen, numbers = _with_needed(_baselines(methods)), _seeds(seeds)

    def settled(baseline: Baseline, cell: Cell) -> Baseline:
        """The method as it is in a cell, the user's common keys on top."""
        return with_common(baseline, cell.policy(own, host.names), cell.scale(scale))

    def settings(baseline: Baseline, cell: Cell) -> Any:
        """All that a cell decides about a method."""
        found = cell.scale(scale).policy(settled(baseline, cell))
        asked = policy_of(cell.policy(common, host.names), found)
        by_density = ratio == "density" and baseline.procedure in ("tickets", "random-init", "random-mask")
        return asked, cell.scale(scale).density if by_density else None

    keys = {b.name: affecting(b, grid, host.names, settings) for b in chosen}
    for baseline in chosen:  # what it builds on decides about it too
        needed = baseline.needs
        while needed is not None:
            keys[baseline.name] = [k for k in grid if k in keys[baseline.name] or k in keys[needed]]
            needed = find(needed).needs
    tasks: dict[tuple[str, int], Task] = {}
    scored = {
        cell.name(""): with_scores(
            [settled(b, cell) for b in chosen], cell.policy(common, host.names), cell.scale(scale)
        )
        for cell in cells(grid)
    }
    # one dense run serves the tickets of several cells
    scores = tuple(dict.fromkeys(name for here in scored.values() for b in here for name in b.scores))
    for cell in cells(grid):
        names = {b.name: cell.only(keys[b.name]).name(b.name) for b in chosen}
        check_names(names.values(), root)
        there = cell.scale(scale)
        here = [replace(b, scores=scores) if b.name == "dense" else b for b in scored[cell.name("")]]
        check_common(cell.policy(own, host.names), [there.policy(b) for b in here])
        asked = cell.policy(common, host.names)
        for baseline in here:
            _check_rounds(baseline, there, asked, rounds, ratio)
            values = cell.only(keys[baseline.name]).values
            at = early if early is not None or there.length is None else max(round(0.05 * there.length), 1)
            if baseline.rewind == "early" and at is None:
                raise RgplugError(
                    f"{baseline.name} is rewound to an early iteration, and nothing says which; give --early N, or "
                    "--length, of which it is 5 %"
                )
            own_host = host.with_values({k: v for k, v in values.items() if k in host.names})
            said = _keys(baseline, own_host, there, values, ratio)
            for seed in numbers:
                task = Task(baseline, seed, own_host, asked, there, root, rounds, ratio, at, names=names, keys=said)
                tasks.setdefault((task.name, seed), task)
    if not tasks:
        raise RgplugError("there is nothing to compare: give at least one method and one seed")
    for task in tasks.values():
        task.host.check(numbers)  # a host that is none is said before anything runs
    return list(tasks.values()) if only is None else _selected(list(tasks.values()), only)


def _check_rounds(baseline: Baseline, scale: Scale, common: Mapping[str, Any], rounds: int, ratio: Ratio) -> None:
    keys = scale.policy(baseline)
    if baseline.procedure in ("tickets", "random-init", "random-mask"):  # masks come from rounds
        keys["masks"] = {"file": "masks.safetensors"}
    asked = policy_of(common, keys)
    if baseline.procedure == "tickets":
        for network in baseline.networks:
            share = ratio_for(scale.density_of(network), rounds) if ratio == "density" else ratio
            check_rounds(rounds, share, asked.granularity_of(network))


def _keys(baseline: Baseline, host: Host, scale: Scale, values: Mapping[str, Any], ratio: Ratio) -> dict[str, Any]:
    """What a result is known by besides its policy: the method, the host's options, what was asked of the method."""
    found: dict[str, Any] = {**options_of(host.words), "method": baseline.name}
    if scale.length is not None:
        found["length"] = scale.length
    found |= {f"density.{net}": value for net, value in scale.asked(baseline, ratio == "density").items()}
    return {**found, **values}


def _selected(tasks: list[Task], only: Sequence[str]) -> list[Task]:
    """The runs that METHOD:SEED name, and those that they build on, seed by seed."""
    by_name = {(t.name, t.seed): t for t in tasks}
    found: dict[tuple[str, int], Task] = {}
    for text in only:
        method, _, seed = text.rpartition(":")
        wanted = [t for t in tasks if f"{t.name}:{t.seed}" == text or (t.baseline.name, str(t.seed)) == (method, seed)]
        if not wanted:
            names = ", ".join(f"{t.name}:{t.seed}" for t in tasks[:12])
            raise RgplugError(f"--only {text!r} is none of the comparison's runs; there are {names}")
        for task in wanted:
            needed = task.baseline.needs
            while needed is not None:
                name = task.names.get(needed, needed)
                found.setdefault((name, task.seed), by_name[name, task.seed])
                needed = find(needed).needs
            found.setdefault((task.name, task.seed), task)
    return list(found.values())


def _warn_of_earlier_versions(tasks: list[Task]) -> None:
    """Runs that did not store all that decides about them are used, and named."""
    old = [t.label for t in tasks if t.of_earlier_version]
    if old:
        warnings.warn(
            f"rgplug: {', '.join(old)}: these runs are of an earlier version, which stored neither the build function "
            "nor on which images a share of the data was; they are used as they are, so give another --out if one of "
            "the two is different now",
            stacklevel=3,
        )


def _make_folder(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RgplugError(f"{root} cannot be a comparison's folder ({error.strerror}); give another --out") from None


def _check_numbers(scale: Scale, early: int | None, jobs: int) -> None:
    """Raise RgplugError for a count that is none."""
    for name, value in (("length", scale.length), ("n_critic", scale.n_critic), ("early", early), ("jobs", jobs)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise RgplugError(f"{name} is {value!r}; it has to be a whole number from 1 on")


def _seeds(seeds: int | Iterable[int]) -> list[int]:
    """Which seeds, each once. Raises RgplugError for what can be no seed."""
    if isinstance(seeds, bool | str | bytes) or not isinstance(seeds, int | Iterable):
        raise RgplugError(f"seeds is {seeds!r}; give how many, or a list of whole numbers")
    numbers = list(range(seeds) if isinstance(seeds, int) else seeds)
    for seed in numbers:
        if isinstance(seed, bool) or not isinstance(seed, int) or abs(seed) > LARGEST_SEED:
            raise RgplugError(f"the seed {seed!r} is no whole number between -2**53 and 2**53; give others")
    return list(dict.fromkeys(numbers))


def _baselines(methods: Sequence[str | Baseline] | Mapping[str, Any]) -> list[Baseline]:
    if isinstance(methods, str):
        raise RgplugError(f"methods is the text {methods!r}; give a list of names, e.g. [{methods!r}]")
    if isinstance(methods, Mapping):
        return [find(name) if policy is None else _own(name, policy) for name, policy in methods.items()]
    found = [name if isinstance(name, Baseline) else find(name) for name in methods]
    return list({b.name: b for b in found}.values())


def _own(name: str, policy: Any) -> Baseline:
    """A method of the user's: a policy, trained as its base is (fine-tuned, where that is pf-*)."""
    base = policy.get("base") if isinstance(policy, Mapping) else policy
    known = METHODS.get(str(base), Baseline(name, {}))
    policy = own_keys(policy)
    Policy.load(policy)
    return replace(known, name=name, policy=schema.resolve(policy, PRESETS), own=keys_of_user(policy))


def _with_needed(chosen: list[Baseline]) -> list[Baseline]:
    """The methods, and those that they build on."""
    found = {b.name: b for b in chosen}
    for baseline in chosen:
        while baseline.needs is not None and baseline.needs not in found:
            baseline = find(baseline.needs)
            found[baseline.name] = baseline
        if baseline.needs is not None and (needed := found[baseline.needs].needs) is not None:
            found.setdefault(needed, find(needed))
    return list(found.values())


def _stages(tasks: list[Task]) -> list[list[Task]]:
    """Tasks in an order in which each finds what it needs; those of one stage do not need each other."""
    depth = {"train": 0, "fine-tune": 1, "tickets": 1, "random-init": 2, "random-mask": 2}
    stages: list[list[Task]] = [[], [], []]
    for task in sorted(tasks, key=lambda t: t.baseline.name != "dense"):
        stages[depth[task.baseline.procedure]].append(task)
    return stages

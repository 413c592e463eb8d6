"""compare: all methods on one host, every run resumable, one file of results."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from rgplug import schema
from rgplug.baselines.host import Build, Functions, Host, Train
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
from rgplug.baselines.tickets import check_rounds
from rgplug.errors import RgplugError
from rgplug.policy import PRESETS, Policy, keys_of_user

LARGEST_SEED = 2**53  # whole numbers up to here stay what they are in any JSON reader


def compare(
    methods: Sequence[str] | Mapping[str, Any],  # names, or {name: policy, or None for the method of that name}
    train: Train,  # train(build, attach, seed, run_dir): the host's training, with attach(G, D) and end_epoch in it
    build: Build,  # build() -> (G, D), freshly initialized
    *,
    out: str | Path,
    seeds: int | Iterable[int] = 1,  # how many, or which
    policy: Any = None,  # keys common to all methods: metric, batch_size, networks; dict, preset or YAML
    density: Density | None = None,  # asked of every method that can be asked for one
    length: int | None = None,  # iterations of G in a run, to which schedules are scaled; None: as published
    n_critic: int = 1,  # steps of D per iteration of G, for the same purpose
    rounds: int = 10,  # of tickets
    ratio: float = 0.2,  # of the remaining weights that a round of tickets prunes
    early: int | None = None,  # iterations of G after which tickets-early rewinds to; None: 5 % of length
    jobs: int = 1,  # processes; more than one needs functions that can be pickled
) -> list[Result]:
    """Train a host under every method and seed, and return the results.

    Each run has a folder out/METHOD/seed_N, results are in out/results.jsonl. What is finished is not run again, an
    interrupted run goes on where its host can; a run that fails does not keep the others from running, and is named in
    the RgplugError at the end. Methods that build on a dense run (pf-*, tickets*) have it trained first.

    Before anything is trained RgplugError names a method whose name can be no folder, a run in `out` that was made
    under other settings than the ones asked for, and a damaged file of a run.
    """
    host = Functions(build, train)
    return run(methods, host, out, seeds, policy, Scale(density, length, n_critic), rounds, ratio, early, jobs)


def run(
    methods: Sequence[str] | Mapping[str, Any],
    host: Host,
    out: str | Path,
    seeds: int | Iterable[int],
    policy: Any,
    scale: Scale,
    rounds: int = 10,
    ratio: float = 0.2,
    early: int | None = None,
    jobs: int = 1,
) -> list[Result]:
    """`compare` for a host in whatever form."""
    check_rounds(rounds, ratio)
    _check_numbers(scale, early, jobs)
    root = Path(out).resolve()
    common = schema.resolve(policy or {}, PRESETS)
    own = keys_of_user(policy or {})
    chosen = [with_common(b, own, scale) for b in _with_needed(_baselines(methods))]
    chosen = with_scores(chosen, common, scale)
    check_names([baseline.name for baseline in chosen], root)
    check_common(own, [scale.policy(b) for b in chosen])
    for baseline in chosen:
        keys = scale.policy(baseline)
        if baseline.procedure in ("tickets", "random-init", "random-mask"):  # masks come from rounds
            keys["masks"] = {"file": "masks.safetensors"}
        asked = policy_of(common, keys)
        if baseline.procedure == "tickets":
            for network in baseline.networks:
                check_rounds(rounds, ratio, asked.granularity_of(network))
    if early is None and scale.length is not None:
        early = max(round(0.05 * scale.length), 1)
    numbers = _seeds(seeds)
    tasks = [Task(b, s, host, common, scale, root, rounds, ratio, early) for b in chosen for s in numbers]
    if not tasks:
        raise RgplugError("there is nothing to compare: give at least one method and one seed")
    host.functions()  # a host that is none is said before anything runs
    _make_folder(root)
    finished_results(root)  # a damaged one is named now, not when the first run has ended
    done = sum([task.finished for task in tasks])
    _warn_of_earlier_versions(tasks)
    failures: dict[tuple[str, int], str] = {}
    with tqdm(total=len(tasks), desc="compare", unit="run", initial=done) as bar:
        for stage in _stages(tasks):
            for task, error in _run_all(stage, jobs):
                bar.update()
                if error:
                    failures[task.baseline.name, task.seed] = error
                    bar.write(f"rgplug: {task.baseline.name} seed {task.seed} failed: {error}", file=sys.stderr)
                else:
                    collect(root)
    collect(root)
    if failures:
        (method, seed), error = next(iter(failures.items()))
        raise RgplugError(
            f"{len(failures)} of {len(tasks)} runs failed, the first was {method} seed {seed}: {error}; finished runs "
            f"are in {root}, and the same command goes on from there"
        )
    return [r for r in read_results(root) if r.method in {b.name for b in chosen}]


def _warn_of_earlier_versions(tasks: list[Task]) -> None:
    """Runs that did not store all that decides about them are used, and named."""
    old = [f"{t.baseline.name} seed {t.seed}" for t in tasks if t.of_earlier_version]
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


def _baselines(methods: Sequence[str] | Mapping[str, Any]) -> list[Baseline]:
    if isinstance(methods, str):
        raise RgplugError(f"methods is the text {methods!r}; give a list of names, e.g. [{methods!r}]")
    if isinstance(methods, Mapping):
        return [find(name) if policy is None else _own(name, policy) for name, policy in methods.items()]
    return [find(name) for name in dict.fromkeys(methods)]


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


def _run_all(tasks: list[Task], jobs: int) -> Iterable[tuple[Task, str]]:
    """(task, error) of each that was not finished, as it ends; the error is empty where all went well."""
    waiting = []
    for task in tasks:
        try:
            if not task.finished:
                waiting.append(task)
        except RgplugError as error:  # it does not build on what was trained just now
            yield task, str(error)
    if jobs <= 1:
        for task in waiting:
            yield task, _run_one(task)
        return
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
        try:
            futures = {pool.submit(_run_one, task): task for task in waiting}
        except Exception as error:
            raise RgplugError(f"jobs={jobs} needs functions that other processes can import ({error})") from error
        for future in as_completed(futures):
            try:
                yield futures[future], future.result()
            except Exception as error:  # what pickle and a process that died raise
                yield futures[future], f"its process failed ({type(error).__name__}: {error})"


def _run_one(task: Task) -> str:
    try:
        task.run()
    except (RgplugError, OSError) as error:
        return str(error)
    return ""

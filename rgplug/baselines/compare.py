"""compare: all methods on one host, every run resumable, one file of results."""

from __future__ import annotations

import os
import sys
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
from rgplug.baselines.methods import METHODS, Baseline, Density, Scale, check_common, find, with_common
from rgplug.baselines.procedures import Task
from rgplug.baselines.results import Result, collect, read_results
from rgplug.baselines.run import policy_of
from rgplug.baselines.tickets import check_rounds
from rgplug.errors import RgplugError
from rgplug.policy import PRESETS, Policy, keys_of_user


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
    root = Path(out).resolve()
    common = schema.resolve(policy or {}, PRESETS)
    own = keys_of_user(policy or {})
    chosen = [with_common(b, own, scale) for b in _with_needed(_baselines(methods))]
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
    numbers = range(seeds) if isinstance(seeds, int) else list(seeds)
    tasks = [Task(b, s, host, common, scale, root, rounds, ratio, early) for b in chosen for s in numbers]
    if not tasks:
        raise RgplugError("there is nothing to compare: give at least one method and one seed")
    host.functions()  # a host that is none is said before anything runs
    failures: dict[tuple[str, int], str] = {}
    with tqdm(total=len(tasks), desc="compare", unit="run", initial=sum(t.finished for t in tasks)) as bar:
        for stage in _stages(tasks):
            waiting = [t for t in stage if not t.finished]
            for task, error in _run_all(waiting, jobs):
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


def _baselines(methods: Sequence[str] | Mapping[str, Any]) -> list[Baseline]:
    if isinstance(methods, Mapping):
        return [find(name) if policy is None else _own(name, policy) for name, policy in methods.items()]
    return [find(name) for name in dict.fromkeys(methods)]


def _own(name: str, policy: Any) -> Baseline:
    """A method of the user's: a policy, trained as its base is (fine-tuned, where that is pf-*)."""
    base = policy.get("base") if isinstance(policy, Mapping) else policy
    known = METHODS.get(str(base), Baseline(name, {}))
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
    """(task, error) of each as it ends; the error is empty where it was finished."""
    if jobs <= 1:
        for task in tasks:
            yield task, _run_one(task)
        return
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
        try:
            waiting = {pool.submit(_run_one, task): task for task in tasks}
        except Exception as error:
            raise RgplugError(f"jobs={jobs} needs functions that other processes can import ({error})") from error
        for future in as_completed(waiting):
            try:
                yield waiting[future], future.result()
            except Exception as error:  # what pickle and a process that died raise
                yield waiting[future], f"its process failed ({type(error).__name__}: {error})"


def _run_one(task: Task) -> str:
    try:
        task.run()
    except (RgplugError, OSError) as error:
        return str(error)
    return ""

"""Runs of a comparison, one after the other or in several processes, each claimed before it is trained."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import active_children, get_context

import torch

from rgplug.baselines.claims import Claim, holder
from rgplug.baselines.procedures import Task
from rgplug.baselines.run import FAILED
from rgplug.errors import RgplugError
from rgplug.sealed import write_json


def run_all(tasks: Iterable[Task], jobs: int, say: Callable[[str], object]) -> Iterator[tuple[Task, str]]:
    """(task, error) of each that was not finished, as it ends; the error is empty where all went well.

    A run that another process trains is waited for, once all others are done; what it leaves unfinished is trained
    here.
    """
    waiting = []
    for task in tasks:
        try:
            if not task.finished:
                waiting.append(task)
        except RgplugError as error:  # it does not build on what was trained just now
            yield task, str(error)
    held = []
    for task, failure in _tried(waiting, jobs, wait=False):
        if failure is None:
            held.append(task)
        else:
            yield task, failure
    for task in held:
        say(f"rgplug: waiting for {task.label}: {holder(task.folder) or 'another process'} trains it")
    for task, failure in _tried(held, jobs, wait=True):
        yield task, failure or ""


def _tried(tasks: list[Task], jobs: int, wait: bool) -> Iterator[tuple[Task, str | None]]:
    if jobs <= 1 or len(tasks) < 2:
        for task in tasks:
            yield task, _run_one(task, wait)
        return
    threads = max(1, (os.cpu_count() or 1) // jobs)
    others = set(active_children())
    with ProcessPoolExecutor(jobs, get_context("spawn"), _begin, (threads,)) as pool:
        try:
            futures = {pool.submit(_run_one, task, wait): task for task in tasks}
        except Exception as error:
            raise RgplugError(f"jobs={jobs} needs functions that other processes can import ({error})") from error
        try:
            for future in as_completed(futures):
                try:
                    yield futures[future], future.result()
                except Exception as error:  # what pickle and a process that died raise
                    yield futures[future], f"its process failed ({type(error).__name__}: {error})"
        except BaseException:  # Ctrl-C: nothing is begun any more, and what runs is ended
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(active_children()) - others:
                process.terminate()
            raise


def _begin(threads: int) -> None:
    """In a process of its own: SIGTERM ends what it runs as Ctrl-C does."""
    torch.set_num_threads(threads)

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def _run_one(task: Task, wait: bool) -> str | None:
    """What went wrong, "" where nothing did; None where another process trains it."""
    claim = Claim(task.folder)
    try:
        if wait:
            claim.wait()
        elif not claim.take():
            return None
        with claim:
            if task.finished:  # by whoever had the claim until now
                return ""
            (task.folder / FAILED).unlink(missing_ok=True)
            try:
                task.run(claim.descriptor)
            except (RgplugError, OSError) as error:
                write_json(task.folder / FAILED, {"error": str(error)})  # for --status
                return str(error)
    except (RgplugError, OSError) as error:
        return str(error)
    return ""

"""A host of a comparison that is two functions: how its networks are built and trained."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import rgplug
from rgplug import schema
from rgplug.baselines.command import Command, filled, placeholders
from rgplug.baselines.job import Job
from rgplug.baselines.methods import applicable
from rgplug.baselines.over_host import over_host
from rgplug.controller import Controller
from rgplug.errors import RgplugError
from rgplug.history import HISTORY
from rgplug.inspection import import_file
from rgplug.policy import ENVIRONMENT, PRESETS, Policy

Build = Callable[[], tuple[nn.Module, nn.Module]]
Train = Callable[..., Any]


@dataclass(frozen=True)
class Functions:
    """A host given as functions: build() -> (G, D); train(build, attach, seed, run_dir)."""

    build_function: Build
    train_function: Train

    def functions(self) -> tuple[Build, Train]:
        return self.build_function, self.train_function

    names: tuple[str, ...] = ()  # placeholders: functions have none
    words: tuple[str, ...] = ()

    def with_values(self, values: Mapping[str, Any]) -> Functions:
        return self

    def check(self, seeds: Sequence[int]) -> None:
        """Functions can be called for any seed."""
        _check_environment()

    def train(self, job: Job, held: int | None) -> None:
        """Train once, in this process, which holds the claim."""
        _call(self.functions(), job)

    @property
    def identity(self) -> dict[str, Any]:
        """What tells two hosts apart in a folder of results: names of the functions, and what is bound to them."""
        return {"train": _named(self.train_function, "train"), "build": _named(self.build_function, "build")}


@dataclass(frozen=True)
class HostFile:
    """A host given as a Python file: it defines host(argv) -> (build, train), or build and train themselves."""

    path: str
    argv: tuple[str, ...] = ()  # with {names} of a grid in it
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Placeholders in the arguments."""
        return placeholders(self.argv)

    @property
    def words(self) -> tuple[str, ...]:
        """The arguments, the grid's values filled in."""
        return tuple(filled(self.argv, self.values))

    def with_values(self, values: Mapping[str, Any]) -> HostFile:
        return replace(self, values=values)

    def functions(self) -> tuple[Build, Train]:
        module = import_file(Path(self.path))
        if hasattr(module, "host"):
            try:
                found = module.host(list(self.words))
            except SystemExit as error:  # argparse, which has said why
                raise RgplugError(f"{self.path} does not take {' '.join(self.words)!r} ({error})") from error
        else:
            found = (getattr(module, "build", None), getattr(module, "train", None))
            if self.argv:
                raise RgplugError(f"{self.path} defines no host(argv), so it can take no arguments after --")
        if not (isinstance(found, tuple) and len(found) == 2 and all(map(callable, found))):
            raise RgplugError(
                f"{self.path} is no host: it has to define host(argv) -> (build, train), or build() -> (G, D) and "
                "train(build, attach, seed, run_dir)"
            )
        build, train = found
        return build, train

    def check(self, seeds: Sequence[int]) -> None:
        """Raise RgplugError for a file that is no host, before anything runs."""
        _check_environment()
        self.functions()

    def train(self, job: Job, held: int | None) -> None:
        """Train once, in this process, which holds the claim."""
        _call(self.functions(), job)

    @property
    def identity(self) -> dict[str, Any]:
        return {"file": Path(self.path).name, "argv": list(self.words)}


Host = Functions | HostFile | Command


def _check_environment() -> None:
    """Raise RgplugError where a policy in the environment would make all methods the same."""
    if os.environ.get(ENVIRONMENT):
        raise RgplugError(
            f"the environment variable {ENVIRONMENT} is set, and the keys of that file would replace those of every "
            "method; unset it, and give keys for all methods with --policy FILE (policy=...)"
        )


def _call(functions: tuple[Build, Train], job: Job) -> None:
    """The host's train, with attach in it. Raises RgplugError where it fails or attaches nothing."""
    build, train = functions
    attach = Attachment(job.common, {**job.policy, "run_dir": str(job.folder)})
    try:
        train(checked(build, job.init_seed), attach, job.seed, job.folder)
        if attach.controller is None:
            raise RgplugError("the host's train never called attach(G, D), so nothing was measured")
        if not (job.folder / HISTORY).is_file():
            raise RgplugError("the host's train never called end_epoch, so there is no evaluation to compare")
    except (RgplugError, KeyboardInterrupt):
        raise
    except SystemExit as error:
        raise RgplugError(f"the host stopped: {error}") from error
    except Exception as error:
        raise RgplugError(f"the host failed: {type(error).__name__}: {error}") from error
    finally:
        if attach.controller is not None:
            attach.controller.detach()


def _named(function: Any, otherwise: str) -> str:
    """A function's name that is the same in every process, with the arguments of a functools.partial."""
    if isinstance(function, functools.partial):
        bound = [*map(repr, function.args), *(f"{k}={v!r}" for k, v in sorted(function.keywords.items()))]
        where = re.sub(r" at 0x[0-9a-fA-F]+", "", ", ".join(bound))  # an address is another one in every process
        return f"{_named(function.func, otherwise)}({where})"
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', otherwise)}"


class Attachment:
    """`attach` as a host gets it: attach(G, D), or with what the host knows, as policy={"batch_size": 64}."""

    def __init__(self, common: Mapping[str, Any], method: Mapping[str, Any]):
        self._common, self._method = common, method
        self.controller: Controller | None = None

    def __call__(
        self, G: nn.Module, D: nn.Module | None = None, policy: Any = None, optimizers: Any = None
    ) -> Controller:
        """The method's keys (with what the user wrote for all methods on top) count over the rest of the comparison's,
        and those over the host's; what the method does not read is left out."""
        if self.controller is not None:
            raise RgplugError("the host's train called attach twice in one run; a run has one pair of networks")
        own = schema.resolve(policy or {}, PRESETS)
        own, common = (applicable(keys, self._method) for keys in (own, self._common))
        self.controller = rgplug.attach(G, D, Policy.pooled(own, over_host(common, self._method)), optimizers)
        return self.controller


def checked(build: Build, seed: int | None = None) -> Build:
    """build() that answers for what it returns; with a seed its networks are initialized from that alone."""

    def built() -> tuple[nn.Module, nn.Module]:
        with torch.random.fork_rng(enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            pair = build()
        if not (isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(n, nn.Module) for n in pair)):
            what = f"a tuple of {len(pair)}" if isinstance(pair, tuple) else type(pair).__name__
            raise RgplugError(f"the host's build() returned {what} and no networks; it has to return (G, D)")
        return pair

    return built

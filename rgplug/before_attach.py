"""What can be known before a run begins is said then: at attach, before anything of the networks is touched.

Nothing is opened to stay open, written or downloaded here.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from rgplug import effect
from rgplug.errors import RgplugError
from rgplug.logs import check_logger
from rgplug.methods.threshold_optimizer import NOT_ELEMENTWISE, class_of, parameters_of
from rgplug.metrics.features import check_features
from rgplug.metrics.sources import check_source
from rgplug.policy import Policy
from rgplug.processes import rank
from rgplug.schema import LARGEST, shown
from rgplug.warn import warn

# settings that a threshold's optimizer gets from rgplug, whatever the policy says
_FIXED = ("params", "weight_decay", "maximize", "foreach", "fused", "capturable", "differentiable")


def check(policy: Policy, attached: Collection[str], optimizers: Any = None) -> None:
    """Raise RgplugError for what would only fail later in the run. attached: labels of the networks given."""
    if policy.balance is not None and len(effect.managed(policy, attached)) < 2:
        raise RgplugError("policy.balance needs both networks; attach G and D")
    effect.check(policy, policy.own_keys, attached)
    _check_values(policy, effect.managed(policy, attached))
    if policy.method == "rg-gan" and isinstance(policy.threshold.optimizer, Mapping):
        check_threshold_settings(policy.threshold.optimizer, optimizers)
    if policy.metric is not None:
        check_source(policy.metric.real)
        check_features(policy.metric.features)
    if rank() == 0:  # the process that writes
        for name in policy.log:
            check_logger(name)
        for key, folder in (
            ("run_dir", policy.run_dir),
            ("snapshots.folder", None if policy.snapshots is None else policy.snapshots.folder),
        ):
            if folder is not None:
                check_folder(folder, f"policy.{key}")
    _say_how_long(policy, effect.managed(policy, attached))


def _check_values(policy: Policy, networks: Collection[str]) -> None:
    """A value per network where each of them needs one."""
    needed: dict[str, tuple[Any, Collection[str]]] = {}
    if policy.method == "sparse" and policy.masks.file is None:
        needed["masks.density"] = (policy.masks.density, ("G", "D"))
    if policy.exploration is not None:
        needed["exploration.every"] = (policy.exploration.every, policy.exploration.networks)
    for key, (value, read_for) in needed.items():
        for network in networks:
            if network in read_for and policy.of(value, network) is None:
                raise RgplugError(f"policy.{key} has no value for {network}; give {{G: ..., D: ...}}, or one for both")


def check_threshold_settings(settings: Mapping[str, Any], optimizers: Any = None) -> None:
    """policy.threshold.optimizer: numbers, and settings of the optimizer's class.

    optimizers: what `attach` was given. Where it was given none, each class of torch.optim is thought of: a setting
    that none of them takes, or a value with which none of them can make a step, is an error.
    """
    for key, value in settings.items():
        items = value if isinstance(value, (list, tuple)) else [value]
        for item in items:
            number = isinstance(item, (int, float)) and (
                abs(item) <= LARGEST if isinstance(item, int) else math.isfinite(item)
            )
            if not (number or (item is None and item is value)):
                raise RgplugError(
                    f"policy.threshold.optimizer.{key} is {shown(value)}; it has to be a finite number, a list of "
                    "them, or true or false"
                )
    given = _classes(optimizers)
    classes: list[type] = given or [
        c
        for c in vars(torch.optim).values()
        if isinstance(c, type)
        and issubclass(c, torch.optim.Optimizer)
        and c.__name__ not in ("Optimizer", *NOT_ELEMENTWISE)
    ]
    for key in settings:
        where = " or ".join(sorted({c.__name__ for c in given})) or "any optimizer of torch.optim"
        advice = "" if given else "; name an optimizer of your own to attach: attach(G, D, policy, optimizers=[...])"
        if key in _FIXED:
            raise RgplugError(f"policy.threshold.optimizer.{key} has no effect: thresholds have none; leave it out")
        if not any(key in parameters_of(c) for c in classes):
            raise RgplugError(f"policy.threshold.optimizer.{key} is no setting of {where}{advice}")
    able = [c for c in classes if set(settings) <= parameters_of(c)]
    if not able:
        raise RgplugError(
            f"policy.threshold.optimizer: no optimizer has the settings {', '.join(settings)} together; leave some away"
        )
    reasons = [_trial(c, settings) for c in able]
    if all(reasons):
        raise RgplugError(f"policy.threshold.optimizer: {able[0].__name__} does not take these settings ({reasons[0]})")


def _classes(optimizers: Any) -> list[type]:
    if isinstance(optimizers, Mapping):
        optimizers = list(optimizers.values())
    found = optimizers if isinstance(optimizers, (list, tuple)) else [optimizers]
    return list({class_of(o) for o in found if isinstance(o, torch.optim.Optimizer)})


def _trial(cls: type, settings: Mapping[str, Any]) -> str:
    """Why an optimizer of a class cannot step one number with these settings; "" where it can."""
    thing = torch.zeros(1)
    thing.grad = torch.ones(1)
    own: dict[str, Any] = {"lr": 1e-3}
    own |= {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    try:
        cls([thing], **own).step()
    except Exception as error:  # of any kind: the class is not ours
        return f"{type(error).__name__}: {error}"
    return ""


def check_folder(folder: str, key: str) -> None:
    """Raise RgplugError where a folder is not there and cannot be made, or nothing can be written into it."""
    path = Path(folder).expanduser().absolute()
    try:
        there = next(p for p in (path, *path.parents) if p.exists())
        if not there.is_dir():
            what = "is a file" if there == path else f"would lie in {there}, which is a file"
            raise RgplugError(f"{key} {folder} {what}; name a folder")
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(13, "no permission to write")
        with tempfile.TemporaryFile(dir=there):  # read-only and full file systems say so
            pass
    except (OSError, StopIteration) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise RgplugError(f"{key} {shown(folder)} cannot be written to ({why}); name another folder") from error


def _say_how_long(policy: Policy, networks: Collection[str]) -> None:
    """One line where the user asked for a density and not for a time to reach it in."""
    target = policy.target
    if target is None or "target.by" in policy.own_keys or target.by != type(target)().by or target.shape == "constant":
        return
    asked = {n: d for n in networks if (d := getattr(target, n)) is not None}
    if asked:
        goals = ", ".join(f"{n} {d:g}" for n, d in asked.items())
        warn(
            f"the target density ({goals}) is reached over the first {target.by:,} steps of the network; set target.by "
            "for a longer or shorter run"
        )

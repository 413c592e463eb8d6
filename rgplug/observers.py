"""What watches the steps of a run beside its method: snapshots that it leaves, optimizer states that it starts from."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rgplug import select, snapshot
from rgplug.best import BestOfPhases
from rgplug.history import Record
from rgplug.policy import SnapshotPolicy
from rgplug.processes import rank
from rgplug.units import Units

if TYPE_CHECKING:
    from rgplug.filter_scores import FilterScores
    from rgplug.network import Network


class Observer:
    """Told of each step of a managed network; before_step may come several times for one step.

    stepped: the optimizer has stepped, and masks are still those of the step (pruned weights may have moved).
    after_step: pruned weights are 0 again, and masks are the new ones.
    """

    def before_step(self, network: str, optimizer: torch.optim.Optimizer | None) -> None: ...

    def stepped(self, network: str) -> None: ...

    def after_step(self, network: str) -> None: ...


class StartedOptimizers(Observer):
    """policy.start with optimizers: moments of the snapshot for each optimizer before its first step."""

    def __init__(self, start: snapshot.Start, modules: Mapping[str, nn.Module]):
        self._start, self._modules = start, modules
        self._seen: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()

    def before_step(self, network: str, optimizer: torch.optim.Optimizer | None) -> None:
        if optimizer is not None and optimizer not in self._seen:
            self._seen.add(optimizer)
            self._start.fill(optimizer, self._modules)


class Snapshots(Observer):
    """policy.snapshots: the pair before its first step, after `early` iterations of G, as last evaluated, and at the
    best evaluation of each phase."""

    def __init__(
        self,
        policy: SnapshotPolicy,
        modules: Mapping[str, nn.Module],
        networks: Mapping[str, Network],
        higher_is_better: bool = False,  # the metric that decides
    ):
        self.policy, self._modules, self._networks = policy, modules, networks
        self._folder = Path(policy.folder)
        self._at_attach: dict[str, snapshot.Tensors] | None = copies(modules)
        self._optimizers = _Stepped()
        self._changed = False  # since trained.safetensors was written
        self.best = BestOfPhases(self._folder, higher_is_better) if policy.best else None
        self._stepping: weakref.ref[torch.optim.Optimizer] | None = None

    def before_step(self, network: str, optimizer: torch.optim.Optimizer | None) -> None:
        """The first step of all: weights are what the host begins with. Buffers are taken as they were at attach, as
        forward passes have moved them since, unless the host has loaded other weights after that."""
        self._stepping = None if optimizer is None else weakref.ref(optimizer)
        if optimizer is not None and self.policy.optimizers:
            self._optimizers.add(optimizer)
        began, self._at_attach = self._at_attach, None
        if began is None or any(net.iteration for net in self._networks.values()):
            return
        for label, module in self._modules.items():
            live = select.named_tensors(module)
            trained = select.named_parameters(module)
            if not all(torch.equal(live[name].cpu(), began[label][name]) for name in trained):
                began[label] = copies({label: module})[label]
        self._write("initial", began)

    def stepped(self, network: str) -> None:
        net = self._networks[network]
        if net.scores is not None and not net.auxiliary:
            optimizer = None if self._stepping is None else self._stepping()
            net.scores.stepped(getattr(optimizer, "found_inf", None))

    def after_step(self, network: str) -> None:
        self._changed = True
        early = self.policy.early
        if network == "G" and early is not None:
            net = self._networks["G"]
            if net.iteration == early and not net.auxiliary:
                self._write("early", copies(self._modules))

    def measured(self, record: Record, average: Callable[[], snapshot.Tensors | None]) -> None:
        """Before anything is decided from an evaluation: the pair as it was measured, if it is the best of its phase.
        average: gives the tensors of G's moving average that were measured, if one was."""
        if self.best is None:
            return
        if rank() == 0:
            self.best.keep_files()
        phase = record.phase_before
        if not self.best.add(phase, record.epoch, record.metric) or rank() != 0:
            return
        pair = copies(self._modules)
        if (tensors := average()) is not None:
            pair[snapshot.AVERAGE] = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
        evaluation = {"epoch": record.epoch, "metric": record.metric, "metric_name": record.metric_name, "phase": phase}
        snapshot.save(self.best.path(phase), pair, self._moments(), self._units(), evaluation, keep=True)

    def evaluated(self) -> None:
        """At each evaluation, and at the end: the trained pair, over the one before it."""
        if not self._changed:
            return
        self._changed = False
        self._write("trained", copies(self._modules), self._moments(), self._scores())
        self._optimizers.written()

    def finished(self, changed: bool) -> None:
        """At detach, once the networks are as policy.finish leaves them. changed: they are not as last trained."""
        if self._changed or not changed:
            self.evaluated()
        elif rank() == 0 and (path := self._folder / "trained.safetensors").is_file():
            moments = snapshot.read(path)["optimizers"]  # no step since; their optimizers may be gone by now
            self._write("trained", copies(self._modules), moments, self._scores())

    def _moments(self) -> dict[str, Any]:
        modules = self._modules if self.policy.optimizers else {}
        return {k: snapshot.moments_of(m, self._optimizers.alive()) for k, m in modules.items()}

    def _units(self) -> dict[str, Units]:
        return {label: net.method.units for label, net in self._networks.items()}

    def _scores(self) -> dict[str, FilterScores]:
        return {net.scores.network: net.scores for net in self._networks.values() if net.scores is not None}

    def _write(
        self,
        name: str,
        pair: dict[str, snapshot.Tensors],
        moments: Any = None,
        scores: Mapping[str, FilterScores] | None = None,
    ) -> None:
        if rank() == 0:
            held = {label: own.to_dict() for label, own in (scores or {}).items()}
            snapshot.save(self._folder / f"{name}.safetensors", pair, moments, self._units(), scores=held)


class _Stepped:
    """The optimizers whose moments a snapshot holds.

    Those that stepped since the last snapshot are kept alive until the next one, since a training function may have
    returned by the time of detach; one that another optimizer of the same parameters has replaced is not. All others
    belong to the training script alone: once it lets go of them, their moments are in no later snapshot.
    """

    def __init__(self) -> None:
        self._recent: list[torch.optim.Optimizer] = []
        self._known: list[weakref.ref[torch.optim.Optimizer]] = []

    def add(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer is about to step. Cheap for one that has stepped since the last snapshot."""
        if any(o is optimizer for o in self._recent):
            return
        own = _parameters_of(optimizer)
        self._recent = [o for o in self._recent if not _parameters_of(o) <= own] + [optimizer]

    def alive(self) -> list[torch.optim.Optimizer]:
        """In the order of their steps: where two have moments of one parameter, those of the later one count."""
        older = [o for ref in self._known if (o := ref()) is not None]
        return [o for o in older if all(o is not r for r in self._recent)] + self._recent

    def written(self) -> None:
        """A snapshot holds their moments."""
        self._known = [weakref.ref(o) for o in self.alive()]
        self._recent = []


def _parameters_of(optimizer: torch.optim.Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def copies(modules: Mapping[str, nn.Module]) -> dict[str, snapshot.Tensors]:
    """Parameters and buffers of each network, on the CPU."""
    return {k: {n: t.cpu().clone() for n, t in select.named_tensors(m).items()} for k, m in modules.items()}

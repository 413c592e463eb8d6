"""What watches the steps of a run beside its method: snapshots that it leaves, optimizer states that it starts from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rgplug import select, snapshot
from rgplug.policy import SnapshotPolicy
from rgplug.processes import rank

if TYPE_CHECKING:
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
        self._seen: set[int] = set()

    def before_step(self, network: str, optimizer: torch.optim.Optimizer | None) -> None:
        if optimizer is not None and id(optimizer) not in self._seen:
            self._seen.add(id(optimizer))
            self._start.fill(optimizer, self._modules)


class Snapshots(Observer):
    """policy.snapshots: the pair before its first step, after `early` iterations of G, and as last evaluated."""

    def __init__(self, policy: SnapshotPolicy, modules: Mapping[str, nn.Module], networks: Mapping[str, Network]):
        self.policy, self._modules, self._networks = policy, modules, networks
        self._folder = Path(policy.folder)
        self._at_attach: dict[str, snapshot.Tensors] | None = copies(modules)
        self._optimizers: dict[int, torch.optim.Optimizer] = {}  # kept: a host may be through with them at detach
        self._changed = False  # since trained.safetensors was written

    def before_step(self, network: str, optimizer: torch.optim.Optimizer | None) -> None:
        """The first step of all: weights are what the host begins with. Buffers are taken as they were at attach, as
        forward passes have moved them since, unless the host has loaded other weights after that."""
        if optimizer is not None:
            self._optimizers[id(optimizer)] = optimizer
        began, self._at_attach = self._at_attach, None
        if began is None or any(net.iteration for net in self._networks.values()):
            return
        for label, module in self._modules.items():
            live = select.named_tensors(module)
            trained = select.named_parameters(module)
            if not all(torch.equal(live[name].cpu(), began[label][name]) for name in trained):
                began[label] = copies({label: module})[label]
        self._write("initial", began)

    def after_step(self, network: str) -> None:
        self._changed = True
        early = self.policy.early
        if network == "G" and early is not None:
            net = self._networks["G"]
            if net.iteration == early and not net.auxiliary:
                self._write("early", copies(self._modules))

    def evaluated(self) -> None:
        """At each evaluation, and at the end: the trained pair, over the one before it."""
        if not self._changed:
            return
        self._changed = False
        modules = self._modules if self.policy.optimizers else {}
        moments = {k: snapshot.moments_of(m, self._optimizers.values()) for k, m in modules.items()}
        self._write("trained", copies(self._modules), moments)

    def _write(self, name: str, pair: dict[str, snapshot.Tensors], moments: Any = None) -> None:
        if rank() == 0:
            units = {label: net.method.units for label, net in self._networks.items()}
            snapshot.save(self._folder / f"{name}.safetensors", pair, moments, units)


def copies(modules: Mapping[str, nn.Module]) -> dict[str, snapshot.Tensors]:
    """Parameters and buffers of each network, on the CPU."""
    return {k: {n: t.cpu().clone() for n, t in select.named_tensors(m).items()} for k, m in modules.items()}

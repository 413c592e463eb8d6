"""The controller: what `attach` returns. It knows when things happen and no formula."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rgplug import history, layers, select, snapshot, state
from rgplug.accounting import Accounting
from rgplug.balance_meter import BalanceMeter
from rgplug.errors import RgplugError
from rgplug.evaluation import Evaluation, hide_pruned, update_average
from rgplug.export import bake, save_sparse
from rgplug.hooks import StepHooks
from rgplug.journal import Journal
from rgplug.masking import MaskedWeight
from rgplug.methods import Step
from rgplug.metrics import MetricValue
from rgplug.monitor import Monitor
from rgplug.network import Network
from rgplug.observers import Snapshots, StartedOptimizers, copies
from rgplug.policy import Policy
from rgplug.processes import broadcast_first, from_first_rank
from rgplug.regeneration import AugmentedRegeneration
from rgplug.select import named_tensors
from rgplug.state import fit
from rgplug.wrappers import unwrap

Phase = Literal["sparse", "dense"]


class Controller:
    """Handle of an attached pair of networks. Also a context manager that detaches at its end."""

    def __init__(
        self,
        networks: dict[str, Network],
        candidates: dict[str, list[select.Candidate]],
        policy: Policy,
        optimizers: Iterable[Any] | None,
        modules: Mapping[str, nn.Module],
        start: snapshot.Start | None = None,
        balance: BalanceMeter | None = None,
    ):
        self.policy = policy
        self.networks = networks
        self.journal = Journal(policy)
        self.candidates = candidates
        self.modules = dict(modules)
        self.hooks = StepHooks(list(networks.values()), optimizers)
        self.accounting = Accounting(self.modules, networks, policy)
        self.records: list[history.Record] = []
        self.epoch = 0
        augmented = policy.regeneration.augmented
        if augmented is not None:
            augmented = replace(augmented, higher_is_better=policy.higher_is_better)
        self.regeneration = None if augmented is None else AugmentedRegeneration(augmented)
        self._evaluation = None if policy.metric is None else Evaluation(policy.metric)
        self.monitor = Monitor(networks, self.accounting)
        self._balance = balance
        self._snapshots = None if policy.snapshots is None else Snapshots(policy.snapshots, self.modules, networks)
        started = None if start is None else StartedOptimizers(start, self.modules)
        self.hooks.observers += [o for o in (started, self._snapshots, balance) if o is not None]
        self._attached = True

    # ---- the host's loop -------------------------------------------------------------------------------------------

    def regularization_loss(self, network: str) -> Tensor:
        """lambda * sum exp(-t) of "G" or "D", a differentiable scalar for the host's loss (RG-GAN, Eq. 3).

        Only with `regularization: loss`; a loss scaled by a GradScaler or split by gradient accumulation is accounted
        for. 0 while the network trains dense.
        """
        net = self._network(network)
        if net.host_loss is None:
            raise RgplugError(
                "rgplug adds the regularizer itself (policy.regularization: hook); set it to 'loss' to add it yourself"
            )
        return net.regularization_loss(net.host_loss)

    def mask_gradients(self, network: str | None = None) -> None:
        """Do the before-step work now, so that a norm the host clips or logs is that of the masked gradient.

        Call it between backward (and `unscale_` under AMP) and the clipping; the hook then does not repeat it, as long
        as the clipping works in place.
        """
        for net in self._of(network):
            net.before_step(net.weights)

    @contextmanager
    def auxiliary_step(self, network: str | None = None) -> Iterator[None]:
        """Steps taken inside are no iterations of their own (lazy regularisation: R1, path length).

        Their task gradients count; the sparsity regularizer and the iteration count do not.
        """
        nets = self._of(network)
        for net in nets:
            net.auxiliary = True
        try:
            yield
        finally:
            for net in nets:
                net.auxiliary = False

    def before_step(self, network: str) -> None:
        """For optimizers that are no torch.optim.Optimizer: call before their step, gradients unscaled."""
        net = self._network(network)
        for observer in self.hooks.observers:
            observer.before_step(network, None)
        net.before_step(net.weights)

    def after_step(self, network: str) -> None:
        """For optimizers that are no torch.optim.Optimizer: call after their step.

        Thresholds then need settings of their own: policy.threshold.optimizer: {lr: ...}.
        """
        net = self._network(network)
        net.after_step(net.weights, Step(regularizer=net.take_regularizer(net.weights, None)))
        for observer in self.hooks.observers:
            observer.after_step(network)

    def observe(self, real: Any, z: Any) -> None:
        """The batch that the balance ratio is measured on (ADAPT), once per iteration before G's step.

        real: what D is called with for real images; z: what G is called with; tensors, or tuples where there are labels
        too, which D gets with G's images as well. Needed only where the policy names no real images, or D takes more
        than images. Without `balance` in the policy it does nothing.
        """
        if self._balance is not None:
            self._balance.observe(real, z)

    def end_epoch(
        self,
        metric: float | Tensor | None = None,
        *,
        ema: Any = None,
        sample_fn: Callable[[int], Tensor] | None = None,
        metric_name: str | None = None,
    ) -> history.Record:
        """Once per evaluation: decide the phase from the metric, record densities and counts.

        metric: the host's FID (lower is better unless the policy says otherwise); None: measured here if the policy
        names a metric. ema: module, state dict or list of tensors whose weights are evaluated instead of G's; a module
        gets G's live mask and keeps it, so that what the host draws and saves next is what was measured.
        sample_fn(n): images [n, 3, H, W] in [-1, 1], where z cannot be guessed from G.

        A NaN or missing metric decides nothing and loses nothing. With several processes every rank calls it; the
        first rank's value decides.
        """
        self._require_attached()
        try:
            number = None if metric is None else float(metric)
        except (TypeError, ValueError):
            raise RgplugError(f"end_epoch got {metric!r} as the metric; give a number, or None") from None
        self.monitor.check_parameters()
        for net in self.networks.values():
            net.meet_target()
        if isinstance(ema, nn.Module):
            self.apply_masks(ema)
        if number is None and self._evaluation is not None and self.epoch % self._evaluation.policy.every == 0:
            value = self.evaluate(ema=ema, sample_fn=sample_fn)
            number, metric_name = value.value, value.name
        self.epoch += 1
        number = from_first_rank(number, self._device())
        before, average = self.phase, None
        if number is None or not math.isfinite(number):
            self.monitor.warn_metric(number, self.epoch, self._evaluation is not None or self.regeneration is None)
        elif self.regeneration is not None:
            average = self.regeneration.decide(number)
            self._enter("sparse" if self.regeneration.sparse else "dense")
        record = self.monitor.record(self.epoch, number, metric_name, average, before, self.phase)
        self.records.append(record)
        self.journal.write(self.policy.run_dir, record, resumed=len(self.records) == 1, save=self.save)
        if self._snapshots is not None:
            self._snapshots.evaluated()
        return record

    def evaluate(self, *, ema: Any = None, sample_fn: Callable[[int], Tensor] | None = None) -> MetricValue:
        """Measure G (or `ema` under G's live mask) with the policy's metric; nothing is changed or decided."""
        if self._evaluation is None:
            raise RgplugError("the policy names no metric; set metric: {real: FOLDER}")
        if "G" not in self.networks:
            raise RgplugError("G is left out of the policy, so rgplug cannot evaluate it; pass the host's value")
        return self._evaluation.measure(self.modules["G"], self.networks["G"], ema, sample_fn)

    def synchronize(self) -> None:
        """Several processes: masks, thresholds, dormant values and units of the first rank, on every rank.

        Call it once the host has made its copies of the networks equal (DDP does at construction) and before the first
        step, if the ranks began with different weights. Every rank has to call it.
        """
        for net in self.networks.values():
            if net.method.prunes:
                for w in net.weights:
                    if w.fresh:
                        net.start(w)
                    parts = (w.dormant, w.threshold, w.scale, w.scale_vectors)
                    broadcast_first(x for x in parts if x is not None)
                broadcast_first((net.counts.kept, net.counts.regrown, net.counts.pruned, net.counts.written))

    def resume_phase(self) -> None:
        """Bring the networks into the phase that a loaded state has decided on, once the host has loaded its weights.

        Needed where a state was saved with weights from before the decision; else it changes nothing.
        """
        if self.regeneration is not None:
            self._enter(self.phase)

    def ema(self, average: nn.Module, beta: float, network: str = "G") -> nn.Module:
        """One update of a host's moving average that knows masks (SEMA, STU-GAN Eq. 5). Returns the average.

        Instead of the host's own update, after each step of the network: managed weights are 0 where they are inactive
        and begin anew with their first active value; everything else, buffers too, is averaged with `beta` as ever.
        average: a copy of the network. Raises RgplugError for another network.
        """
        if not 0 <= beta < 1:
            raise RgplugError(f"ema got beta {beta}; it has to lie between 0 and 1 (exclusive)")
        update_average(average, self.modules[network], self._network(network), beta)
        return average

    # ---- looking at it ---------------------------------------------------------------------------------------------

    @property
    def sema(self) -> bool:
        """Whether the method asks for a sparse moving average: `rg.ema` in place of the host's own update."""
        return self.policy.method == "sparse"

    @property
    def phase(self) -> Phase:
        """ "sparse", or "dense" while augmented regeneration has the networks train dense."""
        if self.regeneration is None:
            return "sparse" if any(n.method.prunes for n in self.networks.values()) else "dense"
        return "sparse" if self.regeneration.sparse else "dense"

    def density(self, network: str | None = None) -> Any:
        """Share of the managed weights that is kept: a number for "G" or "D", else {"G": ..., "D": ...}."""
        if network is not None:
            return self._network(network).density()
        return {name: net.density() for name, net in self.networks.items()}

    def weights(self, network: str) -> list[MaskedWeight]:
        """Managed weights, each with name, param, mask, threshold, theta and density."""
        return list(self._network(network).weights)

    def report(self) -> str:
        """A table: each candidate, managed or skipped and why, shape, filter dim, density."""
        densities = {name: net.layer_density() for name, net in self.networks.items()}
        table = select.table(self.candidates, densities)
        total = " ".join(f"{n} {net.density():.4f}" for n, net in self.networks.items())
        return f"{table}\n\nmethod {self.policy.method}, phase {self.phase}, density {total}"

    def __str__(self) -> str:
        return self.report()

    # ---- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that an exact resume needs beside the host's own checkpoint; tensors, numbers and text only."""
        return {
            "policy": self.policy.to_dict(),
            "epoch": self.epoch,
            "regeneration": None if self.regeneration is None else self.regeneration.state_dict(),
            "last_counts": {k: list(v) for k, v in self.monitor.last_counts.items()},
            "accounting": self.accounting.state_dict(),
            "balance": None if self._balance is None else self._balance.state_dict(),
            "networks": {name: net.state_dict() for name, net in self.networks.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state; nothing is changed unless all of it fits.

        The host loads its own checkpoint before or after.
        """
        self._require_attached()
        fit(state, self.networks)
        for name, net in self.networks.items():
            net.load_state_dict(state["networks"][name])
        self.epoch = int(state["epoch"])
        if self.regeneration is not None and state["regeneration"] is not None:
            self.regeneration.load_state_dict(state["regeneration"])
        self.monitor.last_counts = {k: (int(v[0]), int(v[1])) for k, v in state["last_counts"].items()}
        self.accounting.load_state_dict(state["accounting"])
        if self._balance is not None and state.get("balance") is not None:
            self._balance.load_state_dict(state["balance"])
        self.records = []

    def save(self, path: str | Path) -> None:
        """Write the state to a file that can be read without running code (safetensors, masks packed to bits)."""
        state.save(path, self.state_dict())

    def load(self, path: str | Path) -> None:
        """Read a file that `save` wrote. Raises RgplugError for a damaged file or another network's."""
        self.load_state_dict(state.load(path))

    def snapshot(self, path: str | Path) -> None:
        """Write both networks as they are (a pruned weight as 0) and their optimizers' moments, for a run that starts
        from them: policy.start: {weights: path}."""
        moments = {k: snapshot.moments_of(self.modules[k], net.optimizers()) for k, net in self.networks.items()}
        units = {label: net.method.units for label, net in self.networks.items()}
        snapshot.save(Path(path), copies(self.modules), moments, units)

    def export(
        self,
        path: str | Path | None = None,
        *,
        network: str = "G",
        ema: nn.Module | None = None,
        half: bool = False,
    ) -> nn.Module:
        """A plain copy of a network, or of its moving average, with zeros in place: no trace of rgplug, equal outputs.

        path: also write it as a sparse file (values and packed bits; half: as float16), which
        `rgplug.export.load_sparse(path, network)` reads. Raises RgplugError while the network trains dense, for another
        one as `ema`, and for one that cannot be copied.
        """
        baked = bake(self.modules[network] if ema is None else ema, self._network(network))
        if path is not None:
            save_sparse(path, baked.state_dict(), half)
        return baked

    def apply_masks(self, network: nn.Module, label: str = "G") -> nn.Module:
        """Give a copy of a network (an EMA) the live mask: exact zeros where the original is pruned. Returns it.

        Cheap, and meant for each time a copy is evaluated, drawn or saved, not for every step.
        """
        hide_pruned(named_tensors(network), self._network(label))
        return network

    # ---- the end ---------------------------------------------------------------------------------------------------

    def detach(self, finish: Literal["sparse", "dense", "as-is"] | None = None) -> None:
        """Take the hooks and masked classes away. finish (default: the policy's): weights stay pruned ("sparse", zeros
        in place), get their dormant values back ("dense"), or stay as the present phase has them ("as-is")."""
        if not self._attached:
            return
        if self._snapshots is not None:
            self._snapshots.evaluated()
        finish = finish or self.policy.finish
        if finish not in ("sparse", "dense", "as-is"):
            raise RgplugError(f"detach got finish {finish!r}; allowed: sparse | dense | as-is")
        for net in self.networks.values():
            if finish == "dense":
                net.go_dense()
            elif finish == "sparse":
                net.go_sparse()
                net.settle()
            for w in net.weights:
                layers.unswap(w.module)
        self.hooks.remove()
        for module in self.modules.values():
            attached_networks.pop(unwrap(module), None)
        self.journal.close()
        self._attached = False

    def __enter__(self) -> Controller:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _network(self, label: str) -> Network:
        if label not in self.networks:
            raise RgplugError(f"there is no managed network {label!r}; managed: {', '.join(self.networks)}")
        return self.networks[label]

    def _of(self, label: str | None) -> list[Network]:
        return list(self.networks.values()) if label is None else [self._network(label)]

    def _device(self) -> torch.device:
        for net in self.networks.values():
            for w in net.weights:
                return w.param.device
        return torch.device("cpu")

    def _require_attached(self) -> None:
        if not self._attached:
            raise RgplugError("this controller was detached; attach again")

    def _enter(self, phase: str) -> None:
        assert self.policy.regeneration.augmented is not None
        for name, net in self.networks.items():
            if phase == "sparse":
                net.go_sparse()
            elif name in self.policy.regeneration.augmented.networks:
                net.go_dense()


attached_networks: weakref.WeakKeyDictionary[nn.Module, Controller] = weakref.WeakKeyDictionary()

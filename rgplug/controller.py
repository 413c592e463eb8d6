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

from rgplug import best, files, history, layers, select, snapshot, state, values
from rgplug.accounting import Accounting
from rgplug.averages import Averages
from rgplug.balance_meter import BalanceMeter
from rgplug.belonging import Belonging
from rgplug.copies import hide_pruned, matched, update_average
from rgplug.coverage import summary
from rgplug.errors import RgplugError
from rgplug.evaluation import Evaluation, masked_values
from rgplug.export import bake, save_sparse
from rgplug.first_steps import FirstSteps
from rgplug.hooks import StepHooks
from rgplug.journal import Journal
from rgplug.masking import MaskedWeight
from rgplug.meetings import Meetings
from rgplug.methods import Step
from rgplug.metrics import MetricValue
from rgplug.modes import outside_inference
from rgplug.monitor import Monitor
from rgplug.network import Network
from rgplug.observers import Snapshots, StartedOptimizers, copies
from rgplug.policy import Policy
from rgplug.processes import broadcast_first, from_first_rank
from rgplug.ranks import EqualRanks
from rgplug.regeneration import AugmentedRegeneration
from rgplug.run_setup import Setup
from rgplug.state import fit
from rgplug.weak import WeakModules
from rgplug.wrappers import tensors_of

Phase = Literal["sparse", "dense"]
RECORDS_KEPT = 1000  # records of evaluations that a controller holds; policy.run_dir has all of them in a file


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
        self.journal = Journal()
        self.candidates = candidates
        self.modules = dict(modules)
        held = WeakModules(self.modules)  # what listens to steps does not keep networks alive
        self.accounting = Accounting(held, networks, policy)
        self.records: list[history.Record] = []  # the last RECORDS_KEPT; history.jsonl has all
        self.epoch = 0
        augmented = policy.regeneration.augmented
        if augmented is not None:
            augmented = replace(augmented, higher_is_better=policy.higher_is_better)
        self.regeneration = None if augmented is None else AugmentedRegeneration(augmented)
        self._evaluation = None if policy.metric is None else Evaluation(policy.metric)
        self.monitor = Monitor(networks, self.accounting, policy)
        self.monitor.check_roles(self.modules)
        self._first_steps = FirstSteps(networks, policy)
        self.averages = {label: Averages(net) for label, net in networks.items()}
        self._balance = balance
        self._meetings = Meetings()
        self._ranks = EqualRanks(networks, self._meetings)
        self._snapshots: Snapshots | None = None
        if policy.snapshots is not None:
            self._snapshots = Snapshots(policy.snapshots, held, networks, policy.higher_is_better)
        self._best = None if self._snapshots is None else self._snapshots.best
        started = None if start is None else StartedOptimizers(start, held)
        # last: once hooks are there, a failure would have to take them away again
        self.hooks = StepHooks(list(networks.values()), optimizers)
        observers = (self._ranks, started, self._snapshots, balance, self._first_steps)
        self.hooks.observers += [o for o in observers if o is not None]
        self._belonging: Belonging | None = None  # of a loaded state, until it is known whether it fits the weights
        self._older: Path | None = None  # a file whose previous version was loaded in its place
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

    @outside_inference
    def mask_gradients(self, network: str | None = None) -> None:
        """Do the before-step work now, so that a norm the host clips or logs is that of the masked gradient.

        Call it between backward (and `unscale_` under AMP) and the clipping; the hook then does not repeat it, as long
        as the clipping works in place.
        """
        for net in self._of(network):
            net.before_step(net.weights, early=True)

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

    @outside_inference
    def before_step(self, network: str) -> None:
        """For optimizers that are no torch.optim.Optimizer: call before their step, gradients unscaled."""
        net = self._network(network)
        for observer in self.hooks.observers:
            observer.before_step(network, None)
        net.before_step(net.all_weights)

    @outside_inference
    def after_step(self, network: str) -> None:
        """For optimizers that are no torch.optim.Optimizer: call after their step.

        Thresholds then need settings of their own: policy.threshold.optimizer: {lr: ...}.
        """
        net = self._network(network)
        for observer in self.hooks.observers:
            observer.stepped(network)
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

    @outside_inference
    def end_epoch(
        self,
        metric: float | Tensor | Mapping[str, float | Tensor] | None = None,
        *,
        ema: Any = None,
        sample_fn: Callable[[int], Tensor] | None = None,
        metric_name: str | None = None,
    ) -> history.Record:
        """Once per evaluation: record densities and counts, then decide the phase from the metric.

        metric: the host's FID (lower is better unless the policy says otherwise), or several values by name, {"fid":
        12.3, "is": 8.1}, of which the first decides; None: measured here if the policy names a metric. A FID that the
        host measures on a moving average is taken inside `with rg.masked(G_ema):`.
        ema: module, state dict or list of tensors whose weights are evaluated instead of G's, under G's live mask; it
        is left bit for bit as it was. sample_fn(n): images [n, 3, H, W] in [-1, 1], where z cannot be guessed from G.

        The record is that of the networks that were measured: densities, phase and costs before the decision. A host
        that swaps an average into G for an evaluation calls this after it has swapped G's own weights back.

        A NaN or missing metric decides nothing and loses nothing. With several processes every rank calls it; the
        first rank's values count.
        """
        self._require_attached()
        self._check_belonging()
        found = values.given(metric, metric_name)
        measures = self._measures(found.deciding)
        self._meetings.meet("rg.end_epoch() without a metric" if measures else "rg.end_epoch(...)")
        self.monitor.check_parameters()
        for net in self.networks.values():
            net.bring_back()
            net.meet_target()
        if ema is not None and "G" in self.networks:
            self._know(ema)
        if found.by_name and "G" in self.averages and self.averages["G"].measured_without_mask():
            self.monitor.warn_unmasked()
        images = None
        if measures and self._evaluation is not None:
            found = values.measured(self.evaluate(ema=ema, sample_fn=sample_fn))
            images = self._evaluation.images
        self.epoch += 1
        self._first_steps.evaluated = True
        found = from_first_rank(found, self._device())
        number = found.deciding
        measured, average = self.monitor.measured(self.epoch, found, self.phase), None
        if self._snapshots is not None:
            self._snapshots.measured(measured, lambda: self._average(ema))
        if number is None or not math.isfinite(number):
            self.monitor.warn_metric(number, self.epoch, self._evaluation is not None or self.regeneration is None)
        elif self.regeneration is not None:
            average = self.regeneration.decide(number)
            self._enter("sparse" if self.regeneration.sparse else "dense")
        record = self.monitor.decided(measured, average, self.phase)
        self.records.append(record)
        del self.records[:-RECORDS_KEPT]
        self.journal.write(
            self.policy.run_dir,
            record,
            resumed=len(self.records) == 1,
            save=self.save,
            setup=self.setup,
            images=images,
            higher_is_better=self.policy.higher_is_better,
        )
        if self._snapshots is not None:
            self._snapshots.evaluated()
        return record

    @outside_inference
    def evaluate(self, *, ema: Any = None, sample_fn: Callable[[int], Tensor] | None = None) -> MetricValue:
        """Measure G (or `ema` under G's live mask) with the policy's metric; nothing is changed or decided."""
        if self._evaluation is None:
            raise RgplugError("the policy names no metric; set metric: {real: FOLDER}")
        if "G" not in self.networks:
            raise RgplugError("G is left out of the policy, so rgplug cannot evaluate it; pass the host's value")
        if ema is not None:
            self._know(ema)
        self._meetings.meet("rg.evaluate(...)")
        return self._evaluation.measure(self.modules["G"], self.networks["G"], ema, sample_fn)

    def _average(self, ema: Any) -> dict[str, Tensor] | None:
        """The tensors of an average of G as it is measured: under G's live mask."""
        if ema is None or "G" not in self.modules:
            return None
        net = self.networks.get("G")
        return tensors_of(ema, self.modules["G"]) if net is None else masked_values(ema, self.modules["G"], net)

    def _know(self, ema: Any) -> None:
        """Refuse an average of another network; remember one of G."""
        if self.networks["G"].sparse:
            matched(ema, self.networks["G"])
        self.averages["G"].know(ema)

    @outside_inference
    def synchronize(self) -> None:
        """Several processes: masks, thresholds, dormant values and units of the first rank, on every rank.

        Call it once the host has made its copies of the networks equal (DDP does at construction) and before the first
        step, if the ranks began with different weights. Every rank has to call it.
        """
        self._meetings.meet("rg.synchronize()", patient=False)
        for net in self.networks.values():
            if net.method.prunes:
                for w in net.weights:
                    if w.fresh and not w.waits:
                        net.start(w)
                    parts = (w.dormant, w.threshold, w.scale, w.scale_vectors)
                    broadcast_first(x for x in parts if x is not None)
                c = net.counts
                broadcast_first((c.kept, c.regrown, c.restored, c.pruned, c.written))
                net.method.synchronized(net.weights)

    @outside_inference
    def resume_phase(self) -> None:
        """Bring the networks into the phase that a loaded state has decided on, once the host has loaded its weights.

        Needed where a state was saved with weights from before the decision; else it changes nothing.
        """
        self._check_belonging()
        if self.regeneration is not None:
            self._enter(self.phase)

    @outside_inference
    def ema(self, average: Any, beta: float, network: str = "G") -> Any:
        """One update of a host's moving average that knows masks (SEMA, STU-GAN Eq. 5). Returns the average.

        Instead of the host's own update, after each step of the network: managed weights are 0 where they are inactive
        and begin anew with their first active value; everything else, buffers too, is averaged with `beta` as ever.
        average: a copy of the network: a module (wrapped or not), a state dict, or a list of tensors. Raises
        RgplugError for another network.
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
        """A table: each candidate, managed or skipped and why, shape, filter dim, density; and how much is managed."""
        densities = {name: net.layer_density() for name, net in self.networks.items()}
        aside = {name: net.notes() for name, net in self.networks.items()}
        table = select.table(self.candidates, densities, aside)
        total = " ".join(f"{n} {net.density():.4f}" for n, net in self.networks.items())
        share = summary(self.modules, self.candidates, {name: net.aside for name, net in self.networks.items()})
        for name, net in self.networks.items():
            if net.untried:
                share += f"\nnot tried whether {name} can do with an empty filter: {net.untried}"
        return f"{table}\n\n{share}\nmethod {self.policy.method}, phase {self.phase}, density {total}"

    def __str__(self) -> str:
        return self.report()

    # ---- state -----------------------------------------------------------------------------------------------------

    @outside_inference
    def state_dict(self) -> dict[str, Any]:
        """All that an exact resume needs beside the host's own checkpoint; tensors, numbers and text only."""
        for net in self.networks.values():
            net.bring_back()
        return {
            "policy": self.policy.to_dict(),
            "epoch": self.epoch,
            "regeneration": None if self.regeneration is None else self.regeneration.state_dict(),
            "last_counts": {k: list(v) for k, v in self.monitor.last_counts.items()},
            "last_restored": dict(self.monitor.last_restored),
            "last_layers": self.monitor.layer_counts.state_dict(),
            "accounting": self.accounting.state_dict(),
            "balance": None if self._balance is None else self._balance.state_dict(),
            "best": None if self._best is None else self._best.state_dict(),
            "networks": {name: net.state_dict() for name, net in self.networks.items()},
        }

    @outside_inference
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state. Raises RgplugError, with nothing changed, unless all of it fits.

        The host loads its own checkpoint before or after. Whether the state was saved with those weights is looked up
        at the first step at the latest, which warns if it was not.
        """
        self._require_attached()
        balance, regeneration = self._balance, self.regeneration
        parts = {
            "accounting": self.accounting.misfit,
            "last_counts": self.monitor.misfit,
            "last_restored": self.monitor.misfit_restored,
            "last_layers": self.monitor.layer_counts.misfit,
            "regeneration": None if regeneration is None else regeneration.misfit,
            "balance": None if balance is None else balance.misfit,
            "best": best.misfit,
        }
        fit(state, self.policy, self.networks, parts)
        self._forget_belonging()
        self._ranks.again()
        for name, net in self.networks.items():
            net.load_state_dict(state["networks"][name])
        self.epoch = int(state["epoch"])
        if regeneration is not None:
            regeneration.load_state_dict(state["regeneration"])
        self.monitor.last_counts = {k: (int(v[0]), int(v[1])) for k, v in state["last_counts"].items()}
        self.monitor.last_restored = dict.fromkeys(self.networks, 0) | {
            k: int(v) for k, v in state.get("last_restored", {}).items()
        }
        self.monitor.load_layers(state.get("last_layers"))
        self.accounting.load_state_dict(state["accounting"])
        if balance is not None:
            balance.load_state_dict(state["balance"])
        if self._best is not None:
            self._best.load_state_dict(state.get("best"))
        self.records = []
        self._older = None
        self._belonging = Belonging(self.networks, state["networks"])
        if self._belonging.holds():
            self._belonging = None
        else:
            self.hooks.observers.insert(0, self._belonging)

    @outside_inference
    def save(self, path: str | Path) -> None:
        """Write the state to a file that can be read without running code (safetensors, masks packed to bits).

        The file that was there stays beside it (rgplug.previous.safetensors). A host that keeps a checkpoint of its own
        saves this file first, then its own: a run that is killed in between goes on from the previous one.
        """
        path = Path(path)
        state.save(path, self.state_dict(), keep=self._older != path.absolute())
        self._older = None

    @outside_inference
    def load(self, path: str | Path) -> None:
        """Read a file that `save` wrote; where the host has loaded its checkpoint by now, and the file before this one
        belongs to those weights, that one. Raises RgplugError for a damaged file or another network's."""
        self._require_attached()
        path = Path(path)
        older = files.previous_of(path)
        if older.is_file():
            wanted = state.fingerprints(path)
            if wanted != {} and not (wanted and self._fits_weights(path)) and self._fits_weights(older):
                self.load_state_dict(state.load(older, self.networks))
                self._older = path.absolute()
                return
        self.load_state_dict(state.load(path, self.networks))

    @outside_inference
    def snapshot(self, path: str | Path) -> None:
        """Write both networks as they are (a pruned weight as 0) and their optimizers' moments, for a run that starts
        from them: policy.start: {weights: path}."""
        moments = {k: snapshot.moments_of(self.modules[k], net.optimizers()) for k, net in self.networks.items()}
        units = {label: net.method.units for label, net in self.networks.items()}
        snapshot.save(Path(path), copies(self.modules), moments, units)

    @outside_inference
    def export(
        self,
        path: str | Path | None = None,
        *,
        network: str = "G",
        ema: Any = None,
        half: bool = False,
    ) -> nn.Module:
        """A plain copy of a network, or of its moving average, with zeros in place: no trace of rgplug, equal outputs.

        ema: a module (wrapped or not), a state dict, or a list of tensors in the order of the network's parameters.
        path: also write it as a sparse file (values and packed bits; half: as float16), which
        `rgplug.export.load_sparse(path, network)` reads. Raises RgplugError while the network trains dense, for another
        one as `ema`, and for one that cannot be copied.
        """
        baked = bake(self.modules[network] if ema is None else ema, self._network(network))
        if path is not None:
            save_sparse(path, baked.state_dict(), half)
        return baked

    @contextmanager
    def masked(self, network: Any, label: str = "G") -> Iterator[Any]:
        """A copy of a network (an EMA) under the live mask for the time of the block: for measuring, drawing, saving.

            with rg.masked(G_ema):
                rg.end_epoch(ema=G_ema)
                draw(G_ema(z))

        network: a module (wrapped or not), a state dict, or a list of tensors in the order of G.parameters(); it is
        yielded. Masks are first brought onto their schedule, as at an evaluation, so that what is drawn, saved and
        measured is one generator. At the end of the block the copy is bit for bit as before; do not train or update it
        inside. The mask is that of the block's beginning, whatever `end_epoch` decides inside. Blocks may be nested;
        while the network trains dense, or where the policy leaves it out, nothing is done. Raises RgplugError for
        another network.
        """
        if label not in self.networks and label in self.modules:
            yield network
            return
        self._network(label)
        with self.averages[label].masked(network):
            yield network

    @outside_inference
    def apply_masks(self, network: Any, label: str = "G") -> Any:
        """Write the live mask into a copy of a network: exact zeros where the original is pruned, for good. Returns it.

        For a copy that is kept as it is (a file, a deployment). An average that goes on being updated forgets by this
        what it held at pruned weights; use `masked` to evaluate, draw or save it.
        """
        hide_pruned(network, self._network(label))
        self.averages[label].know(network, masked=True)
        return network

    # ---- the end ---------------------------------------------------------------------------------------------------

    @outside_inference
    def detach(self, finish: Literal["sparse", "dense", "as-is"] | None = None) -> None:
        """Take the hooks and masked classes away. finish (default: the policy's): weights stay pruned ("sparse", zeros
        in place), get their dormant values back ("dense"), or stay as the present phase has them ("as-is").

        trained.safetensors (policy.snapshots) then holds the networks as they are left. Records are of the phases
        before: no evaluation is made of networks that `finish` has changed.
        """
        if not self._attached:
            return
        finish = finish or self.policy.finish
        if finish not in ("sparse", "dense", "as-is"):
            raise RgplugError(f"detach got finish {finish!r}; allowed: sparse | dense | as-is")
        try:
            for net in self.networks.values():
                net.bring_back()
                if finish == "dense":
                    net.go_dense()
                elif finish == "sparse":
                    net.go_sparse()
                    net.settle()
            if self._snapshots is not None:
                self._snapshots.finished(changed=finish != "as-is")
        finally:
            release(self.hooks)
            self.journal.close()
            self._attached = False

    def __copy__(self) -> Controller:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Controller:
        """A module that holds its controller (self.rg) can be copied: the copy refers to the same controller, which
        prunes the original networks and not the copy's."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """A module that holds its controller can be pickled, and loads where rgplug is not installed: with None in the
        controller's place. `state_dict` and `save` are what a resume needs."""
        return type(None), ()

    def __enter__(self) -> Controller:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def setup(self) -> Setup:
        """What the run is, as setup.json in its folder says it."""
        accounting = self.accounting
        return Setup.of(self.policy, self.modules, self.networks, accounting.batch, accounting.macs)

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

    def _measures(self, number: float | None) -> bool:
        """Whether `end_epoch` measures the metric itself at this evaluation."""
        evaluation = self._evaluation
        return number is None and evaluation is not None and self.epoch % evaluation.policy.every == 0

    def _fits_weights(self, path: Path) -> bool:
        """Whether a state file can be read and belongs to the weights that the networks have now."""
        try:
            found = state.load(path, self.networks)["networks"]
            return all(net.belongs(found[k]) or net.would_belong(found[k]) for k, net in self.networks.items())
        except (RgplugError, KeyError):
            return False

    def _check_belonging(self) -> None:
        """Before anything of rgplug's changes weights after a state was loaded."""
        if self._belonging is not None:
            self._belonging.check()
            self._forget_belonging()

    def _forget_belonging(self) -> None:
        if self._belonging is not None:
            self.hooks.observers = [o for o in self.hooks.observers if o is not self._belonging]
            self._belonging = None

    def _enter(self, phase: str) -> None:
        assert self.policy.regeneration.augmented is not None
        for name, net in self.networks.items():
            if phase == "sparse":
                net.go_sparse()
            elif name in self.policy.regeneration.augmented.networks:
                net.go_dense()


# The hooks, with the networks and methods behind them, live as long as a network that is attached: nothing of that
# holds its modules. The controller does, for as long as somebody holds the controller.
attached_networks: weakref.WeakKeyDictionary[nn.Module, StepHooks] = weakref.WeakKeyDictionary()


def release(hooks: StepHooks) -> None:
    """Give every module its own class back, and stop listening."""
    hooks.remove()
    for net in hooks.networks:
        for w in net.all_weights:
            layers.unswap(w.module)
    for module in [m for m, found in attached_networks.items() if found is hooks]:
        attached_networks.pop(module, None)

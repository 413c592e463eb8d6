"""One training run of a host under rgplug: attach, the moving average, sidecars, evaluations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

import rgplug
from rgplug import state
from rgplug.adapters.sparse_average import sparse_update
from rgplug.controller import Controller
from rgplug.copies import Hidden, show_hidden
from rgplug.errors import RgplugError
from rgplug.history import Record
from rgplug.metrics.isolation import preserved_rng
from rgplug.network import Network
from rgplug.policy import Policy
from rgplug.processes import rank

SIDECAR = ".rgplug.safetensors"


def say(text: str) -> None:
    """One line on the host's output, from the first rank only."""
    if rank() == 0:
        print(f"rgplug: {text}", flush=True)


class Run:
    """One training run of a host: the controller, the moving average of G, the sidecars.

    The moving average averages over masks; while it is evaluated, drawn or saved it wears G's live mask (`masked_ema`).
    A sidecar lies next to each checkpoint of the host and holds what that lacks: thresholds, masks, dormant values,
    the phase and the metrics it was decided from, and the average's values under the mask.
    """

    def __init__(self, policy: Policy):
        self.policy = policy
        self.networks: dict[str, nn.Module] = {}
        self.rg: Controller | None = None
        self._average: Callable[[], Any] = _none
        self._averaged = False  # an update of the average by the host was seen
        self._said = False  # that the average is an ordinary one
        self._masked: ExitStack | None = None  # while the average is masked
        self._hidden: Hidden = {}  # by the mask on the average
        self._resumed_ema: Hidden = {}  # of the saved average
        self._waiting: dict[Path, dict[str, Any]] = {}  # sidecars written since the last decision

    @property
    def controller(self) -> Controller:
        assert self.rg is not None
        return self.rg

    @property
    def generator(self) -> Network | None:
        """G under the policy; None where the policy leaves it out."""
        return self.controller.networks.get("G")

    def network(self, label: str, module: nn.Module) -> bool:
        """Take note of a network the host has built, and attach once G and D are there. True at that moment."""
        if self.rg is not None:
            return False
        self.networks[label] = module
        if set(self.networks) != {"G", "D"}:
            return False
        self.rg = rgplug.attach(self.networks["G"], self.networks["D"], self.policy)
        counts = " ".join(f"{k} {sum(w.numel for w in n.weights):,}" for k, n in self.rg.networks.items())
        say(f"attached ({self.policy.method}); managed weights {counts}")
        return True

    def in_folder(self, folder: str | Path) -> None:
        """The policy's run folder is the host's, unless the policy names one."""
        if self.policy.run_dir is None:
            self.policy = dataclasses.replace(self.policy, run_dir=str(folder))
            if self.rg is not None:
                self.rg.policy = self.policy

    def close(self) -> None:
        """The host's loop is over, or was broken off."""
        self.unmask_ema()
        if self.rg is not None:
            self.rg.detach()

    # ---- the moving average ----

    def averages(self, find: Callable[[], Any]) -> None:
        """find() gives the moving average of G (whatever `rg.masked` takes) as it is at that moment; None: no average
        yet."""
        self._average = find

    def averages_of(self, module: nn.Module) -> None:
        self.averages(lambda: module)

    @contextmanager
    def averaging(self) -> Iterator[None]:
        """Around the host's own update of the moving average. Under a method with a sparse average (`rg.sema`) managed
        weights come out as STU-GAN's Eq. 5 has them, under any other as the host computes them."""
        net, average = None if self.rg is None else self.generator, self._average()
        self._averaged = True
        if net is None or average is None or not self.controller.sema:
            yield
            return
        with sparse_update(average, net):
            yield

    def meet_target(self) -> None:
        """Masks are what they will be at the evaluation: what is drawn, saved and measured is one generator."""
        for net in self.controller.networks.values():
            net.meet_target()

    def mask_ema(self) -> None:
        """G's live mask on the moving average, as `rg.masked` has it, until `unmask_ema`."""
        if self._masked is not None or self.rg is None or self.generator is None:
            return
        self.meet_target()
        average = self._average()
        if average is not None:
            masked = ExitStack()
            self._hidden = masked.enter_context(self.rg.averages["G"].masked(average))
            self._masked = masked

    def unmask_ema(self) -> None:
        """The averages as the host made them, bit for bit."""
        if self._masked is not None:
            masked, self._masked, self._hidden = self._masked, None, {}
            masked.close()

    @contextmanager
    def masked_ema(self) -> Iterator[None]:
        """`mask_ema` for the time of the block; inside another such block, nothing."""
        outer = self._masked is not None
        self.mask_ema()
        try:
            yield
        finally:
            if not outer:
                self.unmask_ema()

    # ---- sidecars ----

    @staticmethod
    def sidecar(checkpoint: str | Path) -> Path:
        """network-snapshot-000100.pkl -> network-snapshot-000100.rgplug.safetensors"""
        path = Path(checkpoint)
        return path.with_name(path.stem + SIDECAR)

    def write_sidecar(self, checkpoint: str | Path) -> None:
        """Next to a checkpoint that was just saved, with the moving average under the mask."""
        if rank() == 0:
            held = self.controller.state_dict()
            held["ema"] = {name: values.detach().clone() for name, (_, values) in self._hidden.items()}
            path = self.sidecar(checkpoint)
            state.save(path, held)
            self._waiting[path] = held

    def resume(self, checkpoint: str | Path) -> bool:
        """Load the sidecar of a checkpoint; without one, start sparse training on its weights. Says which."""
        path = self.sidecar(checkpoint)
        if not path.is_file():
            say(f"{checkpoint} has no sidecar ({path.name}): sparse training starts here, on its weights as they are")
            return False
        held = state.load(path)
        try:
            self.controller.load_state_dict(held)
        except RgplugError as error:
            raise RgplugError(f"{path} does not belong to this run: {error}") from error
        weights = held["networks"].get("G", {}).get("weights", {})
        self._resumed_ema = {name: (~weights[name]["mask"], values) for name, values in held.get("ema", {}).items()}
        say(f"resumed from {path.name}: epoch {self.controller.epoch}, {self.controller.phase}")
        return True

    def resume_ema(self) -> None:
        """What the mask hid of the saved moving average comes back, once the host has loaded it."""
        average = self._average()
        if average is not None and self.generator is not None:
            show_hidden(average, self._resumed_ema, self.generator)
        self._resumed_ema = {}

    # ---- evaluations ----

    def count_flops(self, G: Callable[[], tuple[Any, ...]], D: Callable[[], tuple[Any, ...]]) -> None:
        """Trace both networks with inputs of the host's; where that fails, say that FLOPs are not counted."""
        try:
            with torch.no_grad(), preserved_rng():
                self.controller.accounting.trace(G=G(), D=D())
        except (AttributeError, TypeError, RgplugError) as error:
            say(f"training FLOPs are not counted: {error}")

    def evaluated(self, values: Mapping[str, float], decides: str | None = None, **how: Any) -> Record:
        """The host has measured: decide, and add the decision to the sidecars that were written before it.

        values: all that it measured, by name; empty where it measured nothing. decides: the name of the value that
        decides the phase, by default the first.

        Those keep the masks and dormant values that belong to the weights in their checkpoint; `resume_phase` goes on
        from there.
        """
        self._check_average()
        first = {} if decides is None else {decides: values[decides]}
        record = self.controller.end_epoch({**first, **values} or None, **how)
        say(str(record))
        if self._waiting:
            now = {k: v for k, v in self.controller.state_dict().items() if k != "networks"}
            steps = {k: net.iteration for k, net in self.controller.networks.items()}
            for path, held in self._waiting.items():
                if {k: net["iteration"] for k, net in held["networks"].items()} == steps:  # else of an earlier step
                    state.save(path, {**held, **now})
            self._waiting.clear()
        return record

    def _check_average(self) -> None:
        """A method with a sparse moving average, and a host that updates its average where no seam is: say so once."""
        net = self.generator
        if self._averaged or self._said or not self.controller.sema or net is None or not net.iteration:
            return
        if self._average() is not None:
            self._said = True
            say(
                "the moving average is the host's ordinary one, not STU-GAN's (Eq. 5): its update was not found where "
                "the adapter looks for it"
            )

    def numbers(self, record: Record | None = None) -> dict[str, float]:
        """For the host's own logs: densities and phase, at an evaluation those of the networks that were measured and
        what was pruned, regenerated and restored."""
        rg = self.controller
        density, phase = (rg.density(), rg.phase) if record is None else (record.density, record.phase_before)
        found = {f"density_{k}": float(v) for k, v in density.items()}
        found["sparse"] = float(phase == "sparse")
        if record is not None:
            for what in ("regenerated", "restored", "pruned"):
                found.update({f"{what}_{k}": float(v) for k, v in getattr(record, what).items()})
        return found


def _none() -> None:
    """No moving average is known."""

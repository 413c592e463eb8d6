"""What the adapters share: patches that can be undone, and one training run of a host under rgplug."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import rgplug
from rgplug import state
from rgplug.controller import Controller
from rgplug.errors import RgplugError
from rgplug.history import Record
from rgplug.metrics.isolation import preserved_rng
from rgplug.network import Network
from rgplug.policy import Policy
from rgplug.processes import rank

SIDECAR = ".rgplug.safetensors"


def say(text: str) -> None:
    """One line on the host's output, from the first rank and the main process only."""
    if rank() == 0:
        print(f"rgplug: {text}", flush=True)


# ---- patches -------------------------------------------------------------------------------------------------------


class Patches:
    """Replacements of names in a host's modules, classes and namespaces, in the order in which they were made."""

    def __init__(self) -> None:
        self._made: list[tuple[Any, str, Any]] = []

    def wrap(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """owner.name (or owner[name], for a namespace) becomes make(original)."""
        original = owner[name] if isinstance(owner, dict) else getattr(owner, name)
        self._set(owner, name, make(original))
        self._made.append((owner, name, original))

    def undo(self) -> None:
        while self._made:
            self._set(*self._made.pop())

    @staticmethod
    def _set(owner: Any, name: str, value: Any) -> None:
        if isinstance(owner, dict):
            owner[name] = value
        else:
            setattr(owner, name, value)


@dataclasses.dataclass(frozen=True)
class Host:
    """A repository that an adapter knows."""

    name: str
    version: str  # the commit that the adapter was written and tested against
    script: str = "train.py"

    def seam(self, module: str, *path: str) -> Any:
        """The object `path` in a module of the host. Raises RgplugError where it is missing."""
        try:
            found = importlib.import_module(module)
        except ImportError as error:
            if error.name and error.name.partition(".")[0] != module.partition(".")[0]:
                raise  # the host is there, and something that it needs is not
            raise self.unknown(f"there is no module {module}") from error
        for i, name in enumerate(path):
            if not hasattr(found, name):
                raise self.unknown(f"{'.'.join((module, *path[:i]))} has no {name}")
            found = getattr(found, name)
        return found

    def unknown(self, missing: str) -> RgplugError:
        return RgplugError(
            f"this is not {self.name} as rgplug knows it (version {self.version}): {missing}; call install() at the "
            f"top level of its {self.script}, after the imports, in that repository or a fork that keeps its structure"
        )


class Adapter:
    """install() and uninstall() of one host. `hook` makes the patches; it may raise, and leaves nothing behind then."""

    def __init__(self, host: Host):
        self.host = host
        self.patches: Patches | None = None
        self._given: Any = None

    def install(self, policy: Any, hook: Callable[[Patches, Policy], str], **options: Any) -> None:
        """Patch the host once in this process; `hook` returns what it hooked, for the one line that is printed."""
        loaded = Policy.load(policy)
        if self.patches is not None:
            if (loaded, options) != self._given:
                raise RgplugError(
                    f"the adapter for {self.host.name} is installed already, with another policy or other options; "
                    "call uninstall() first"
                )
            return
        patches = Patches()
        try:
            hooked = hook(patches, loaded)
        except BaseException:
            patches.undo()
            raise
        self.patches, self._given = patches, (loaded, options)
        if multiprocessing.current_process().name == "MainProcess":  # data loaders' workers import train.py too
            name = policy if isinstance(policy, (str, Path)) else loaded.method
            say(f"{self.host.name} {self.host.version}: hooked {hooked}; policy {name}")

    def uninstall(self) -> None:
        if self.patches is not None:
            self.patches.undo()
            self.patches = None


def importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


# ---- a run ---------------------------------------------------------------------------------------------------------


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
        self._averages: Callable[[], Mapping[str, Tensor]] = dict
        self._hidden: dict[str, tuple[Tensor, Tensor]] | None = None  # weight -> (where, value) while masked
        self._resumed_ema: dict[str, tuple[Tensor, Tensor]] = {}  # weight -> (where, value) of the saved average
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

    def averages(self, find: Callable[[], Mapping[str, Tensor]]) -> None:
        """find() gives the moving average of G, as {parameter name: tensor}, where it is at that moment."""
        self._averages = find

    def averages_of(self, module: nn.Module) -> None:
        self.averages(lambda: {name: p.detach() for name, p in module.named_parameters()})

    def meet_target(self) -> None:
        """Masks are what they will be at the evaluation: what is drawn, saved and measured is one generator."""
        for net in self.controller.networks.values():
            net.meet_target()

    def mask_ema(self) -> None:
        """G's live mask on the moving average, until `unmask_ema`."""
        net = None if self.rg is None else self.generator
        if self._hidden is not None or net is None:
            return
        self.meet_target()
        averages = self._averages()
        if not net.sparse or not averages:
            return
        self._hidden = {}
        with torch.no_grad():
            for w in net.weights:
                average, pruned = averages[w.name], ~w.mask
                pruned = pruned.to(average.device)
                self._hidden[w.name] = (pruned, average[pruned])
                average.masked_fill_(pruned, 0)

    def unmask_ema(self) -> None:
        """The averages as the host made them, bit for bit."""
        if self._hidden is not None:
            averages = self._averages()
            with torch.no_grad():
                for name, (pruned, values) in self._hidden.items():
                    averages[name][pruned] = values
            self._hidden = None

    @contextmanager
    def masked_ema(self) -> Iterator[None]:
        """`mask_ema` for the time of the block; inside another such block, nothing."""
        outer = self._hidden is not None
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
            hidden = {} if self._hidden is None else self._hidden
            held["ema"] = {name: values.detach().clone() for name, (_, values) in hidden.items()}
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
        averages = self._averages()
        with torch.no_grad():
            for name, (pruned, values) in self._resumed_ema.items():
                if name in averages:
                    average = averages[name]
                    average[pruned.to(average.device)] = values.to(average)
        self._resumed_ema = {}

    # ---- evaluations ----

    def count_flops(self, G: Callable[[], tuple[Any, ...]], D: Callable[[], tuple[Any, ...]]) -> None:
        """Trace both networks with inputs of the host's; where that fails, say that FLOPs are not counted."""
        try:
            with torch.no_grad(), preserved_rng():
                self.controller.accounting.trace(G=G(), D=D())
        except (AttributeError, TypeError, RgplugError) as error:
            say(f"training FLOPs are not counted: {error}")

    def evaluated(self, metric: float | None, name: str | None = None, **how: Any) -> Record:
        """The host has measured: decide, and add the decision to the sidecars that were written before it.

        Those keep the masks and dormant values that belong to the weights in their checkpoint; `resume_phase` goes on
        from there.
        """
        record = self.controller.end_epoch(metric, metric_name=name, **how)
        say(str(record))
        if self._waiting:
            now = {k: v for k, v in self.controller.state_dict().items() if k != "networks"}
            steps = {k: net.iteration for k, net in self.controller.networks.items()}
            for path, held in self._waiting.items():
                if {k: net["iteration"] for k, net in held["networks"].items()} == steps:  # else of an earlier step
                    state.save(path, {**held, **now})
            self._waiting.clear()
        return record

    def numbers(self, record: Record | None = None) -> dict[str, float]:
        """For the host's own logs: densities, phase, and at an evaluation what was pruned and regenerated."""
        rg = self.controller
        found = {f"density_{k}": float(v) for k, v in rg.density().items()}
        found["sparse"] = float(rg.phase == "sparse")
        if record is not None:
            for what, counts in (("regenerated", record.regenerated), ("pruned", record.pruned)):
                found.update({f"{what}_{k}": float(v) for k, v in counts.items()})
        return found

"""StyleGAN2-ADA (NVlabs/stylegan2-ada-pytorch), and repositories that keep its training loop.

    from rgplug.adapters import stylegan2_ada
    stylegan2_ada.install(policy="rg-gan.yaml")        # at module top level of train.py, after its imports

Where rgplug comes in, by the steps of the host's training_loop():

  networks built      dnnlib.util.construct_class_by_name: attached when D is there, before G_ema, --resume, DDP, Adam
  loss built          the host has resumed and made the ranks equal: so are masks and thresholds
  reg phases          steps on the same optimizer, no iterations of their own (loss.accumulate_gradients names them)
  G_ema updated       torch.autograd.profiler.record_function('Gema') is around it: under a method with a sparse moving
                      average (STU-GAN) managed weights come out as its Eq. 5 has them
  a tick begins       training_stats.report0('Progress/tick'): G_ema wears G's live mask while it is drawn, saved and
                      evaluated, so that the snapshot draws the pictures that were measured
  snapshot            pickle.dump: a sidecar beside it
  metric              metric_main.calc_metric, with the same value on every rank
  the tick ends       report0('Timing/Gmain'): the decision; densities into stats.jsonl and TensorBoard; G_ema back
"""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from rgplug.adapters.hosting import Adapter, Host, Instead, Patches
from rgplug.adapters.run import Run, say
from rgplug.errors import RgplugError
from rgplug.policy import Policy

HOST = Host("StyleGAN2-ADA", "d72cc7d")
_adapter = Adapter(HOST)
_PHASES = ("Gmain", "Greg", "Gboth", "Dmain", "Dreg", "Dboth")


def install(policy: Any = "rg-gan", *, metric: str | None = None, host: Host = HOST) -> None:
    """Train with rgplug from here on.

    policy: as for rgplug.attach. metric: which of the host's metrics decides the phase, by the name of the metric
    (kid50k_full) or of one of its values (pr50k3_full_recall); default the first of --metrics. Raises RgplugError where
    the code is not the host's.
    """
    _adapter.host = host
    _adapter.install(policy, lambda patches, loaded: _hook(patches, loaded, metric, host), metric=metric)


def uninstall() -> None:
    """Undo `install`."""
    _adapter.uninstall()


def _hook(patches: Patches, policy: Policy, metric: str | None, host: Host) -> str:
    loop = host.seam("training.training_loop")
    util = host.seam("dnnlib", "util")
    stats = host.seam("torch_utils.training_stats")
    metric_main = host.seam("metrics.metric_main")
    host.seam("training.networks", "Generator")
    for owner, name in ((loop, "training_loop"), (util, "construct_class_by_name"), (stats, "report0")):
        if not hasattr(owner, name):
            raise host.unknown(f"{owner.__name__} has no {name}")
    host.seam("metrics.metric_main", "calc_metric")
    for name, known in (
        ("copy", copy),
        ("pickle", pickle),
        ("torch", torch),
        ("metric_main", metric_main),
        ("training_stats", stats),
    ):
        if getattr(loop, name, None) is not known:
            raise host.unknown(f"training.training_loop does not import {name}")
    current: list[_Loop] = []  # the loop that runs in this process

    def training_loop(original: Any) -> Any:
        def run(**arguments: Any) -> Any:
            current.append(_Loop(policy, metric, arguments))
            try:
                return original(**arguments)
            finally:
                current.pop().close()

        return run

    def construct(original: Any) -> Any:
        def construct_class_by_name(*args: Any, **kwargs: Any) -> Any:
            made = original(*args, **kwargs)
            if current:
                current[-1].constructed(str(kwargs.get("class_name", "")), made)
            return made

        return construct_class_by_name

    def report(original: Any) -> Any:
        def report0(name: str, value: Any) -> Any:
            if current:
                current[-1].reported(name, original)
            return original(name, value)

        return report0

    def calc(original: Any) -> Any:
        def calc_metric(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            if current:
                current[-1].measured(result)
            return result

        return calc_metric

    def deepcopy(module: Any) -> Any:
        def copied(x: Any, *args: Any) -> Any:
            made = copy.deepcopy(x, *args)
            if current:
                current[-1].copied(x, made)
            return made

        return Instead(module, deepcopy=copied)

    def dump(module: Any) -> Any:
        def dumped(what: Any, file: Any, *args: Any, **kwargs: Any) -> None:
            pickle.dump(what, file, *args, **kwargs)
            if current and isinstance(what, dict) and "G_ema" in what:
                file.flush()
                current[-1].run.write_sidecar(file.name)

        return Instead(module, dump=dumped)

    def profiled(module: Any) -> Any:
        def record_function(name: str, *args: Any) -> Any:
            made = module.autograd.profiler.record_function(name, *args)
            return _inside(made, current[-1].run.averaging()) if current and name == "Gema" else made

        profiler = Instead(module.autograd.profiler, record_function=record_function)
        return Instead(module, autograd=Instead(module.autograd, profiler=profiler))

    patches.wrap(loop, "training_loop", training_loop)
    patches.wrap(util, "construct_class_by_name", construct)
    patches.wrap(stats, "report0", report)
    patches.wrap(metric_main, "calc_metric", calc)
    patches.wrap(loop, "copy", deepcopy)  # the module's own names only: nobody else's deepcopy or dump changes
    patches.wrap(loop, "pickle", dump)
    patches.wrap(loop, "torch", profiled)
    return "networks, loss phases, metrics, snapshots, statistics"


@contextmanager
def _inside(outer: AbstractContextManager[Any], inner: AbstractContextManager[Any]) -> Iterator[Any]:
    with outer as given, inner:
        yield given


class _Loop:
    """One call of the host's training_loop()."""

    def __init__(self, policy: Policy, metric: str | None, arguments: dict[str, Any]):
        self.metric = metric
        self.resume = arguments.get("resume_pkl")
        metrics = list(arguments.get("metrics") or [])
        if metric is not None and metric not in metrics and not any(metric.startswith(m) for m in metrics):
            raise RgplugError(
                f"install(metric={metric!r}) names none of the host's metrics ({', '.join(metrics) or 'none'}); "
                "add it to --metrics"
            )
        if policy.batch_size is None:
            policy = dataclasses.replace(policy, batch_size=int(arguments.get("batch_size", 4)))
        self.run = Run(policy)
        self.run.in_folder(arguments["run_dir"])
        self.host_measures = bool(metrics)
        self.G_ema: nn.Module | None = None
        self.values: dict[str, float] = {}  # all that the host measured at this tick, by name
        self.decides: str | None = None  # the name of the one that decides
        self.seen: list[str] = []  # names of the host's metrics and of their values
        self.in_tick = False
        self.snapshot = False  # this tick took a snapshot, on every rank
        self.started = False
        if not metrics and policy.metric is None and policy.regeneration.augmented is not None:
            say("--metrics=none: nothing is measured, so the run stays sparse")

    def close(self) -> None:
        self.run.close()

    def constructed(self, class_name: str, made: Any) -> None:
        run = self.run
        label = {"Generator": "G", "Discriminator": "D"}.get(class_name.rpartition(".")[2])
        if label is not None and isinstance(made, nn.Module):
            if run.network(label, made) and self.resume is not None:
                run.resume(self.resume)
        elif hasattr(made, "accumulate_gradients"):
            self._start(made)

    def _count_flops(self) -> None:
        """Both networks take class labels besides their input."""
        G: Any = self.run.networks["G"]
        on = {"device": next(G.parameters()).device}
        labels = torch.zeros(1, int(G.c_dim), **on)
        self.run.count_flops(
            lambda: (torch.zeros(1, int(G.z_dim), **on), labels),
            lambda: (torch.zeros(1, int(G.img_channels), *2 * [int(G.img_resolution)], **on), labels),
        )

    def _start(self, loss: Any) -> None:
        """Networks are loaded, wrapped and equal on all ranks."""
        if self.run.rg is None:
            raise _adapter.host.unknown("no Generator and Discriminator were built by class name before the loss")
        self._count_flops()
        self.run.rg.synchronize()
        self.run.rg.resume_phase()
        accumulate = loss.accumulate_gradients

        def accumulate_gradients(phase: str, *args: Any, **kwargs: Any) -> Any:
            if not self.started:  # fakes_init.png was drawn
                self.started = True
                self.run.resume_ema()
            net = self.run.controller.networks.get(phase[:1])
            if net is not None:
                net.auxiliary = phase.endswith("reg")
            return accumulate(phase, *args, **kwargs)

        loss.accumulate_gradients = accumulate_gradients

    def copied(self, original: Any, made: Any) -> None:
        if original is self.run.networks.get("G") and self.G_ema is None:
            self.G_ema = made
            self.run.averages_of(made)
        elif original is self.G_ema and self.in_tick:
            self.snapshot = True

    def measured(self, result: Any) -> None:
        """Any of the host's metrics; the record of this tick has all of their values."""
        results = {name: float(value) for name, value in dict(result["results"]).items()}
        self.seen += [result["metric"], *results]
        if not self.in_tick:
            return
        self.values.update(results)
        if self.decides is None:
            if self.metric in (None, result["metric"]):
                self.decides = next(iter(results))
            elif self.metric in results:
                self.decides = self.metric

    def reported(self, name: str, report0: Any) -> None:
        if name == "Progress/tick":
            self.in_tick, self.snapshot, self.values, self.decides = True, False, {}, None
            self.run.mask_ema()
        elif self.in_tick and name.startswith("Timing/") and name[7:] in _PHASES:
            self.in_tick = False
            record = None
            if self.snapshot:
                if self.metric is not None and self.decides is None:
                    raise RgplugError(
                        f"install(metric={self.metric!r}) names nothing that the host measured; name one of "
                        f"{', '.join(dict.fromkeys(self.seen))}"
                    )
                own = {} if self.host_measures else {"ema": self.G_ema}
                record = self.run.evaluated(self.values, self.decides, **own)
            self.run.unmask_ema()
            for key, number in self.run.numbers(record).items():
                report0(f"rgplug/{key}", number)

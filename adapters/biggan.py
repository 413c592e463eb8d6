"""BigGAN (ajbrock/BigGAN-PyTorch), and repositories that keep its structure (DiffAugment-BigGAN).

    from rgplug.adapters import biggan
    biggan.install(policy="stu-gan.yaml")              # at module top level of train.py, after its imports

Where rgplug comes in:

  networks built      Generator and Discriminator of the model module (BigGAN, BigGANdeep), which make their own
                      optimizers: attached when D is there; the generator without an optimizer is the moving average
  average updated     utils.ema.update: under a method with a sparse moving average (STU-GAN) managed weights come out
                      as its Eq. 5 has them
  resume              utils.load_weights: the sidecar that lies beside the weights
  run begins          utils.write_metadata, which knows the folders
  saves, samples      utils.save_weights, train_fns.save_and_sample: the average wears G's live mask; sidecars
  test                train_fns.test; the FID that it logs decides (utils.MetricsLogger.log)

Epochs never advance under the host's multi-epoch sampler; an evaluation is what rgplug counts as one.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import torch

from rgplug.adapters.hosting import Adapter, Host, Patches, importable
from rgplug.adapters.run import Run
from rgplug.errors import RgplugError
from rgplug.policy import Policy

HOST = Host("BigGAN-PyTorch", "9845943")
METRICS = ("FID", "IS_mean", "IS_std")  # what the host logs at a test
DECIDING = METRICS[:2]
_MODELS = ("BigGAN", "BigGANdeep")
_adapter = Adapter(HOST)


def install(policy: Any = "rg-gan", *, metric: str | None = None, host: Host = HOST) -> None:
    """Train with rgplug from here on.

    policy: as for rgplug.attach. metric: what decides the phase, FID (default) or IS_mean (then the policy says
    higher_is_better). Raises RgplugError where the code is not the host's.
    """
    if metric is not None and metric not in DECIDING:
        raise RgplugError(f"install(metric={metric!r}): {host.name} measures FID and IS_mean; name one of them")
    _adapter.host = host
    _adapter.install(policy, lambda patches, loaded: _hook(patches, loaded, metric or "FID", host), metric=metric)


def uninstall() -> None:
    """Undo `install`."""
    _adapter.uninstall()


def _hook(patches: Patches, policy: Policy, metric: str, host: Host) -> str:
    models = [host.seam(name) for name in _MODELS if name == _MODELS[0] or importable(name)]
    train_fns = host.seam("train_fns")
    utils = host.seam("utils")
    for model in models:
        for network in ("Generator", "Discriminator"):
            host.seam(model.__name__, network, "__init__")
    for name in ("save_and_sample", "test"):
        host.seam("train_fns", name)
    for name in ("save_weights", "load_weights", "write_metadata", "join_strings", "MetricsLogger"):
        host.seam("utils", name)
    host.seam("utils", "MetricsLogger", "log")
    host.seam("utils", "ema", "update")
    session = _Session(policy, host)

    def built(label: str) -> Any:
        def make(original: Any) -> Any:
            @functools.wraps(original)
            def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
                original(self, *args, **kwargs)
                session.built(label, self, kwargs)

            return __init__

        return make

    def metadata(original: Any) -> Any:
        def write_metadata(logs_root: Any, experiment_name: str, *args: Any, **kwargs: Any) -> Any:
            session.begin(Path(logs_root) / experiment_name)
            return original(logs_root, experiment_name, *args, **kwargs)

        return write_metadata

    def masked(original: Any) -> Any:
        def save_and_sample(*args: Any, **kwargs: Any) -> Any:
            with session.run.masked_ema():
                return original(*args, **kwargs)

        return save_and_sample

    def test(original: Any) -> Any:
        def tested(*args: Any, **kwargs: Any) -> Any:
            session.values = {}
            with session.run.masked_ema():
                result = original(*args, **kwargs)
                session.run.evaluated(session.values, metric if metric in session.values else None)
            return result

        return tested

    def save(original: Any) -> Any:
        def save_weights(
            G: Any,
            D: Any,
            state_dict: Any,
            weights_root: str,
            experiment_name: str,
            name_suffix: Any = None,
            *rest: Any,
        ) -> Any:
            with session.run.masked_ema():
                result = original(G, D, state_dict, weights_root, experiment_name, name_suffix, *rest)
                session.run.write_sidecar(session.checkpoint(weights_root, experiment_name, name_suffix))
            return result

        return save_weights

    def load(original: Any) -> Any:
        def load_weights(
            G: Any, D: Any, state_dict: Any, weights_root: str, experiment_name: str, name_suffix: Any = None,
            *rest: Any, **kwargs: Any,
        ) -> Any:  # fmt: skip
            result = original(G, D, state_dict, weights_root, experiment_name, name_suffix, *rest, **kwargs)
            if G is session.run.networks.get("G"):
                session.resume(session.checkpoint(weights_root, experiment_name, name_suffix))
            return result

        return load_weights

    def log(original: Any) -> Any:
        def logged(self: Any, record: Any = None, **kwargs: Any) -> Any:
            if metric in kwargs:
                session.values = {name: float(kwargs[name]) for name in METRICS if name in kwargs}
                kwargs.update({f"rgplug_{k}": v for k, v in session.run.numbers().items()})
            return original(self, record, **kwargs)

        return logged

    def update(original: Any) -> Any:
        def updated(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self.source is not session.run.networks.get("G"):
                return original(self, *args, **kwargs)
            with session.run.averaging():
                return original(self, *args, **kwargs)

        return updated

    for model in models:
        patches.wrap(model.Generator, "__init__", built("G"))
        patches.wrap(model.Discriminator, "__init__", built("D"))
    patches.wrap(utils, "write_metadata", metadata)
    patches.wrap(utils, "save_weights", save)
    patches.wrap(utils, "load_weights", load)
    patches.wrap(utils.MetricsLogger, "log", log)
    patches.wrap(utils.ema, "update", update)
    patches.wrap(train_fns, "save_and_sample", masked)
    patches.wrap(train_fns, "test", test)
    return "networks, averages, resume, saves, samples, test"


class _Session:
    """The run of the host's train.py in this process."""

    def __init__(self, policy: Policy, host: Host):
        self.run = Run(policy)
        self.host = host
        self.values: dict[str, float] = {}  # what the host has measured at this test

    def built(self, label: str, network: Any, config: dict[str, Any]) -> None:
        run = self.run
        if label == "G" and (config.get("no_optim") or run.rg is not None):
            if run.rg is not None:
                run.averages_of(network)
            return
        if run.policy.batch_size is None and "batch_size" in config:
            run.policy = dataclasses.replace(run.policy, batch_size=_images_per_step(config))
        run.network(label, network)

    def begin(self, folder: Path) -> None:
        if self.run.rg is None:
            raise self.host.unknown("no Generator and Discriminator were built before the run began")
        self.run.in_folder(folder)
        G: Any = self.run.networks["G"]
        on = {"device": next(G.parameters()).device}
        label = torch.zeros(1, dtype=torch.long, **on)
        size = int(G.resolution)
        self.run.count_flops(
            lambda: (torch.zeros(1, int(G.dim_z), **on), G.shared(label)),
            lambda: (torch.zeros(1, 3, size, size, **on), label),
        )

    def resume(self, checkpoint: Path) -> None:
        if self.run.resume(checkpoint):
            self.run.controller.resume_phase()
            self.run.resume_ema()

    @staticmethod
    def checkpoint(weights_root: str, experiment_name: str, suffix: str | None) -> Path:
        """The host's checkpoint is a set of files (G.pth, D.pth, ...); the sidecar is rgplug[_suffix] among them."""
        return Path(weights_root) / experiment_name / ("_".join(filter(None, ["rgplug", suffix])) + ".pth")


def _images_per_step(config: dict[str, Any]) -> dict[str, int]:
    """Images per optimizer step, gradient accumulation included."""
    batch = int(config["batch_size"])
    fakes = max(int(config.get("G_batch_size") or 0), batch)
    return {
        "G": fakes * int(config.get("num_G_accumulations") or 1),
        "D": batch * int(config.get("num_D_accumulations") or 1),
    }

"""Records in TensorBoard or Weights & Biases, where they are installed and the policy asks for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from rgplug.errors import RgplugError
from rgplug.history import Record
from rgplug.policy import Policy


class Logger(Protocol):
    """Takes the numbers of each record."""

    def write(self, record: Record) -> None: ...

    def close(self) -> None: ...


def scalars(record: Record) -> dict[str, float]:
    """The numbers of a record under the names that every logger gets: metric, density/G, density/G/<weight>, ...;
    all of the networks that were measured (`sparse`: the phase before the decision)."""
    found: dict[str, float] = {"sparse": float(record.phase_before == "sparse"), "seconds": record.seconds}
    for name in ("metric", "average", "real_images", "flops"):
        value = getattr(record, name)
        if value is not None:
            found[record.metric_name or name if name == "metric" else name] = float(value)
    found |= {name: float(value) for name, value in record.metrics.items() if value is not None}
    for name in ("density", "ever_active", "regenerated", "restored", "pruned", "steps"):
        found |= {f"{name}/{network}": float(value) for network, value in getattr(record, name).items()}
    for network, layers in record.layers.items():
        found |= {f"density/{network}/{layer}": density for layer, density in layers.items()}
    return found


class TensorBoard:
    """Event files in the run folder; the step is the epoch."""

    def __init__(self, folder: str | None):
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(folder)

    def write(self, record: Record) -> None:
        for name, value in scalars(record).items():
            self._writer.add_scalar(f"rgplug/{name}", value, record.epoch)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """The host's run, if it has begun one; else a run of its own, which ends with the controller."""

    def __init__(self, policy: Policy):
        import wandb

        self._own = wandb.run is None
        if self._own and policy.run_dir is not None:
            Path(policy.run_dir).mkdir(parents=True, exist_ok=True)
        self._run: Any = wandb.init(dir=policy.run_dir, config=policy.to_dict()) if self._own else wandb.run

    def write(self, record: Record) -> None:
        self._run.log({f"rgplug/{name}": value for name, value in scalars(record).items()})

    def close(self) -> None:
        if self._own:
            self._run.finish()


def check_logger(name: str) -> None:
    """Raise RgplugError where the package of a logger (policy.log) is missing. Opens nothing."""
    try:
        if name == "tensorboard":
            import torch.utils.tensorboard  # noqa: F401
        else:
            import wandb  # noqa: F401
    except ImportError as error:
        raise RgplugError(
            f"policy.log asks for {name}, which is not installed (pip install {name}); leave it out"
        ) from error


def open_logger(name: str, policy: Policy) -> Logger:
    """The logger of that name (policy.log). Raises RgplugError where its package is missing."""
    check_logger(name)
    return TensorBoard(policy.run_dir) if name == "tensorboard" else WeightsAndBiases(policy)

"""The policy: everything about a run that is a choice, as frozen dataclasses, readable from YAML or a dict.

Every key has a default; `method` alone is a whole policy. A wrong key is answered with its path and the nearest valid
one, a wrong value with its path and the values that are allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from rgplug import schema
from rgplug.errors import RgplugError

Units = Literal["absolute", "layer_std", "spectral"]


@dataclass(frozen=True)
class NetworkPolicy:
    """Which weights of one network are managed. Patterns are globs over module and parameter names."""

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    filter_dim: Mapping[str, int] = field(default_factory=dict)  # pattern -> output dim, for layouts rgplug cannot know


@dataclass(frozen=True)
class ThresholdPolicy:
    """Learned thresholds, one per output filter (RG-GAN, Eq. 1-3)."""

    init: float = 0.0
    units: Units | Mapping[str, Units] = "absolute"  # what |weight| is measured in before it is compared
    task_gradient: bool = True  # the loss moves thresholds through the mask (paper) or not (released code)
    weight_gradient: Literal["masked", "full"] = "masked"  # "full" adds the surrogate's term for the weight
    optimizer: Literal["inherit"] | Mapping[str, Any] = "inherit"  # or {lr: ..., betas: ..., eps: ...}
    guard: float = 0.01  # a layer that keeps at most this share gets its thresholds back to 0
    min: float | None = None  # thresholds are clamped from below; null: as in the paper, no bound


@dataclass(frozen=True)
class AugmentedPolicy:
    """When to go dense (augmented regeneration): the metric against its weighted average."""

    window: int = 5
    weights: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2, 0.4)  # oldest first
    include_current: bool = True  # True: as released; False: the previous `window` values, as the paper words it
    hysteresis: float = 0.0  # share of the average by which the metric must miss it before the phase changes
    dwell: int = 1  # evaluations that a phase lasts at least
    higher_is_better: bool = False
    networks: tuple[str, ...] = ("G", "D")


@dataclass(frozen=True)
class RegenerationPolicy:
    recurrent: bool | tuple[str, ...] = True  # pruned weights come back with their old values; or the networks' names
    augmented: AugmentedPolicy | None = field(default_factory=AugmentedPolicy)

    def recurs(self, network: str) -> bool:
        return self.recurrent if isinstance(self.recurrent, bool) else network in self.recurrent


@dataclass(frozen=True)
class MaskPolicy:
    """Masks that a network begins with (method: sparse)."""

    density: float | Mapping[str, float] = 0.1  # of the managed weights; or {G: ..., D: ...}
    distribution: Literal["erk", "er", "uniform"] = "erk"  # how it is shared out to the layers
    sampling: Literal["exact", "bernoulli"] = "exact"  # counts, or each weight by itself as STU-GAN's code draws them
    seed: int = 0


@dataclass(frozen=True)
class ExplorationPolicy:
    """Dynamic sparse training: exchange the smallest weights of a layer for others (SET, RigL, STU-GAN)."""

    networks: tuple[str, ...] = ("G",)  # whose masks explore; the others' stay
    every: int = 1000  # steps of the network from one exchange to the next
    fraction: float = 0.5  # of a layer's active weights, at the beginning
    final: float = 0.005  # and at the end, on a cosine
    end: int = 50000  # steps after which masks stay
    grow: Literal["gradient", "random", "momentum"] = "gradient"


@dataclass(frozen=True)
class CyclePolicy:
    """Re-GAN: dense while warming up, then sparse and dense phases in turns. Counted in steps of the network."""

    networks: tuple[str, ...] = ("G",)
    sparsity: float = 0.3  # share of each layer that a sparse phase prunes
    warm_up: int = 30000
    period: int = 15000  # of each phase
    lr: float = 0.1  # factor of the learning rate in dense phases after the warm-up


@dataclass(frozen=True)
class TargetPolicy:
    """A density asked for, per network, reached on a schedule counted in the network's own iterations."""

    G: float | None = None
    D: float | None = None
    start: int = 0
    by: int = 20000
    shape: Literal["cubic", "linear", "constant"] = "cubic"


@dataclass(frozen=True)
class MetricPolicy:
    """How `end_epoch()` measures when the host gives no value."""

    real: str = ""  # folder, .zip or .npz of real images
    features: str = "auto"  # auto | inception | efficientnet_lite0
    distance: Literal["frechet", "kid", "is"] = "frechet"
    samples: int = 5000
    batch: int = 64
    z_dim: int | None = None
    every: int = 1  # measure at every n-th end_epoch()
    seed: int = 0


@dataclass(frozen=True)
class Policy:
    """A whole run. `Policy.load(anything)` takes a path to YAML, a dict, a Policy or a preset's name."""

    method: Literal["rg-gan", "re-gan", "sparse", "dense"] = "rg-gan"
    sparsity_weight: float | Mapping[str, float] = 5.0e-12  # lambda of the regularizer (RG-GAN, Eq. 3)
    regularization: Literal["hook", "loss"] = "hook"
    networks: Mapping[str, NetworkPolicy | None] = field(default_factory=dict)  # null: left dense on purpose
    threshold: ThresholdPolicy = field(default_factory=ThresholdPolicy)
    masks: MaskPolicy = field(default_factory=MaskPolicy)
    exploration: ExplorationPolicy | None = None
    cycle: CyclePolicy = field(default_factory=CyclePolicy)
    optimizer_state: Literal["keep", "reset"] = "keep"
    regeneration: RegenerationPolicy = field(default_factory=RegenerationPolicy)
    target: TargetPolicy | None = None
    metric: MetricPolicy | None = None
    batch_size: int | Mapping[str, int] | None = (
        None  # real images per D step (and fakes per G step), for #RI and FLOPs
    )
    kernels: Literal["auto", "fused", "eager"] = "auto"  # fused: compiled loops over CPU memory, an error without them
    finish: Literal["sparse", "dense", "as-is"] = "as-is"
    run_dir: str | None = None

    @staticmethod
    def load(source: Policy | Mapping[str, Any] | str | Path) -> Policy:
        """Policy from a path to YAML, a dict, a Policy or the name of a preset; the key `base` names one to start from.

        Raises RgplugError with the path of the wrong key and the nearest valid one.
        """
        if isinstance(source, Policy):
            source = source.to_dict()
        policy: Policy = schema.build(Policy, schema.resolve(source, PRESETS), "policy")
        return policy.validated()

    def validated(self) -> Policy:
        """Self, once every range has been checked. Raises RgplugError."""
        for path, value, low, high in self._ranges():
            if value is not None and not low <= value <= high:
                raise RgplugError(f"{path} is {value}; it has to lie between {low:g} and {high:g}")
        augmented = self.regeneration.augmented
        recurrent = self.regeneration.recurrent
        named: dict[str, Any] = {
            "networks": self.networks,
            "sparsity_weight": self.sparsity_weight,
            "threshold.units": self.threshold.units,
            "batch_size": self.batch_size,
            "regeneration.recurrent": recurrent,
            "masks.density": self.masks.density,
            "cycle.networks": self.cycle.networks,
            "exploration.networks": self.exploration.networks if self.exploration is not None else (),
            "regeneration.augmented.networks": augmented.networks if augmented is not None else (),
        }
        for key, value in named.items():
            for name in value if isinstance(value, (Mapping, tuple)) else ():
                if name not in ("G", "D"):
                    raise RgplugError(f"policy.{key}.{name} names no network; the networks are G and D")
        if augmented is not None:
            if len(augmented.weights) != augmented.window:
                raise RgplugError(
                    f"policy.regeneration.augmented.weights has {len(augmented.weights)} values for a window of "
                    f"{augmented.window}; give one weight for each evaluation in the window"
                )
            if abs(sum(augmented.weights) - 1) > 1e-6 or min(augmented.weights) < 0:
                raise RgplugError(
                    f"policy.regeneration.augmented.weights sum to {sum(augmented.weights):g}; "
                    "they have to be positive and sum to 1"
                )
        if self.method in ("sparse", "re-gan") and augmented is not None:
            raise RgplugError(
                f"policy.regeneration.augmented has no meaning with method: {self.method}, whose pruned weights are "
                f"gone; set it to false, or begin with base: {self.method}"
            )
        if self.method in ("sparse", "re-gan") and self.target is not None:
            own = "masks: {density: ...}" if self.method == "sparse" else "cycle: {sparsity: ...}"
            raise RgplugError(f"policy.target steers thresholds; with method: {self.method} give {own}")
        if self.exploration is not None and self.method != "sparse":
            raise RgplugError(
                f"policy.exploration needs method: sparse, and the method is {self.method}; leave it out, or begin "
                "with base: stu-gan, set or rigl"
            )
        if self.target is not None and self.target.G is None and self.target.D is None:
            raise RgplugError("policy.target names no density; give G, D or both, e.g. target: {G: 0.5, by: 20000}")
        if self.metric is not None and not self.metric.real:
            raise RgplugError(
                "policy.metric.real is missing; name the folder of real images that the metric compares with"
            )
        return self

    def _ranges(self) -> list[tuple[str, float | None, float, float]]:
        inf = float("inf")
        rows: list[tuple[str, float | None, float, float]] = [
            ("policy.threshold.guard", self.threshold.guard, 0.0, 1.0),
            ("policy.threshold.init", self.threshold.init, -inf, 1e30),
        ]
        rows += [
            (f"policy.sparsity_weight.{k}", v, 0.0, inf) for k, v in self._per_network(self.sparsity_weight).items()
        ]
        if self.regeneration.augmented is not None:
            a = self.regeneration.augmented
            rows += [
                ("policy.regeneration.augmented.window", a.window, 1, 1000),
                ("policy.regeneration.augmented.hysteresis", a.hysteresis, 0.0, 1e6),
                ("policy.regeneration.augmented.dwell", a.dwell, 1, 1e9),
            ]
        rows += [(f"policy.masks.density.{k}", v, 1e-9, 1.0) for k, v in self._per_network(self.masks.density).items()]
        rows += [
            ("policy.cycle.sparsity", self.cycle.sparsity, 0.0, 0.999),
            ("policy.cycle.warm_up", self.cycle.warm_up, 0, inf),
            ("policy.cycle.period", self.cycle.period, 1, inf),
            ("policy.cycle.lr", self.cycle.lr, 0.0, inf),
        ]
        if self.exploration is not None:
            e = self.exploration
            rows += [
                ("policy.exploration.every", e.every, 1, inf),
                ("policy.exploration.end", e.end, 1, inf),
                ("policy.exploration.fraction", e.fraction, 0.0, 1.0),
                ("policy.exploration.final", e.final, 0.0, 1.0),
            ]
        if self.target is not None:
            rows += [(f"policy.target.{n}", getattr(self.target, n), 1e-6, 1.0) for n in ("G", "D")]
            rows += [("policy.target.start", self.target.start, 0, inf)]
            rows += [("policy.target.by", self.target.by, self.target.start, inf)]
        if self.metric is not None:
            rows += [
                ("policy.metric.samples", self.metric.samples, 2, inf),
                ("policy.metric.batch", self.metric.batch, 1, inf),
            ]
            rows += [("policy.metric.every", self.metric.every, 1, inf)]
        if self.batch_size is not None:
            rows += [(f"policy.batch_size.{k}", v, 1, inf) for k, v in self._per_network(self.batch_size).items()]
        return rows

    @staticmethod
    def _per_network(value: Any) -> dict[str, Any]:
        return dict(value) if isinstance(value, Mapping) else {"G": value, "D": value}

    def of(self, value: Any, network: str) -> Any:
        """The value for one network of a setting that may be one value or {G: ..., D: ...}."""
        return self._per_network(value).get(network)

    def to_dict(self) -> dict[str, Any]:
        """Plain dict of numbers, strings, lists and dicts, fit for YAML and JSON; `Policy.load` reads it back."""
        plain: dict[str, Any] = schema.plain(self)
        return plain

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


PRESETS: dict[str, dict[str, Any]] = {
    "rg-gan": {"method": "rg-gan"},
    "rg-gan-released": {
        "method": "rg-gan",
        "sparsity_weight": 1.0e-12,
        "threshold": {"task_gradient": False, "units": {"G": "absolute", "D": "spectral"}},
    },
    "dense": {"method": "dense", "regeneration": {"recurrent": True, "augmented": False}},
    "sparse": {"method": "sparse", "regeneration": {"recurrent": True, "augmented": False}},
    "re-gan": {"method": "re-gan", "regeneration": {"recurrent": True, "augmented": False}},
    "stu-gan": {
        "method": "sparse",
        "masks": {"density": {"G": 0.1, "D": 0.3}},
        "exploration": {"networks": ["G"], "every": 1000, "fraction": 0.5, "grow": "gradient"},
        "regeneration": {"recurrent": True, "augmented": False},
    },
    "set": {
        "method": "sparse",
        "exploration": {"networks": ["G", "D"], "fraction": 0.3, "final": 0.3, "grow": "random"},
        "optimizer_state": "reset",
        "regeneration": {"recurrent": True, "augmented": False},
    },
    "rigl": {
        "method": "sparse",
        "exploration": {"networks": ["G", "D"], "every": 100, "fraction": 0.3, "final": 0.0, "grow": "gradient"},
        "optimizer_state": "reset",
        "regeneration": {"recurrent": True, "augmented": False},
    },
}

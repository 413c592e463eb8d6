"""The policy: everything about a run that is a choice, as frozen dataclasses, readable from YAML or a dict.

Every key has a default; `method` alone is a whole policy. A wrong key is answered with its path and the nearest valid
one, a wrong value with its path and the values that are allowed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rgplug import effect, reading, schema
from rgplug.presets import PRESETS
from rgplug.validation import check

END = 50_000  # steps that exploration lasts where nobody says (STU-GAN's runs on CIFAR are as long)

Units = Literal["absolute", "layer_std", "spectral"]
Granularity = Literal["weight", "kernel", "filter", "2:4"]
Distance = Literal["frechet", "kid", "is"]
_DISTANCE_NAMES = {"fid": "frechet"}  # what people call them


@dataclass(frozen=True)
class NetworkPolicy:
    """Which weights of one network are managed. Patterns are globs over module and parameter names."""

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    filter_dim: Mapping[str, int] = field(default_factory=dict)  # pattern -> output dim, for layouts rgplug cannot know
    vectors: bool = False  # biases, and gains and biases of norms, too (Re-GAN's released code prunes them)


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
    networks: tuple[str, ...] = ("G", "D")  # which have thresholds; others train dense, and are counted


@dataclass(frozen=True)
class AugmentedPolicy:
    """When to go dense (augmented regeneration): the metric against its weighted average."""

    window: int = 5
    weights: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2, 0.4)  # oldest first
    include_current: bool = True  # True: as released; False: the previous `window` values, as the paper words it
    hysteresis: float = 0.0  # share of the average by which the metric must miss it before the phase changes
    dwell: int = 1  # evaluations that a phase lasts at least
    higher_is_better: bool | None = None  # null: by the metric's name (inception score: higher), else lower is better
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
    criterion: str = "random"  # which weights of a layer are kept: random | magnitude | torch-pruning:NAME (of filters)
    distribution: Literal["erk", "er", "uniform", "global"] = "erk"  # how it is shared out; global: ranked over layers
    channels: bool = False  # granularity filter: biases, norms and input columns of a channel go with its filters
    sampling: Literal["exact", "bernoulli"] = "exact"  # counts, or each weight by itself as STU-GAN's code draws them
    seed: int = 0
    file: str | None = None  # masks that a file holds (a ticket's); the keys above do not count then


@dataclass(frozen=True)
class ExplorationPolicy:
    """Dynamic sparse training: exchange the smallest weights of a layer for others (SET, RigL, STU-GAN)."""

    networks: tuple[str, ...] = ("G",)  # whose masks explore; the others' stay
    every: int | Mapping[str, int] = 1000  # steps of the network from one exchange to the next; or {G: ..., D: ...}
    fraction: float = 0.5  # of a layer's active weights, at the beginning
    final: float = 0.005  # and at the end, on a cosine
    # steps of the network after which masks stay, or {G: ..., D: ...}; null: the run's length where a comparison is
    # told it (--length), else END
    end: int | Mapping[str, int] | None = None
    grow: Literal["gradient", "random", "momentum"] = "gradient"


@dataclass(frozen=True)
class BalancePolicy:
    """ADAPT: D's density follows the balance ratio of G's and D's progress (method: sparse)."""

    lower: float = 0.45  # at or below it D loses weights
    upper: float = 0.55  # at or above it D gains weights
    delta: float = 0.05  # of density, per adjustment
    lowest: float = 0.05
    highest: float = 1.0
    exchange: bool = False  # where D may not grow further: exchange weights instead (ADAPT-strict)
    fraction: float = 0.5  # of D's active weights that such an exchange drops, at the beginning
    final: float = 0.005  # and at the end, on a cosine
    end: int = 100000  # iterations of G after which exchanges drop `final`
    every: int = 1000  # iterations of G from one adjustment of D to the next
    measure: int = 10  # iterations of G from one measurement to the next
    window: int = 100  # measurements that are averaged
    real: str | None = None  # real images to measure on; null: metric.real, or what the host gives to rg.observe
    batch: int = 64  # images per measurement, where they come from `real`


@dataclass(frozen=True)
class StartPolicy:
    """A trained or saved pair that training starts from."""

    weights: str = ""  # snapshot file (rg.snapshot, policy.snapshots)
    optimizers: bool = False  # the optimizers' moments too, where the host's have none yet
    networks: tuple[str, ...] = ("G", "D")


@dataclass(frozen=True)
class SnapshotPolicy:
    """Snapshots that a run leaves for runs after it: initial.safetensors, early.safetensors, trained.safetensors."""

    folder: str = ""
    early: int | None = None  # iterations of G after which early.safetensors is written; null: never
    optimizers: bool = True  # the optimizers' moments in trained.safetensors, and in those of `best`
    best: bool = False  # the pair at the best evaluation of each phase: best_sparse and best_dense.safetensors
    scores: tuple[str, ...] = ()  # criteria of torch-pruning whose scores of all filters go into trained.safetensors


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
    distance: Distance | tuple[Distance, ...] = "frechet"  # or several, [frechet, is]: the first decides the phase
    samples: int = 5000
    batch: int = 64
    z_dim: int | None = None
    every: int = 1  # measure at every n-th end_epoch()
    seed: int = 0
    sheet: int = 16  # generated images of the best evaluation so far, kept as best.png in run_dir; 0: none

    @property
    def distances(self) -> tuple[Distance, ...]:
        """All of them, the one that decides first."""
        return (self.distance,) if isinstance(self.distance, str) else self.distance


@dataclass(frozen=True)
class Policy:
    """A whole run. `Policy.load(anything)` takes a path to YAML, a dict, a Policy or a preset's name."""

    method: Literal["rg-gan", "re-gan", "sparse", "dense"] = "rg-gan"
    sparsity_weight: float | Mapping[str, float] = 5.0e-12  # lambda of the regularizer (RG-GAN, Eq. 3)
    regularization: Literal["hook", "loss"] = "hook"
    networks: Mapping[str, NetworkPolicy | None] = field(default_factory=dict)  # null: left dense on purpose
    granularity: Granularity | Mapping[str, Granularity] = "weight"  # what is kept or pruned as a whole
    threshold: ThresholdPolicy = field(default_factory=ThresholdPolicy)
    masks: MaskPolicy = field(default_factory=MaskPolicy)
    exploration: ExplorationPolicy | None = None
    balance: BalancePolicy | None = None
    cycle: CyclePolicy = field(default_factory=CyclePolicy)
    optimizer_state: Literal["keep", "reset"] = "keep"
    regeneration: RegenerationPolicy = field(default_factory=RegenerationPolicy)
    target: TargetPolicy | None = None
    metric: MetricPolicy | None = None
    batch_size: int | Mapping[str, int] | None = (
        None  # real images per D step (and fakes per G step), for #RI and FLOPs
    )
    kernels: Literal["auto", "fused", "eager"] = "auto"  # fused: compiled loops over CPU memory, an error without them
    dormant: Literal["own", "float16", "bfloat16"] = "own"  # dtype that pruned values wait in; own: exact
    finish: Literal["sparse", "dense", "as-is"] = "as-is"
    run_dir: str | None = None
    start: StartPolicy | None = None
    snapshots: SnapshotPolicy | None = None
    log: tuple[str, ...] = ()  # tensorboard, wandb: get the numbers of each record
    # no key of the policy: those that the user wrote; None: made in Python, where what differs from the default counts
    _own: frozenset[str] | None = field(default=None, compare=False, repr=False)

    @staticmethod
    def load(source: Policy | Mapping[str, Any] | str | Path) -> Policy:
        """Policy from a path to YAML, a dict, a Policy or the name of a preset; the key `base` names one to start from.

        Raises RgplugError with the path of the wrong key and the nearest valid one; for values that are out of range or
        contradict each other; and for keys that the method does not read.
        """
        if isinstance(source, Policy):
            policy = Policy._built(source.to_dict())
            return policy._remember(effect.changes(policy) if source._own is None else source._own)
        keys = schema.resolve(source, PRESETS)
        whole = set(keys) >= _WHOLE
        if whole:
            keys = _direction_by_name(keys)
        policy = Policy._built(keys)
        if whole:
            return policy._remember(effect.changes(policy))
        policy = policy._remember(frozenset(effect.written(keys_of_user(source))))
        effect.check_base(policy, keys)
        return policy

    def changed(self, changes: Mapping[str, Any] | str | Path) -> Policy:
        """A policy with some keys replaced: {"masks.density": 0.2}, or a YAML file of such keys. Raises RgplugError.

        Where the method changes, keys that the new one does not read return to their defaults.
        """
        keys = schema.resolve(changes, {})
        method = keys.get("method", self.method)
        held = effect.readable(self.to_dict(), method) if method != self.method else self.to_dict()
        before = effect.changes(self) if self._own is None else self._own
        policy = Policy._built(schema.merge(held, keys))
        if set(keys) >= _WHOLE:
            return policy._remember(effect.changes(policy))
        kept = {key for key in before if method == self.method or effect.reads(method, key)}
        return policy._remember(frozenset(kept | set(effect.written(keys))))

    @staticmethod
    def pooled(*sources: Mapping[str, Any]) -> Policy:
        """A policy from keys of several authors (a comparison's host, methods and command line), later ones on top.

        Keys that have no effect are let pass: each of them is for some of the methods only.
        """
        keys: dict[str, Any] = {}
        for source in sources:
            keys = schema.merge(keys, schema.spelled_out(source))
        # of all keys only this one is asked for later on, as said or not said
        return Policy._built(keys)._remember(frozenset(effect.written(keys)) & {"target.by"})

    @staticmethod
    def _built(keys: Mapping[str, Any]) -> Policy:
        """The policy that these keys (without `base`) make. Checks values, not whether the method reads the keys."""
        policy = Policy.of_keys(keys)
        check(policy)
        return policy

    @staticmethod
    def of_keys(keys: Mapping[str, Any]) -> Policy:
        """The policy that these keys make, short forms spelled out. Only their names and kinds are checked: they may be
        a part of what a run needs."""
        policy: Policy = schema.build(Policy, _two_of_four(_distances(dict(keys))), "policy")
        return policy

    def _remember(self, own: frozenset[str]) -> Policy:
        """This policy, with the keys that its user wrote. Raises RgplugError for one that has no effect."""
        effect.check(self, own)
        return replace(self, _own=own)

    @property
    def own_keys(self) -> frozenset[str]:
        """Dotted names of the keys that were written by the user and do not come from a preset."""
        return effect.changes(self) if self._own is None else self._own

    @property
    def higher_is_better(self) -> bool:
        """Which way the metric goes: as the policy says, else by the name of its own metric; a host's is a distance."""
        augmented = self.regeneration.augmented
        if augmented is not None and augmented.higher_is_better is not None:
            return augmented.higher_is_better
        return self.metric is not None and higher_is_better(self.metric.distances[0])

    def granularity_of(self, network: str) -> Granularity:
        return self.of(self.granularity, network) or "weight"

    def removes_channels(self, network: str) -> bool:
        """Whether masks take out all of a channel, so that what they leave is a smaller dense network."""
        drawn = self.method == "sparse" and self.masks.channels and self.masks.file is None
        return drawn and self.granularity_of(network) == "filter"

    @staticmethod
    def per_network(value: Any) -> dict[str, Any]:
        return dict(value) if isinstance(value, Mapping) else {"G": value, "D": value}

    def of(self, value: Any, network: str) -> Any:
        """The value for one network of a setting that may be one value or {G: ..., D: ...}."""
        return self.per_network(value).get(network)

    def to_dict(self) -> dict[str, Any]:
        """Plain dict of numbers, strings, lists and dicts, fit for YAML and JSON; `Policy.load` reads it back."""
        plain: dict[str, Any] = schema.plain(self)
        return plain

    def to_yaml(self) -> str:
        return reading.dump(self.to_dict())


def keys_of_user(source: Mapping[str, Any] | str | Path) -> dict[str, Any]:
    """The keys of a policy that its user wrote, in files that it is based on too, without what presets bring along."""
    return schema.resolve(source, {name: {} for name in PRESETS})


def _two_of_four(keys: dict[str, Any]) -> dict[str, Any]:
    """YAML 1.1 reads an unquoted 2:4 as a number of base 60, which is 124."""

    def text(value: Any) -> Any:
        return "2:4" if isinstance(value, int) and value == 124 else value

    found = keys.get("granularity")
    if found is None:
        return keys
    own = {k: text(v) for k, v in found.items()} if isinstance(found, Mapping) else text(found)
    return {**keys, "granularity": own}


def _distances(keys: dict[str, Any]) -> dict[str, Any]:
    """`metric: [fid, is]` as `metric: {distance: [frechet, is]}`; a list of one distance as its name."""
    keys = schema.spelled_out(keys)
    metric = keys.get("metric")
    if not isinstance(metric, Mapping) or "distance" not in metric:
        return keys
    found = metric["distance"]
    names = found if isinstance(found, (list, tuple)) else [found]
    names = [_DISTANCE_NAMES.get(n, n) if isinstance(n, str) else n for n in names]
    return {
        **keys,
        "metric": {**metric, "distance": names[0] if len(names) == 1 and isinstance(names[0], str) else names},
    }


def higher_is_better(metric: str) -> bool:
    """Whether a metric of that name, or a distance of `metric.distance`, is better where it is higher: the inception
    score is ("is", "is_efficientnet_lite0"), Frechet and kernel distances are not."""
    return metric == "is" or metric.startswith("is_")


def _direction_by_name(keys: dict[str, Any]) -> dict[str, Any]:
    """`higher_is_better: false` was the default, and was written out, before null was: beside `distance: is` it says
    nothing, in a policy that has every key."""
    metric, regeneration = keys.get("metric"), keys.get("regeneration")
    augmented = regeneration.get("augmented") if isinstance(regeneration, Mapping) else None
    score = isinstance(metric, Mapping) and metric.get("distance") == "is"  # one name: lists came later than null
    if score and isinstance(augmented, Mapping) and augmented.get("higher_is_better") is False:
        return schema.merge(keys, {"regeneration": {"augmented": {"higher_is_better": None}}})
    return keys


# what only to_dict() writes side by side, in this version and the ones before
_WHOLE = {"method", "threshold", "masks", "cycle", "regeneration", "target", "metric", "run_dir"}
ENVIRONMENT = "RGPLUG_POLICY"
SEED = "RGPLUG_SEED"  # the seed of a comparison's run, for scripts whose command line takes none


def from_environment(policy: Policy) -> Policy:
    """The policy with the keys of the YAML file that the environment variable RGPLUG_POLICY names, if it names one.

    So a script is trained again and again under other methods and masks (`rgplug compare -- COMMAND`) without being
    touched. A file that names a method brings all of it: of the script's policy those keys stay that every method reads
    (metric, batch_size, networks), and of the others what its user wrote himself, as far as the method reads them.
    """
    path = os.environ.get(ENVIRONMENT)
    if not path:
        return policy
    keys = schema.resolve(path, PRESETS)
    if "method" not in keys:
        return policy.changed(path)
    own = frozenset(key for key in policy.own_keys if effect.reads(keys["method"], key))
    kept = {k: v for k, v in schema.leaves(policy.to_dict()).items() if k in own or effect.is_common(k)}
    new = Policy.pooled(schema.resolve(kept, {}), keys)
    # an adapter's policy comes through here twice; keys for a network that the method leaves alone are not held against
    # a script that was written for another one
    own = frozenset(key for key in own if not effect.without_effect(new, key))
    return replace(new, _own=own | new.own_keys)

"""What a policy has to fulfil beyond the types of its keys: ranges, and keys that go together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rgplug import schema
from rgplug.criteria import criterion_of
from rgplug.errors import RgplugError

if TYPE_CHECKING:
    from rgplug.policy import Policy

INF = float("inf")
LARGE = 1e30  # float32 tensors hold it, and its square root's square
BATCH = 65_536  # images at a time
LOGS = ("tensorboard", "wandb")


def check(policy: Policy) -> None:
    """Raise RgplugError with the key that is wrong, and what it may be."""
    for path, value, low, high in _ranges(policy):
        if value is not None and not low <= value <= high:
            share = f"; did you mean {value / 100:g}?" if high <= 1 < value <= 100 * high else ""  # 50 for 50 %
            raise RgplugError(f"policy.{path} is {value:g}; it has to lie between {low:g} and {high:g}{share}")
    _check_distances(policy)
    _check_networks(policy)
    _check_augmented(policy)
    _check_methods(policy)
    _check_granularity(policy)
    _check_criteria(policy)
    _check_files(policy)


def _check_networks(policy: Policy) -> None:
    p, augmented = policy, policy.regeneration.augmented
    named: dict[str, Any] = {
        "networks": p.networks,
        "granularity": p.granularity,
        "sparsity_weight": p.sparsity_weight,
        "threshold.units": p.threshold.units,
        "threshold.networks": p.threshold.networks,
        "batch_size": p.batch_size,
        "regeneration.recurrent": p.regeneration.recurrent,
        "masks.density": p.masks.density,
        "cycle.networks": p.cycle.networks,
        "exploration.networks": p.exploration.networks if p.exploration is not None else (),
        "regeneration.augmented.networks": augmented.networks if augmented is not None else (),
        "start.networks": p.start.networks if p.start is not None else (),
    }
    for key, value in named.items():
        for name in value if isinstance(value, (dict, tuple)) else ():
            if name not in ("G", "D"):
                near = schema.nearest(name, ("G", "D"))
                hint = f"; did you mean {near!r}?" if near else ""
                raise RgplugError(
                    f"policy.{key}.{schema.name_of(name)} names no network; the networks are G and D{hint}"
                )
    for label, network in p.networks.items():
        if network is not None and not network.include:
            raise RgplugError(
                f"policy.networks.{label}.include is empty, so nothing of {label} would be managed; leave it out, or "
                f"set networks: {{{label}: null}} to leave {label} dense"
            )


def _check_distances(policy: Policy) -> None:
    distances = ("",) if policy.metric is None else policy.metric.distances
    if not distances:
        raise RgplugError("policy.metric.distance is an empty list; name at least one of frechet, kid and is")
    twice = next((d for i, d in enumerate(distances) if d in distances[:i]), None)
    if twice is not None:
        raise RgplugError(f"policy.metric.distance names {twice} twice (fid is another name of frechet); leave one out")


def _check_augmented(policy: Policy) -> None:
    augmented = policy.regeneration.augmented
    if augmented is None:
        return
    distance = None if policy.metric is None else policy.metric.distances[0]  # the one that decides
    if distance is not None and augmented.higher_is_better not in (None, distance == "is"):
        better = "higher" if distance == "is" else "lower"
        raise RgplugError(
            f"policy.regeneration.augmented.higher_is_better is {str(augmented.higher_is_better).lower()}, and with "
            f"metric.distance: {distance} {better} is better; leave higher_is_better out"
        )
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


def _check_methods(policy: Policy) -> None:
    method = policy.method
    if method in ("sparse", "re-gan") and policy.regeneration.augmented is not None:
        raise RgplugError(
            f"policy.regeneration.augmented has no meaning with method: {method}, whose pruned weights are "
            f"gone; set it to false, or begin with base: {method}"
        )
    if method in ("sparse", "re-gan") and policy.target is not None:
        own = "masks: {density: ...}" if method == "sparse" else "cycle: {sparsity: ...}"
        raise RgplugError(f"policy.target steers thresholds; with method: {method} give {own}")
    if policy.exploration is not None and method != "sparse":
        raise RgplugError(
            f"policy.exploration needs method: sparse, and the method is {method}; leave it out, or begin "
            "with base: stu-gan, set or rigl"
        )
    if policy.balance is not None and method != "sparse":
        raise RgplugError(
            f"policy.balance needs method: sparse, and the method is {method}; leave it out, or begin with base: adapt"
        )
    if policy.balance is not None and policy.exploration is not None and "D" in policy.exploration.networks:
        raise RgplugError(
            "policy.balance adjusts D's density and policy.exploration explores D too; set exploration: {networks: [G]}"
        )
    if policy.balance is not None and policy.balance.lower > policy.balance.upper:
        raise RgplugError(
            f"policy.balance.lower is {policy.balance.lower:g}, above policy.balance.upper {policy.balance.upper:g}; "
            "swap them"
        )
    if policy.target is not None and policy.target.G is None and policy.target.D is None:
        raise RgplugError("policy.target names no density; give G, D or both, e.g. target: {G: 0.5, by: 20000}")


def _check_granularity(policy: Policy) -> None:
    p = policy
    for network in ("G", "D"):
        granularity = p.granularity_of(network)
        learned = p.method == "rg-gan" and network in p.threshold.networks
        if p.networks.get(network, True) is None:
            continue
        if granularity == "2:4":
            for key, value, remedy in _densities_asked(p, network, learned):
                raise RgplugError(
                    f"policy.{key} is {value:g}, and granularity 2:4 keeps exactly one half of {network}; {remedy}, or "
                    f"set granularity: {{{network}: weight}}"
                )
        if granularity == "filter" and learned and p.threshold.weight_gradient == "full":
            raise RgplugError(
                f"policy.threshold.weight_gradient: full is not there for whole filters (granularity of {network}); "
                "set it to masked, or granularity to kernel or weight"
            )


def _check_criteria(policy: Policy) -> None:
    """Criteria of torch-pruning rank whole filters."""
    p = policy
    criterion = criterion_of(p.masks.criterion)
    for i, name in enumerate(p.snapshots.scores if p.snapshots is not None else ()):
        if criterion_of(name, f"snapshots.scores[{i}]") is None:
            raise RgplugError(
                f"policy.snapshots.scores[{i}] is {name!r}; it has to be a criterion of torch-pruning, such as "
                "torch-pruning:TaylorImportance (rounds of tickets rank by magnitude without scores)"
            )
    if p.method != "sparse" or p.masks.file is not None:
        return
    if p.masks.channels and p.masks.distribution != "uniform":
        raise RgplugError(
            f"policy.masks.channels takes the same share of filters out of every layer, and masks.distribution is "
            f"{p.masks.distribution}; set distribution: uniform"
        )
    if p.masks.channels and (p.exploration is not None or p.balance is not None):
        group = "exploration" if p.exploration is not None else "balance"
        raise RgplugError(
            f"policy.{group} exchanges filters, and masks.channels leaves a smaller network whose masks stay; leave "
            f"{group} out, or set masks: {{channels: false}}"
        )
    if p.masks.channels and not any(p.removes_channels(network) for network in ("G", "D")):
        raise RgplugError("policy.masks.channels takes out whole filters; set granularity: filter")
    if criterion is None:
        return
    for network in ("G", "D"):
        dense = p.networks.get(network, True) is None or p.of(p.masks.density, network) == 1
        granularity = p.granularity_of(network)
        if granularity != "filter" and not dense:
            raise RgplugError(
                f"policy.masks.criterion is {criterion}, which ranks whole filters, and the granularity of {network} "
                f"is {granularity}; set granularity: filter, leave {network} dense (masks: {{density: {{{network}: "
                "1.0}}), or set criterion: magnitude"
            )


def _densities_asked(p: Policy, network: str, learned: bool) -> Iterator[tuple[str, float, str]]:
    """(key, value, what to do) of the keys that ask for another density of a network than one half."""
    density, target = p.of(p.masks.density, network), getattr(p.target, network, None)
    if p.method == "sparse" and p.masks.file is None and density not in (None, 0.5):
        yield f"masks.density.{network}", density, "set it to 0.5"
    if p.method == "re-gan" and network in p.cycle.networks and p.cycle.sparsity != 0.5:
        yield "cycle.sparsity", p.cycle.sparsity, "set it to 0.5"
    if learned and target is not None:
        yield f"target.{network}", target, "leave it out"
    if p.balance is not None and network == "D":
        yield "balance.delta", p.balance.delta, "leave balance out"


def _check_files(policy: Policy) -> None:
    if policy.metric is not None and not policy.metric.real:
        raise RgplugError("policy.metric.real is missing; name the folder of real images that the metric compares with")
    if policy.start is not None and not policy.start.weights:
        raise RgplugError(
            "policy.start.weights is missing; name the snapshot that training starts from (rg.snapshot(path) or "
            "policy.snapshots make one)"
        )
    if policy.snapshots is not None and not policy.snapshots.folder:
        raise RgplugError("policy.snapshots.folder is missing; name the folder that the snapshots go to")
    for name in policy.log:
        if name not in LOGS:
            raise RgplugError(f"policy.log names {name!r}; allowed: {', '.join(LOGS)}")


def _ranges(p: Policy) -> list[tuple[str, float | None, float, float]]:
    rows: list[tuple[str, float | None, float, float]] = [
        ("threshold.guard", p.threshold.guard, 0.0, 1.0),
        ("threshold.init", p.threshold.init, -LARGE, LARGE),
        ("threshold.min", p.threshold.min, -LARGE, LARGE),
        ("cycle.sparsity", p.cycle.sparsity, 0.0, 0.999),
        ("cycle.warm_up", p.cycle.warm_up, 0, INF),
        ("cycle.period", p.cycle.period, 1, INF),
        ("cycle.lr", p.cycle.lr, 0.0, 1e6),
    ]
    rows += [(f"sparsity_weight.{k}", v, 0.0, LARGE) for k, v in p.per_network(p.sparsity_weight).items()]
    rows += [(f"masks.density.{k}", v, 1e-9, 1.0) for k, v in p.per_network(p.masks.density).items()]
    if p.batch_size is not None:
        rows += [(f"batch_size.{k}", v, 1, INF) for k, v in p.per_network(p.batch_size).items()]
    if (a := p.regeneration.augmented) is not None:
        rows += [
            ("regeneration.augmented.window", a.window, 1, 1000),
            ("regeneration.augmented.hysteresis", a.hysteresis, 0.0, 1e6),
            ("regeneration.augmented.dwell", a.dwell, 1, 1e9),
        ]
    if (e := p.exploration) is not None:
        rows += [
            *((f"exploration.every.{k}", v, 1, INF) for k, v in p.per_network(e.every).items()),
            *((f"exploration.end.{k}", v, 1, INF) for k, v in p.per_network(e.end).items()),
            ("exploration.fraction", e.fraction, 0.0, 1.0),
            ("exploration.final", e.final, 0.0, 1.0),
        ]
    if (b := p.balance) is not None:
        rows += [
            ("balance.delta", b.delta, 0.0, 1.0),
            ("balance.lowest", b.lowest, 1e-9, 1.0),
            ("balance.highest", b.highest, b.lowest, 1.0),
            ("balance.fraction", b.fraction, 0.0, 1.0),
            ("balance.final", b.final, 0.0, 1.0),
            ("balance.end", b.end, 1, INF),
            ("balance.every", b.every, 1, INF),
            ("balance.measure", b.measure, 1, INF),
            ("balance.window", b.window, 1, 1_000_000),
            ("balance.batch", b.batch, 1, BATCH),
        ]
    if (t := p.target) is not None:
        rows += [(f"target.{n}", getattr(t, n), 1e-6, 1.0) for n in ("G", "D")]
        rows += [("target.start", t.start, 0, INF), ("target.by", t.by, t.start, INF)]
    if (m := p.metric) is not None:
        rows += [("metric.samples", m.samples, 2, 10_000_000), ("metric.batch", m.batch, 1, BATCH)]
        rows += [
            ("metric.sheet", m.sheet, 0, 1024),
            ("metric.every", m.every, 1, INF),
            ("metric.z_dim", m.z_dim, 1, 1_000_000),
        ]
    if p.snapshots is not None:
        rows += [("snapshots.early", p.snapshots.early, 1, INF)]
    return rows

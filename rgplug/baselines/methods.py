"""The methods of a comparison by name, and their schedules for runs shorter or longer than the published ones."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rgplug import effect, schema
from rgplug.criteria import criterion_of, is_of_torch_pruning
from rgplug.errors import RgplugError
from rgplug.policy import PRESETS, BalancePolicy, MaskPolicy, Policy
from rgplug.warn import warn

Procedure = Literal["train", "fine-tune", "tickets", "random-init", "random-mask"]
Rewind = Literal["init", "early", "none"]
Density = float | Mapping[str, float]

TICKET: dict[str, Any] = {"method": "sparse", "regeneration": {"recurrent": True, "augmented": False}}


@dataclass(frozen=True)
class Baseline:
    """One method of a comparison: a policy, and the procedure that trains under it."""

    name: str
    policy: Mapping[str, Any]
    procedure: Procedure = "train"
    needs: str | None = None  # the method whose runs it builds on, seed by seed
    rewind: Rewind = "init"
    networks: tuple[str, ...] = field(default=("G", "D"))  # that tickets prune
    own: Mapping[str, Any] = field(default_factory=dict)  # keys of the user: no schedule or density changes them
    explores: float = 1.0  # share of the run after which masks stay
    scores: tuple[
        str, ...
    ] = ()  # criteria of torch-pruning whose scores its snapshots hold; of tickets the one they use


METHODS: dict[str, Baseline] = {name: Baseline(name, policy) for name, policy in PRESETS.items()}
METHODS |= {n: Baseline(n, PRESETS[n], "fine-tune", needs="dense") for n in PRESETS if n.startswith("pf-")}
METHODS["rigl"] = replace(METHODS["rigl"], explores=0.75)  # RigL, Sec. 3: masks stay in the last quarter
METHODS |= {
    "tickets": Baseline("tickets", TICKET, "tickets", needs="dense"),
    "tickets-g": Baseline("tickets-g", TICKET, "tickets", needs="dense", networks=("G",)),
    "tickets-early": Baseline("tickets-early", TICKET, "tickets", needs="dense", rewind="early"),
    "tickets-finetune": Baseline("tickets-finetune", TICKET, "tickets", needs="dense", rewind="none"),
    "tickets-random-init": Baseline("tickets-random-init", TICKET, "random-init", needs="tickets"),
    "tickets-random-mask": Baseline("tickets-random-mask", TICKET, "random-mask", needs="tickets"),
}


def own_keys(policy: Any) -> Any:
    """A policy of the user's whose base is a method that is no preset (tickets), with that method's keys instead."""
    base = policy.get("base") if isinstance(policy, Mapping) else policy
    if str(base) not in METHODS or str(base) in PRESETS:
        return policy
    mine = {k: v for k, v in policy.items() if k != "base"} if isinstance(policy, Mapping) else {}
    return {**METHODS[str(base)].policy, **mine}


def with_scores(chosen: list[Baseline], common: Mapping[str, Any], scale: Scale) -> list[Baseline]:
    """The methods of a comparison; tickets with the criterion of torch-pruning that their policy names, and the dense
    run that they build on with all of these. Raises RgplugError for tickets of another granularity than that run's,
    whose snapshot does not say what they prune as a whole."""
    found = []
    whole = common.get("granularity", "weight")
    for baseline in chosen:
        policy = schema.merge(common, scale.policy(baseline))
        criterion = str(policy.get("masks", {}).get("criterion", ""))
        ranks = baseline.procedure == "tickets" and is_of_torch_pruning(criterion)
        own = policy.get("granularity", "weight")
        if baseline.procedure == "tickets" and not ranks and own != whole:
            raise RgplugError(
                f"{baseline.name} prunes under granularity {own}, and the dense run that it builds on says what that "
                "is only under the same: give it to all methods (--set granularity=..., policy={'granularity': ...}), "
                "or rank filters by a criterion of torch-pruning"
            )
        found.append(replace(baseline, scores=(str(criterion_of(criterion)),) if ranks else ()))
    asked = tuple(dict.fromkeys(name for baseline in found for name in baseline.scores))
    return [replace(b, scores=asked) if b.name == "dense" else b for b in found]


def find(name: str) -> Baseline:
    """The method of that name. Raises RgplugError with the nearest one."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(METHODS)}"
        raise RgplugError(f"there is no method {name!r}; {hint}")
    return METHODS[name]


@dataclass(frozen=True)
class Scale:
    """What a comparison asks of all methods alike. None leaves a method's published setting."""

    density: Density | None = None  # of G and D, where a method can be asked for one
    length: int | None = None  # iterations of G in a run
    n_critic: int = 1  # steps of D per iteration of G

    def __post_init__(self) -> None:
        asked = self.density if isinstance(self.density, Mapping) else {"": self.density}
        for name, density in asked.items():
            if name not in ("", "G", "D"):
                raise RgplugError(f"the density names {schema.name_of(name)!r}, which is no network; give G=..., D=...")
            if density is not None and not 0 < density <= 1:
                share = f"; did you mean {density / 100:g}?" if 1 < density <= 100 else ""
                raise RgplugError(f"the density is {density:g}; it has to lie between 0 and 1{share}")
        for what, value in (("length", self.length), ("n_critic", self.n_critic)):
            if value is not None and value < 1:
                raise RgplugError(f"{what} is {value}; it counts iterations, and has to be 1 or more")

    def density_of(self, network: str) -> float:
        """The density that is asked for one network. Raises RgplugError where none is."""
        asked = self.density.get(network) if isinstance(self.density, Mapping) else self.density
        if asked is None:
            raise RgplugError(
                f"the ratio of tickets is to come from the density of {network}, and none is asked for; give --density"
            )
        return asked

    def policy(self, baseline: Baseline) -> dict[str, Any]:
        """The method's policy, with its density and its schedule (published ones, as shares of the run), and the keys
        that the user wrote for it, which count over both."""
        policy = schema.resolve(dict(baseline.policy), PRESETS)
        changes: dict[str, Any] = {}
        method = policy["method"]
        if self.density is not None and baseline.procedure not in ("tickets", "random-init", "random-mask"):
            changes |= self._densities(policy)
        if self.length is not None:
            steps = {"G": self.length, "D": self.length * self.n_critic}
            if policy.get("exploration"):
                share = 0.005 if "balance" in policy else 0.02  # 500 of 100,000 (ADAPT), 1,000 of 50,000 (STU-GAN)
                changes["exploration.every"] = {k: max(round(share * n), 1) for k, n in steps.items()}
                changes["exploration.end"] = {k: max(round(baseline.explores * n), 1) for k, n in steps.items()}
            if policy.get("balance"):  # of 100,000 iterations of G; 100 ratios, one each 10 of 100,000
                measure = max(round(self.length / 10_000), 1)
                own = policy["balance"] if isinstance(policy["balance"], Mapping) else {}
                every = own.get("every", BalancePolicy.every)
                changes["balance.every"] = max(round(every * self.length / 100_000), 2)
                changes["balance.end"] = self.length
                changes["balance.measure"] = min(measure, 10)
                changes["balance.window"] = min(max(self.length // 50, 2), 100)
            if method == "re-gan":  # 200 epochs and 100 of 1,000
                changes["cycle.warm_up"] = round(0.2 * self.length)
                changes["cycle.period"] = max(round(0.1 * self.length), 1)
            if "target.G" in changes or "target.D" in changes or policy.get("target") or baseline.own.get("target"):
                changes["target.by"] = round(0.6 * self.length)
        return schema.merge(schema.merge(policy, schema.resolve(changes, {})), baseline.own)

    def asked(self, baseline: Baseline, by_density: bool) -> dict[str, float]:
        """Network -> the density that this asks of a method; {} for one that cannot be asked.

        by_density: the ratio of tickets is chosen so that their last round has that density.
        """
        policy = schema.resolve(dict(baseline.policy), PRESETS)
        if self.density is None:
            return {}
        if baseline.procedure in ("tickets", "random-init", "random-mask"):
            networks = ("G", "D") if by_density else ()
            return {net: self.density_of(net) if net in baseline.networks else 1.0 for net in networks}
        found = {}
        for key, value in self._densities(policy).items():
            if value is not None:
                found[key.rpartition(".")[2]] = value
        if "sparsity" in found:
            return {"G": 1 - found["sparsity"], "D": 1.0}
        return found

    def _densities(self, policy: Mapping[str, Any]) -> dict[str, Any]:
        wanted = dict(self.density) if isinstance(self.density, Mapping) else {"G": self.density, "D": self.density}
        if policy["method"] == "sparse":
            held = policy.get("masks", {}).get("density", MaskPolicy.density)
            own = dict(held) if isinstance(held, Mapping) else dict.fromkeys(("G", "D"), held)
            published = {k: own.get(k, MaskPolicy.density) for k in ("G", "D") if wanted.get(k) is None}
            chosen = {k: 1.0 if own.get(k) == 1 else v for k, v in wanted.items() if v is not None}
            return {f"masks.density.{k}": v for k, v in {**published, **chosen}.items()}
        if policy["method"] == "re-gan":
            return {"cycle.sparsity": 1 - float(wanted.get("G") or 1.0)}
        if policy["method"] == "rg-gan":
            networks = policy.get("threshold", {}).get("networks", ("G", "D"))
            return {f"target.{k}": v for k, v in wanted.items() if k in networks}
        return {}


def applicable(keys: Mapping[str, Any], policy: Mapping[str, Any]) -> dict[str, Any]:
    """Of keys that are common to all methods those that a method reads. policy: the method's own keys.

    A group that the method has turned off stays so: `exploration.every` makes no masks explore that are to stay.
    """
    found = {k: v for k, v in schema.leaves(keys).items() if _applies(k, v, policy)}
    return schema.resolve(found, {})


def _applies(key: str, value: Any, policy: Mapping[str, Any]) -> bool:
    if not effect.reads(policy["method"], key):
        return False
    if key.startswith("masks.") and policy.get("masks", {}).get("file") and key != "masks.seed":
        return False
    on = {group: bool(policy.get(group)) for group in ("exploration", "balance")}
    on["regeneration.augmented"] = policy.get("regeneration", {}).get("augmented") not in (False, None)
    if "augmented" not in policy.get("regeneration", {}):
        on["regeneration.augmented"] = policy["method"] == "rg-gan"
    return all(is_on for group, is_on in on.items() if key == group or key.startswith(f"{group}."))


def with_common(baseline: Baseline, own: Mapping[str, Any], scale: Scale) -> Baseline:
    """The method with the keys on top that the user wrote for all methods, where it would set them otherwise itself."""
    policy = scale.policy(baseline)
    leaves = schema.leaves(applicable(own, policy))
    # a target is on top too: the schedule has to know of it
    found = {key: value for key, value in leaves.items() if _sets(policy, key) or key.startswith("target.")}
    on_top = schema.resolve(found, {})
    return replace(baseline, own=schema.merge(on_top, baseline.own))


def check_common(own: Mapping[str, Any], policies: list[dict[str, Any]]) -> None:
    """Keys that the user wrote for all methods: RgplugError for one that is none, a warning for one that none reads."""
    Policy.of_keys(own)
    read = {key for policy in policies for key in schema.leaves(applicable(own, policy))}
    for key in effect.written(own):
        if key not in read:
            names = sorted({p["method"] for p in policies})
            warn(f"policy.{key} has no effect in this comparison: no method of it reads the key ({', '.join(names)})")


def _sets(policy: Any, key: str) -> bool:
    """Whether a policy has the key, or a value in the place of the group that it is in."""
    head, _, rest = key.partition(".")
    if not isinstance(policy, Mapping):
        return True
    return head in policy and (not rest or _sets(policy[head], rest))

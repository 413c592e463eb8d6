"""attach: select what is managed, exchange the classes, wire the hooks, hand over the controller."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rgplug import before_attach, coverage, layers, select
from rgplug.balance_meter import BalanceMeter
from rgplug.controller import Controller, attached_networks
from rgplug.empty_filters import Probe
from rgplug.errors import RgplugError
from rgplug.filter_scores import FilterScores
from rgplug.granularity import divide
from rgplug.masking import ROUNDED, MaskedWeight
from rgplug.methods import Method
from rgplug.methods.balance import BalanceRatio
from rgplug.methods.dense import Dense
from rgplug.methods.learned_thresholds import LearnedThresholds
from rgplug.methods.prune_grow import PruneGrow
from rgplug.methods.sparse import Sparse
from rgplug.modes import outside_inference
from rgplug.network import Network
from rgplug.policy import NetworkPolicy, Policy, from_environment
from rgplug.snapshot import Start
from rgplug.units import Units
from rgplug.wrappers import unwrap


@outside_inference
def attach(
    G: nn.Module,
    D: nn.Module | None = None,
    policy: Policy | Mapping[str, Any] | str | Path = "rg-gan",
    optimizers: Any = None,
) -> Controller:
    """Prune and regenerate G and D while the host trains them.

    G, D: the host's networks, wrapped (DDP, torch.compile) or not; D may be None. policy: a path to YAML, a dict, a
    Policy, or a preset: "rg-gan" (the paper's equations), "rg-gan-released" (the authors' released behaviour), "dense"
    (counts and measures, prunes nothing). optimizers: None (found by their steps, whenever they are made), or the
    optimizer, list or dict of optimizers to listen to.

    The networks keep their Parameters, state-dict keys, forward and pickles. Raises RgplugError, with everything left
    as it was, for a wrong policy, networks attached before, patterns that match nothing, a network without weights.
    """
    policy = from_environment(Policy.load(policy))
    modules = {"G": G} if D is None else {"G": G, "D": D}
    _check_modules(modules)
    before_attach.check(policy, list(modules), optimizers)
    candidates: dict[str, list[select.Candidate]] = {}
    for label, module in modules.items():
        rules = policy.networks.get(label, NetworkPolicy())
        if rules is not None:
            rules = replace(rules, vectors=rules.vectors or policy.removes_channels(label))
            candidates[label] = select.select(module, rules, label)
    if not candidates:
        raise RgplugError("the policy leaves every network out (networks: null); nothing is left to attach to")
    _check_shared(candidates)
    _check_free(candidates)
    with ExitStack() as undo:  # what has been done so far, taken back if anything after it fails
        undo.callback(_restore, _saved(modules, policy))
        controller = _controller(modules, candidates, policy, optimizers)
        undo.callback(controller.hooks.remove)
        for net in controller.networks.values():
            for w in net.all_weights:
                undo.callback(layers.unswap, w.module)
                layers.swap(w.module, w)
            drawn = not any(w.waits for w in net.weights)
            if drawn and net.sparse and policy.method == "rg-gan" and policy.threshold.init > 0:
                net.refresh_all()
        controller.journal.begin(policy.run_dir, controller.setup)
        controller.journal.open(policy)  # after all that can fail: others see it
        undo.pop_all()
    for module in modules.values():
        attached_networks[unwrap(module)] = controller.hooks
    pruned = [label for label, net in controller.networks.items() if net.method.prunes]
    coverage.announce(modules, candidates, pruned, {label: net.aside for label, net in controller.networks.items()})
    return controller


def _saved(modules: Mapping[str, nn.Module], policy: Policy) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(tensor, copy of its values) for every tensor of the networks, where attach writes into them."""
    writes = policy.start is not None or policy.method == "sparse" or policy.granularity != "weight"
    if not writes and not (policy.method == "rg-gan" and policy.threshold.init > 0):
        return []
    return [(t, t.clone()) for m in modules.values() for t in select.named_tensors(m).values()]


def _restore(saved: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for tensor, values in saved:
        tensor.copy_(values)


def _controller(
    modules: Mapping[str, nn.Module],
    candidates: dict[str, list[select.Candidate]],
    policy: Policy,
    optimizers: Any,
) -> Controller:
    """The controller, once the weights that the policy starts from are loaded and masks are drawn."""
    start = None
    if policy.start is not None:
        start = Start(policy.start.weights, policy.start.networks, policy.start.optimizers)
        start.load(modules)
    ratio = None if policy.balance is None else BalanceRatio(policy.balance.window, policy.balance.every)
    probe = Probe(modules)
    networks = {label: _network(label, modules, found, policy, ratio, probe) for label, found in candidates.items()}
    meter = None if ratio is None else BalanceMeter(policy, ratio, modules, networks)
    return Controller(networks, candidates, policy, _as_list(optimizers), modules, start, meter)


def _network(
    label: str,
    modules: Mapping[str, nn.Module],
    candidates: list[select.Candidate],
    policy: Policy,
    ratio: BalanceRatio | None,
    probe: Probe,
) -> Network:
    prunes = _prunes(policy, label)
    untried = probe.mark(label, candidates) if prunes else ""
    # a dense run that leaves snapshots says in them what the rounds of tickets after it prune as a whole
    matters = prunes or policy.snapshots is not None
    granularity = policy.granularity_of(label) if matters else "weight"
    units, fixed = divide(granularity, label, candidates, modules, policy.removes_channels(label))
    if prunes:
        for c in candidates:
            c.reason = c.reason or fixed.get(c.name, "")
    method = _method(policy, label, ratio, units)
    weights = []
    for c in candidates:
        if not c.reason:
            assert c.layout is not None
            assert isinstance(c.param, nn.Parameter)
            weights.append(
                MaskedWeight(c.name, c.module, c.param, c.layout, c.norm_dims, method.prunes, ROUNDED[policy.dormant])
            )
    units.bind(weights)
    net = Network(label, modules[label], weights, policy, method)
    net.untried = untried
    if policy.snapshots is not None and policy.snapshots.scores:
        filters = units if granularity == "filter" else _filters(label, candidates, modules)
        net.scores = FilterScores(label, filters, policy.snapshots.scores)
    return net


def _filters(label: str, candidates: list[select.Candidate], modules: Mapping[str, nn.Module]) -> Units:
    """Whole filters, in a run of another granularity: a dense one that tickets of several granularities build on."""
    try:
        return divide("filter", label, candidates, modules)[0]
    except RgplugError as error:
        raise RgplugError(f"policy.snapshots.scores cannot be had for the filters of {label}: {error}") from error


def _prunes(policy: Policy, label: str) -> bool:
    """Whether the method prunes this network; it trains dense, and is counted, where not."""
    networks = {"dense": (), "re-gan": policy.cycle.networks, "rg-gan": policy.threshold.networks}
    return label in networks.get(policy.method, ("G", "D"))


def _method(policy: Policy, label: str, ratio: BalanceRatio | None, units: Units) -> Method:
    made: dict[str, Callable[[], Method]] = {
        "sparse": lambda: Sparse(policy, label, units, ratio),
        "re-gan": lambda: PruneGrow(policy.cycle, units),
        "rg-gan": lambda: LearnedThresholds(policy, label, units),
    }
    return made[policy.method]() if _prunes(policy, label) else Dense(units)


def _check_modules(modules: Mapping[str, nn.Module]) -> None:
    for label, module in modules.items():
        if not isinstance(module, nn.Module):
            several = isinstance(module, (list, tuple)) and all(isinstance(m, nn.Module) for m in module)
            advice = f"; put several networks into one: nn.ModuleList({label})" if several and module else ""
            advice += (
                ", or, to have it traced and checked too, a module whose forward returns all scores" if advice else ""
            )
            raise RgplugError(f"{label} is a {type(module).__name__}; attach needs an nn.Module{advice}")
        if unwrap(module) in attached_networks:
            raise RgplugError(f"{label} is attached already; call detach() on its controller first")
    if len({id(unwrap(m)) for m in modules.values()}) < len(modules):
        raise RgplugError("G and D are the same network; give the generator and the discriminator")


def _check_shared(candidates: Mapping[str, list[select.Candidate]]) -> None:
    owners: dict[int, str] = {}
    for label, found in candidates.items():
        for c in found:
            if not c.reason:
                other = owners.setdefault(id(c.param), label)
                if other != label:
                    raise RgplugError(
                        f"G and D share the weight {label}.{c.name}; exclude it in one of them (networks: {{{label}: "
                        f"{{exclude: [{c.name}]}}}})"
                    )


def _check_free(candidates: Mapping[str, list[select.Candidate]]) -> None:
    taken = {
        id(w.param) for hooks in set(attached_networks.values()) for net in hooks.networks for w in net.all_weights
    }
    for label, found in candidates.items():
        for c in found:
            if not c.reason and id(c.param) in taken:
                raise RgplugError(
                    f"{label}.{c.name} is attached already, with a part of {label} or with a network around it; "
                    "call detach() on that controller first"
                )


def _as_list(optimizers: Any) -> Iterable[Any] | None:
    if optimizers is None:
        return None
    if isinstance(optimizers, Mapping):
        return list(optimizers.values())
    return list(optimizers) if isinstance(optimizers, (list, tuple)) else [optimizers]

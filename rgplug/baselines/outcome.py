"""What a training left in its folder, as the fields of a Result: from its history and its setup, whoever trained it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rgplug.baselines.keys import keys_of
from rgplug.baselines.records import NEEDED, digest_of, records_of
from rgplug.baselines.results import MetricValues, PhaseBest
from rgplug.errors import RgplugError
from rgplug.history import HISTORY, Line
from rgplug.metrics import LayerMacs, training_flops_per_step
from rgplug.policy import higher_is_better as by_name
from rgplug.run_setup import SETUP, NetworkFacts, Setup

PHASES = ("sparse", "dense")


def outcome_of(
    folder: Path,
    run: str,  # the folder's name in results
    method: str,
    seed: int,
    higher_is_better: bool | None = None,  # None: as the run's policy says
    keys: Mapping[str, Any] | None = None,  # of a comparison: in place of those of the command, on top of its policy's
) -> dict[str, Any]:
    """The fields of a Result, but for what was trained before it. Raises RgplugError where the folder holds no run that
    was evaluated, and for damaged files."""
    setup = Setup.read(folder)
    records = records_of(folder, NEEDED)
    if setup is None and not records:
        raise RgplugError(f"nothing was attached in {folder}: neither {SETUP} nor {HISTORY} is there")
    if not records:
        raise RgplugError(f"{folder} holds no evaluation: end_epoch was never called, so nothing was measured")
    measures = setup is not None and setup.policy.get("metric") is not None
    if not measures and not any(r["metric_name"] or r["metric"] is not None for r in records):
        raise RgplugError(
            "no evaluation of the run has a value: the host's end_epoch gives none that is finite, and the policy "
            "names no metric; write metric: {real: FOLDER} into the script's policy (rgplug compare takes --set "
            "metric.real=FOLDER too), or pass your own value, end_epoch(value, metric_name=NAME)"
        )
    higher = setup is not None and setup.higher_is_better if higher_is_better is None else higher_is_better
    return from_records(records, setup, method, seed, run, higher, keys)


def from_records(
    records: Sequence[Line],
    setup: Setup | None,
    method: str,
    seed: int,
    run: str,
    higher_is_better: bool,
    keys: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The fields of a Result that the lines of a history.jsonl, and the run's setup, say."""
    values = [r.get("metric") for r in records]
    at = best_index(records, higher_is_better)
    best = records[-1] if at is None else records[at]
    known = sum(_finite(v) for v in values)
    G = None if setup is None else setup.networks.get("G")
    layers = best["layers"].get("G", {})
    elapsed = _elapsed(records)
    return {
        "method": method,
        "seed": seed,
        "run": run,
        "metric": next((r["metric_name"] for r in records if r.get("metric_name")), None),
        "samples": None if setup is None else setup.samples,
        "higher_is_better": higher_is_better,
        "best": None if at is None else values[at],
        "best_epoch": None if at is None else best["epoch"],
        "best_phase": None if at is None else best["phase_before"],
        "final": values[-1],
        "evaluations": known,
        "not_finite": len(records) - known,
        "real_images": best["real_images"],
        "flops": best["flops"],
        "real_images_total": records[-1]["real_images"],
        "flops_total": records[-1]["flops"],
        "density": best["density"],
        "inference_flops": None if G is None else G.flops(layers),
        "inference_flops_dense": None if G is None else G.flops({}),
        "history": digest_of(records),
        "metrics": {name: asdict(v) for name, v in metric_values(records, at, higher_is_better).items()},
        "phases": {name: asdict(v) for name, v in phase_bests(records, higher_is_better, setup).items()},
        "seconds": elapsed[-1 if at is None else at],
        "seconds_total": elapsed[-1],
        **_sizes(setup, best),
        "ever_active": records[-1].get("ever_active") or {},
        "flops_proportional": proportional_flops(records, setup),
        "inference_flops_proportional": None if G is None else G.proportional_flops(best["density"].get("G", 1.0)),
        "keys": {**keys_of(setup, command=keys is None), **(keys or {})},
    }


def best_index(records: Sequence[Line], higher_is_better: bool) -> int | None:
    """The first evaluation with the best value; None where none is finite."""
    known = [(r["metric"], i) for i, r in enumerate(records) if _finite(r.get("metric"))]
    return (max if higher_is_better else min)(known, key=lambda p: p[0])[1] if known else None


def metrics_of(line: Line) -> dict[str, float | None]:
    """All metrics of one evaluation by name; of a version that recorded one, that one."""
    found = line.get("metrics")
    if found:
        return dict(found)
    return {line["metric_name"]: line["metric"]} if line.get("metric_name") else {}


def metric_values(records: Sequence[Line], at: int | None, higher_is_better: bool) -> dict[str, MetricValues]:
    """Every metric of a run, the deciding one first. at: the evaluation at which that one was best."""
    lines = [metrics_of(r) for r in records]
    names = dict.fromkeys(name for line in lines for name in line)
    deciding = next((r["metric_name"] for r in records if r.get("metric_name")), None)
    found = {}
    for name in names:
        higher = higher_is_better if name == deciding else by_name(name)
        known = [v for line in lines if _finite(v := line.get(name))]
        best = (max if higher else min)(known) if known else None  # type: ignore[type-var]
        found[name] = MetricValues(None if at is None else lines[at].get(name), best, lines[-1].get(name))
    return found


def phase_bests(records: Sequence[Line], higher_is_better: bool, setup: Setup | None = None) -> dict[str, PhaseBest]:
    """The best value in each phase in which there was one. setup: for the parameters kept then."""
    found = {}
    elapsed = _elapsed(records)
    for phase in PHASES:
        own = [i for i, r in enumerate(records) if r["phase_before"] == phase]
        at = best_index([records[i] for i in own], higher_is_better)
        if at is not None:
            line = records[own[at]]
            found[phase] = PhaseBest(
                line["metric"],
                line["epoch"],
                line["real_images"],
                line["flops"],
                line["density"],
                elapsed[own[at]],
                _sizes(setup, line)["parameters_kept"],
            )
    return found


def proportional_flops(records: Sequence[Line], setup: Setup | None) -> float | None:
    """Training FLOPs of the run by the published convention (STU-GAN, Table 2).

    Each network costs its dense FLOPs times the density of its managed weights together, whatever layer they are in.
    The density that an evaluation recorded holds for the steps since the one before. Steps are counted as in
    `rgplug.metrics.training_flops_per_step`.
    """
    networks = {} if setup is None else {label: _as_one_layer(facts) for label, facts in setup.networks.items()}
    macs_g, macs_d = networks.get("G"), networks.get("D")
    batch_g, batch_d = (None, None) if setup is None else (setup.batch.get("G"), setup.batch.get("D"))
    if macs_g is None or macs_d is None or not batch_g or not batch_d:
        return None
    total, before = 0.0, {"G": 0, "D": 0}
    for line in records:
        steps, density = line.get("steps") or {}, line["density"]
        if not {"G", "D"} <= steps.keys():
            return None
        cost = training_flops_per_step(
            macs_g,
            macs_d,
            batch=batch_d,
            batch_g=batch_g,
            density_g=density.get("G", 1.0),
            density_d=density.get("D", 1.0),
        )
        total += (steps["D"] - before["D"]) * cost.d_step + (steps["G"] - before["G"]) * cost.g_step
        before = steps
    return total


def _as_one_layer(facts: NetworkFacts) -> LayerMacs | None:
    return None if facts.macs is None else LayerMacs({"": facts.macs.total}, facts.macs.total, facts.macs.source)


def _sizes(setup: Setup | None, line: Line) -> dict[str, dict[str, int]]:
    """Parameters of each network, and those that are not pruned at an evaluation."""
    networks = {} if setup is None else setup.networks
    return {
        "parameters": {label: facts.parameters for label, facts in networks.items()},
        "parameters_kept": {label: facts.kept(line["layers"].get(label, {})) for label, facts in networks.items()},
    }


def _elapsed(records: Sequence[Line]) -> list[float | None]:
    """Seconds from the beginning to each evaluation, time in which the run was broken off left out."""
    found: list[float | None] = []
    total: float | None = 0.0
    for line in records:
        total = None if total is None or line.get("seconds") is None else total + line["seconds"]
        found.append(total)
    return found


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)

"""Several rows of one method: its best value in each phase, each round of its tickets (RG-GAN, Table 5)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from rgplug.baselines.results import Result, Round
from rgplug.report.comparison import Method, Run, spread

PHASES = ("sparse", "dense")


def rows_of(method: Method) -> list[Method]:
    """The rows of a method in tables of cost: itself, or each round of its tickets where their costs are known, and its
    best value in sparse and in dense phases where regeneration makes it go back and forth."""
    return [*(round_rows(method) or [method]), *phase_rows(method)]


def phase_rows(method: Method) -> list[Method]:
    """Sparse_NAME and Dense_NAME; [] for a method without augmented regeneration, or that never changed its phase."""
    runs = [run for run in method.runs if is_augmented(run.result)]
    if not any(set(PHASES) <= run.result.phases.keys() for run in runs):
        return []
    rows = []
    for phase in PHASES:
        name = f"{phase.capitalize()}_{method.name}"
        rows.append(Method(name, tuple(replace(run, result=_in_phase(run, phase)) for run in method.runs)))
    return rows


def is_augmented(result: Result) -> bool:
    """Whether the run's policy has augmented regeneration, by its keys."""
    return any(key.startswith("regeneration.augmented.") for key in result.keys)


def round_rows(method: Method) -> list[Method]:
    """NAME@20%, one for each round but the dense one, by the share of G (else of D) that is pruned; [] where the costs
    of rounds are not known, which earlier versions did not keep. Costs are cumulative: all rounds before, whole."""
    runs = [run for run in method.runs if run.result.rounds]
    known = [r for run in runs for r in run.result.rounds]
    if not known or any(r.real_images_total is None or r.flops_total is None for r in known):
        return []
    numbers = sorted({r.round for r in known if r.round > 0})
    names = _round_names(known, numbers)
    rows = []
    for number in numbers:
        own = [replace(run, result=_up_to(run.result, number)) for run in runs if number in _numbers(run.result)]
        rows.append(Method(f"{method.name}@{names[number]}", tuple(own)))
    return rows


def _round_names(rounds: Iterable[Round], numbers: Iterable[int]) -> dict[int, str]:
    """Each round by the share that is pruned, with as many digits as tell them apart."""
    pruned = {}
    for number in numbers:
        found = [r.density for r in rounds if r.round == number]
        network = "G" if any(d.get("G", 1.0) < 1 for d in found) else "D"
        mean = spread(d.get(network) for d in found)
        pruned[number] = 0.0 if mean is None else 100 * (1 - mean.mean)
    for digits in (0, 1):
        names = {number: f"{share:.{digits}f}%" for number, share in pruned.items()}
        if len(set(names.values())) == len(names):
            return names
    return {number: f"{name} (round {number})" for number, name in names.items()}


def _numbers(result: Result) -> set[int]:
    return {r.round for r in result.rounds}


def _up_to(result: Result, number: int) -> Result:
    """A ticket's result as it was after one of its rounds."""
    rounds = sorted(result.rounds, key=lambda r: r.round)
    if number == rounds[-1].round:
        return result
    (own,) = (r for r in rounds if r.round == number)
    earlier = [r for r in rounds if r.round < number]
    return replace(
        result,
        best=own.best,
        best_epoch=None,
        best_phase="sparse",
        final=None,
        evaluations=0,
        not_finite=0,
        real_images=own.real_images,
        flops=own.flops,
        density=own.density,
        before={
            "real_images": total(r.real_images_total for r in earlier),
            "flops": total(r.flops_total for r in earlier),
        },
        seconds=own.seconds,
        seconds_before=total(r.seconds_total for r in earlier),
        parameters_kept=own.parameters_kept,
        rounds=(),
        phases={},
    )


def total(parts: Iterable[float | None]) -> float | None:
    """Their sum; None where one of them is not known."""
    known = list(parts)
    return None if None in known else sum(part for part in known if part is not None)


def _in_phase(run: Run, phase: str) -> Result:
    """A run's result as it is when only evaluations of one phase count."""
    found = run.result.phases.get(phase)
    own = [line for line in run.lines if line.get("phase_before") == phase and line.get("metric") is not None]
    if found is None:
        return replace(run.result, best=None, best_phase=None, evaluations=0, final=None, phases={})
    return replace(
        run.result,
        best=found.best,
        best_epoch=found.epoch,
        best_phase=phase,
        final=own[-1]["metric"] if own else None,
        evaluations=len(own),
        not_finite=0,
        real_images=found.real_images,
        flops=found.flops,
        density=found.density,
        seconds=found.seconds,
        parameters_kept=found.parameters_kept,
        phases={},
    )

"""`rgplug tickets`: the short way to iterative magnitude pruning over a command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rgplug.baselines.command import Command
from rgplug.baselines.compare import run
from rgplug.baselines.methods import METHODS, Baseline, Rewind, Scale
from rgplug.errors import RgplugError

EARLIER = "tickets.json"  # in folders of earlier versions


def drive_tickets(
    command: Sequence[str],
    out: Path,
    *,
    rounds: int = 10,
    ratio: float = 0.2,
    rewind: Rewind = "init",
    early: int | None = None,
    networks: Sequence[str] = ("G", "D"),
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Iterative magnitude pruning over a command that trains a host under rgplug, round by round.

    Round 0 trains dense; each round after it prunes `ratio` of the remaining weights and trains again from the first
    weights (rewind "init"), from those after `early` iterations of G ("early"), or from the trained ones ("none"). It
    is `compare` with one method: the command, what is left in `out` and how it goes on are the same. Returns one dict
    per round: run (its folder in `out`), density, best (value of the metric), metric, real_images and flops of the
    whole round.
    """
    if rewind == "early" and early is None:
        raise RgplugError("rewind early needs --early N, the iterations of G after which the weights are kept")
    if (Path(out) / EARLIER).is_file():
        raise RgplugError(
            f"{out} holds rounds of an earlier version of rgplug, which kept them in another layout; give another --out"
        )
    wrong = [name for name in networks if name not in ("G", "D")]
    if wrong or not networks:
        raise RgplugError(f"networks is {','.join(networks) or 'empty'}; tickets prune G, D, or both: --networks G,D")
    baseline = _baseline(rewind, tuple(networks))
    results = run([baseline], Command(tuple(command)), out, [seed], None, Scale(), rounds, ratio, early)
    (found,) = [r for r in results if r.method == baseline.name]
    rows = []
    for r in found.rounds:
        rows.append(
            {
                "round": r.round,
                "run": r.run,
                "density": r.density,
                "best": r.best,
                "metric": found.metric,
                "real_images": r.real_images_total,
                "flops": r.flops_total,
            }
        )
        print(f"rgplug: {line_of(rows[-1])}", flush=True)
    return rows


def _baseline(rewind: Rewind, networks: tuple[str, ...]) -> Baseline:
    """The method of that name, or one for other networks of the same kind."""
    name = {"init": "tickets", "early": "tickets-early", "none": "tickets-finetune"}[rewind]
    if set(networks) == {"G", "D"}:
        return METHODS[name]
    return replace(METHODS[name], name=f"{name}-{'-'.join(networks).lower()}", networks=networks)


def line_of(row: dict[str, Any]) -> str:
    """A round in one line."""
    density = " ".join(f"{k} {v:.3f}" for k, v in (row["density"] or {}).items())
    best = "no metric" if row["best"] is None else f"{row['metric'] or 'metric'} {row['best']:.3f} (best)"
    return f"round {row['round']}: density {density or 'unknown'} | {best}"

"""Comparing methods on an official repository: its train.py with the two lines, run for each method and seed."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rgplug.baselines.command import Command
from rgplug.baselines.compare import run
from rgplug.baselines.methods import Scale
from rgplug.baselines.results import Result
from rgplug.errors import RgplugError
from rgplug.report.page import write_report

RATIO = 0.2  # of the remaining weights that a round of tickets prunes (X. Chen et al. 2021)


@dataclass(frozen=True)
class Options:
    """How a repository's command line takes what a comparison decides.

    own: words that are added to every run's command. length: option that says how long a run is, and how it becomes
    iterations of G. StyleGAN2-ADA's --resume counts images from 0 again and has no optimizer states: a run that was
    broken off is trained anew there, or it would see more images than the others.
    """

    own: tuple[str, ...]
    taken: tuple[str, ...]  # options that `own` gives, which the user's command may not
    length: str  # name of the option, without dashes
    checkpoint: str = ""  # pattern of the files that a run which was broken off goes on from, below its folder
    resume: tuple[str, ...] = ()  # words that are added then

    def iterations(self, given: Mapping[str, Any]) -> int | None:
        """Iterations of G in a run, as the host's options say; None where they do not."""
        value = given.get(self.length)
        if self.length == "kimg":  # thousands of real images; the batch is --batch
            batch = given.get("batch")
            known = all(isinstance(v, int | float) and not isinstance(v, bool) and v > 0 for v in (value, batch))
            return max(round(1000 * value / batch), 1) if known else None  # type: ignore[operator]
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


STYLEGAN2 = Options(("--outdir={out}", "--seed={seed}"), ("outdir", "seed"), "kimg")
_ROOTS = ("weights", "logs", "samples")  # --base_root would look for the data there too
BIGGAN = Options(
    (*(x for k in _ROOTS for x in (f"--{k}_root", f"{{out}}/{k}")), "--experiment_name", "run", "--seed", "{seed}"),
    ("base_root", *(f"{k}_root" for k in _ROOTS), "experiment_name", "seed"),
    "iterations",  # the host counts epochs: give --length
    "weights/run/state_dict.pth",
    ("--resume",),
)
FASTGAN = Options(
    ("--output_path={out}", "--name=seed_{seed}"),  # the host takes no seed: its adapter reads RGPLUG_SEED
    ("output_path", "name"),
    "iter",
    "train_results/*/models/all_*.pth",
    ("--ckpt={checkpoint}",),
)


def compare(
    checkout: Path,
    script: Path,  # the patched copy
    options: Options,
    methods: Sequence[str],
    words: Sequence[str],  # the host's own options, alike for all runs
    out: Path,
    *,
    seeds: int = 1,
    rounds: int = 3,
    density: float | None = None,  # None: what `rounds` rounds of 20 % leave
    length: int | None = None,  # None: as the host's options say it
    n_critic: int = 1,
    jobs: int = 1,
) -> tuple[list[Result], Path]:
    """Train every method at equal density under one command line; returns the results, and the report's page.

    Tickets prune 20 % in each round, and all methods that can be asked for a density are asked for that of the last
    round; or, where a density is given, tickets get the ratio that leads there in as many rounds.
    """
    from rgplug.baselines.keys import options_of

    given = options_of(words)
    twice = [name for name in options.taken if name in given]
    if twice:
        raise RgplugError(f"--{twice[0]} is given for each run by the comparison; leave it out of the host's options")
    length = options.iterations(given) if length is None else length
    asked = round((1 - RATIO) ** rounds, 6) if density is None else density
    host = Command(
        (sys.executable, script.name, *words, *options.own),
        folder=str(checkout.resolve()),
        checkpoint=options.checkpoint,
        resume=options.resume,
    )
    scale = Scale(asked, length, n_critic)
    results = run(methods, host, out, seeds, None, scale, rounds, RATIO if density is None else "density", None, jobs)
    return results, write_report(out)


def table(results: Sequence[Result]) -> str:
    """One line per run: density, best value, and what it cost to get there with all that was trained before."""
    lines = []
    for r in results:
        density = " ".join(f"{net} {value:.3f}" for net, value in r.density.items())
        best = "diverged" if r.best is None else f"{r.metric or 'metric'} {r.best:.3f}"
        images = "unknown" if r.images_to_best is None else f"{r.images_to_best:,.0f}"
        flops = "unknown" if r.flops_to_best is None else f"{r.flops_to_best:.3g}"
        rounds = f" over {len(r.rounds)} trainings" if r.rounds else ""
        lines.append(f"{r.method} seed {r.seed}: {best}, density {density}, #RI {images}, FLOPs {flops}{rounds}")
    return "\n".join(lines)

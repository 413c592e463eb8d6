"""The monitor: records of each epoch, and warnings about what a host did that it will not have meant."""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any

from rgplug import expected
from rgplug.accounting import Accounting
from rgplug.history import Record
from rgplug.network import Network
from rgplug.select import named_parameters


class Monitor:
    """Counts since the last record, and what has been warned of already."""

    def __init__(self, networks: dict[str, Network], accounting: Accounting):
        self.networks = networks
        self.accounting = accounting
        self.last_counts = {label: (0, 0) for label in networks}  # (regrown, pruned) at the last record
        self._clock = time.perf_counter()
        self._warned: set[str] = set()

    def record(
        self, epoch: int, metric: float | None, name: str | None, average: float | None, before: str, phase: str
    ) -> Record:
        """The record of an epoch. Reads the device."""
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        regenerated, pruned = {}, {}
        for label, net in self.networks.items():
            totals = int(net.counts.regrown.sum()), int(net.counts.pruned.sum())
            regenerated[label] = totals[0] - self.last_counts[label][0]
            pruned[label] = totals[1] - self.last_counts[label][1]
            self.last_counts[label] = totals
        written = self._written()
        density = {label: net.density() for label, net in self.networks.items()}
        if len(density) == 2 and abs(density["G"] - density["D"]) > 0.5:
            self._once(
                "balance",
                f"densities have drifted apart (G {density['G']:.2f}, D {density['D']:.2f}); a sparse network loses "
                "against a dense one (STU-GAN, section 3)",
            )
        return Record(
            epoch=epoch,
            steps={label: net.iteration for label, net in self.networks.items()},
            metric=metric,
            metric_name=name,
            average=average,
            phase_before=before,
            phase=phase,
            density=density,
            layers={label: net.layer_density() for label, net in self.networks.items()},
            regenerated=regenerated,
            pruned=pruned,
            real_images=self.accounting.real_images,
            flops=self.accounting.flops(),
            written=written,
            seconds=seconds,
        )

    def misfit(self, last_counts: Any) -> str:
        """What is wrong with `last_counts` of a state, as half a sentence; "" if nothing is."""
        totals = expected.list_of(expected.whole(-expected.LARGEST))  # regrown, pruned, and what came later
        wrong = expected.keys(last_counts, dict.fromkeys(self.networks, totals))
        few = next((label for label, v in last_counts.items() if len(v) < 2), "") if not wrong else ""
        return f"has too few counts of {few}" if few else wrong

    def check_parameters(self) -> None:
        """Say it when the host replaced Parameters, or when nobody stepped a managed network."""
        for label, net in self.networks.items():
            own = {id(p) for p in named_parameters(net.module).values()}
            for w in net.weights:
                if id(w.param) not in own:
                    self._once(
                        f"replaced {label}.{w.name}",
                        f"{label}.{w.name} was replaced by a new Parameter after attach and is no longer pruned; "
                        "attach after the host has made its last change to the modules",
                    )
            if net.iteration == 0:
                self._once(
                    f"no step {label}",
                    f"no optimizer step was seen for {label}; is its optimizer a torch.optim.Optimizer that holds the "
                    "parameters of the network that was attached?",
                )

    def warn_metric(self, number: float | None, epoch: int, expected: bool) -> None:
        """A metric that decides nothing: not finite, or missing where the policy has no way to measure it."""
        if number is not None:
            _warn(f"the metric of epoch {epoch} is {number}; no decision, the phase goes on")
        elif not expected:
            self._once(
                "no metric",
                "end_epoch() got no metric and the policy names none, so augmented regeneration cannot decide; "
                "pass a value, or set policy.metric, or regeneration: {augmented: false}",
            )

    def _written(self) -> dict[str, int]:
        """Non-zeros that the host wrote at pruned positions since the last record, by network."""
        found = {}
        for label, net in self.networks.items():
            count = net.take_written()
            if count:
                found[label] = count
                _warn(
                    f"the host wrote {count:,} non-zero values at pruned positions of {label} (a dense checkpoint?); "
                    "they were taken over as dormant values, and the thresholds decide what becomes of them"
                )
        return found

    def _once(self, key: str, text: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            _warn(text)


def _warn(text: str) -> None:
    """Warn at the line of the host that called rgplug, or the optimizer's step in which rgplug runs."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("rgplug", "torch"):
        level, frame = level + 1, frame.f_back
    warnings.warn(f"rgplug: {text}", stacklevel=level)

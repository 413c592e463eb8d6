"""The monitor: records of each epoch, and warnings about what a host did that it will not have meant."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from torch import nn

from rgplug import expected
from rgplug.accounting import Accounting
from rgplug.history import Record
from rgplug.layer_counts import LayerCounts
from rgplug.network import Network
from rgplug.policy import Policy
from rgplug.select import named_parameters
from rgplug.values import Values
from rgplug.warn import warn
from rgplug.wrappers import unwrap

_ROLES = {"G": ("generator",), "D": ("discriminator", "critic")}  # words in class names


class Monitor:
    """Counts since the last record, and what has been warned of already."""

    def __init__(self, networks: dict[str, Network], accounting: Accounting, policy: Policy):
        self.networks = networks
        self.accounting = accounting
        self.policy = policy
        self.last_counts = {label: (0, 0) for label in networks}  # (regrown, pruned) at the last record
        self.last_restored = dict.fromkeys(networks, 0)
        self.layer_counts = LayerCounts(networks)
        self._clock = time.perf_counter()
        self._warned: set[str] = set()

    def measured(self, epoch: int, values: Values, phase: str) -> Record:
        """The record of an epoch before anything is decided: the networks as they were measured. Reads the device."""
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        written = self._written()
        density = {label: net.density() for label, net in self.networks.items()}
        if len(density) == 2 and abs(density["G"] - density["D"]) > 0.5 and not _asked(self.policy):
            self._once(
                "balance",
                f"densities have drifted apart (G {density['G']:.2f}, D {density['D']:.2f}); a sparse network loses "
                "against a dense one (STU-GAN, section 3)",
            )
        return Record(
            epoch=epoch,
            steps={label: net.iteration for label, net in self.networks.items()},
            metric=values.deciding,
            metric_name=values.name,
            average=None,
            phase_before=phase,
            phase=phase,
            density=density,
            layers={label: net.layer_density() for label, net in self.networks.items()},
            regenerated={},
            pruned={},
            real_images=self.accounting.real_images,
            flops=self.accounting.flops(),
            written=written,
            seconds=seconds,
            metrics=dict(values.by_name),
            ever_active={label: net.ever_active() for label, net in self.networks.items()},
        )

    def decided(self, measured: Record, average: float | None, phase: str) -> Record:
        """The record with the decision, and what has been regenerated, restored and pruned. Reads the device."""
        regenerated, restored, pruned = {}, {}, {}
        for label, net in self.networks.items():
            totals = int(net.counts.regrown.sum()), int(net.counts.pruned.sum())
            total = int(net.counts.restored.sum())
            # what was set aside since (it does not train) took its counts along
            regenerated[label] = max(totals[0] - self.last_counts[label][0], 0)
            pruned[label] = max(totals[1] - self.last_counts[label][1], 0)
            restored[label] = max(total - self.last_restored[label], 0)
            self.last_counts[label], self.last_restored[label] = totals, total
        return dataclasses.replace(
            measured,
            average=average,
            phase=phase,
            regenerated=regenerated,
            restored=restored,
            pruned=pruned,
            layer_counts=self.layer_counts.take(),
        )

    def check_roles(self, modules: Mapping[str, nn.Module]) -> None:
        """Say it when the classes' names say that G and D were swapped."""
        names = {label: type(unwrap(module)).__name__ for label, module in modules.items()}
        wrong = [label for label, name in names.items() if _role(name) not in (None, label)]
        if wrong:
            given = " and ".join(f"{names[label]} as {label}" for label in wrong)
            self._once(
                "roles",
                f"attach got {given}; the generator comes first: rgplug.attach(G, D), or what the policy says of G "
                "(target, metric, average) is done to the other network",
            )

    def warn_unmasked(self) -> None:
        """The host gave a value that it may have measured on an average without the mask."""
        self._once(
            "unmasked average",
            "end_epoch() got a value, and the moving average of G has had no mask on since G's last step: a value "
            "measured on it is that of a network of density 1, and the phase is decided on it; measure inside "
            "`with rg.masked(G_ema):`, or name a metric in the policy and call rg.end_epoch(ema=G_ema). If the value "
            "is of G itself, all is well",
        )

    def misfit(self, last_counts: Any) -> str:
        """What is wrong with `last_counts` of a state, as half a sentence; "" if nothing is."""
        totals = expected.list_of(expected.whole(-expected.LARGEST))  # regrown, pruned, and what came later
        wrong = expected.keys(last_counts, dict.fromkeys(self.networks, totals))
        few = next((label for label, v in last_counts.items() if len(v) < 2), "") if not wrong else ""
        return f"has too few counts of {few}" if few else wrong

    def misfit_restored(self, last_restored: Any) -> str:
        """The same for `last_restored`, which older states do not have."""
        if last_restored is None:
            return ""
        return expected.keys(last_restored, dict.fromkeys(self.networks, expected.whole(-expected.LARGEST)))

    def load_layers(self, state: Any) -> None:
        """Counts of layers at the last record, once those of the networks are loaded."""
        recorded = {k: (p, r, self.last_restored[k]) for k, (r, p) in self.last_counts.items()}
        self.layer_counts.load_state_dict(state, recorded)

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
            warn(f"the metric of epoch {epoch} is {number}; no decision, the phase goes on")
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
                warn(
                    f"the host wrote {count:,} non-zero values at pruned positions of {label} (a dense checkpoint?); "
                    "they were taken over as dormant values, and the thresholds decide what becomes of them"
                )
        return found

    def _once(self, key: str, text: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warn(text)


def _asked(policy: Policy) -> bool:
    """Whether the densities are those that the policy asks for, however far apart."""
    if policy.method != "rg-gan":
        return policy.balance is None
    target = policy.target
    return set(policy.threshold.networks) != {"G", "D"} or (target is not None and None not in (target.G, target.D))


def _role(name: str) -> str | None:
    """G or D, if a class's name says it of one of them alone."""
    said = [label for label, words in _ROLES.items() if any(word in name.lower() for word in words)]
    return said[0] if len(said) == 1 else None

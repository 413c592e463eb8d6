"""What a cost card holds: the forms of a network and what each takes on disk, in arithmetic and in time.

What is counted and what is measured stand in tables of their own: a ratio of MACs is no speed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

COUNTED = (
    "form", "parameters", "non-zeros", "file", "bytes on disk", "MACs computed", "MACs without those of zeros",
    "theoretical speed, MACs computed", "theoretical speed, zeros free",
)  # fmt: skip


@dataclass(frozen=True)
class Form:
    """One form of a network: dense, baked, compact, or an ONNX file of one of these.

    dense: name of the form that its speed is relative to, the dense network in the same runtime.
    parameters, nonzeros: entries of its parameters. bytes: of the file called `file`. macs: multiply-accumulates that
    it computes for one image. macs_of_nonzeros: the same where those of zero weights are left out, by the density of
    each layer. milliseconds: median by batch size. activations: peak bytes by batch size; empty where nothing follows
    them (onnxruntime).
    """

    name: str
    dense: str
    parameters: int
    nonzeros: int
    file: str
    bytes: int
    macs: float
    macs_of_nonzeros: float
    milliseconds: Mapping[int, float]
    activations: Mapping[int, int]


@dataclass(frozen=True)
class CostCard:
    """Forms of one network, the dense one in torch first. machine: on which it was measured, in one
    line. rounds: timed calls behind each median. notes: sentences. `str(card)` is its markdown."""

    network: str
    forms: Sequence[Form]
    batches: Sequence[int]
    rounds: int
    machine: str
    notes: Sequence[str]

    def __getitem__(self, name: str) -> Form:
        """The form of that name; KeyError where there is none."""
        return {form.name: form for form in self.forms}[name]

    def theoretical_speed(self, form: Form, zeros_are_free: bool = True) -> float:
        """MACs of the dense network over those of a form: what arithmetic would allow, and no speed. zeros_are_free:
        without MACs of zero weights, which takes hardware or kernels for sparse weights."""
        macs = form.macs_of_nonzeros if zeros_are_free else form.macs
        return self.forms[0].macs / macs if macs else float("inf")

    def measured_speed(self, form: Form, batch: int) -> float:
        """Milliseconds of the dense network, in the runtime of the form, over those of the form: what pruning gave, and
        not what another runtime did."""
        return self[form.dense].milliseconds[batch] / form.milliseconds[batch]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON; keys of batches are integers."""
        forms = {}
        for form in self.forms:
            measured = {batch: self.measured_speed(form, batch) for batch in self.batches}
            theoretical = {
                "macs_computed": self.theoretical_speed(form, zeros_are_free=False),
                "zeros_free": self.theoretical_speed(form),
            }
            forms[form.name] = {**asdict(form), "theoretical_speed": theoretical, "measured_speed": measured}
            del forms[form.name]["name"]
        return {
            "network": self.network,
            "machine": self.machine,
            "rounds": self.rounds,
            "batches": list(self.batches),
            "forms": forms,
            "notes": list(self.notes),
        }

    def to_markdown(self) -> str:
        """Two tables, one of what is counted, one of what was measured, and the notes."""
        counted = [
            (
                form.name,
                f"{form.parameters:,}",
                f"{form.nonzeros:,}",
                form.file,
                f"{form.bytes:,}",
                f"{form.macs:,.0f}",
                f"{form.macs_of_nonzeros:,.0f}",
                f"{self.theoretical_speed(form, zeros_are_free=False):.2f}",
                f"{self.theoretical_speed(form):.2f}",
            )
            for form in self.forms
        ]
        kinds = ("ms", "measured speed", "peak activations, MB")
        title = ("form", *(f"{kind}, batch {batch}" for kind in kinds for batch in self.batches))
        measured = [
            (
                form.name,
                *(f"{form.milliseconds[batch]:.2f}" for batch in self.batches),
                *(f"{self.measured_speed(form, batch):.2f}" for batch in self.batches),
                *(f"{form.activations[batch] / 1e6:.2f}" if form.activations else "-" for batch in self.batches),
            )
            for form in self.forms
        ]
        return "\n".join(
            [
                f"# What {self.network} costs",
                "",
                "## Counted",
                "",
                *_table(COUNTED, counted),
                "",
                "Theoretical speeds are ratios of MACs, for one image.",
                "",
                "## Measured",
                "",
                f"Machine: {self.machine}. Medians of {self.rounds} calls, in which all forms take turns.",
                "",
                *_table(title, measured),
                "",
                *(f"- {note}" for note in self.notes),
                "",
            ]
        )

    def __str__(self) -> str:
        return self.to_markdown()


def _table(title: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (title, ["---"] * len(title), *rows)]

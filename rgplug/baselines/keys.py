"""Keys of a run: what tables can have rows and columns by. Those of its policy (dotted) and options of its command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rgplug import reading, schema
from rgplug.baselines.results import Scalar
from rgplug.checks import LONGEST, printable
from rgplug.errors import RgplugError
from rgplug.run_setup import Setup

PLACES = ("run_dir", "snapshots.folder", "start.weights", "masks.file")  # files of the run itself


def keys_of(setup: Setup | None, command: bool = True) -> dict[str, Scalar]:
    """Those that a run's own setup says, with the options of the command that started it; {} where it left none."""
    if setup is None:
        return {}
    models = {f"class.{label}": facts.name for label, facts in setup.networks.items()}
    options = options_of(setup.command[1:]) if command else {}
    return {**models, **options, **policy_keys(setup.policy)}


def policy_keys(policy: Mapping[str, object]) -> dict[str, Scalar]:
    """Every key of a policy by its dotted name; a list is its entries with commas between."""
    found: dict[str, Scalar] = {}
    for key, value in schema.leaves(policy).items():
        if isinstance(value, list | tuple):
            value = ",".join(map(str, value))
        if key not in PLACES and (value is None or isinstance(value, str | float | int | bool)):
            found[key] = value[:LONGEST] if isinstance(value, str) else value
    return found


def options_of(command: Sequence[str]) -> dict[str, Scalar]:
    """Options of a command line by name, without dashes: --share 0.1, --cfg=auto, --mirror (true).

    A value is read as YAML, as in a policy: a number where it is one. Words without an option before them, and what
    holds {a placeholder} that differs from run to run ({out}, {seed}, {round}), are left out.
    """
    found: dict[str, Scalar] = {}
    for place, word in enumerate(command):
        name, equals, value = word.partition("=")
        name = name.lstrip("-")
        if not word.startswith("-") or not name or _number(word):
            continue
        if equals:
            text = value
        else:
            after = command[place + 1] if place + 1 < len(command) else "-"
            text = "true" if after.startswith("-") and not _number(after) else after
        if printable(name + text) and not any(mark in text for mark in ("{out}", "{seed}", "{round}")):
            found[name[:LONGEST]] = _value(text)
    return found


def _value(text: str) -> Scalar:
    try:
        read = reading.parse(text, "an option")
    except RgplugError:  # no YAML
        read = text
    shown = read if isinstance(read, str | float | int | bool) else text
    return shown[:LONGEST] if isinstance(shown, str) else shown


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

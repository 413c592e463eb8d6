"""The history of a run as a comparison reads it: every value checked, whatever was done to the file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rgplug.checks import amount, group, has, needed, number, share, shown, whole, word_or_none
from rgplug.errors import RgplugError
from rgplug.history import HISTORY, Line, history_of
from rgplug.sealed import Damaged, digest

NEEDED = ("metric", "metric_name", "phase_before", "density", "layers", "real_images", "flops")  # for a result
LAST_EPOCH = 10**9
ADVICE = "remove or restore that line, or delete the run's folder and run it again"


def records_of(folder: Path, needed_keys: Iterable[str] = ()) -> list[Line]:
    """The lines of history.jsonl in a run's folder, in the order of their epochs; [] where there is none.

    needed_keys: fields that every line has to have. Raises RgplugError with the file's name for a damaged line.
    """
    path = folder / HISTORY
    try:
        lines = history_of(folder)
    except RgplugError:
        raise
    except OSError as error:
        raise RgplugError(f"{path} cannot be read: {error.strerror}; make it readable") from None
    except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise RgplugError(f"{path} is damaged ({type(error).__name__}); {ADVICE}") from None
    required = tuple(needed_keys)
    for line in lines:
        try:
            check_record(line, required)
        except Damaged as error:
            epoch = shown(line.get("epoch"))
            raise RgplugError(f"{path} is damaged at epoch {epoch}: {error}; {ADVICE}") from None
    return lines


def check_record(line: Mapping[str, Any], required: Iterable[str] = ()) -> None:
    """Raise Damaged unless every field of a record that is there holds what its name says."""
    has(line, required)
    if needed(line, "epoch") > LAST_EPOCH:
        raise Damaged(f"epoch is larger than {LAST_EPOCH}")
    for key in ("metric", "average"):
        number(line, key)
    for key in ("real_images", "flops", "seconds"):
        amount(line, key)
    for key in ("metric_name", "phase_before", "phase"):
        word_or_none(line, key)
    group(line, "metrics", number)  # histories from before several metrics and ever-active weights lack both
    group(line, "density", share)
    group(line, "ever_active", share)
    for key in line:
        if key in ("steps", "pruned", "written") or key.startswith("regenerated"):
            group(line, key, whole)
    layers = {} if line.get("layers") is None else line["layers"]
    if not isinstance(layers, dict):
        raise Damaged(f"layers has to be an object, not {shown(layers)}")
    for network in layers:
        group(layers, network, share)
    _check_layer_counts({} if line.get("layer_counts") is None else line["layer_counts"])


def _check_layer_counts(found: Any) -> None:
    """network -> weight -> [pruned, regenerated, restored]."""
    if not isinstance(found, dict) or not all(isinstance(own, dict) for own in found.values()):
        raise Damaged(f"layer_counts has to be an object of objects, not {shown(found)}")
    for network, own in found.items():
        group(found, network, lambda *_: None)  # its names can be printed
        for name, counts in own.items():
            if not isinstance(counts, list) or len(counts) != 3:
                raise Damaged(
                    f"layer_counts.{shown(network)}.{shown(name)} has to be three counts, not {shown(counts)}"
                )
            group({"counts": dict(zip("abc", counts))}, "counts", whole)


def digest_of(lines: Iterable[Line]) -> str:
    """What tells whether a history is the one that a run wrote; durations do not count, a resumed run has others."""
    return digest([{key: value for key, value in line.items() if key != "seconds"} for line in lines])

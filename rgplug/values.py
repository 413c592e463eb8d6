"""The values of one evaluation: one that decides the phase, and further ones that are recorded beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rgplug.errors import RgplugError
from rgplug.metrics import MetricValue

UNNAMED = "metric"  # what a value without a name is called among the others


@dataclass(frozen=True)
class Values:
    """by_name: every value, the deciding one first; {} where nothing was measured. name: of the deciding one, None
    where the training script gave a number without a name."""

    by_name: dict[str, float] = field(default_factory=dict)
    name: str | None = None

    @property
    def deciding(self) -> float | None:
        return next(iter(self.by_name.values()), None)


def given(metric: Any, name: str | None) -> Values:
    """The values that a training script gives to `end_epoch`: a number, or a mapping name -> number whose first entry
    decides. name: of the deciding value, over the mapping's own. RgplugError for anything that is no number."""
    if metric is None:
        return Values()
    if not isinstance(metric, Mapping):
        return Values({name or UNNAMED: _number(metric, "the metric")}, name)
    if not metric:
        raise RgplugError("end_epoch got a mapping without values; give name -> number, e.g. {'fid': 12.3}, or None")
    for key in metric:
        if not isinstance(key, str) or not key:
            raise RgplugError(f"end_epoch got {key!r} as the name of a metric; names have to be text")
    values = {key: _number(value, f"the metric {key!r}") for key, value in metric.items()}
    first = next(iter(values))
    if name is not None and name != first:
        if name in values:
            raise RgplugError(
                f"end_epoch got metric_name {name!r}, and the first value of the mapping is {first!r}; put the value "
                "that decides the phase first"
            )
        values = {name if key == first else key: value for key, value in values.items()}
    return Values(values, name or first)


def measured(value: MetricValue) -> Values:
    """The values of rgplug's own evaluation."""
    return Values({v.name: v.value for v in value.all}, value.name)


def _number(value: Any, what: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise RgplugError(f"end_epoch got {value!r} as {what}; give a number, or None") from None

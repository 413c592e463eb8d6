"""Density schedules for `policy.target`."""

from __future__ import annotations

from rgplug.policy import TargetPolicy


def scheduled_density(target: TargetPolicy, network: str, iteration: int) -> float | None:
    """Density asked for after `iteration` steps of a network: 1 until `start`, the target from `by` on.

    cubic: 1 - (1 - d) (1 - (1 - u)^3) with u the share of the way (Zhu & Gupta 2017, Eq. 1); linear: 1 - (1 - d) u.
    """
    final: float | None = getattr(target, network)
    if final is None:
        return None
    if iteration >= target.by or target.shape == "constant":
        return final if iteration >= target.start else 1.0
    if iteration <= target.start:
        return 1.0
    way = (iteration - target.start) / (target.by - target.start)
    return 1 - (1 - final) * (1 - (1 - way) ** 3 if target.shape == "cubic" else way)


def steering_interval(target: TargetPolicy | None) -> int:
    """Iterations from one correction towards the target to the next: 1 for short schedules, up to 4 where it takes
    thousands of iterations. Evaluations correct too, from more entries."""
    return 1 if target is None else min(max((target.by - target.start) // 1000, 1), 4)

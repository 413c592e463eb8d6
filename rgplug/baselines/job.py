"""What a host is asked to train once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training: under which policy, from which seed, into which folder."""

    common: Mapping[str, Any]  # keys of the policy that all methods of the comparison have
    policy: Mapping[str, Any]  # the method's, which count over those
    method: str  # as its folder is called
    seed: int
    folder: Path
    init_seed: int | None = None  # networks initialized from this seed, the rest of the run from `seed`
    round: int = 0  # of tickets

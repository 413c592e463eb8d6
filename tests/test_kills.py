"""Runs killed (SIGKILL) at 50 random moments each and continued: bit for bit the run that was not killed.

Weights, moments, average, random state, masks, pruned values, thresholds, phase, counts and history are compared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = int(os.environ.get("RGPLUG_KILLS", "50"))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forks of one process")
@pytest.mark.parametrize("what", ["quickstart", "two-files"])
def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path: Path, what: str) -> None:
    """quickstart: rgplug's state in the checkpoint. two-files: rgplug.safetensors, and then the host's checkpoint."""
    script = Path(__file__).with_name("kill_runs.py")
    command = [sys.executable, str(script), what, str(tmp_path / "runs"), str(KILLS), "0"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    trials = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert sum(t["killed"] for t in trials) >= KILLS
    assert {n for t in trials for n in t["records"]} >= {0, 1, 2, 3}  # early and late
    wrong = [t for t in trials if t["different"] or t["warned"]]
    assert not wrong, f"{len(wrong)} of {len(trials)} continuations differ, the first: {wrong[0]}"

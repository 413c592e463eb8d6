"""Made-up folders of a comparison, for the tests of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rgplug.history import Record

METRIC = "fd_efficientnet_lite0"


def result(method: str, seed: int, best: float | None, **changes: Any) -> dict[str, Any]:
    line = {
        "method": method, "seed": seed, "run": f"{method}/seed_{seed}", "metric": METRIC, "samples": 5000,
        "higher_is_better": False, "best": best, "best_epoch": 2, "best_phase": "sparse", "final": best,
        "evaluations": 8, "not_finite": 0, "real_images": 1e6, "flops": 1e15, "real_images_total": 4e6,
        "flops_total": 4e15, "before": {"real_images": 0, "flops": 0.0}, "density": {"G": 1.0, "D": 1.0},
        "inference_flops": 3e9, "inference_flops_dense": 3e9, "rounds": [],
    }  # fmt: skip
    if best is None:
        unknown = dict.fromkeys(("best_epoch", "best_phase", "final", "real_images", "flops"))
        line |= {**unknown, "evaluations": 0, "not_finite": 8}
    return line | changes


def ticket_rounds(*best: float | None) -> list[dict[str, Any]]:
    return [
        {"round": r, "run": f"r{r}", "density": {"G": 0.5**r, "D": 1.0}, "best": b, "real_images": 2e6, "flops": 3e15}
        for r, b in enumerate(best)
    ]


RESULTS = [
    result("pf", 0, 46.0, before={"real_images": 4e6, "flops": 4e15}, flops=5e14, flops_total=2e15,
           density={"G": 0.1, "D": 1.0}, inference_flops=3e8),
    result("pf", 1, 48.0, before={"real_images": 4e6, "flops": 4e15}, flops=5e14, flops_total=2e15, final=None,
           density={"G": 0.1, "D": 1.0}, inference_flops=3e8),
    result("dense", 0, 40.0),
    result("dense", 1, 44.0, real_images=2e6, flops=2e15, best_phase="dense"),
    result("tickets", 0, 41.0, before={"real_images": 4e6, "flops": 7e15}, flops_total=1e15, evaluations=10,
           not_finite=1, density={"G": 0.25, "D": 1.0}, rounds=ticket_rounds(40.0, 43.0, 41.0)),
    result("tickets", 1, None, before={"real_images": None, "flops": None}, flops_total=2e15,
           density={"G": 0.9, "D": 0.9}, rounds=ticket_rounds(44.0, 45.0, None)),
    result("broken", 5, None, density={"G": 0.2, "D": 0.3}),
]  # fmt: skip


def record(epoch: int, metric: float | None) -> str:
    return Record(
        epoch, {"G": 10, "D": 10}, metric, METRIC, None, "sparse", "sparse", {"G": 0.5, "D": 0.75},
        {"G": {"0.weight": 0.5}, "D": {"0.weight": 0.75}}, {"G": 3, "D": 0}, {"G": 5, "D": 1},
    ).to_json()  # fmt: skip


def write_history(folder: Path, *metrics: float | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [record(epoch, metric) for epoch, metric in enumerate(metrics, start=1)]
    (folder / "history.jsonl").write_text("\n".join(lines) + "\n")


def write_results(folder: Path, lines: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder

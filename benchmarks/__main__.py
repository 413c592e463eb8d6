"""`make bench`: runs every benchmark and writes docs/performance.md's figures anew.

python -m benchmarks [--rounds 30]
"""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path

import torch

from benchmarks import elementwise, frechet, hosts, methods, training_step

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- figures: begin (written by `make bench`) -->", "<!-- figures: end -->"
AIMS = {"batch 16, 64 ch, 32x32": 1.05, "batch 64, 64 ch, 32x32": 1.02, "batch 8, 128 ch, 16x16": 1.08}


def machine() -> str:
    """Processor, cores and torch of this run, in one line."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {accelerator}, torch {torch.__version__}"
    )


def figures(rounds: int) -> str:
    steps = training_step.run(rounds)
    memory = steps.pop("memory")["ratio"]
    columns = {"rgplug": ".3f", "aim": ".2f", "rgplug, eager": ".3f", "mask in the graph": ".3f", "dense, ms": ".0f"}
    rows = []
    for name, values in steps.items():
        known = {**values, "aim": AIMS[name]}
        rows.append(" | ".join([f"| {name}", *(format(known[key], shape) for key, shape in columns.items())]) + " |")
    own = [
        f"| {name} | {v['ratio']:.3f} | {v['stock, ms']:.0f} | {v['managed']:,} |" for name, v in hosts.run().items()
    ]
    if not own:
        own = ["| none: RGPLUG_HOSTS names no folder of checkouts | | | |"]
    by_method = methods.run(rounds)
    stock = by_method.pop("stock, ms")["ratio"]
    each = []
    for name, v in by_method.items():
        special = ", ".join(f"{k} {v[k]:.2f}" for k in v if k not in ("ratio", "ordinary"))
        each.append(f"| `{name}` | {v['ratio']:.3f} | {v['ordinary']:.3f} | {special} |")
    distance = frechet.run()
    solve = [
        f"| {name.replace('_', ' ')} | {v['ratio']:.1f} | {v['relative_difference']:.0e} |"
        for name, v in distance.items()
    ]
    operations = [f"| `{name}` | {value:.1f} |" for name, value in elementwise.run().items()]
    return "\n".join(
        [
            f"Machine: {machine()}. {rounds} rounds.",
            "",
            "### A whole training step",
            "",
            "| case | rgplug / dense | aim | eager / dense | mask in the graph / dense | dense step, ms |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            "### An iteration of the hosts",
            "",
            "| host | attached / stock | stock, ms | managed weights |",
            "|---|---|---|---|",
            *own,
            "",
            "### An iteration under each method",
            "",
            f"SNGAN's 32x32 pair, 64 channels, batch 16; the iteration without rgplug takes {stock:.0f} ms. Aim: 1.05,",
            "with exchanges, adjustments and measurements counted in at the published intervals.",
            "",
            "| method | all counted in | an ordinary iteration | one with |",
            "|---|---|---|---|",
            *each,
            "",
            "### Memory",
            "",
            f"Kept beside the host: {memory:.3f} bytes per byte of managed weight (aim: 1.3); nothing per forward.",
            "",
            "### Frechet distance",
            "",
            "2048 dimensions; the real images are as many as the dimensions and half again, or 200 (few-shot).",
            "",
            "| solve | times as fast as scipy's `sqrtm` | relative difference of the values |",
            "|---|---|---|",
            *solve,
            "",
            "### Elementwise operations",
            "",
            "Time of an operation with a bool mask, in multiples of one float product of the same size:",
            "",
            "| operation | multiple |",
            "|---|---|",
            *operations,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=30, help="timed steps of each variant")
    args = parser.parse_args()
    text = PAGE.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    body = figures(args.rounds)
    PAGE.write_text(f"{head}{BEGIN}\n\n{body}\n\n{END}{tail}")
    print(body)


if __name__ == "__main__":
    main()

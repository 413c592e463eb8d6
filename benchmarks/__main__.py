"""`make bench`: runs every benchmark and writes docs/performance.md's figures anew.

python -m benchmarks [--rounds 30] [--only SECTION ...]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks import elementwise, evaluation, frechet, hosts, inference, keep_memory, methods, scaling, training_step
from rgplug.export.measure import machine

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- figures: begin (written by `make bench`) -->", "<!-- figures: end -->"
AIMS = {"batch 16, 64 ch, 32x32": 1.02, "batch 64, 64 ch, 32x32": 1.01, "batch 8, 128 ch, 16x16": 1.05}
HOSTS, METHODS, MEMORY, EVALUATION = 1.02, 1.05, 1.25, 2.0  # aims
CONTROL = (
    "Another dense network, a copy that nothing is attached to, shows what chance (where memory lies) does to a ratio."
)
LONG = 5  # rounds of what takes seconds each


def section(title: str, text: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of one table under its title, with a sentence or two before it ("" for none)."""
    table = [f"| {' | '.join(cells)} |" for cells in (columns, *rows)]
    return ["", f"### {title}", "", *([text, ""] if text else []), table[0], "|" + "---|" * len(columns), *table[1:]]


def whole_step(rounds: int) -> list[str]:
    steps = training_step.run(rounds)
    memory = steps.pop("memory")
    shapes = {
        "rgplug": ".3f",
        "aim": ".2f",
        "another dense": ".3f",
        "rgplug, eager": ".3f",
        "mask in the graph": ".3f",
        "dense, ms": ".0f",
    }
    known = {name: {**values, "aim": AIMS[name]} for name, values in steps.items()}
    rows = [[name, *(format(v[key], shape) for key, shape in shapes.items())] for name, v in known.items()]
    columns = [
        "case", "rgplug / dense", "aim", "another dense / dense", "eager / dense", "mask in the graph / dense",
        "dense step, ms",
    ]  # fmt: skip
    kept = "".join(f"; {name}: {value:.3f}" for name, value in memory.items() if name != "ratio")
    return [
        *section("A whole training step", CONTROL, columns, rows),
        "",
        "### Memory",
        "",
        f"Kept beside the host: {memory['ratio']:.3f} bytes per byte of managed weight (aim: {MEMORY}){kept}; nothing "
        "per forward.",
    ]


def by_size(rounds: int) -> list[str]:
    rows = [
        [
            name,
            *(f"{v[key]:.1f}" for key in ("without, ms", "with, ms", "cost, ms")),
            f"{v['cost, ns per weight']:.2f}",
            f"{v['memory']:.3f}",
        ]
        for name, v in scaling.run(rounds).items()
    ]
    text = "A step that does next to nothing with its weights (four samples, SGD), so that the work around it shows."
    columns = [
        "managed weights",
        "without, ms",
        "with, ms",
        "cost, ms",
        "ns per weight",
        "bytes beside the host per byte",
    ]
    return section("Cost by number of weights", text, columns, rows)


def host_iterations(rounds: int) -> list[str]:
    rows = [
        [
            n,
            *(f"{v[k]:.3f}" for k in ("ratio", "stock again", "own work")),
            f"{v['stock, ms']:.0f}",
            f"{v['managed']:,}",
        ]
        for n, v in hosts.run(max(rounds // 2, 1)).items()
    ]
    rows = rows or [["none: RGPLUG_HOSTS names no folder of checkouts", *[""] * 5]]
    text = (
        f"Aim: {HOSTS}. Stock again: every other block of iterations without rgplug against the rest of them, which "
        "tells the noise. Own work: the time inside rgplug, measured directly."
    )
    columns = ["host", "attached / stock", "stock again / stock", "own work / stock", "stock, ms", "managed weights"]
    return section("An iteration of the hosts", text, columns, rows)


def each_method(rounds: int) -> list[str]:
    by_method = methods.run(rounds)
    stock = by_method.pop("stock, ms")["ratio"]
    rows = []
    for name, v in by_method.items():
        special = ", ".join(f"{k} {v[k]:.2f}" for k in v if k not in ("ratio", "ordinary"))
        rows.append([f"`{name}`", f"{v['ratio']:.3f}", f"{v['ordinary']:.3f}", special])
    text = (
        f"SNGAN's 32x32 pair, 64 channels, batch 16; the iteration without rgplug takes {stock:.0f} ms.\n"
        f"Aim: {METHODS}, with exchanges, adjustments and measurements counted in at the published intervals."
    )
    columns = ["method", "all counted in", "an ordinary iteration", "one with"]
    return section("An iteration under each method", text, columns, rows)


def pruned_generators(rounds: int) -> list[str]:
    found = inference.run(rounds)
    rows = [
        [
            f"{name}, batch {batch}",
            f"{v[f'dense, ms, batch {batch}']:.0f}",
            *(f"{v[f'{form}, batch {batch}']:.2f}" for form in ("whole filters", "single weights", "as trained")),
            f"{1 / v['MACs left']:.2f}",
            f"{v['parameters left']:.3f}",
        ]
        for name, v in found.items()
        for batch in inference.BATCHES
    ]
    text = (
        "How many times as fast as the dense generator, measured: with half of the weights pruned as whole filters\n"
        "and taken out (`compact`), and singly, as zeros. The theoretical column is a ratio of MACs and no speed."
    )
    columns = [
        "generator", "dense, ms", "whole filters, compact", "single weights, zeros", "dense, norms not folded",
        "compact, theoretical", "parameters left",
    ]  # fmt: skip
    return section("Speed of pruned generators", text, columns, rows)


def evaluations(rounds: int) -> list[str]:
    rows = [
        [
            name,
            *(f"{v[f'{way}, {when}']:.2f}" for when in ("first", "again") for way in ("rgplug", "clean-fid")),
            *(f"{v[f'ratio, {when}']:.2f}" for when in ("first", "again", "again, without generation")),
            " / ".join(f"{100 * v[f'share of {part}']:.1f}" for part in ("generation", "features", "rest")),
            f"{v['relative difference']:.0e}",
        ]
        for name, v in evaluation.run(rounds).items()
    ]
    text = (
        "300 images of SNGAN's 32x32 generator against 200 real ones, in seconds; clean-fid reads both as PNG files.\n"
        "again: with statistics of the real images at hand (clean-fid: with their features). Aim for the first with\n"
        f"EfficientNet-Lite0: {EVALUATION:.0f} times as fast. Shares are of rgplug's repeated evaluation; generation,\n"
        "which costs both the same, is left out in the column before them."
    )
    columns = [
        "features", "rgplug, first", "clean-fid, first", "rgplug, again", "clean-fid, again", "times as fast, first",
        "times as fast, again", "without generation", "generation / features / rest, %",
        "relative difference of the values",
    ]  # fmt: skip
    return section("An evaluation", text, columns, rows)


def distances() -> list[str]:
    found = frechet.run().items()
    rows = [[n.replace("_", " "), f"{v['ratio']:.1f}", f"{v['relative_difference']:.0e}"] for n, v in found]
    text = "2048 dimensions; the real images are as many as the dimensions and half again, or 200 (few-shot)."
    columns = ["solve", "times as fast as scipy's `sqrtm`", "relative difference of the values"]
    return section("Frechet distance", text, columns, rows)


def operations() -> list[str]:
    rows = [[f"`{name}`", f"{value:.1f}"] for name, value in elementwise.run().items()]
    text = "Time of an operation with a bool mask, in multiples of one float product of the same size:"
    return section("Elementwise operations", text, ["operation", "multiple"], rows)


SECTIONS: dict[str, Callable[[int], list[str]]] = {
    "whole_step": whole_step,
    "by_size": by_size,
    "host_iterations": host_iterations,
    "each_method": each_method,
    "pruned_generators": lambda rounds: pruned_generators(min(rounds, LONG)),
    "evaluations": lambda rounds: evaluations(min(rounds, LONG)),
    "distances": lambda rounds: distances(),
    "operations": lambda rounds: operations(),
}


def parts(body: str) -> dict[str, str]:
    """The tables of the page's figures by their titles; what stands before them under ""."""
    head, *rest = f"\n{body.strip()}".split("\n### ")
    return {"": head, **{text.partition("\n")[0]: text.partition("\n")[2] for text in rest}}


def figures(rounds: int, only: Sequence[str], before: str) -> str:
    """The body of the page's figures, measured now; with `only`, the rest is as it was."""
    few = min(rounds, LONG)
    found = parts(before) if only else {}
    if not only:
        found[""] = f"Machine: {machine()}. {rounds} rounds; {few} where one takes seconds (generators, evaluations)."
    for name in only or SECTIONS:
        found |= {k: v for k, v in parts("\n".join(SECTIONS[name](rounds))).items() if k}
    return "\n\n".join([found.pop("").strip(), *(f"### {title}\n{text.rstrip()}" for title, text in found.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=30, help="timed steps of each variant")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=[], help="measure these anew, keep the rest")
    args = parser.parse_args()
    text = PAGE.read_text()
    head, _, rest = text.partition(BEGIN)
    before, _, tail = rest.partition(END)
    body = figures(args.rounds, args.only, before)
    PAGE.write_text(f"{head}{BEGIN}\n\n{body}\n\n{END}{tail}")
    print(body)


if __name__ == "__main__":
    keep_memory()
    main()

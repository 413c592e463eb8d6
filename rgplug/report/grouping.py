"""Which runs are seeds of one row, and what the rows are called where one method has several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from rgplug.baselines.keys import policy_keys
from rgplug.policy import Policy
from rgplug.report.comparison import Method, Run
from rgplug.report.run_keys import POLICY

OWN = {"seed", "out", "outdir", "out_dir", "output", "output_dir", "logdir", "run_dir", "name", "desc", "gpu", "device"}
ASIDE = {"snapshots", "log", "kernels"}  # keys of a policy that change nothing about a result
DEFAULTS = policy_keys(Policy().to_dict())


def grouped(runs: Sequence[Run]) -> list[Method]:
    """Runs of one method whose keys are alike are seeds of one row.

    In one comparison a method has one row. Rows of one method in several comparisons are named after the keys in
    which they differ; runs of the same method, seed and keys stay apart, named after their folders.
    """
    rows: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        settings: tuple[Any, ...] = () if len({r.root for r in runs}) == 1 else settings_of(run)
        rows.setdefault((run.method, settings), []).append(run)
    split: list[tuple[str, tuple[Any, ...], str, list[Run]]] = []
    for (method, settings), members in rows.items():
        seeds = [r.seed for r in members]
        if len(set(seeds)) == len(seeds):
            split.append((method, settings, "", members))
            continue
        places = dict.fromkeys(r.place for r in members)
        split += [(method, settings, place, [r for r in members if r.place == place]) for place in places]
    telling = []
    for method, settings, place, _ in split:
        others = [dict(s) for m, s, _, _ in split if m == method]
        telling.append((method, _telling(dict(settings), others), place))
    names = [_name(*parts, short=True) for parts in telling]
    if len(set(names)) < len(names):
        names = [_name(*parts, short=False) for parts in telling]
    return [
        Method(name, tuple(sorted(members, key=lambda r: r.seed))) for name, (_, _, _, members) in zip(names, split)
    ]


def _name(method: str, keys: dict[str, Any], place: str, short: bool) -> str:
    """A method with the keys that tell its row from others. short: of a path, its last part."""
    folder = f"@folder={place}" if place else ""
    return method + "".join(f"@{k}={_text(v, short)}" for k, v in keys.items()) + folder


def is_own(run: Run, key: str, value: object) -> bool:
    """Whether a key says nothing about what is trained: seeds, options that name the run's folder, what is logged."""
    if key.replace("-", "_").lower() in OWN or key.partition(".")[0] in ASIDE:
        return True
    parts = PurePath(value).parts if isinstance(value, str) else ()
    inside = run.folder.resolve().parts
    return len(parts) > 1 and any(inside[i : i + len(parts)] == parts for i in range(len(inside)))


def settings_of(run: Run) -> tuple[tuple[str, Any], ...]:
    """All keys of a run but its own, sorted, defaults filled in where it says any."""
    keys = run.result.keys
    found = {k: v for k, v in {**(DEFAULTS if keys else {}), **keys}.items() if not is_own(run, k, v)}
    return tuple(sorted(found.items()))


def _telling(own: dict[str, Any], others: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The fewest keys that tell a row from the others: keys of comparisons and commands before those of policies."""
    different = [k for k in own if any(o.get(k) != own[k] for o in others)]
    rest = [o for o in others if any(o.get(k) != own[k] for k in own)]
    chosen: list[str] = []
    for key in sorted(different, key=lambda k: (k in POLICY, k.startswith("class."), k)):
        apart = [o for o in rest if o.get(key) != own[key]]
        if apart:
            chosen.append(key)
            rest = [o for o in rest if o.get(key) == own[key]]
    return {k: own[k] for k in chosen}


def _text(value: object, short: bool) -> str:
    if short and isinstance(value, str):
        return PurePath(value).name or value
    return f"{value:g}" if isinstance(value, float) else str(value)

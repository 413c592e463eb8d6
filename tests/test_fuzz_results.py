"""Files of a comparison that somebody changed: the report and a second run name the file, or nothing has changed.

Each case changes one file of a comparison that was really trained, as bytes or as valid JSON, and may delete results so
that a run goes on from what is left. RGPLUG_FUZZ=5000 tries as many cases instead of 500.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hosts_of_comparisons import LENGTH, POLICY, build, train
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_runs import METRIC, record, result, write_results
from test_comparison_settings import never

from rgplug import RgplugError
from rgplug.baselines import compare, read_results
from rgplug.baselines.results import RESULT
from rgplug.report.drawings import Drawing
from rgplug.report.figures import image_grid
from rgplug.report.page import write_report

CASES = int(os.environ.get("RGPLUG_FUZZ", "500"))
METHODS = ["dense", "stu-gan", "tickets", "tickets-random-mask", "pf-global"]
EVERYTHING: dict[str, Any] = {"policy": POLICY, **LENGTH}
KINDS = ("results.jsonl", "result.json", "outcome.json", "run.json", "task.json", "history.jsonl", "masks.safetensors")
FUZZ = settings(
    max_examples=CASES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -1, 2**53 + 1, 1e308, 5e-324, float("nan"), float("inf"), "", "x", "../..", "\ud800"]),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers() | st.none(), max_size=2),
)  # fmt: skip


class Folder:
    """A comparison, its files as they were, and what is said of it."""

    def __init__(self, root: Path):
        self.root = root
        compare(METHODS, train, build, out=root, **EVERYTHING)
        self.picture = image_grid(np.full((4, 8, 8, 3), 90, np.uint8), root / "dense" / "seed_0" / "samples.png")
        self.results = read_results(root)
        self.kept = {p: p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
        self.files = [p for p in self.kept if p.name in KINDS]
        self.page = self.reported()
        self.restore()

    def reported(self) -> str:
        """The page without its pictures. Figures are one grey square: what draws them has a test of its own below."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Drawing, "png", lambda _: self.kept[self.picture])
            text = write_report(self.root).read_text()
        return re.sub(r'base64,[^"]+', "", text)

    def restore(self) -> None:
        for path in sorted(self.root.rglob("*")):
            if path.is_file() and path not in self.kept:
                path.unlink()
        for path, content in self.kept.items():
            if not path.is_file() or path.read_bytes() != content:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(tmp_path_factory.mktemp("fuzz"))


def changed_bytes(data: st.DataObject, content: bytes) -> bytes:
    """The file cut off, with noise in it, without a part, with a part twice, or with a digit that is another one."""
    at = data.draw(st.integers(0, max(len(content) - 1, 0)), label="at")
    end = data.draw(st.integers(at, min(at + 40, len(content))), label="end")
    noise = data.draw(st.binary(min_size=1, max_size=12), label="noise")
    digits = [m.start() for m in re.finditer(rb"[0-9]", content)]
    changed: dict[str, Callable[[], bytes]] = {
        "cut": lambda: content[:at],
        "noise": lambda: content[:at] + noise + content[at + len(noise) :],
        "without": lambda: content[:at] + content[end:],
        "twice": lambda: content[:end] + content[at:],
        "empty": lambda: b"",
        "deep": lambda: content[:at] + b"[" * 50_000 + content[at:],
    }
    if digits:
        place = data.draw(st.sampled_from(digits), label="digit")
        changed["digit"] = lambda: content[:place] + bytes([48 + (content[place] - 47) % 10]) + content[place + 1 :]
    return changed[data.draw(st.sampled_from(sorted(changed)), label="how")]()


def changed_json(data: st.DataObject, content: bytes) -> bytes:
    """A file of JSON lines, or of one object, with a value that is another one, a key less, or a key more."""
    whole = content.startswith(b"{\n")
    lines = [json.loads(content)] if whole else [json.loads(line) for line in content.splitlines()]
    at = data.draw(st.integers(0, len(lines) - 1), label="line")
    target = lines[at]
    while True:
        key = data.draw(st.sampled_from(sorted(target)), label="key")
        if not (isinstance(target[key], dict) and target[key] and data.draw(st.booleans(), label="deeper")):
            break
        target = target[key]
    how = data.draw(st.sampled_from(["value", "delete", "add"]), label="how")
    if how == "value":
        target[key] = data.draw(VALUES, label="value")
    elif how == "delete":
        del target[key]
    else:
        target[data.draw(st.text(max_size=4), label="new key")] = data.draw(VALUES, label="value")
    if data.draw(st.booleans(), label="without its check"):  # as earlier versions wrote it
        lines[at].pop("check", None)
    return "\n".join(map(json.dumps, lines)).encode() + b"\n"


def mutated(data: st.DataObject, folder: Folder, files: list[Path]) -> Path:
    """Change one of the files, and say which."""
    path = data.draw(st.sampled_from(files), label="file")
    content = folder.kept[path]
    as_json = path.suffix != ".safetensors" and data.draw(st.booleans(), label="as JSON")
    path.write_bytes((changed_json if as_json else changed_bytes)(data, content))
    return path


@FUZZ
@given(data=st.data())
def test_the_report_of_changed_files(folder: Folder, data: st.DataObject) -> None:
    """RgplugError that names the file; or a page that says what is damaged, or is that of the files as they were."""
    folder.restore()
    results = folder.root / "results.jsonl"  # most of a page is out of this one
    path = mutated(data, folder, [p for p in folder.files if p.name in ("history.jsonl", RESULT)] + 12 * [results])
    text, said = "", ""
    try:
        text = folder.reported()
    except RgplugError as error:
        said = str(error)
    content = path.read_bytes()
    folder.restore()
    if said:
        assert path.name in said
        assert "\n" not in said
        return
    marked = "Damaged" in text or "cut off" in text or "left out here" in text
    unsealed = path.name == "results.jsonl" and content.count(b'"check"') < len(folder.results)
    assert marked or text == folder.page or unsealed


@FUZZ
@given(data=st.data())
def test_a_second_run_over_changed_files(folder: Folder, data: st.DataObject) -> None:
    """RgplugError that names the file or its folder; or the results as they were. Nothing is trained anew."""
    folder.restore()
    path = mutated(data, folder, folder.files)
    unsealed = path.suffix == ".json" and b'"check"' not in path.read_bytes()
    for method in data.draw(st.lists(st.sampled_from(METHODS), unique=True), label="results that are deleted"):
        (folder.root / method / "seed_0" / RESULT).unlink()
    found, said = [], ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # files without a check are named as such
            found = compare(METHODS, never, build, out=folder.root, **EVERYTHING)
    except RgplugError as error:
        said = str(error)
    folder.restore()
    if said:
        assert path.name in said or str(path.parent) in said or "built on" in said
        assert "\n" not in said
    else:
        assert found == folder.results or unsealed


# ----------------------------------------------------------------------------
# What passes the checks can be drawn and written.

NUMBERS = st.none() | st.floats(-1e100, 1e100) | st.sampled_from([0.0, 1e100, -1e100, 5e-324, 1e-300])
AMOUNTS = st.none() | st.floats(0, 1e100) | st.sampled_from([0, 1e100, 5e-324])
SHARES = st.none() | st.floats(0, 1)
NAMES = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=30)


@settings(FUZZ, max_examples=max(CASES // 25, 20))
@given(
    values=st.lists(st.tuples(st.integers(0, 10**9), NUMBERS, SHARES, NAMES), min_size=1, max_size=4),
    names=st.lists(NAMES, min_size=1, max_size=2, unique=True),
    best=st.floats(-1e100, 1e100),
    costs=st.tuples(AMOUNTS, AMOUNTS, SHARES, SHARES),
)
def test_extreme_values_are_drawn(
    tmp_path_factory: pytest.TempPathFactory, values: Any, names: list[str], best: float, costs: Any
) -> None:
    root = tmp_path_factory.mktemp("extreme")
    lines = []
    for epoch, metric, share, layer in values:
        line = json.loads(record(epoch, metric))
        lines.append({**line, "density": {"G": share}, "layers": {"G": {layer: share}}, "metric_name": names[0]})
    rows = []
    for number, name in enumerate(names):
        run = f"run_{number}"
        (root / run).mkdir()
        (root / run / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        changes = {"real_images_total": costs[0], "flops_total": costs[1], "real_images": costs[0], "flops": costs[1]}
        density = {"G": costs[2], "D": costs[3]}
        rows.append(result(name, number, best, run=run, metric=METRIC, density=density, **changes))
    write_results(root, rows)
    text = write_report(root).read_text()
    assert "<script" not in text

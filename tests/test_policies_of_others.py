"""Policies as people have them: the files of the examples, every preset, every block of YAML in the documentation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from rgplug import Policy
from rgplug.presets import PRESETS
from rgplug.reading import parse

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("examples/policies/*.yaml"), *ROOT.glob("examples/*.yaml")])
PAGES = sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md"])
BLOCKS = [(page.name, block) for page in PAGES for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.S)]


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_files_of_the_examples(file: Path) -> None:
    policy = Policy.load({"base": file, "metric.real": "folder"})
    assert Policy.load(policy.to_dict()) == policy


@pytest.mark.parametrize("preset", list(PRESETS))
def test_presets(preset: str) -> None:
    assert Policy.load(preset) == Policy.load({"base": preset}) == Policy.load({"method": preset})


def written_in_full(keys: Any) -> bool:
    """The block of docs/policy.md that lists every key, of every method side by side."""
    return {"threshold", "masks", "cycle", "regeneration"} <= set(keys)


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=[f"{page}-{i}" for i, (page, _) in enumerate(BLOCKS)])
def test_blocks_of_the_documentation(page: str, block: str, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(block)
    policy = Policy.load(tmp_path / "policy.yaml")
    assert policy.method in ("rg-gan", "sparse", "re-gan", "dense")
    if written_in_full(parse(block, page)):
        assert policy == Policy.load({"base": "rg-gan", "networks": {"G": {}, "D": {}}})


def test_the_page_on_policies_lists_every_key() -> None:
    text = next(block for page, block in BLOCKS if page == "policy.md")
    listed = parse(text, "policy.md")
    assert set(listed) == set(Policy().to_dict())
    groups = re.findall(r"^(\w+): null +# .*?\bor (\{[^}]*\})", text, re.M)
    for name, example in groups:
        if name == "batch_size":
            continue
        example = example.replace("FOLDER", "x").replace("FILE", "x").replace("DIR", "x")
        base = {"exploration": "sparse", "balance": "sparse"}.get(name, "rg-gan")
        policy = Policy.load({"base": base, name: parse(example, "an example")})
        group = getattr(policy, name)
        assert set(parse(example, "an example")) == set(type(group).__dataclass_fields__), name
    assert {"target", "metric", "exploration", "balance", "start", "snapshots"} <= {name for name, _ in groups}

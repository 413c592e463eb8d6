"""Every command of docs/protocols.md is understood: options, methods, keys and policies. None of them trains."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from rgplug import cli
from rgplug.baselines.methods import METHODS
from rgplug.examples import stylegan2_ada_patch as example
from rgplug.policy import Policy
from rgplug.reading import parse

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "protocols.md").read_text()
FILLED = {"$share": "0.1", "$part": "test", "$name": "obama", "$images": "1000", "STEPS": "100000"}


def commands() -> list[str]:
    """The indented lines of the page, continued ones joined, with the shell's variables filled in as the page sets
    them."""
    code = "\n".join(re.findall(r"^ {4,}(.*)$", PAGE, re.M))
    held, found = dict(FILLED), []
    for line in re.sub(r" *\\\n *", " ", code).splitlines():
        assigned = re.fullmatch(r'([A-Z]+)="(.*)"', line.strip())
        if assigned:
            held[f"${assigned[1]}"] = assigned[2]
            continue
        for name, value in held.items():
            line = line.replace(name, value)
        found.append(line.strip().replace("$PWD", "/data").replace("$OLDPWD", "/data"))
    return found


COMPARE = [c for c in commands() if "rgplug compare" in c]
PATCH = [c for c in commands() if re.search(r"python examples/\w+_patch\.py", c)]


def words(command: str, start: str) -> list[str]:
    """What follows `start`, without the parenthesis of a subshell."""
    return shlex.split(command[command.index(start) + len(start) :].removesuffix(")"))


@pytest.mark.parametrize("command", COMPARE)
def test_comparisons_can_be_planned(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--status works out every run with its policy, and runs none."""
    arguments = words(command, "rgplug compare ")
    arguments[arguments.index("--out") + 1] = str(tmp_path / "runs")
    monkeypatch.chdir(ROOT)
    (tmp_path / "runs").mkdir()
    (tmp_path / "images").mkdir()
    arguments = [re.sub(r"^metric\.real=.*", f"metric.real={tmp_path / 'images'}", a) for a in arguments]
    done = cli.main(["compare", "--status", *arguments])
    said = capsys.readouterr()
    assert done == 0, said.err
    assert len(said.out.splitlines()) > 3  # a line for each run


def test_all_kinds_of_commands_are_there() -> None:
    assert len(COMPARE) >= 9
    assert len(PATCH) >= 6


@pytest.mark.parametrize("command", PATCH)
def test_examples_understand_their_options(command: str) -> None:
    script = re.search(r"examples/(\w+_patch)\.py", command)
    assert script is not None
    assert (ROOT / "examples" / f"{script[1]}.py").is_file()
    own = words(command.partition(" -- ")[0].partition(" > ")[0], f"examples/{script[1]}.py ")
    args = example.arguments("An example.", Path("policy.yaml")).parse_args(own)
    assert args.run or args.dry_run or set(args.compare.split(",")) <= set(METHODS)


@pytest.mark.parametrize("block", re.findall(r"\{ cat (\S+)\n +echo \"(.*)\"; \} >", PAGE))
def test_policies_that_are_put_together(block: tuple[str, str]) -> None:
    file, line = block
    text = (ROOT / file).read_text() + line.replace("$PWD", "/data").replace("$name", "obama")
    policy = Policy.load(parse(text, "a policy"))
    assert policy.metric is not None
    assert policy.metric.features == "inception"
    assert policy.metric.samples in (5000, 50000)

"""`rgplug inspect` of scripts that were not written to be imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rgplug.cli import main
from rgplug.inspection import training_line

NETWORKS = """
import torch
from torch import nn
class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
Discriminator = Generator
"""
LOOP = """
G = Generator()
opt = torch.optim.SGD(G.parameters(), 0.1)
open(__file__ + ".trained", "w").close()
for i in range(3):
    G.layer(torch.ones(1, 4)).sum().backward()
    opt.step()
"""


def indented(code: str) -> str:
    return "".join(f"    {line}\n" for line in code.splitlines())


@pytest.mark.parametrize(
    "code",
    [
        LOOP,
        f"def main():\n{indented(LOOP)}\nmain()",
        f"def train():\n{indented(LOOP)}\ndef main():\n    train()\nif torch is not None:\n    main()",
    ],
)
def test_a_script_that_would_train(code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "script.py"
    path.write_text(NETWORKS + code)
    assert main(["inspect", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "importing it would start the training" in said
    assert "__main__" in said
    assert not Path(f"{path}.trained").exists()


@pytest.mark.parametrize(
    "code",
    [
        f"def train():\n{indented(LOOP)}\nif __name__ == '__main__':\n    train()",
        "layers = []\nfor i in range(3):\n    layers.append(nn.Linear(1, 1))",
        "import sys\nassert len(sys.argv) == 1",
    ],
)
def test_a_script_that_only_defines(code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "script.py"
    path.write_text(NETWORKS + code)
    assert training_line(path) is None
    before = list(sys.argv)
    assert main(["inspect", str(path)]) == 0
    assert "layer.weight" in capsys.readouterr().out
    assert sys.argv == before


def test_argparse_at_the_top_level(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "script.py"
    parser = "import argparse\nparser = argparse.ArgumentParser()\n"
    path.write_text(f"{NETWORKS}{parser}parser.add_argument('--data', required=True)\nargs = parser.parse_args()\n")
    assert main(["inspect", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "reads its command line at its top level" in said
    assert "--data" in said
    path.write_text(f"{NETWORKS}{parser}parser.add_argument('--data')\nargs = parser.parse_args()\n")
    assert main(["inspect", str(path)]) == 0

"""A module that holds the controller, the natural thing in Lightning: copies and pickles of it."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path

import torch
from common import sgd
from torch import nn

import rgplug


class Training(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.G = nn.Linear(4, 4)
        self.rg = rgplug.attach(self.G, None, {"threshold.init": 0.2, "kernels": "eager"})


def test_a_copied_module_refers_to_the_same_controller() -> None:
    module = Training()
    twin = copy.deepcopy(module)
    assert twin.rg is module.rg
    assert copy.copy(module.rg) is module.rg
    assert twin.G is not module.G
    assert type(twin.G) is nn.Linear
    assert torch.equal(twin.G.weight, module.G.weight)
    before = twin.G.weight.clone()
    module.G(torch.randn(2, 4)).square().sum().backward()
    sgd(module.G, 0.1).step()
    assert module.rg.networks["G"].iteration == 1
    assert torch.equal(twin.G.weight, before)  # the original is what the controller prunes
    module.rg.detach()


def test_a_pickle_has_none_in_the_controllers_place() -> None:
    module = Training()
    loaded = pickle.loads(pickle.dumps(module))
    assert loaded.rg is None
    assert torch.equal(loaded.G.weight, module.G.weight)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    assert torch.load(file, weights_only=False).rg is None
    assert module.rg.density("G") < 1
    module.rg.detach()


def test_such_a_pickle_loads_without_rgplug(tmp_path: Path) -> None:
    module = nn.Linear(4, 4)
    module.rg = rgplug.attach(module, None, {"threshold.init": 0.2})  # type: ignore[assignment]
    (tmp_path / "module.pt").write_bytes(pickle.dumps(module))
    code = (
        "import pickle, sys; sys.modules['rgplug'] = None\n"
        f"m = pickle.load(open({str(tmp_path / 'module.pt')!r}, 'rb')); print(type(m).__name__, m.rg)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["Linear", "None"], done.stderr
    module.rg.detach()  # type: ignore[operator, union-attr]

"""rgplug.check: says line by line what would fail, and leaves everything as it was."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from common import RAMP, Host
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_pre_hooks

import rgplug
from rgplug.errors import RgplugError

LINES = (
    "attach",
    "names, order and shapes",
    "two forwards before one backward",
    "exactly 0",
    "deepcopy",
    "pickle",
    "state dict",
    "moving average",
    "exact resume",
    "detach",
)


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(4, tiny.Z), torch.randn(4, *tiny.IMAGE)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_every_line_passes_on_ordinary_networks(kind: str) -> None:
    G, D = tiny.build(kind, dtype=torch.float32)
    report = rgplug.check(G, D, batch)
    assert report.ok, str(report)
    lines = str(report).splitlines()
    assert len(lines) == len(report.lines) >= len(LINES)
    for words in LINES:
        assert sum(words in line for line in lines) >= 1, words
    assert all(line.startswith("ok") for line in lines)


def test_the_batch_is_guessed_where_it_can_be() -> None:
    G, D = tiny.build("plain", dtype=torch.float32)
    assert rgplug.check(G, D).ok
    assert rgplug.check(G).ok


def test_weights_modes_gradients_and_random_states_stay() -> None:
    host = Host("new_sn")
    host.run(2)
    host.G.eval()
    host.D[0].requires_grad_(False)
    before = copy.deepcopy(host.state_dict())
    modes = [(m.training, type(m)) for net in host.nets.values() for m in net.modules()]
    wanted = [p.requires_grad for p in host.D.parameters()]
    grads = [p.grad.clone() for p in host.G.parameters()]
    hooks = len(_global_optimizer_pre_hooks)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

    def noisy() -> tuple[Tensor, Tensor]:
        random.random()
        np.random.rand()  # noqa: NPY002
        return batch()

    assert rgplug.check(host.G, host.D, noisy).ok
    for net in "GD":
        for key, value in before[net].items():
            assert torch.equal(value, host.nets[net].state_dict()[key]), key
        for a, b in zip(before["opt"][net]["state"].values(), host.opt[net].state_dict()["state"].values()):
            assert all(torch.equal(a[k], b[k]) for k in a)
    assert modes == [(m.training, type(m)) for net in host.nets.values() for m in net.modules()]
    assert wanted == [p.requires_grad for p in host.D.parameters()]
    assert all(torch.equal(p.grad, g) for p, g in zip(host.G.parameters(), grads))
    assert hooks == len(_global_optimizer_pre_hooks)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert states[2] == np.random.get_state()[1].tolist()  # noqa: NPY002


def test_networks_that_are_attached_can_be_checked() -> None:
    host = Host()
    rg = rgplug.attach(host.G, host.D, RAMP)
    host.run(2)
    density = rg.density()
    assert rgplug.check(host.G, host.D, batch).ok
    assert rg.density() == density
    host.run(1)


class Uncopyable(nn.Linear):
    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("holds a file\nthat cannot be copied")


def test_a_network_that_cannot_be_copied_is_said_in_one_sentence() -> None:
    with pytest.raises(RgplugError, match=r"G \(Sequential\) cannot be copied.*holds a file") as error:
        rgplug.check(nn.Sequential(Uncopyable(3, 3)))
    assert "\n" not in str(error.value)


class RenamesKeys(nn.Linear):
    """A state-dict hook that works on one class only: it breaks where the class is exchanged."""

    def __init__(self) -> None:
        super().__init__(tiny.Z, tiny.Z)
        self._register_state_dict_hook(self.rename)

    @staticmethod
    def rename(module: nn.Module, state: dict[str, Tensor], prefix: str, local: Any) -> None:
        if type(module) is not RenamesKeys:
            state[prefix + "renamed"] = state.pop(prefix + "weight")


def test_a_host_that_breaks_is_reported_by_the_line_that_breaks() -> None:
    report = rgplug.check(nn.Sequential(RenamesKeys()), make_batch=lambda: (torch.randn(4, tiny.Z), None))
    assert not report.ok
    failed = {line.name: line.detail for line in report.lines if not line.ok}
    assert any("state dict" in name or "names" in name for name in failed), str(report)
    assert all(detail and "\n" not in detail for detail in failed.values())
    assert "FAIL" in str(report)
    assert any(line.ok for line in report.lines)


class LooksAtItsClass(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        if type(self) is not LooksAtItsClass:
            raise TypeError("unknown layer")
        return super().forward(x)


def test_a_forward_that_breaks_is_reported_and_leaves_no_hook() -> None:
    hooks = len(_global_optimizer_pre_hooks)
    report = rgplug.check(nn.Sequential(LooksAtItsClass(3, 3)), make_batch=lambda: (torch.randn(4, 3), None))
    assert [line.name for line in report.lines if not line.ok and "unknown layer" in line.detail]
    assert hooks == len(_global_optimizer_pre_hooks)


def test_a_forward_that_draws_random_numbers() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(tiny.Z, 3)
            self.drop = nn.Dropout()

        def forward(self, z: Tensor) -> Tensor:
            return self.drop(self.layer(z)) + torch.randn(3) * np.random.rand() * random.random()  # noqa: NPY002

    report = rgplug.check(Noisy(), make_batch=lambda: (torch.randn(4, tiny.Z), None))
    assert report.ok, str(report)


def test_frozen_and_unused_layers() -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Linear(tiny.Z, 3)
            self.unused = nn.Linear(3, 3)

        def forward(self, z: Tensor) -> Tensor:
            return self.used(z)

    G = Partly()
    G.used.weight.requires_grad_(False)
    report = rgplug.check(G, make_batch=lambda: (torch.randn(4, tiny.Z), None))
    assert report.ok, str(report)


class NeedsLabels(nn.Module):
    """D(img, c), as in StyleGAN2: c is None where there are no classes."""

    def __init__(self, c_dim: int | None) -> None:
        super().__init__()
        if c_dim is not None:
            self.c_dim = c_dim
        self.layer = nn.Linear(3 * 8 * 8, 1)

    def forward(self, img: Tensor, c: Tensor | None) -> Tensor:
        assert (c is None) == (getattr(self, "c_dim", 0) == 0)
        return self.layer(img.flatten(1))


def test_a_discriminator_of_images_and_labels() -> None:
    G, _ = tiny.build("plain", dtype=torch.float32)
    assert rgplug.check(G, NeedsLabels(0)).ok
    for c_dim in (None, 3):
        with pytest.raises(RgplugError, match=r"NeedsLabels needs 'c' besides .*; give make_batch, a function"):
            rgplug.check(G, NeedsLabels(c_dim))
    labels = torch.zeros(4, 3)
    assert rgplug.check(G, NeedsLabels(3), lambda: (batch()[0], (batch()[1], labels))).ok
    with pytest.raises(RgplugError, match=r"make_batch returned \(TypeError: .*'c'\); give make_batch"):
        rgplug.check(G, NeedsLabels(3), batch)


def test_a_latent_that_cannot_be_guessed() -> None:
    with pytest.raises(RgplugError, match=r"cannot guess .*latent size of Sequential.*; give make_batch"):
        rgplug.check(nn.Sequential(nn.Conv1d(3, 3, 1)))

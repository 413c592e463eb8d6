"""The authors' released code beside rgplug: imported from a checkout, without a GPU, and recorded step by step.

RGPLUG_HOSTS names the folder of the checkouts; a test is skipped where its checkout is absent. No file of a checkout is
changed: what has to be another on a CPU, in a later torch, or for a named deviation, is replaced from outside.
"""

from __future__ import annotations

import copy
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import pytest
import torch
from torch import Tensor, nn

import rgplug


def checkout(name: str) -> Path:
    found = Path(os.environ.get("RGPLUG_HOSTS", "")).expanduser() / name
    if not os.environ.get("RGPLUG_HOSTS") or not found.is_dir():
        pytest.skip(f"RGPLUG_HOSTS names no folder with {name}")
    return found


@contextmanager
def released(folder: str, *stubs: str) -> Iterator[None]:
    """The folder of a checkout on the import path; afterwards its modules are forgotten, since checkouts share names.

    stubs: modules that are not needed here (TensorFlow's Inception, loggers); they answer everything.
    """
    where = str(checkout(folder))
    pytest.importorskip("torchvision")  # it cannot be imported twice
    known, path = set(sys.modules), list(sys.path)
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark  # set by programs when imported
    sys.path.insert(0, where)
    try:
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            sys.modules.update({name: MagicMock() for name in stubs})
            for target, attribute, value in _without_cuda():
                stack.enter_context(patch.object(target, attribute, value, create=True))
            yield
    finally:
        sys.path[:] = path
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        for module in set(sys.modules) - known:
            origin = getattr(sys.modules[module], "__file__", None)
            if module in stubs or (isinstance(origin, str) and origin.startswith(where)):
                del sys.modules[module]


def _without_cuda() -> list[tuple[Any, str, Any]]:
    """CUDA is the CPU, and names that torch has dropped since are back."""
    stays: Callable[..., Any] = lambda self, *args, **kwargs: self  # noqa: E731
    adam = torch.optim.Adam
    return [
        (torch.Tensor, "cuda", stays),
        (nn.Module, "cuda", stays),
        (torch.cuda, "FloatTensor", torch.FloatTensor),
        (torch.cuda, "IntTensor", torch.IntTensor),
        (nn.init, "xavier_uniform", nn.init.xavier_uniform_),
        (torch.optim, "Adam", lambda p, lr, betas: adam(p, lr, tuple(map(float, betas)))),  # released: (0, 0.9)
    ]


@dataclass
class Event:
    """What happened in a recorded program: a step of D or G with its inputs, or an evaluation ("E") with its value.

    before: what the network had right before the step, after its backward; after: right after it.
    """

    what: str
    x: Tensor | None = None
    z: Tensor | None = None
    value: float | None = None
    before: dict[str, Tensor] = field(default_factory=dict)
    after: dict[str, Tensor] = field(default_factory=dict)


class Recorder:
    """Listens to the two networks and their optimizers. look(network) -> what is recorded around each step."""

    def __init__(self, look: Callable[[nn.Module, torch.optim.Optimizer], dict[str, Tensor]] | None = None) -> None:
        self.look = state_of if look is None else look
        self.events: list[Event] = []
        self.nets: dict[str, nn.Module] = {}
        self.began: dict[str, nn.Module] = {}  # copies of the networks as they were at first
        self._seen: dict[str, list[Tensor]] = {"G": [], "D": []}  # inputs since the last step

    def network(self, label: str, net: nn.Module) -> nn.Module:
        self.nets[label], self.began[label] = net, copy.deepcopy(net)

        def remember(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if module.training:
                self._seen[label].append(inputs[0].detach().clone())

        net.register_forward_pre_hook(remember)
        return net

    def optimizer(self, label: str, optimizer: torch.optim.Optimizer) -> None:
        """D's step: x is what D saw last before generated images, z the last of G's inputs. G's step: z."""

        def before(*_: Any) -> None:
            x = self._seen["D"][-2] if label == "D" else None
            state = self.look(self.nets[label], optimizer)
            self.events.append(Event(label, x, self._seen["G"][-1], before=state))
            self._seen = {"G": [], "D": []}

        def after(*_: Any) -> None:
            self.events[-1].after = self.look(self.nets[label], optimizer)

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)

    def evaluation(self, value: float) -> float:
        self.events.append(Event("E", value=value))
        return value


def state_of(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Parameters by name, and Adam's moments as name:exp_avg and name:exp_avg_sq."""
    found = {}
    for name, p in net.named_parameters():
        found[name] = p.detach().clone()
        for key in ("exp_avg", "exp_avg_sq"):
            if key in optimizer.state.get(p, {}):
                found[f"{name}:{key}"] = optimizer.state[p][key].clone()
    return found


class Replay:
    """The same steps in an ordinary loop around networks that rgplug is attached to: hinge losses, Adam."""

    at_once = False  # one backward for D's loss, or one each for real and generated images, as the program has it

    def __init__(self, G: nn.Module, D: nn.Module, policy: Any, lr: float, betas: tuple[float, float] = (0.0, 0.9)):
        self.nets = {"G": G, "D": D}
        self.rg = rgplug.attach(G, D, policy)
        self.optimizers = {k: torch.optim.Adam(net.parameters(), lr, betas) for k, net in self.nets.items()}

    def backward(self, event: Event) -> None:
        G, D = self.nets["G"], self.nets["D"]
        self.optimizers[event.what].zero_grad()
        if event.what == "D" and self.at_once:
            real, fake = D(event.x), D(G(event.z).detach())
            (torch.mean(torch.relu(1.0 - real)) + torch.mean(torch.relu(1 + fake))).backward()
        elif event.what == "D":
            torch.relu(1.0 - D(event.x).view(-1)).mean().backward()
            torch.relu(1 + D(G(event.z).detach()).view(-1)).mean().backward()
        else:
            (-D(G(event.z)).view(-1).mean()).backward()

    def step(self, event: Event) -> None:
        self.optimizers[event.what].step()

    def state(self, label: str) -> dict[str, Tensor]:
        return state_of(self.nets[label], self.optimizers[label])

    def thetas(self, label: str) -> dict[str, Tensor]:
        return {w.name: w.theta for w in self.rg.weights(label)}

    def masks(self, label: str) -> dict[str, Tensor]:
        return {w.name: w.mask for w in self.rg.weights(label)}


def equal(mine: dict[str, Tensor], theirs: dict[str, Tensor], where: str) -> None:
    """Bit for bit, entry by entry; -0 counts as 0. `mine` may hold less than `theirs`, but not nothing."""
    assert mine
    for name, value in mine.items():
        if not torch.equal(value, theirs[name]):
            wrong = int((value != theirs[name]).sum())
            pytest.fail(f"{where}: {name} differs in {wrong} of {value.numel()} entries")

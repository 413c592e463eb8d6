"""Small hosts for the tests of the engine: a pair of networks in an ordinary GAN loop, layers with known weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rgplug
from rgplug.layout import FilterLayout
from rgplug.masking import MaskedWeight

MILD = {"sparsity_weight": 1e-2, "threshold": {"init": 0.05}}
# thresholds that grow by lr each step and nothing else: Adam divides lambda by itself
RAMP = {"sparsity_weight": 1.0, "threshold": {"task_gradient": False}}
ADAM = {"lr": 1e-2, "betas": (0.5, 0.999)}


def linear(rows: Sequence[Sequence[float]], dtype: torch.dtype = torch.float32) -> nn.Linear:
    """A linear layer without bias whose weight is `rows`."""
    weight = torch.tensor(rows, dtype=dtype)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def managed_weight(layer: nn.Linear) -> MaskedWeight:
    """The weight of a linear layer under a mask, with no controller around it."""
    return MaskedWeight("weight", layer, layer.weight, FilterLayout(tuple(layer.weight.shape)))


def set_grad(layer: nn.Module, rows: Any, name: str = "weight") -> None:
    param = getattr(layer, name)
    param.grad = torch.as_tensor(rows, dtype=param.dtype).expand(param.shape).clone()


def adam(module: nn.Module, **settings: Any) -> torch.optim.Adam:
    return torch.optim.Adam(module.parameters(), **{**ADAM, **settings})


def sgd(module: nn.Module, lr: float = 1.0, **settings: Any) -> torch.optim.SGD:
    return torch.optim.SGD(module.parameters(), lr=lr, **settings)


def set_masks(rg: rgplug.Controller, network: str, masks: Sequence[Any]) -> None:
    """Put thresholds where they give `masks` (all of a filter, or by size), by loading a state."""
    state = rg.state_dict()
    for w, mask in zip(rg.weights(network), masks):
        own = state["networks"][network]["weights"][w.name]
        own["mask"] = torch.as_tensor(mask).expand(w.param.shape).clone()
        own["dormant"] = torch.where(own["mask"], torch.zeros_like(w.param), w.param.detach())
    rg.load_state_dict(state)


def pruned_at(rg: rgplug.Controller, network: str, threshold: float) -> None:
    """All thresholds of a network to one value, and the masks that follow from it."""
    for w in rg.weights(network):
        w.threshold.fill_(threshold)
    rg.networks[network].refresh_all()


class Host:
    """An ordinary GAN training script: D on real and on generated images, then G, every iteration."""

    def __init__(
        self,
        kind: str = "plain",
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        optimizer: Callable[[nn.Module], torch.optim.Optimizer] = adam,
    ) -> None:
        self.G, self.D = tiny.build(kind, seed, dtype)
        self.opt = {"G": optimizer(self.G), "D": optimizer(self.D)}
        self.data = tiny.Data(dtype)
        self.iteration = 0

    @property
    def nets(self) -> dict[str, nn.Module]:
        return {"G": self.G, "D": self.D}

    def losses(self) -> dict[str, Callable[[], Tensor]]:
        def d_loss() -> Tensor:
            fake = self.G(self.data.z(2 * self.iteration)).detach()
            return F.relu(1 - self.D(self.data.x(self.iteration))).mean() + F.relu(1 + self.D(fake)).mean()

        return {"D": d_loss, "G": lambda: -self.D(self.G(self.data.z(2 * self.iteration + 1))).mean()}

    def run(self, iterations: int, after: Callable[[], Any] | None = None) -> None:
        for _ in range(iterations):
            for name, loss in self.losses().items():
                self.opt[name].zero_grad()
                loss().backward()
                self.opt[name].step()
            self.iteration += 1
            if after is not None:
                after()

    def state_dict(self) -> dict[str, Any]:
        nets = {k: v.state_dict() for k, v in self.nets.items()}
        return {**nets, "opt": {k: o.state_dict() for k, o in self.opt.items()}, "iteration": self.iteration}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, net in self.nets.items():
            net.load_state_dict(state[name])
            self.opt[name].load_state_dict(state["opt"][name])
        self.iteration = state["iteration"]


def attached(policy: dict[str, Any] | None = None, steps: int = 1) -> tuple[Host, rgplug.Controller]:
    """A pair that has trained for some iterations under a policy, MILD if none is given."""
    host = Host()
    rg = rgplug.attach(host.G, host.D, MILD if policy is None else policy)
    host.run(steps)
    return host, rg


def snapshot(rg: rgplug.Controller) -> dict[str, Tensor]:
    """Everything that has to be equal after an exact resume, or on two ranks."""
    seen = {}
    for label, net in rg.networks.items():
        for w in net.weights:
            seen[f"{label}.{w.name}"] = w.param.detach().clone()
            seen[f"{label}.{w.name}.theta"] = w.theta.clone()
            seen[f"{label}.{w.name}.mask"] = w.mask.clone()
            if w.threshold is not None:
                seen[f"{label}.{w.name}.threshold"] = w.threshold.clone()
    return seen


def different(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names of what is not bit for bit the same."""
    return sorted(set(a) ^ set(b)) + [k for k in a if k in b and not torch.equal(a[k], b[k])]


TASK = {"sparsity_weight": 1e-2, "threshold": {"init": 0.05}}  # prunes, regrows, and its thresholds feel the loss
FIXED = {"sparsity_weight": 0.0, "threshold": {"init": 0.1, "task_gradient": False}}  # masks that nothing moves


def trajectory(
    policy: dict[str, Any] = TASK,
    steps: int = 6,
    loop: Callable[[Host, rgplug.Controller], None] | None = None,
    kind: str = "plain",
    **options: Any,
) -> dict[str, Tensor]:
    host = Host(kind, **options)
    with rgplug.attach(host.G, host.D, policy) as rg:
        if loop is None:
            host.run(steps)
        else:
            loop(host, rg)
        seen = snapshot(rg)
        assert rg.density("G") < 1 or policy is not TASK
        return seen

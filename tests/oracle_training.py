"""What the oracles of PF, tickets (oracle_magnitude.py) and ADAPT (oracle_adapt.py) share: Adam under masks, ranking.

Arithmetic is numpy in float64; torch serves only to get gradients. Nothing of rgplug is imported, so that agreement
with it means something. Use networks in double precision: weights live in the network between steps, in its dtype.

Common to all: a managed weight is a parameter of dim >= 2; biases and other vectors train as always. A pruned
weight is exactly 0 after every step, and its gradient is masked before Adam sees it. Counts use Python's `round`
(halves to even). Among equal scores the earlier entry (order of the parameters, then flat index) counts as the larger.
A `loss_fn` takes the network and returns a scalar loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

Arrays = dict[str, np.ndarray]
LossFn = Callable[[torch.nn.Module], torch.Tensor]

TOLERANCE = 1e-9  # 0.1 + 0.2 does not exceed 0.3, and 0.07 of 100 is 7


# --- network and numpy ---------------------------------------------------------------------------------------------


def to_numpy(values: Any) -> np.ndarray:
    """A float64 copy of a tensor or an array."""
    values = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values
    return np.array(values, dtype=np.float64)


def read_parameters(net: torch.nn.Module) -> Arrays:
    """Every parameter by name."""
    return {name: to_numpy(param) for name, param in net.named_parameters()}


def managed_weights(net: torch.nn.Module) -> Arrays:
    """The prunable parameters by name: those of dim >= 2."""
    return {name: value for name, value in read_parameters(net).items() if value.ndim >= 2}


def write_parameters(net: torch.nn.Module, values: Arrays) -> None:
    params = dict(net.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            params[name].copy_(torch.from_numpy(np.asarray(value)))


def apply_masks(net: torch.nn.Module, masks: Arrays) -> None:
    """Set the pruned entries of the network to 0."""
    values = read_parameters(net)
    write_parameters(net, {name: np.where(mask, values[name], 0.0) for name, mask in masks.items()})


def density_of(masks: Arrays) -> float:
    """Share of entries kept over all masks together."""
    return sum(int(m.sum()) for m in masks.values()) / sum(m.size for m in masks.values())


def moments_of(net: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """Adam's {exp_avg, exp_avg_sq, step} of every parameter that has them, by the parameter's name."""
    states = {name: optimizer.state[param] for name, param in net.named_parameters() if param in optimizer.state}
    return {name: {key: to_numpy(s[key]) for key in ("exp_avg", "exp_avg_sq", "step")} for name, s in states.items()}


class Adam:
    """Adam with bias correction and one step count per parameter (Kingma & Ba 2015, Algorithm 1); eps 1e-8."""

    def __init__(self, lr: float, betas: tuple[float, float], moments: Mapping[str, Mapping[str, Any]] | None = None):
        self.lr, self.betas, self.eps = lr, betas, 1e-8
        self.m: Arrays = {name: to_numpy(s["exp_avg"]) for name, s in (moments or {}).items()}
        self.v: Arrays = {name: to_numpy(s["exp_avg_sq"]) for name, s in (moments or {}).items()}
        self.t: dict[str, int] = {name: int(s["step"]) for name, s in (moments or {}).items()}

    def update(self, name: str, value: np.ndarray, grad: np.ndarray) -> np.ndarray:
        """The new value of one parameter: value - lr * m_hat / (sqrt(v_hat) + eps)."""
        b1, b2 = self.betas
        self.m[name] = b1 * self.m.get(name, 0.0) + (1 - b1) * grad
        self.v[name] = b2 * self.v.get(name, 0.0) + (1 - b2) * grad**2
        self.t[name] = self.t.get(name, 0) + 1
        m_hat = self.m[name] / (1 - b1 ** self.t[name])
        v_hat = self.v[name] / (1 - b2 ** self.t[name])
        return value - self.lr * m_hat / (np.sqrt(v_hat) + self.eps)


def masked_step(net: torch.nn.Module, masks: Arrays, adam: Adam, loss_fn: LossFn) -> tuple[float, Arrays]:
    """One training step under fixed masks. Returns the loss and the dense gradients (before they are masked).

    A parameter that the loss does not reach is left alone, moments and step count included, as torch's Adam does.
    """
    net.zero_grad(set_to_none=True)
    loss = loss_fn(net)
    loss.backward()
    dense = {name: to_numpy(param.grad) for name, param in net.named_parameters() if param.grad is not None}
    net.zero_grad(set_to_none=True)
    values = read_parameters(net)
    for name, grad in dense.items():
        mask = masks.get(name, np.array(True))
        values[name] = np.where(mask, adam.update(name, values[name], grad * mask), 0.0)
    write_parameters(net, values)
    return float(loss.detach()), dense


# --- ranking, per array or over all arrays together ----------------------------------------------------------------


def flatten(arrays: Arrays) -> np.ndarray:
    return np.concatenate([a.ravel() for a in arrays.values()])


def unflatten(flat: np.ndarray, like: Arrays) -> Arrays:
    """Cut a flat array into the names and shapes of `like`."""
    ends = np.cumsum([a.size for a in like.values()])[:-1]
    return {name: part.reshape(like[name].shape) for name, part in zip(like, np.split(flat, ends))}


def same_order(arrays: Arrays, like: Arrays) -> Arrays:
    return {name: arrays[name] for name in like}


def largest(scores: np.ndarray, among: np.ndarray, count: int) -> np.ndarray:
    """True at the `count` largest of the flat `scores` where `among` is True (at all of them if there are fewer)."""
    candidates = np.flatnonzero(among)
    order = candidates[np.argsort(-scores[candidates], kind="stable")]
    chosen = np.zeros(scores.size, dtype=bool)
    chosen[order[: max(count, 0)]] = True
    return chosen

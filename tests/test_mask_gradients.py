"""Masking gradients early, for hosts that clip or log their norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from common import TASK, Host, different, trajectory
from torch import nn

import rgplug


def clipped(value: float, clip: Callable[[Host, rgplug.Controller, str, float], None]) -> Callable[..., None]:
    def loop(host: Host, rg: rgplug.Controller) -> None:
        for _ in range(6):
            for name, loss in host.losses().items():
                host.opt[name].zero_grad()
                loss().backward()
                clip(host, rg, name, value)
                host.opt[name].step()
            host.iteration += 1

    return loop


def clip_once(host: Host, rg: rgplug.Controller, name: str, value: float) -> None:
    rg.mask_gradients(name)
    nn.utils.clip_grad_norm_(host.nets[name].parameters(), value)


def clip_twice(host: Host, rg: rgplug.Controller, name: str, value: float) -> None:
    rg.mask_gradients(name)
    rg.mask_gradients(name)
    nn.utils.clip_grad_norm_(host.nets[name].parameters(), value)


def clip_and_log(host: Host, rg: rgplug.Controller, name: str, value: float) -> None:
    rg.mask_gradients(name)
    nn.utils.clip_grad_norm_(host.nets[name].parameters(), value)
    rg.mask_gradients(name)  # before the norm is logged: nothing is left to be masked


def clip_both(host: Host, rg: rgplug.Controller, name: str, value: float) -> None:
    rg.mask_gradients()
    nn.utils.clip_grad_norm_(host.nets[name].parameters(), value)


def clip_only_d(host: Host, rg: rgplug.Controller, name: str, value: float) -> None:
    if name == "D":
        rg.mask_gradients()  # of both, though only D is clipped
        nn.utils.clip_grad_norm_(host.D.parameters(), value)


@pytest.mark.parametrize("clip", [clip_once, clip_twice, clip_and_log, clip_both, clip_only_d])
def test_a_huge_clip_value_changes_nothing(clip: Any) -> None:
    assert not different(trajectory(loop=clipped(1e9, clip)), trajectory())


def test_the_norm_is_that_of_the_masked_gradient() -> None:
    host = Host()
    rg = rgplug.attach(host.G, host.D, TASK)
    host.run(3)
    host.opt["G"].zero_grad()
    host.losses()["G"]().backward()
    squares = 0.0
    masks = {id(w.param): w.mask.clone() for w in rg.weights("G")}
    for p in host.G.parameters():
        squares += (p.grad * masks.get(id(p), 1)).square().sum().item()
    unmasked = nn.utils.get_total_norm([p.grad for p in host.G.parameters()]).item()
    rg.mask_gradients("G")
    norm = nn.utils.get_total_norm([p.grad for p in host.G.parameters()]).item()
    assert norm == pytest.approx(squares**0.5)
    assert norm < unmasked


def test_a_step_the_host_leaves_out_after_masking_does_not_spoil_the_next() -> None:
    def loop(leave_out: bool) -> Callable[[Host, rgplug.Controller], None]:
        def run(host: Host, rg: rgplug.Controller) -> None:
            host.run(2)
            if leave_out:
                host.opt["G"].zero_grad()
                (1e3 * host.G(host.data.z(3)).square().sum()).backward()
                rg.mask_gradients("G")  # the norm is too large: no step, and nothing masked by hand from here on
            host.run(3)

        return run

    seen = [trajectory(loop=loop(leave_out), kind="equalized") for leave_out in (False, True)]
    assert not [k for k in different(*seen) if "G" in k]

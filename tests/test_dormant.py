"""What waits at pruned positions: the mask in its bits, zeros that stay pruned, values rounded to half precision."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch
from common import FIXED, Host, linear, managed_weight, set_grad, sgd
from torch import nn

import rgplug
from rgplug import kernels
from rgplug.errors import RgplugError

# ---- the mask in the dormant values ------------------------------------------------------------------------------

KERNELS = ["eager", "auto"]


def is_plus_zero(x: torch.Tensor) -> torch.Tensor:
    return (x == 0) & ~torch.signbit(x)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_pruned_weight_of_exactly_0_stays_pruned(dtype: torch.dtype, kernels: str) -> None:
    layer = linear([[1.0, 0.0, -0.0, 0.0625]], dtype)
    opt = sgd(layer)
    policy = {"sparsity_weight": 0.0, "threshold": {"init": 0.1, "task_gradient": False}, "kernels": kernels}
    rg = rgplug.attach(layer, policy=policy)
    (w,) = rg.weights("G")
    for _ in range(2):
        assert w.mask.tolist() == [[True, False, False, False]]
        set_grad(layer, 0.0)
        opt.step()
    assert w.theta.tolist() == [[1.0, 0.0, 0.0, 0.0625]]
    assert is_plus_zero(layer.weight[~w.mask]).all()
    rg.networks["G"].go_dense()
    assert w.mask.all()
    assert layer.weight.tolist() == [[1.0, 0.0, 0.0, 0.0625]]


@pytest.mark.parametrize("kernels", KERNELS)
def test_pruned_positions_are_plus_0_whatever_optimizer_and_host_left_there(kernels: str) -> None:
    """Momentum and decay move pruned entries, and the host writes -0: neither is a value that the host wrote."""
    layer = linear([[1.0, 0.05, -0.03, 2.0]])
    opt = torch.optim.AdamW(layer.parameters(), lr=0.01, weight_decay=0.1)
    rg = rgplug.attach(
        layer, policy={"sparsity_weight": 0.0, "kernels": kernels, "threshold": {"task_gradient": False}}
    )
    (w,) = rg.weights("G")
    set_grad(layer, 1.0)
    opt.step()  # moments of all entries
    w.threshold.fill_(0.1)
    rg.networks["G"].refresh_all()
    waits = w.theta[~w.mask]
    for _ in range(3):
        layer.weight.data[~w.mask] = -0.0
        set_grad(layer, 1.0)
        opt.step()
        assert is_plus_zero(layer.weight[~w.mask]).all()
    assert w.mask.tolist() == [[True, False, False, True]]
    assert torch.equal(w.theta[~w.mask], waits)
    assert int(rg.networks["G"].counts.written.sum()) == 0


def test_the_mask_takes_no_memory() -> None:
    layer = linear([[1.0, 0.05], [0.02, 4.0]])
    rg = rgplug.attach(layer, policy={"threshold": {"init": 0.1}})
    (w,) = rg.weights("G")
    held = [x for x in vars(w).values() if isinstance(x, torch.Tensor) and x is not w.param]
    assert sorted(x.numel() for x in held) == [2, 4]  # thresholds, dormant values


def test_values_that_vanish_in_a_narrower_dtype_stay_pruned() -> None:
    layer = linear([[1.0, 1e-10, 0.05]])
    w = managed_weight(layer)
    w.set_mask(torch.tensor([[True, False, False]]))
    layer.half()
    assert w.follow()
    assert w.mask.tolist() == [[True, False, False]]
    assert w.theta.tolist() == [[1.0, 0.0, torch.tensor(0.05).half().item()]]


@pytest.mark.parametrize("kernels", KERNELS)
def test_flushed_denormals_stay_pruned(kernels: str) -> None:
    layer = linear([[1.0, 1e-40, 0.0]])
    opt = sgd(layer)
    policy = {"sparsity_weight": 0.0, "threshold": {"init": 0.1, "task_gradient": False}, "kernels": kernels}
    rg = rgplug.attach(layer, policy=policy)
    (w,) = rg.weights("G")
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush")
    try:
        for _ in range(2):
            set_grad(layer, 0.0)
            opt.step()
            assert w.mask.tolist() == [[True, False, False]]
    finally:
        torch.set_flush_denormal(False)


def test_a_state_with_plain_zeros_where_pruned_loads() -> None:
    layer = linear([[1.0, 2.0], [3.0, 4.0]])
    w = managed_weight(layer)
    mask = torch.tensor([[True, False], [False, True]])
    w.load(mask, torch.tensor([[0.0, 0.0], [3.0, 0.0]]), None)
    assert torch.equal(w.mask, mask)
    w.forget()
    assert torch.equal(w.mask, mask)
    layer.weight.data[~mask] = 0.0
    assert w.theta.tolist() == [[1.0, 0.0], [0.0, 4.0]]


def test_a_window_that_was_left_open_closes_with_the_mask_it_had() -> None:
    layer = linear([[1.0, 2.0], [0.0, 4.0]])
    w = managed_weight(layer)
    w.set_mask(torch.tensor([[True, False], [False, True]]))
    w.restore()
    assert w.dormant.tolist() == w.theta.tolist() == [[1, 2], [0, 4]]
    assert w.mask.tolist() == [[True, False], [False, True]]
    w.close()
    assert not w.merged
    assert w.mask.tolist() == [[True, False], [False, True]]
    assert w.dormant.tolist() == [[0, 2], [0, 0]]


@pytest.mark.parametrize("units", ["absolute", "spectral"])
@pytest.mark.parametrize("kernels", KERNELS)
def test_a_step_that_breaks_off_in_the_method_leaves_no_trace_at_pruned_positions(units: str, kernels: str) -> None:
    """What momentum did to pruned entries is undone, or the next step would take it for the host's."""
    layer = linear([[1.0, 0.05], [2.0, 4.0]])
    opt = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    policy = {"sparsity_weight": 0.0, "kernels": kernels, "threshold": {"units": units, "task_gradient": False}}
    rg = rgplug.attach(layer, policy=policy)
    (w,), net = rg.weights("G"), rg.networks["G"]
    set_grad(layer, 0.01)
    opt.step()  # momentum everywhere
    w.threshold.fill_(0.1 if units == "absolute" else 0.03)
    net.refresh_all()
    assert w.mask.tolist() == [[True, False], [True, True]]
    waits = w.theta[0, 1].item()
    set_grad(layer, 0.0)
    with mock.patch.object(net.method, "update", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        opt.step()
    set_grad(layer, 0.0)
    opt.step()
    assert w.theta[0, 1].item() == waits
    assert int(net.counts.written.sum()) == 0


# ---- rounded dormant values ----------------------------------------------------------------------------------------

ROUNDED = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.mark.parametrize("units", ["absolute", "layer_std", "spectral"])
@pytest.mark.parametrize("dormant", ROUNDED)
def test_what_waits_is_rounded_and_nothing_else(dormant: str, units: str) -> None:
    """Masks are those of exact values until something rounded comes back, which it does as it was rounded."""
    torch.manual_seed(0)
    exact, layer = nn.Linear(9, 7, bias=False), nn.Linear(9, 7, bias=False)
    with torch.no_grad():
        exact.weight[0, :3] = torch.tensor([0.0, 1e-12, -1e-12])
    layer.load_state_dict(exact.state_dict())
    weights = []
    for net, dtype in ((exact, "own"), (layer, dormant)):
        opt = sgd(net, 0.01, momentum=0.9)
        rg = rgplug.attach(net, policy={"sparsity_weight": 0.0, "dormant": dtype, "threshold": {"units": units}})
        (w,) = rg.weights("G")
        set_grad(net, 0.1)
        opt.step()
        w.threshold.fill_({"absolute": 0.1, "layer_std": 0.5, "spectral": 0.1}[units])
        rg.networks["G"].refresh_all()
        weights.append((w, rg, opt))
    (theirs, _, _), (w, rg, opt) = weights
    assert w.dormant.dtype == ROUNDED[dormant]
    assert torch.equal(w.mask, theirs.mask)
    assert 0.1 < w.density < 0.9
    assert torch.equal(w.data, theirs.data)
    assert torch.equal(w.theta, torch.where(w.mask, w.data, theirs.theta.to(w.dormant.dtype).float()))
    waits = w.theta[~w.mask]
    pruned = ~w.mask
    layer.weight.grad = None
    opt.step()  # nothing moves what waits, however often it is taken out and put back
    assert is_plus_zero(layer.weight[~w.mask]).all()
    assert torch.equal(w.theta[pruned], waits)
    rg.networks["G"].go_dense()
    assert torch.equal(layer.weight[pruned], waits)
    assert w.mask.all()


@pytest.mark.parametrize("dormant", ROUNDED)
def test_a_resume_with_rounded_values_is_exact(dormant: str, tmp_path: Path) -> None:
    seen = []
    for resumed in (False, True):
        host = Host()
        policy = {"sparsity_weight": 1e-2, "dormant": dormant, "threshold": {"init": 0.03}}
        rg = rgplug.attach(host.G, host.D, policy)
        host.run(3)
        if resumed:
            rg.save(tmp_path / "state")
            rg.detach(finish="as-is")
            rg = rgplug.attach(host.G, host.D, policy)
            rg.load(tmp_path / "state")
        before = [w.theta.clone() for w in rg.weights("D")]
        host.run(3)
        assert rg.density("D") < 1
        assert not all(map(torch.equal, before, (w.theta for w in rg.weights("D"))))
        seen.append([x for n in "GD" for w in rg.weights(n) for x in (w.theta, w.mask, w.threshold)])
        rg.detach()
    assert all(map(torch.equal, *seen))


def test_values_written_at_pruned_positions_are_rounded_when_they_are_adopted() -> None:
    layer = linear([[1.0, 0.05, 2.0]])
    opt = sgd(layer)
    rg = rgplug.attach(layer, policy={**FIXED, "dormant": "bfloat16"})
    layer.weight.data.copy_(torch.tensor([[3.0, 0.0123456, 4.0]]))
    set_grad(layer, 0.0)
    opt.step()
    (w,) = rg.weights("G")
    assert w.theta.tolist() == [[3.0, torch.tensor(0.0123456).bfloat16().item(), 4.0]]
    assert int(rg.networks["G"].counts.written.sum()) == 1


def test_weights_that_are_no_wider_wait_as_they_are_and_loops_are_refused() -> None:
    layer = linear([[1.0, 0.05]], torch.bfloat16)
    (w,) = rgplug.attach(layer, policy={**FIXED, "dormant": "float16"}).weights("G")
    assert w.dormant.dtype == torch.bfloat16
    with pytest.raises(RgplugError, match=r"there are none for dormant: float16; set kernels: auto"):
        rgplug.attach(linear([[1.0, 0.05]]), policy={"kernels": "fused", "dormant": "float16"})


def test_zeros_of_a_weight_with_more_entries_than_float32_can_count() -> None:
    """A count that is off by a few would be taken for values that the host wrote."""
    dormant = torch.zeros(2**12 + 1, 2**12 + 3)
    weight = torch.zeros_like(dormant)
    _, zeros = kernels.merge_(weight, dormant, kernels.bits_of_dormant(dormant))
    assert int(zeros) == weight.numel()

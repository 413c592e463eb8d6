"""The compiled loops against the tensor operations that they stand for."""

from __future__ import annotations

import copy
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rgplug
from rgplug import fused
from rgplug.errors import RgplugError
from rgplug.kernels import as_bits
from rgplug.layout import FilterLayout
from rgplug.masking import MaskedWeight
from rgplug.methods.threshold_shift import threshold_of

needs_compiler = pytest.mark.skipif(
    fused.load(torch.float32) is None, reason=f"no fused loops here: {fused.why_not(torch.float32)}"
)


class Modulated(nn.Module):
    """A weight as StyleGAN2's modulated convolutions in other repositories keep it: [1, out, in, k, k]."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, 6, 5, 3, 3))


LAYERS: dict[str, Any] = {
    "linear": lambda: nn.Linear(7, 5),
    "long rows": lambda: nn.Linear(5000, 3),  # longer than a chunk, and not a multiple of a vector
    "many entries": lambda: nn.Linear(300, 200),  # enough for several threads
    "conv": lambda: nn.Conv2d(5, 6, 3),
    "channels last": lambda: nn.Conv2d(5, 6, 3).to(memory_format=torch.channels_last),
    "grouped conv": lambda: nn.Conv2d(6, 4, 3, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(5, 6, 3),
    "transposed channels last": lambda: nn.ConvTranspose2d(5, 6, 3).to(memory_format=torch.channels_last),
    "grouped transposed": lambda: nn.ConvTranspose1d(6, 8, 3, groups=2),
    "modulated": Modulated,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "paper": {},
    "no task gradient": {"threshold.task_gradient": False, "sparsity_weight": 1e-2},
    "full weight gradient": {"threshold.weight_gradient": "full"},
    "full, no task gradient": {
        "threshold.weight_gradient": "full",
        "threshold.task_gradient": False,
        "sparsity_weight": 1e-2,
    },
    "layer_std": {"threshold.units": "layer_std"},
    "spectral, full": {"threshold.units": "spectral", "threshold.weight_gradient": "full"},
    "no recurrence": {"regeneration.recurrent": False, "threshold.units": "layer_std"},
    "target": {"target": {"G": 0.4, "by": 10}},
    "target, no recurrence": {"target": {"G": 0.4, "by": 10}, "regeneration.recurrent": False},
    "guard": {"threshold.guard": 0.7},
}


def train(net: nn.Module, policy: dict[str, Any], steps: int = 20) -> dict[str, Tensor]:
    """Steps on random gradients, one of them missing, one step with the host writing into the weight."""
    (param,) = (p for n, p in net.named_parameters() if n == "weight")
    rg = rgplug.attach(net, None, {"threshold.init": 0.02, "sparsity_weight": 1e-3, **policy})
    optimizer = torch.optim.Adam([param], 2e-2)
    generator = torch.Generator().manual_seed(1)
    for i in range(steps):
        grad = torch.randn(param.shape, generator=generator, dtype=torch.float64).to(param.dtype)
        param.grad = None if i == 5 else grad.to(memory_format=torch.preserve_format)
        if param.grad is not None and not param.is_contiguous():
            param.grad = param.grad.to(memory_format=torch.channels_last)
        if i == 7:
            with torch.no_grad():
                param.add_(0.05)
        optimizer.step()
    (weight,) = rg.networks["G"].weights
    found = {"mask": weight.mask, "dormant": weight.dormant, "threshold": weight.threshold, "weight": param.detach()}
    counts = rg.networks["G"].counts
    counters = torch.stack([counts.kept, counts.regrown, counts.pruned, counts.written])
    rg.detach()
    return {k: v.clone() for k, v in {**found, "counters": counters}.items()}


@needs_compiler
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("layer", LAYERS)
def test_fused_and_eager_agree(layer: str, setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for name in ("before", "after", "restore", "refresh", "margins"):
        original = getattr(fused.Fused, name)
        monkeypatch.setattr(fused.Fused, name, lambda *a, _f=original, _n=name, **k: (calls.append(_n), _f(*a, **k))[1])
    torch.manual_seed(0)
    net = LAYERS[layer]().double()
    eager = train(copy.deepcopy(net), {**SETTINGS[setting], "kernels": "eager"})
    assert not calls
    ours = train(net, {**SETTINGS[setting], "kernels": "fused"})
    looks = SETTINGS[setting].get("threshold.units") == "spectral" or "target" in SETTINGS[setting]
    if layer == "transposed channels last":  # filter rows lie apart in memory
        assert not calls
    else:
        assert {"before", "restore", "refresh"} <= set(calls)  # the last two at detach
        assert ("after" in calls) is not looks
        assert ("margins" in calls) is ("target" in SETTINGS[setting])
    assert torch.equal(ours["mask"], eager["mask"])
    assert setting == "guard" or eager["counters"][2] > 0  # something was pruned
    for key in ("weight", "dormant", "threshold", "counters"):
        torch.testing.assert_close(ours[key], eager[key], rtol=0, atol=1e-12)


@needs_compiler
@pytest.mark.parametrize("recurrent", [True, False])
def test_a_common_level_is_the_same_where_it_would_empty_a_layer(
    recurrent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a sample of the entries; the layer of small weights keeps a share, and the others make up for it. The tensor
    operations go the whole way, as on a device that cannot be asked whether a layer is near its guard."""
    monkeypatch.setattr("rgplug.network.SAMPLES_PER_STEP", 500)
    found = []
    for kernels in ("fused", "eager"):
        if kernels == "eager":
            monkeypatch.setattr("rgplug.methods.threshold_shift._may_hold", lambda condition: True)
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(30, 40), nn.Linear(40, 50), nn.Linear(50, 20)).double()
        with torch.no_grad():
            net[1].weight.mul_(1e-3)
        policy = {"target": {"G": 0.1, "by": 4}, "regeneration.recurrent": recurrent, "threshold.guard": 0.05}
        rg = rgplug.attach(net, None, {**policy, "kernels": kernels})
        optimizer = torch.optim.SGD(net.parameters(), 1e-3)
        for _ in range(6):
            net(torch.randn(4, 30, dtype=torch.float64)).square().sum().backward()
            optimizer.step()
        weights = rg.networks["G"].weights
        found.append((torch.cat([w.mask.flatten() for w in weights]), torch.cat([threshold_of(w) for w in weights])))
        assert weights[1].density >= 0.05  # by the common level alone, nothing would be left
        rg.detach()
    (mask, threshold), (eager_mask, eager_threshold) = found
    assert torch.equal(mask, eager_mask)
    torch.testing.assert_close(threshold, eager_threshold, rtol=0, atol=1e-12)


@needs_compiler
@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(odd: float, full: bool) -> None:
    """They stay where the mask keeps them and go where it does not, as with tensor operations."""
    torch.manual_seed(0)
    results = []
    for kernels in ("fused", "eager"):
        torch.manual_seed(0)
        net = nn.Linear(16, 2, dtype=torch.float64)
        policy = {"threshold.init": 0.1, "threshold.weight_gradient": "full" if full else "masked", "kernels": kernels}
        rg = rgplug.attach(net, None, policy)
        (weight,) = rg.networks["G"].weights
        with torch.no_grad():
            net.weight[0, 3] = odd  # adopted, if it is pruned
        net.weight.grad = torch.ones_like(net.weight)
        net.weight.grad[0, 5] = odd
        torch.optim.SGD([net.weight], 0.1).step()
        results.append((net.weight.detach().clone(), weight.mask.clone(), weight.dormant.clone()))
        rg.detach()
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12, equal_nan=True)


@needs_compiler
def test_a_long_sum_keeps_its_precision() -> None:
    """A filter of a million float32 weights: the threshold's gradient is right to nearly all digits."""
    n = 2**20
    torch.manual_seed(0)
    loops = fused.load(torch.float32)
    assert loops is not None
    weight, grad, none = torch.rand(1, n), torch.ones(1, n), torch.zeros(1, n)
    shape, zeros = fused.Shape.of(FilterLayout((1, n))), torch.empty((), dtype=torch.float64)
    rule = rgplug.methods.Rule(torch.full((1,), 100.0), task_gradient=True)  # |x| > 1 everywhere: H' = 0
    out = loops.before(shape, weight, none, grad.clone(), rule, zeros)
    assert out is not None
    assert out.item() == 0
    rule = rgplug.methods.Rule(weight.new_full((1,), 0.5), task_gradient=True)
    out = loops.before(shape, weight, none, grad, rule, zeros)
    x = (weight.double() - 0.5).abs()
    exact = -(weight.double() * (2 - 4 * x).clamp_min(0.4)).sum()
    assert out is not None
    assert out.item() == pytest.approx(exact.item(), rel=1e-6)


@needs_compiler
def test_variance_keeps_its_precision_and_does_not_depend_on_threads() -> None:
    """Far from 0, over several chunks, the last one short; entries come from the weight or wait."""
    torch.manual_seed(0)
    loops = fused.load(torch.float64)
    assert loops is not None
    theta = 1e4 + 1e-2 * torch.randn(37, 1999, dtype=torch.float64)
    mask = torch.rand(theta.shape) < 0.5
    weight = torch.where(mask, theta, torch.randn_like(theta))  # as the optimizer left it
    dormant = theta.masked_fill(mask, 0)
    shape = fused.Shape.of(FilterLayout((37, 1999)))
    threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            found.append(loops.variance(shape, weight, dormant, gathered=False).item())
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == loops.variance(shape, weight, theta, gathered=True).item()
    assert found[0] == pytest.approx((theta - 1e4).var(correction=0).item(), rel=1e-9)


@needs_compiler
@pytest.mark.parametrize("looks", [False, True])
def test_the_guard_brings_back_what_the_pass_had_pruned(looks: bool) -> None:
    loops = fused.load(torch.float32)
    assert loops is not None
    theta = torch.tensor([[0.5, 0.0, 0.25], [4.0, -0.125, -0.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    weight, dormant = torch.where(mask, theta, 7.0), torch.where(mask, 0.0, theta)
    dormant[1, 2] = -0.0
    shape, counts = fused.Shape.of(FilterLayout((2, 3))), torch.empty(2, dtype=torch.float64)
    rule = rgplug.methods.Rule(torch.ones(2))
    if not looks:
        tripped = loops.after(shape, weight, dormant, rule, counts, recurrent=True, limit=5)
    else:
        loops.restore(shape, weight, dormant)
        assert torch.equal(dormant, theta)
        assert not weight[~mask].any()
        tripped = loops.refresh(shape, weight, dormant, mask, rule, counts, recurrent=True, limit=5)
        assert mask.all()
    assert tripped
    assert torch.equal(weight, theta)
    assert not as_bits(dormant).any()
    assert counts.tolist() == [0, 0]


@needs_compiler
def test_autograd_notices_that_memory_was_written() -> None:
    net = nn.Linear(8, 4)
    rgplug.attach(net, None, {"threshold.init": 0.1, "kernels": "fused"})
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    x = torch.randn(2, 8, requires_grad=True)
    loss = net(x).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@needs_compiler
def test_gradients_of_another_dtype_or_order_take_the_eager_way() -> None:
    loops = fused.load(torch.float32)
    assert loops is not None
    layout = FilterLayout((4, 4, 3, 3))
    weight = torch.randn(4, 4, 3, 3)
    assert loops.covers(layout, weight, weight > 0, weight.clone())
    assert not loops.covers(layout, weight, weight.double())
    assert not loops.covers(layout, weight, weight.to(memory_format=torch.channels_last))
    assert not loops.covers(layout, weight.transpose(0, 1), weight)
    assert loops.covers(
        FilterLayout((4, 4, 1, 1)), torch.randn(4, 4, 1, 1), torch.randn(4, 4).as_strided((4, 4, 1, 1), (4, 1, 4, 4))
    )


def test_without_a_compiler_tensor_operations_do_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_loaded", {})
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    net = nn.Linear(8, 4)
    rg = rgplug.attach(net, None, {"threshold.init": 0.1})
    assert rg.networks["G"].weights[0].fused() is None
    net(torch.randn(2, 8)).sum().backward()
    torch.optim.SGD(net.parameters(), 0.1).step()
    assert rg.density()["G"] < 1
    rg.detach()
    with pytest.raises(RgplugError, match=r"policy.kernels is fused.*no C compiler was found.*kernels: auto"):
        rgplug.attach(net, None, {"kernels": "fused"})


def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'cc: out of luck' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(fused, "_loaded", {})
    monkeypatch.setenv("CC", str(broken))
    monkeypatch.setenv("RGPLUG_CACHE", str(tmp_path / "cache"))
    assert fused.load(torch.float32) is None
    assert "out of luck" in fused.why_not(torch.float32)
    assert not any(x.suffix == ".so" for x in (tmp_path / "cache").rglob("*"))


@needs_compiler
def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(fused, "_loaded", {})
    monkeypatch.setenv("RGPLUG_CACHE", str(tmp_path / "file" / "cache"))
    assert fused.load(torch.float32) is not None


def test_dtypes_without_loops() -> None:
    assert fused.load(torch.bfloat16) is None
    with pytest.raises(RgplugError, match=r"there are none for torch\.bfloat16"):
        rgplug.attach(nn.Linear(4, 4, dtype=torch.bfloat16), None, {"kernels": "fused"})


@needs_compiler
def test_a_network_that_changes_its_dtype_gets_the_loops_of_the_new_one() -> None:
    net = nn.Linear(8, 4)
    rg = rgplug.attach(net, None, {"kernels": "fused"})
    net.double()
    net(torch.randn(2, 8).double()).sum().backward()
    torch.optim.SGD(net.parameters(), 0.1).step()
    loops = rg.networks["G"].weights[0].fused()
    assert loops is not None
    assert loops.dtype is torch.float64


@needs_compiler
def test_several_processes_compile_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RGPLUG_CACHE", str(tmp_path))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        paths = pool.map(fused._compile, ["float", "float"])
    assert paths[0] == paths[1]
    assert [p.name for p in tmp_path.iterdir()] == [paths[0].name]


def test_masked_weight_without_loops() -> None:
    param = nn.Parameter(torch.randn(3, 4))
    assert MaskedWeight("weight", nn.Linear(4, 3), param, FilterLayout((3, 4))).fused() is None


@needs_compiler
@pytest.mark.parametrize("kernels", ["eager", "fused"])
def test_infinite_dormant_values_stay_infinite(kernels: str) -> None:
    """theta = [inf, inf, .5, 2], the first two pruned; the host writes 3 over the first. |inf| lies above .1: kept."""
    net = nn.Linear(4, 1, bias=False)
    policy = {"kernels": kernels, "sparsity_weight": 0.0, "threshold.task_gradient": False, "threshold.init": 0.1}
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.0, 0.0, 0.5, 2.0]]))
    rg = rgplug.attach(net, None, policy)
    (w,) = rg.weights("G")
    assert w.mask.tolist() == [[False, False, True, True]]
    w.dormant[0, :2] = torch.inf
    with torch.no_grad():
        net.weight[0, 0] = 3.0
    net.weight.grad = torch.full((1, 4), 0.25)
    torch.optim.SGD(net.parameters(), 1.0).step()
    assert w.theta.tolist() == [[3.0, torch.inf, 0.25, 1.75]]
    assert net.weight.tolist() == [[3.0, torch.inf, 0.25, 1.75]]
    assert w.mask.all()

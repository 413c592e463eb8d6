"""MaskedWeight and FilterLayout: which entries belong to which output filter, and what mask and dormant store hold."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from common import FIXED, Host, linear, set_grad, sgd
from torch import nn

import rgplug
from rgplug.errors import RgplugError
from rgplug.layout import FilterLayout
from rgplug.masking import MaskedWeight


class Modulated(nn.Module):
    """A convolution that keeps its weight as [1, out, in, k, k]."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, 5, 3, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight[0], padding=1)


LAYERS = {
    "linear": (lambda: nn.Linear(4, 6, bias=False), (2, 4)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, bias=False), (2, 4, 8)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, bias=False), (2, 4, 8, 8)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 3, bias=False), (2, 4, 5, 5, 5)),
    "conv2d grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, bias=False), (2, 4, 8, 8)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4, bias=False), (2, 4, 8, 8)),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 6, 3, bias=False), (2, 4, 8)),
    "transposed2d": (lambda: nn.ConvTranspose2d(4, 6, 3, bias=False), (2, 4, 8, 8)),
    "transposed3d": (lambda: nn.ConvTranspose3d(4, 6, 3, bias=False), (2, 4, 5, 5, 5)),
    "transposed1d grouped": (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2, bias=False), (2, 4, 8)),
    "transposed2d grouped": (lambda: nn.ConvTranspose2d(8, 12, 3, groups=4, bias=False), (2, 8, 8, 8)),
    "transposed3d grouped": (lambda: nn.ConvTranspose3d(4, 6, 3, groups=2, bias=False), (2, 4, 5, 5, 5)),
    "transposed depthwise": (lambda: nn.ConvTranspose2d(6, 6, 3, groups=6, bias=False), (2, 6, 8, 8)),
    "modulated": (Modulated, (2, 3, 8, 8)),
}


CHANNELS_LAST = [(name, True) for name, (_, shape) in LAYERS.items() if len(shape) == 4 and name != "modulated"]


@pytest.mark.parametrize(("name", "channels_last"), [(name, False) for name in LAYERS] + CHANNELS_LAST)
def test_a_threshold_acts_on_its_output_channel_and_no_other(name: str, channels_last: bool) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = make()
    if channels_last:
        layer = layer.to(memory_format=torch.channels_last)
    x = torch.randn(shape)
    dense = layer(x).detach()
    rg = rgplug.attach(layer, policy={"threshold": {"guard": 0.0}})
    (w,) = rg.weights("G")
    assert w.threshold.shape == (dense.shape[1],)
    for channel in range(dense.shape[1]):
        w.threshold.zero_()
        w.threshold[channel] = 100.0
        rg.networks["G"].refresh_all()
        out = layer(x).detach()
        assert not out[:, channel].any()
        others = [c for c in range(dense.shape[1]) if c != channel]
        torch.testing.assert_close(out[:, others], dense[:, others])
    assert w.density == pytest.approx(1 - 1 / dense.shape[1])


@pytest.mark.parametrize("name", LAYERS)
def test_the_sum_over_a_filter_is_the_gradient_of_a_factor_on_its_output(name: str) -> None:
    """d loss / d gain_i with out_i = gain_i * conv_i is sum_j A_ij theta_ij: the layout's sum of A * theta."""
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = make().double()
    out = layer(torch.randn(shape, dtype=torch.float64))
    factor = torch.randn_like(out)
    (out * factor).sum().backward()
    expected = (out * factor).transpose(0, 1).flatten(1).sum(1)
    rg = rgplug.attach(layer)
    (w,) = rg.weights("G")
    torch.testing.assert_close(w.layout.sum(layer.weight.grad * layer.weight).detach(), expected.detach())


def test_expand_view_and_sum_by_hand() -> None:
    layout = FilterLayout((4, 3, 1), dim=1, groups=2)  # ConvTranspose1d(4, 6, 1, groups=2)
    assert layout.filters == 6
    x = torch.arange(12.0).view(4, 3, 1)
    # rows 0, 1 belong to the first group, 2, 3 to the second
    assert layout.sum(x).tolist() == [0 + 3, 1 + 4, 2 + 5, 6 + 9, 7 + 10, 8 + 11]
    assert (layout.view(x) * 0 + layout.expand(torch.arange(6.0))).reshape(4, 3).tolist() == [
        [0, 1, 2],
        [0, 1, 2],
        [3, 4, 5],
        [3, 4, 5],
    ]
    assert FilterLayout((3, 2)).sum(torch.tensor([[1.0, 2], [3, 4], [5, 6]])).tolist() == [3, 7, 11]
    assert FilterLayout((3, 2), dim=1).sum(torch.tensor([[1.0, 2], [3, 4], [5, 6]])).tolist() == [9, 12]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_of_half_precision_weights_are_taken_in_float32(dtype: torch.dtype) -> None:
    x = torch.full((1, 4096), 0.1, dtype=dtype)
    total = FilterLayout((1, 4096)).sum(x)
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(4096 * x[0, 0].item(), rel=1e-5)


def weight_of(layer: nn.Linear) -> MaskedWeight:
    return MaskedWeight("weight", layer, layer.weight, FilterLayout(tuple(layer.weight.shape)))


def test_set_mask_moves_values_to_and_from_the_dormant_store() -> None:
    layer = linear([[1.0, 2.0], [3.0, 4.0]])
    w = weight_of(layer)
    w.set_mask(torch.tensor([[True, False], [False, True]]))
    assert layer.weight.tolist() == [[1, 0], [0, 4]]
    assert w.dormant.tolist() == [[0, 2], [3, 0]]
    assert w.theta.tolist() == [[1, 2], [3, 4]]
    assert w.density == 0.5
    w.set_mask(torch.tensor([[False, True], [False, True]]))
    assert layer.weight.tolist() == [[0, 2], [0, 4]]
    assert w.dormant.tolist() == [[1, 0], [3, 0]]


def test_set_mask_does_not_lose_what_the_host_wrote_at_pruned_positions() -> None:
    layer = linear([[1.0, 2.0], [3.0, 4.0]])
    w = weight_of(layer)
    w.set_mask(torch.tensor([[True, False], [False, True]]))
    layer.weight.data.copy_(torch.tensor([[5.0, 6.0], [7.0, 8.0]]))
    assert w.theta.tolist() == [[5, 6], [7, 8]]
    w.set_mask(torch.tensor([[True, True], [True, True]]))
    assert layer.weight.tolist() == [[5, 6], [7, 8]]


def test_a_state_of_another_shape_is_refused_with_both_shapes() -> None:
    w = weight_of(linear([[1.0, 2.0], [3.0, 4.0]]))
    with pytest.raises(RgplugError, match=r"\[3, 2\].*\[2, 2\]"):
        w.load(torch.ones(3, 2, dtype=torch.bool), torch.zeros(3, 2), None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_step_in_every_precision(dtype: torch.dtype) -> None:
    """SGD, lr 1, by hand: |theta| - t > 0 with t = 0.5 - lr * dL/dt."""
    layer = linear([[1.0, 0.25], [2.0, 0.5]], dtype)
    opt = sgd(layer)
    rg = rgplug.attach(layer, policy={"sparsity_weight": 0.0, "threshold": {"init": 0.5, "task_gradient": False}})
    assert layer.weight.tolist() == [[1, 0], [2, 0]]  # 0.5 > 0.5 is false
    set_grad(layer, [[0.5, 9.0], [1.0, 9.0]])
    opt.step()
    assert layer.weight.tolist() == [[0, 0], [1, 0]]  # 1 - 0.5 = 0.5 falls
    (w,) = rg.weights("G")
    assert w.theta.tolist() == [[0.5, 0.25], [1.0, 0.5]]
    assert w.theta.dtype == layer.weight.dtype == dtype
    assert w.threshold.dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize(
    "layout",
    [
        FilterLayout((5, 3)),
        FilterLayout((5, 3, 2, 2)),
        FilterLayout((4, 3, 2), dim=1),
        FilterLayout((1, 6, 2, 3, 3), dim=1),
        FilterLayout((3, 4, 5), dim=2),
        FilterLayout((6, 4, 3), dim=1, groups=3),
    ],
)
def test_filter_of_an_entry(layout: FilterLayout) -> None:
    filters = layout.expand(torch.arange(layout.filters)).expand(layout.view(torch.zeros(layout.shape)).shape)
    index = torch.arange(filters.numel())
    assert torch.equal(layout.filter_of(index), filters.reshape(-1))


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
    assert int(rg.networks["G"].written.sum()) == 0


def test_the_mask_takes_no_memory() -> None:
    layer = linear([[1.0, 0.05], [0.02, 4.0]])
    rg = rgplug.attach(layer, policy={"threshold": {"init": 0.1}})
    (w,) = rg.weights("G")
    held = [x for x in vars(w).values() if isinstance(x, torch.Tensor) and x is not w.param]
    assert sorted(x.numel() for x in held) == [2, 4]  # thresholds, dormant values


def test_values_that_vanish_in_a_narrower_dtype_stay_pruned() -> None:
    layer = linear([[1.0, 1e-10, 0.05]])
    w = weight_of(layer)
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
    w = weight_of(layer)
    mask = torch.tensor([[True, False], [False, True]])
    w.load(mask, torch.tensor([[0.0, 0.0], [3.0, 0.0]]), None)
    assert torch.equal(w.mask, mask)
    w.forget()
    assert torch.equal(w.mask, mask)
    layer.weight.data[~mask] = 0.0
    assert w.theta.tolist() == [[1.0, 0.0], [0.0, 4.0]]


def test_a_window_that_was_left_open_closes_with_the_mask_it_had() -> None:
    layer = linear([[1.0, 2.0], [0.0, 4.0]])
    w = weight_of(layer)
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
    assert int(net.written.sum()) == 0


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
    assert int(rg.networks["G"].written.sum()) == 1


def test_weights_that_are_no_wider_wait_as_they_are_and_loops_are_refused() -> None:
    layer = linear([[1.0, 0.05]], torch.bfloat16)
    (w,) = rgplug.attach(layer, policy={**FIXED, "dormant": "float16"}).weights("G")
    assert w.dormant.dtype == torch.bfloat16
    with pytest.raises(RgplugError, match=r"there are none for dormant: float16; set kernels: auto"):
        rgplug.attach(linear([[1.0, 0.05]]), policy={"kernels": "fused", "dormant": "float16"})

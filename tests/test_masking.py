"""MaskedWeight and FilterLayout: which entries belong to which output filter, and what mask and dormant store hold."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from common import linear, managed_weight, set_grad, sgd
from torch import nn

import rgplug
from rgplug.errors import RgplugError
from rgplug.layout import FilterLayout


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


def test_set_mask_moves_values_to_and_from_the_dormant_store() -> None:
    layer = linear([[1.0, 2.0], [3.0, 4.0]])
    w = managed_weight(layer)
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
    w = managed_weight(layer)
    w.set_mask(torch.tensor([[True, False], [False, True]]))
    layer.weight.data.copy_(torch.tensor([[5.0, 6.0], [7.0, 8.0]]))
    assert w.theta.tolist() == [[5, 6], [7, 8]]
    w.set_mask(torch.tensor([[True, True], [True, True]]))
    assert layer.weight.tolist() == [[5, 6], [7, 8]]


def test_a_state_of_another_shape_is_refused_with_both_shapes() -> None:
    w = managed_weight(linear([[1.0, 2.0], [3.0, 4.0]]))
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

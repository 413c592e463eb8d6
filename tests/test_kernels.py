"""Elementwise kernels on values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rgplug import kernels

NAN, INF = math.nan, math.inf
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MASK = torch.tensor([[True, False, True], [False, False, True]])


def bits(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return kernels.bits_of_mask(mask, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pruned_positions_become_exactly_plus_zero_whatever_stood_there(dtype: torch.dtype) -> None:
    x = torch.tensor([[1.5, NAN, -2.0], [INF, -INF, 3.0]], dtype=dtype)
    out = kernels.keep_(x, bits(MASK, dtype))
    assert out is x
    assert x.tolist() == [[1.5, 0.0, -2.0], [0.0, 0.0, 3.0]]
    assert not torch.signbit(x[~MASK]).any()  # +0, not -0


@pytest.mark.parametrize("dtype", DTYPES)
def test_kept_values_pass_bit_for_bit(dtype: torch.dtype) -> None:
    x = torch.tensor([[NAN, 1.0, -0.0], [5.0, 7.0, -INF]], dtype=dtype)
    before = x.clone()
    kernels.keep_(x, bits(MASK, dtype))
    same = kernels.as_bits(x) == kernels.as_bits(before)
    assert same[MASK].all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_merge_puts_theta_together(dtype: torch.dtype) -> None:
    weight = torch.tensor([[1.5, 0.0, -2.0], [0.0, 0.0, 0.0]], dtype=dtype)
    dormant = torch.tensor([[0.0, 0.25, 0.0], [-0.5, 8.0, 0.0]], dtype=dtype)
    theta, zeros = kernels.merge_(weight, dormant, bits(MASK, dtype))
    assert theta.tolist() == [[1.5, 0.25, -2.0], [-0.5, 8.0, 0.0]]
    assert zeros == 4  # three pruned ones and a live weight that happens to be 0
    assert dormant.tolist() == [[0.0, 0.25, 0.0], [-0.5, 8.0, 0.0]]
    assert weight.tolist() == [[1.5, 0.0, -2.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_merge_adopts_what_the_host_wrote_at_a_pruned_position(dtype: torch.dtype) -> None:
    weight = torch.tensor([[1.5, 9.0, -2.0], [0.0, -4.0, 3.0]], dtype=dtype)
    dormant = torch.tensor([[0.0, 0.25, 0.0], [-0.5, 8.0, 0.0]], dtype=dtype)
    theta, zeros = kernels.merge_(weight, dormant, bits(MASK, dtype))
    assert theta.tolist() == [[1.5, 9.0, -2.0], [-0.5, -4.0, 3.0]]
    assert dormant.tolist() == [[0.0, 9.0, 0.0], [-0.5, -4.0, 0.0]]
    assert zeros == 1


def test_merge_keeps_a_nan_of_a_live_weight_out_of_the_dormant_store() -> None:
    weight = torch.tensor([[NAN, 0.0, INF], [0.0, 0.0, 1.0]])
    dormant = torch.tensor([[0.0, 0.25, 0.0], [-0.5, 8.0, 0.0]])
    theta, _ = kernels.merge_(weight, dormant, bits(MASK, torch.float32))
    assert dormant.tolist() == [[0.0, 0.25, 0.0], [-0.5, 8.0, 0.0]]
    assert math.isnan(theta[0, 0])
    assert theta[0, 2] == INF


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_restore_and_split_round_trip(dtype: torch.dtype, channels_last: bool) -> None:
    """A step moved pruned entries; they go back to 0; then a new mask regrows some and prunes others."""
    like = torch.randn(4, 3, 3, 3)
    if channels_last:
        like = like.to(memory_format=torch.channels_last)
    stepped = like.to(dtype)  # what the optimizer left behind, pruned positions included
    old = torch.rand_like(like) < 0.5
    new = torch.rand_like(like) < 0.5
    dormant = torch.where(old, torch.zeros_like(like), torch.randn_like(like)).to(dtype)
    theta = torch.where(old, stepped, dormant)
    weight, mask = stepped.clone(), old.clone()

    held = kernels.restore_(weight, dormant, kernels.bits_of_mask(mask, dtype))
    assert torch.equal(weight, torch.where(old, stepped, torch.zeros_like(stepped)))
    assert torch.equal(held, theta)
    newly = kernels.split_(held, weight, (~new).to(dtype), mask)

    assert torch.equal(mask, new)
    assert newly == (old & ~new).sum()
    assert torch.equal(weight, torch.where(new, theta, torch.zeros_like(theta)))
    assert torch.equal(held, torch.where(new, torch.zeros_like(theta), theta))
    assert weight.is_contiguous(memory_format=torch.channels_last) or not channels_last


def test_split_counts_only_kept_to_pruned() -> None:
    theta = torch.tensor([1.0, 2.0, 3.0, 4.0])
    weight, mask = torch.zeros(4), torch.tensor([True, True, False, False])
    assert kernels.split_(theta, weight, torch.tensor([1.0, 0.0, 1.0, 0.0]), mask) == 1
    assert weight.tolist() == [0.0, 2.0, 0.0, 4.0]
    assert theta.tolist() == [1.0, 0.0, 3.0, 0.0]
    assert mask.tolist() == [False, True, False, True]


def test_bits_of_mask_are_all_ones_or_all_zeros() -> None:
    for dtype, integer in ((torch.float16, torch.int16), (torch.float32, torch.int32), (torch.float64, torch.int64)):
        assert bits(MASK, dtype).dtype == integer
        assert bits(MASK, dtype).tolist() == [[-1, 0, -1], [0, 0, -1]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_mask_lies_in_the_dormant_values(dtype: torch.dtype) -> None:
    theta = torch.tensor([[1.5, 0.0, -2.0], [-0.0, 8.0, NAN]], dtype=dtype)
    dormant = kernels.wait_(theta, bits(~MASK, dtype))
    assert torch.equal(kernels.mask_of(dormant), MASK)
    assert torch.equal(kernels.bits_of_dormant(dormant), bits(MASK, dtype))
    assert dormant.tolist() == [[0.0, 0.0, 0.0], [0.0, 8.0, 0.0]]
    assert torch.equal(torch.signbit(dormant), torch.tensor([[False, True, False], [True, False, False]]))
    kernels.forget_(dormant)
    assert torch.equal(kernels.mask_of(dormant), MASK)
    assert not dormant.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinite_dormant_values_come_back_as_they_are_and_give_way_to_what_is_written(dtype: torch.dtype) -> None:
    """0 * inf is NaN: a product would spoil both the first entry, which the host wrote, and a kept zero beside it."""
    mask = torch.tensor([False, False, False, True])
    weight = torch.tensor([2.0, 0.0, -0.0, 0.0], dtype=dtype)
    dormant = torch.tensor([INF, -INF, INF, 0.0], dtype=dtype)
    theta, zeros = kernels.merge_(weight, dormant, bits(mask, dtype))
    assert theta.tolist() == [2.0, -INF, INF, 0.0]
    assert dormant.tolist() == [2.0, -INF, INF, 0.0]
    assert zeros == 3

"""2:4 weights in the form of sparse tensor cores: shapes and values, which a CPU can check too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rgplug import RgplugError
from rgplug.export import accelerate, compress, expand, is_two_to_four


def two_to_four(out: int, columns: int, dtype: torch.dtype = torch.float16) -> Tensor:
    weight = torch.randn(out, columns // 4, 4)
    smallest = weight.abs().topk(2, dim=-1, largest=False).indices
    return weight.scatter(-1, smallest, 0.0).view(out, columns).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_the_values_and_two_bits_each(dtype: torch.dtype) -> None:
    weight = two_to_four(64, 128, dtype)
    values, metadata = compress(weight)
    assert values.shape == (64, 64)
    assert values.dtype is dtype
    assert metadata.numel() * metadata.element_size() * 8 == 2 * values.numel()
    assert torch.equal(expand(values, metadata), weight)


def test_values_are_the_kept_ones_in_their_order() -> None:
    weight = torch.zeros(32, 64, dtype=torch.float16)
    weight[0, [1, 3, 4, 6]] = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float16)
    values, _ = compress(weight)
    assert values[0, :4].tolist() == [1.0, 2.0, 3.0, 4.0]


def test_what_is_two_to_four() -> None:
    assert is_two_to_four(torch.tensor([[1.0, 0, 0, 2], [0, 0, 0, 3]]))
    assert not is_two_to_four(torch.tensor([[1.0, 1, 0, 2]]))
    assert not is_two_to_four(torch.zeros(2, 6))
    kernel = torch.ones(1, 4, 3, 3)
    kernel[:, [0, 2]] = 0
    assert is_two_to_four(kernel)  # along the input channels, at every position


def test_weights_that_do_not_fit() -> None:
    with pytest.raises(RgplugError, match=r"shape \[30, 64\] has no 2:4 form: its sizes are no multiples of 32 and 64"):
        compress(torch.zeros(30, 64, dtype=torch.float16))
    with pytest.raises(RgplugError, match="it is float32, not half precision"):
        compress(torch.zeros(32, 64))
    with pytest.raises(RgplugError, match="more than two of some four"):
        compress(torch.ones(32, 64, dtype=torch.float16))


def test_a_network_without_a_gpu() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Linear(10, 10)).half()
    assert accelerate(network) == {
        "0.weight": "torch has no 2:4 convolution",
        "1.weight": "its sizes are no multiples of 32 and 64",
    }
    linear = nn.Linear(64, 32).half()
    with torch.no_grad():
        linear.weight.copy_(two_to_four(32, 64))
    if not torch.cuda.is_available():
        with pytest.raises(RgplugError, match=r"weight is on cpu, and 2:4 kernels need an NVIDIA GPU"):
            accelerate(linear)
        assert type(linear.weight) is nn.Parameter

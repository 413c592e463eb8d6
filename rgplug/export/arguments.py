"""What a network is called with when it is exported or measured: any number of latents, guessed or given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rgplug.errors import RgplugError
from rgplug.layers import masked_weight
from rgplug.metrics import default_sample_fn
from rgplug.wrappers import unwrap


class Arguments:
    """Arguments of a network's forward, for as many images as are asked for.

    inputs: what forward takes, with the batch as the length of its first tensor; None: latents as in
    `rgplug.metrics.default_sample_fn`, which says what it cannot guess. RgplugError for inputs without a batch.
    """

    def __init__(self, network: nn.Module, inputs: tuple[Any, ...] | None = None) -> None:
        module = unwrap(network)
        self._inputs = inputs
        self._sampler = default_sample_fn(module) if inputs is None else None
        sizes = [len(x) for x in inputs or () if isinstance(x, Tensor) and x.dim()]
        if inputs is not None and not sizes:
            raise RgplugError(f"inputs of {type(module).__name__} have to be a tuple with a tensor [N, ...] in it")
        self.batch = sizes[0] if sizes else 1  # N of the given inputs

    @property
    def guessed(self) -> bool:
        """Whether nobody gave inputs."""
        return self._inputs is None

    def __call__(self, n: int) -> tuple[Any, ...]:
        """Arguments for the next n images: floats with a batch are drawn anew (standard normal, from torch's global
        state), other tensors with one repeat their rows, and the rest is passed on."""
        if self._sampler is not None:
            return self._sampler.arguments(n)
        assert self._inputs is not None
        return tuple(_rows(x, n) if self._has_batch(x) else x for x in self._inputs)

    def open_batch(self) -> tuple[Any, ...]:
        """`dynamic_shapes` of torch.export: the first dimension of every tensor with a batch."""
        examples = self(1) if self._inputs is None else self._inputs
        return tuple({0: torch.export.Dim.AUTO} if self._has_batch(x) else None for x in examples)

    def _has_batch(self, x: Any) -> bool:
        return isinstance(x, Tensor) and x.dim() > 0 and len(x) == self.batch


def _rows(x: Tensor, n: int) -> Tensor:
    if x.is_floating_point():
        return torch.randn(n, *x.shape[1:], dtype=x.dtype, device=x.device)
    return x[torch.arange(n, device=x.device) % len(x)]


def refuse_attached(network: nn.Module) -> None:
    """RgplugError for a network under masks, which may still change: what is exported is a baked copy."""
    for name, module in network.named_modules():
        if masked_weight(module) is not None:
            raise RgplugError(
                f"{name or 'the network'} of this {type(network).__name__} is under a mask that rgplug manages; "
                "export what rg.export() returns"
            )

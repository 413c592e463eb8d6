"""The modes of autograd that rgplug works in, whatever the training script has entered around a call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")


def outside_inference(function: Callable[P, T]) -> Callable[P, T]:
    """Run `function` outside of inference mode, and without gradients.

    For every public function that writes tensors which later steps use. A tensor made inside `torch.inference_mode()`
    can never be changed in place outside of it, so the next training step would fail.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return call


def writable(tensor: Tensor) -> AbstractContextManager[object]:
    """A context in which the tensor can be changed in place: an average that the training script made inside of
    inference mode can only be changed there; every other tensor can be changed anywhere."""
    return torch.inference_mode() if tensor.is_inference() else nullcontext()

"""Running a network that the training script did not ask to run, so that it cannot tell afterwards."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from rgplug.metrics.isolation import evaluation_mode, preserved_rng


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, nothing compiled and no warnings inside; everything as it was afterwards.

    Restored bit for bit: parameters and buffers (as the same tensors in the same memory: hand-written spectral norms
    keep their vectors in parameters), attributes of every module with the contents of lists and dicts, generators that
    a module holds, training flags, and the global random states. What a forward does elsewhere (a file, a global
    counter) is not.
    """
    parts = list(network.modules())
    held = [t for m in parts for t in (*m._parameters.values(), *m._buffers.values(), *vars(m).values())]
    tensors = {id(t): t for t in held if _has_values(t)}
    values = [(t, t.data, t.detach().clone()) for t in tensors.values()]
    attributes = [(vars(m), dict(vars(m))) for m in parts if not isinstance(m, torch.jit.ScriptModule)]
    others = [value for _, saved in attributes for value in saved.values()]
    contents = [(v, v.copy()) for v in others if isinstance(v, (list, dict))]
    generators = [(v, v.get_state()) for v in others if isinstance(v, torch.Generator)]
    try:
        with preserved_rng(), evaluation_mode(network), torch.no_grad(), warnings.catch_warnings(), _not_compiled():
            warnings.simplefilter("ignore")
            yield
    finally:
        for tensor, memory, value in values:
            memory.copy_(value)
            if tensor.data_ptr() != memory.data_ptr():
                tensor.data = memory
        for live, saved in attributes:
            live.clear()
            live.update(saved)
        for container, copied in contents:
            container.clear()
            _fill(container, copied)
        for generator, state in generators:
            generator.set_state(state)


def _has_values(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not nn.parameter.is_lazy(value) and value.device.type != "meta"


def _fill(container: Any, copied: Any) -> None:
    if isinstance(container, list):
        container.extend(copied)
    else:
        container.update(copied)


def _not_compiled() -> AbstractContextManager[Any]:
    """Parts under torch.compile run as they are written; before PyTorch 2.6 they are compiled for these inputs.

    Nothing is compiled where nobody has imported the compiler, and importing it takes seconds.
    """
    stance = getattr(torch.compiler, "set_stance", None)
    return nullcontext() if stance is None or "torch._dynamo" not in sys.modules else stance("force_eager")

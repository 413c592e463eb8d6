"""Running an ONNX model beside the torch network that it was made from, with the same noise inside both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rgplug.errors import RgplugError

RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")


def difference(network: nn.Module, proto: Any, arguments: tuple[Any, ...]) -> tuple[float, int]:
    """(largest difference between the model's outputs and torch's, random draws inside).

    Each output's difference is relative to its largest entry. The model's random nodes become inputs, and get what
    torch drew in their place: everything but the draws is compared. NaN where either side has one, infinity where the
    outputs differ in number or shape. RgplugError where onnxruntime fails, or the draws cannot be paired.
    """
    with torch.no_grad(), _Draws() as draws:
        expected = [x.detach().cpu() for x in tree_leaves(network(*arguments)) if isinstance(x, Tensor)]
    name = type(network).__name__
    feeds = [x for x in arguments if isinstance(x, Tensor)]
    found = _outputs(_noise_as_inputs(proto, draws.seen, name), [*feeds, *draws.seen], name)
    as_it_is = _outputs(proto, feeds, name) if draws.seen else found  # its own draws have to fit at this batch too
    if not [x.shape for x in as_it_is] == [x.shape for x in found] == [x.shape for x in expected]:
        return float("inf"), len(draws.seen)
    relative = [_relative(a.double(), b.double()) for a, b in zip(found, expected) if b.numel()]
    return float(torch.stack(relative).max()), len(draws.seen)  # max of tensors, since Python's loses NaN


def _outputs(proto: Any, feeds: Sequence[Tensor], network: str) -> list[Tensor]:
    try:
        run = session(proto.SerializeToString())
        names = [i.name for i in run.get_inputs()]
        arrays = [x.detach().cpu().numpy() for x in feeds]
        return [torch.from_numpy(x) for x in run.run(None, dict(zip(names, arrays, strict=True)))]
    except Exception as error:  # onnxruntime's exceptions have no class in common; protobuf refuses more than 2 GB
        raise RgplugError(f"onnxruntime does not run {network}: {first_line(error)}") from error


def session(model: bytes | str, threads: int = 0, providers: Sequence[str] = ("CPUExecutionProvider",)) -> Any:
    """An onnxruntime.InferenceSession that writes nothing to the terminal. threads: 0 leaves it to onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal only: warnings would go to the terminal from outside Python
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model, options, providers=list(providers))


def first_line(error: BaseException) -> str:
    """The innermost cause in one line: torch.onnx wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"


def _relative(found: Tensor, expected: Tensor) -> Tensor:
    return (found - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)


class _Draws(TorchDispatchMode):
    """Keeps what torch's random operators return, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags and isinstance(result, Tensor):
            self.seen.append(result.detach().clone())
        return result


def _noise_as_inputs(proto: Any, noise: Sequence[Tensor], network: str) -> Any:
    """A copy of the model whose random nodes are inputs, in the order of the graph, which is that of the forward."""
    import onnx

    opened = onnx.ModelProto()
    opened.CopyFrom(proto)
    nodes = [node for node in opened.graph.node if node.op_type in RANDOM]
    if len(nodes) != len(noise):
        raise RgplugError(
            f"{network} draws random numbers {len(noise)} times and its ONNX graph {len(nodes)} times, so the two "
            "cannot be compared; draw noise with torch.randn or torch.rand"
        )
    for node, drawn in zip(nodes, noise):
        kind = onnx.helper.np_dtype_to_tensor_dtype(drawn.cpu().numpy().dtype)
        opened.graph.input.append(onnx.helper.make_tensor_value_info(node.output[0], kind, None))
        opened.graph.node.remove(node)
    return opened

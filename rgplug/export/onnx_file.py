"""ONNX files of baked and of compact networks, each run and compared with torch before it is kept."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rgplug import files
from rgplug.errors import RgplugError
from rgplug.export.arguments import Arguments, refuse_attached
from rgplug.export.onnx_run import difference, first_line
from rgplug.metrics import evaluation_mode, preserved_buffers, preserved_rng
from rgplug.wrappers import unwrap

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TRACED, COMPARED = 2, 3  # latents, where the batch is open: a size that was only baked in shows on another one


@dataclass(frozen=True)
class OnnxCheck:
    """What was written, and how it was compared.

    path, bytes: the file. difference: to torch's outputs, relative to the largest entry of each. batch: latents that
    it was compared on, and the only number that the file takes unless it is dynamic. noise: random draws inside; the
    file makes its own, and for the comparison both sides had the same.
    """

    path: Path
    bytes: int
    difference: float
    dynamic: bool
    batch: int
    noise: int

    def __str__(self) -> str:
        takes = "any number of latents at a time" if self.dynamic else f"latents {self.batch} at a time"
        noise = f", given the same noise in its {self.noise} draws (the file makes its own)" if self.noise else ""
        return (
            f"{self.path}: ONNX, {self.bytes:,} bytes, takes {takes}; differs from torch by {self.difference:.1e} of "
            f"the largest output{noise}"
        )


def save_onnx(
    path: str | Path,
    network: nn.Module,
    inputs: tuple[Any, ...] | None = None,  # what forward takes, see Arguments; guessed when None
    tolerance: float = 1e-4,  # largest difference relative to the largest output
) -> OnnxCheck:
    """Write a baked or compact network as an ONNX file that onnxruntime runs as torch does.

    The batch stays open where the network allows it. It is fixed to that of `inputs` (1 where they are guessed) where
    the network does not, as with a convolution that has one group per image. Before it is written, the model runs in
    onnxruntime on fresh latents, on another number of them where the batch is open. Noise that a network draws inside
    is drawn by onnxruntime in the file; for the comparison it is given what torch drew. The network is exported in
    eval mode, and left as it was.

    RgplugError, with nothing written and an earlier file untouched, for missing packages, a network under masks, one
    that cannot be exported, and a difference above `tolerance`.
    """
    require_onnx()
    module = unwrap(network)
    refuse_attached(module)
    arguments = Arguments(module, inputs)
    with evaluation_mode(module), preserved_buffers(module), preserved_rng(seed=0), torch.no_grad():
        proto, apart, noise, dynamic = _compared(module, arguments, tolerance)
    if not apart <= tolerance:  # NaN is no agreement
        raise RgplugError(
            f"{type(module).__name__} as ONNX differs from torch by {apart:.1e} of its largest output, where "
            f"{tolerance:.1e} is allowed, so {path} was not written; give a larger tolerance if that is near enough"
        )
    _write(Path(path), proto)
    batch = COMPARED if dynamic else arguments.batch
    return OnnxCheck(Path(path), Path(path).stat().st_size, apart, dynamic, batch, noise)


def require_onnx() -> None:
    """RgplugError unless the packages of the extra `onnx` are installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise RgplugError(f"ONNX files need {missing[0]}, which is not installed: pip install 'rgplug[onnx]'")


def _compared(module: nn.Module, arguments: Arguments, tolerance: float) -> tuple[Any, float, int, bool]:
    """(onnx.ModelProto, difference to torch, random draws, whether its batch is open)."""
    with contextlib.suppress(Exception):  # whatever an open batch fails on, a fixed one is tried, and tells why
        proto = _traced(module, arguments(TRACED), arguments.open_batch())
        if proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
            apart, noise = difference(module, proto, arguments(COMPARED))
            if apart <= tolerance:
                return proto, apart, noise, True
    try:
        proto = _traced(module, arguments(arguments.batch))
        apart, noise = difference(module, proto, arguments(arguments.batch))
        if not apart <= tolerance:  # the exporter's optimizer drops additions of small numbers: 1e-8 below a root of 0
            proto = _traced(module, arguments(arguments.batch), optimize=False)
            apart, noise = difference(module, proto, arguments(arguments.batch))
    except RgplugError:
        raise
    except Exception as error:  # torch.onnx wraps whatever its stages raise
        raise RgplugError(f"{type(module).__name__} cannot be exported to ONNX ({first_line(error)})") from error
    return proto, apart, noise, False


def _traced(
    module: nn.Module, example: tuple[Any, ...], dynamic_shapes: tuple[Any, ...] | None = None, optimize: bool = True
) -> Any:
    with _quiet():
        program = torch.onnx.export(
            module, example, dynamo=True, dynamic_shapes=dynamic_shapes, verbose=False, optimize=optimize
        )
    assert program is not None  # as it is from the older exporter
    return program.model_proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No output, no warnings, no log records of the exporter: what matters of them is in its exception."""
    before, ignored = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(ignored), contextlib.redirect_stderr(ignored), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _write(path: Path, proto: Any) -> None:
    try:
        files.write_whole(path, lambda partial: partial.write_bytes(proto.SerializeToString()))
    except OSError as error:
        raise RgplugError(f"the ONNX file could not be written to {path}: {error}") from error

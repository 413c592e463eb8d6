"""The work around a step as fused loops over memory (`fused.c`), for float32 and float64 weights on a CPU.

Eager tensor operations read and write a weight some forty times per step; these loops do so twice, three times where a
method looks at theta in between. The C source is compiled at first use by the system's C compiler into the cache folder
($RGPLUG_CACHE, else ~/.cache/rgplug), which takes about a second; where there is none, and for every weight that the
loops do not cover (other devices, other dtypes, unusual strides, rounded dormant values), `kernels` and the method's
own tensor formulas do the same. Both agree up to the order in which sums are taken.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rgplug import library
from rgplug.errors import RgplugError
from rgplug.metrics.cache import cache_dir

if TYPE_CHECKING:
    from rgplug.layout import FilterLayout
    from rgplug.methods import Rule

SOURCE = Path(__file__).with_suffix(".c")
_REAL = {torch.float32: "float", torch.float64: "double"}
# contraction would round differently from machine to machine; floating point traps, which nobody sets, forbid blends;
# the simd pragmas work without the OpenMP runtime too
_FLAGS = ["-O3", "-std=gnu11", "-fPIC", "-shared", "-ffp-contract=off", "-fno-trapping-math"]
_VARIANTS: tuple[list[str], ...] = (["-march=native", "-fopenmp"], ["-march=native", "-fopenmp-simd"], [])
_POINTER: Any = ctypes.c_void_p
_CHUNK = 2048  # entries per pair of partial sums, as in fused.c


class Shape(ctypes.Structure):
    """A weight in memory order as [rows, columns], and where its filters are (FilterLayout, `fused.c`)."""

    _fields_ = [
        (name, ctypes.c_int64) for name in ("rows", "columns", "rows_per_group", "filters_per_group", "threads")
    ]

    @staticmethod
    def of(layout: FilterLayout) -> Shape:
        shape, groups = layout.shape, layout.groups
        rows = shape[0] if layout.dim == 0 and groups == 1 else shape[0] * shape[1]
        return Shape(rows, math.prod(shape) // rows, rows // groups, layout.filters // groups, 1)

    def now(self) -> Shape:
        """With the threads that torch may use now."""
        self.threads = torch.get_num_threads()
        return self


class Fused:
    """The compiled loops for one dtype. Tensors that are passed share one memory order (see `covers`)."""

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype):
        self.dtype = dtype
        shape = ctypes.POINTER(Shape)
        self._before, self._after = library.before, library.after
        self._restore, self._refresh, self._variance = library.restore, library.refresh, library.variance
        self._before.argtypes = [shape, *[_POINTER] * 5, ctypes.c_int32, *[_POINTER] * 2]
        self._after.argtypes = [shape, *[_POINTER] * 4, ctypes.c_int32, ctypes.c_double, _POINTER]
        self._restore.argtypes = [shape, *[_POINTER] * 2]
        self._refresh.argtypes = [shape, *[_POINTER] * 5, ctypes.c_int32, ctypes.c_double, _POINTER]
        self._variance.argtypes = [shape, *[_POINTER] * 2, ctypes.c_int32, *[_POINTER] * 2]
        self._margins = library.margins
        self._margins.argtypes = [shape, *[_POINTER] * 4, *[ctypes.c_int64] * 2, _POINTER]
        self._before.restype = self._restore.restype = self._variance.restype = self._margins.restype = None
        self._after.restype = self._refresh.restype = ctypes.c_int32

    def covers(self, layout: FilterLayout, *tensors: Tensor) -> bool:
        """Whether plain CPU tensors of this dtype (masks: bool) lie in memory alike, filter rows in one piece."""
        first = tensors[0]
        dense = first.is_contiguous() and layout.dim < 2
        if not dense and layout.dim == 0 and layout.groups == 1 and first.dim() == 4:
            dense = first.is_contiguous(memory_format=torch.channels_last)
        return dense and all(
            type(x) is Tensor
            and x.device.type == "cpu"
            and x.dtype in (self.dtype, torch.bool)
            and (x is first or x.stride() == first.stride() or x.is_contiguous() is first.is_contiguous() is True)
            for x in tensors
        )

    def before(
        self, shape: Shape, weight: Tensor, dormant: Tensor, grad: Tensor | None, rule: Rule, zeros: Tensor
    ) -> Tensor | None:
        """Gradient of the thresholds [filters], if the rule asks for it; `dormant` and `grad` are changed in place.

        zeros: float64, gets the number of zeros in the weight.
        """
        per_row = None
        if grad is not None and rule.task_gradient:
            per_row = torch.empty(shape.rows, dtype=self.dtype)
        pointers = [_address(x) for x in (weight, dormant, grad, rule.threshold, rule.scale)]
        self._before(shape.now(), *pointers, rule.full_weight_gradient, _address(per_row), zeros.data_ptr())
        if grad is not None:
            _changed(grad)
        if per_row is None or shape.rows == shape.filters_per_group:
            return per_row
        groups = shape.rows // shape.rows_per_group
        return per_row.view(groups, -1, shape.filters_per_group).sum(1).reshape(-1)

    def after(
        self,
        shape: Shape,
        weight: Tensor,
        dormant: Tensor,
        rule: Rule,
        counts: Tensor,
        *,
        recurrent: bool,
        limit: float,
    ) -> bool:
        """Everything after the step in one pass: as `kernels.restore_`, the rule, and `kernels.split_`.

        counts: float64 [2], gets the entries pruned and the newly pruned. At `limit` pruned entries all of the layer is
        kept, and the answer is True.
        """
        pointers = [_address(x) for x in (weight, dormant, rule.threshold, rule.scale)]
        tripped = self._after(shape.now(), *pointers, recurrent, limit, counts.data_ptr())
        _changed(weight)
        return bool(tripped)

    def restore(self, shape: Shape, weight: Tensor, dormant: Tensor) -> None:
        """As `kernels.restore_`; afterwards `dormant` no longer says what the mask is."""
        self._restore(shape.now(), weight.data_ptr(), dormant.data_ptr())
        _changed(weight)

    def refresh(
        self,
        shape: Shape,
        weight: Tensor,
        dormant: Tensor,
        mask: Tensor,
        rule: Rule,
        counts: Tensor,
        *,
        recurrent: bool,
        limit: float,
    ) -> bool:
        """As `after`, from theta (in `dormant`) and the mask from before `restore`, which becomes the new one."""
        pointers = [_address(x) for x in (weight, dormant, mask, rule.threshold, rule.scale)]
        tripped = self._refresh(shape.now(), *pointers, recurrent, limit, counts.data_ptr())
        _changed(weight)
        return bool(tripped)

    def variance(self, shape: Shape, weight: Tensor, dormant: Tensor, *, gathered: bool) -> Tensor:
        """Variance of theta after the host's step (0-dim, float64; correction 0). gathered: `dormant` holds theta."""
        parts = torch.empty(2 * -(-weight.numel() // _CHUNK), dtype=torch.float64)
        out = torch.empty((), dtype=torch.float64)
        self._variance(shape.now(), weight.data_ptr(), dormant.data_ptr(), gathered, parts.data_ptr(), out.data_ptr())
        return out

    def margins(
        self, shape: Shape, theta: Tensor, mask: Tensor | None, threshold: Tensor, scale: Tensor | None, at: range
    ) -> Tensor:
        """|theta| / scale - t of the entries `at` in memory order: [len(at)]; -inf where `mask` is False."""
        out = torch.empty(len(at), dtype=self.dtype)
        pointers = [_address(x) for x in (theta, mask, threshold, scale)]
        self._margins(shape.now(), *pointers, at.start, at.step, out.data_ptr())
        return out


_loaded: dict[torch.dtype, Fused | str] = {}


def load(dtype: torch.dtype) -> Fused | None:
    """The loops for a dtype, compiled when they are asked for first; None where there are none (see `why_not`)."""
    if dtype not in _REAL:
        return None
    if dtype not in _loaded:
        try:
            _loaded[dtype] = Fused(library.load(_compile(_REAL[dtype])), dtype)
        except (OSError, subprocess.SubprocessError, RgplugError) as error:
            _loaded[dtype] = str(error).strip().splitlines()[0]
    found = _loaded[dtype]
    return found if isinstance(found, Fused) else None


def why_not(dtype: torch.dtype) -> str:
    """One clause that says why `load` gave None."""
    reason = _loaded.get(dtype, f"there are none for {dtype}")
    return reason if isinstance(reason, str) else "they are there"


def _compile(real: str) -> Path:
    """The shared library, from the cache or built into it. Several processes may do so at once."""
    compiler = next(filter(None, map(shutil.which, [os.environ.get("CC") or "cc", "gcc", "clang"])), None)
    if compiler is None:
        raise RgplugError("no C compiler was found (cc, gcc, clang or $CC)")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60).stdout
    key = repr([SOURCE.read_text(), real, _FLAGS, _VARIANTS, version, _processor()])
    name = f"fused-{real}-{hashlib.blake2b(key.encode(), digest_size=12).hexdigest()}"
    folder = library.folder(cache_dir())
    found = library.find(folder, name)
    if found is not None:
        return found
    complaint = ""
    for variant in _VARIANTS:
        with tempfile.TemporaryDirectory(prefix="rgplug-building-") as building:
            out = Path(building) / f"{name}.so"
            command = [compiler, *_FLAGS, *variant, f"-DREAL={real}", str(SOURCE), "-o", str(out)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            if done.returncode == 0:
                return library.store(folder, name, out)
            complaint = complaint or done.stderr
    raise RgplugError(f"{compiler} could not compile them: {complaint.strip() or 'no reason given'}")


def _processor() -> str:
    """What -march=native depends on: a cache folder may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return platform.machine() + "".join(sorted({x for x in lines if x.startswith(("flags", "Features", "model name"))}))


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _changed(x: Tensor) -> None:
    """Autograd has to know that memory was written, as after any in-place operation."""
    torch.autograd.graph.increment_version(x)

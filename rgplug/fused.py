"""The work around a step as fused loops over memory (`fused.c`), for float32 and float64 weights on a CPU.

Eager tensor operations read and write a weight some forty times per step; these loops do so three times. The C source
is compiled at first use by the system's C compiler into the cache folder ($RGPLUG_CACHE, else ~/.cache/rgplug), which
takes about a second; where there is none, and for every weight that the loops do not cover (other devices, other
dtypes, unusual strides), `kernels` and the method's own tensor formulas do the same. Both agree up to the order in
which sums are taken.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rgplug.errors import RgplugError
from rgplug.metrics.cache import cache_dir

if TYPE_CHECKING:
    from rgplug.masking import FilterLayout
    from rgplug.methods import Rule

SOURCE = Path(__file__).with_suffix(".c")
_REAL = {torch.float32: "float", torch.float64: "double"}
# contraction would round differently from machine to machine; floating point traps, which nobody sets, forbid blends;
# the simd pragmas work without the OpenMP runtime too
_FLAGS = ["-O3", "-std=gnu11", "-fPIC", "-shared", "-ffp-contract=off", "-fno-trapping-math"]
_VARIANTS: tuple[list[str], ...] = (["-march=native", "-fopenmp"], ["-march=native", "-fopenmp-simd"], [])
_POINTER: Any = ctypes.c_void_p
_SHAPE = ctypes.c_int64 * 5


class Fused:
    """The compiled loops for one dtype. Tensors that are passed share one memory order (see `covers`)."""

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype):
        self.dtype = dtype
        self._before = library.before
        self._before.argtypes = [_POINTER] * 7 + [ctypes.c_int32] + [_POINTER] * 2
        self._restore = library.restore
        self._restore.argtypes = [_POINTER] * 4
        self._refresh = library.refresh
        self._refresh.argtypes = [_POINTER] * 6 + [ctypes.c_int32, ctypes.c_double] + [_POINTER] * 2
        for function in (self._before, self._restore, self._refresh):
            function.restype = None

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
        self, layout: FilterLayout, weight: Tensor, dormant: Tensor, mask: Tensor, grad: Tensor | None, rule: Rule
    ) -> tuple[Tensor | None, Tensor]:
        """(gradient of the thresholds, zeros in the weight); `dormant` and `grad` are changed in place."""
        rows = _rows(layout)
        per_row = None
        if grad is not None and rule.task_gradient:
            per_row = torch.empty(rows[0], dtype=self.dtype)
        zeros = torch.empty((), dtype=torch.int64)
        pointers = [_address(x) for x in (weight, dormant, mask, grad, rule.threshold, rule.scale)]
        self._before(_shape(rows), *pointers, rule.full_weight_gradient, _address(per_row), zeros.data_ptr())
        _changed(dormant, grad)
        if per_row is None or rows[0] == layout.filters:
            return per_row, zeros
        return per_row.view(layout.groups, -1, rows[3]).sum(1).reshape(-1), zeros

    def restore(self, layout: FilterLayout, weight: Tensor, dormant: Tensor, mask: Tensor) -> None:
        """As `kernels.restore_`."""
        self._restore(_shape(_rows(layout)), weight.data_ptr(), dormant.data_ptr(), mask.data_ptr())
        _changed(weight, dormant)

    def refresh(
        self,
        layout: FilterLayout,
        weight: Tensor,
        dormant: Tensor,
        mask: Tensor,
        rule: Rule,
        *,
        recurrent: bool,
        limit: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(entries pruned, newly pruned, keep): new mask by the rule; at `limit` entries all of the layer is kept and
        `keep` is 0, else 1."""
        counts, keep = torch.empty(2, dtype=torch.int64), torch.empty((), dtype=self.dtype)
        pointers = [_address(x) for x in (weight, dormant, mask, rule.threshold, rule.scale)]
        self._refresh(_shape(_rows(layout)), *pointers, recurrent, limit, counts.data_ptr(), keep.data_ptr())
        _changed(weight, dormant, mask)
        return counts[0], counts[1], keep


_loaded: dict[torch.dtype, Fused | str] = {}


def load(dtype: torch.dtype) -> Fused | None:
    """The loops for a dtype, compiled when they are asked for first; None where there are none (see `why_not`)."""
    if dtype not in _REAL:
        return None
    if dtype not in _loaded:
        try:
            _loaded[dtype] = Fused(ctypes.CDLL(str(_compile(_REAL[dtype]))), dtype)
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
    folder = cache_dir()
    path = folder / f"fused-{real}-{hashlib.blake2b(key.encode(), digest_size=12).hexdigest()}.so"
    if path.exists():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:  # compiled anew in each process, then
        folder = Path(tempfile.mkdtemp(prefix="rgplug-"))
        path = folder / path.name
    complaint = ""
    for variant in _VARIANTS:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as building:
            out = Path(building) / path.name
            command = [compiler, *_FLAGS, *variant, f"-DREAL={real}", str(SOURCE), "-o", str(out)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            if done.returncode == 0:
                os.replace(out, path)
                return path
            complaint = complaint or done.stderr
    raise RgplugError(f"{compiler} could not compile them: {complaint.strip() or 'no reason given'}")


def _processor() -> str:
    """What -march=native depends on: a cache folder may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return platform.machine() + "".join(sorted({x for x in lines if x.startswith(("flags", "Features", "model name"))}))


def _rows(layout: FilterLayout) -> tuple[int, int, int, int]:
    """rows, columns, rows per group and filters per group of a weight in memory order (FilterLayout, `fused.c`)."""
    shape = layout.shape
    rows = shape[0] if layout.dim == 0 and layout.groups == 1 else shape[0] * shape[1]
    numel = 1
    for n in shape:
        numel *= n
    return rows, numel // rows, rows // layout.groups, layout.filters // layout.groups


def _shape(rows: Sequence[int]) -> Any:
    return _SHAPE(*rows, torch.get_num_threads())


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _changed(*tensors: Tensor | None) -> None:
    """Autograd has to know that memory was written, as after any in-place operation."""
    for x in tensors:
        if x is not None:
            torch.autograd.graph.increment_version(x)

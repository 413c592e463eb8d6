"""What a network takes when it runs: milliseconds, alternating with others, and bytes of activations."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WARM_UP = 2  # calls of each that are not timed
Key = TypeVar("Key")


def alternating_medians(
    calls: Mapping[Key, Callable[[], object]], rounds: int, device: torch.device | None = None
) -> dict[Key, float]:
    """Median milliseconds of each call. They take turns, so that what else the machine does hits all of them alike.

    device: a GPU is waited for before and after each call.
    """
    wait = torch.cuda.synchronize if device is not None and device.type == "cuda" else lambda: None
    times: dict[Key, list[float]] = {key: [] for key in calls}
    for i in range(WARM_UP + rounds):
        for key, call in calls.items():
            wait()
            start = time.perf_counter()
            call()
            wait()
            if i >= WARM_UP:
                times[key].append(time.perf_counter() - start)
    return {key: 1000 * statistics.median(t) for key, t in times.items()}


def peak_activations(network: nn.Module, arguments: tuple[Any, ...]) -> int:
    """Most bytes of tensors that one forward keeps at the same time, without parameters, buffers and arguments.

    On a GPU what torch.cuda.max_memory_allocated says beyond what was there before, workspaces of kernels included.
    On a CPU the storages that operators return, from their return until nobody holds them; workspaces inside an
    operator do not show there.
    """
    device = next((x.device for x in arguments if isinstance(x, Tensor)), torch.device("cpu"))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        with torch.no_grad():
            network(*arguments)
        return torch.cuda.max_memory_allocated(device) - before
    held = [*network.parameters(), *network.buffers(), *(x for x in arguments if isinstance(x, Tensor))]
    with torch.no_grad(), _LiveStorages(held) as live:
        network(*arguments)
    return live.peak


class _LiveStorages(TorchDispatchMode):
    """Follows the storages that operators return until they are freed."""

    def __init__(self, ignored: Iterable[Tensor]) -> None:
        super().__init__()
        self.peak = 0
        self._ignored = {StorageWeakRef(x.untyped_storage()) for x in ignored}
        self._live: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._live = {ref: size for ref, size in self._live.items() if not ref.expired()}
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                storage = x.untyped_storage()
                ref = StorageWeakRef(storage)
                if ref not in self._ignored:
                    self._live[ref] = storage.nbytes()
        self.peak = max(self.peak, sum(self._live.values()))
        return result


@contextmanager
def torch_threads(threads: int | None) -> Iterator[int]:
    """`torch.set_num_threads` for the time of a measurement; None: as it is. Gives the number."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def machine() -> str:
    """Processor, cores, threads, GPU and torch of this process, in one line."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {accelerator}, torch {torch.__version__}"
    )

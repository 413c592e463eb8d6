"""The machine: CUDA is the CPU, old calls of torch and scipy work, data loaders start no processes."""

from __future__ import annotations

import functools
import time


def cuda_is_the_cpu() -> None:
    import torch

    real = torch.device

    class DeviceType(type):
        def __instancecheck__(cls, x):
            return isinstance(x, real)

        def __call__(cls, *args, **kwargs):
            first = args[0] if args else kwargs.get("type", kwargs.get("device"))
            wanted = isinstance(first, int) or (isinstance(first, str) and first.startswith("cuda"))
            return real("cpu") if wanted else real(*args, **kwargs)

    class Device(metaclass=DeviceType):
        pass

    def is_cuda(x):
        return (isinstance(x, str) and x.startswith("cuda")) or (isinstance(x, real) and x.type == "cuda")

    def on_cpu(function):
        @functools.wraps(function)
        def called(*args, **kwargs):
            if is_cuda(kwargs.get("device")):
                kwargs["device"] = "cpu"
            return function(*args, **kwargs)

        return called

    def moved(function):
        @functools.wraps(function)
        def to(self, *args, **kwargs):
            args = tuple("cpu" if is_cuda(a) else a for a in args)
            if is_cuda(kwargs.get("device")):
                kwargs["device"] = "cpu"
            return function(self, *args, **kwargs)

        return to

    class Event:
        def __init__(self, *args, **kwargs):
            self.at = 0.0

        def record(self, *args):
            self.at = time.perf_counter()

        def synchronize(self): ...

        def elapsed_time(self, other):
            return 1000 * (other.at - self.at)

    class OneProcess(torch.nn.Module):
        """nn.DataParallel's keys, without devices."""

        def __init__(self, module, *args, **kwargs):
            super().__init__()
            self.module = module

        def forward(self, *args, **kwargs):
            return self.module(*args, **kwargs)

    torch.device = Device
    torch.cuda.Event = Event
    torch.cuda.current_stream = lambda *a, **k: None
    torch.cuda.max_memory_allocated = lambda *a, **k: 0
    for name in ("reset_peak_memory_stats", "manual_seed", "synchronize", "set_device"):
        setattr(torch.cuda, name, lambda *a, **k: None)
    torch.Tensor.pin_memory = lambda self, *a, **k: self
    torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *a, **k: self
    torch.Tensor.to, torch.nn.Module.to = moved(torch.Tensor.to), moved(torch.nn.Module.to)
    for name in (
        "empty", "zeros", "ones", "full", "rand", "randn", "randint", "randperm", "arange", "linspace", "tensor", "eye",
        "as_tensor", "zeros_like", "ones_like", "randn_like", "rand_like",
    ):  # fmt: skip
        setattr(torch, name, on_cpu(getattr(torch, name)))
    torch.nn.DataParallel = torch.nn.parallel.DataParallel = OneProcess
    torch.nn.parallel.data_parallel = lambda module, inputs, *a, **k: module(
        *(inputs if isinstance(inputs, tuple) else (inputs,)), **(k.get("module_kwargs") or {})
    )
    load = torch.load

    @functools.wraps(load)
    def load_anything(*args, **kwargs):
        return load(*args, **{"weights_only": False, "map_location": "cpu", **kwargs})

    torch.load = load_anything


def older_libraries() -> None:
    import scipy.linalg
    import torch

    try:
        torch.utils.data.Sampler(None)
    except TypeError:
        torch.utils.data.Sampler.__init__ = lambda self, *a, **k: None
    sqrtm = scipy.linalg.sqrtm
    scipy.linalg.sqrtm = lambda a, disp=True, **k: sqrtm(a) if disp else (sqrtm(a), 0.0)


def loaders_without_processes() -> None:
    """Each worker would import torch and train.py anew."""
    import torch

    init = torch.utils.data.DataLoader.__init__

    def __init__(self, *args, **kwargs):
        for name in ("prefetch_factor", "persistent_workers"):
            kwargs.pop(name, None)
        init(self, *args, **{**kwargs, "num_workers": 0})

    torch.utils.data.DataLoader.__init__ = __init__

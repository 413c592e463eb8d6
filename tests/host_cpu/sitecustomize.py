"""Lets a GAN repository's own train.py run where there is no GPU, without changing a file of it.

With this folder and the repository on PYTHONPATH and RGPLUG_TEST_HOST naming the host, every Python process of the run
(spawned ones too) comes through here first: CUDA becomes the CPU, what the host would download is replaced by small
fixed networks, and networks and schedules shrink. Only for tests.

    RGPLUG_TEST_HOST          stylegan2 | biggan | fastgan
    RGPLUG_TEST_ITERATIONS    stylegan2: batches in all; RGPLUG_TEST_TICK: batches in a tick
    RGPLUG_TEST_FID           file with values, one per line: stylegan2's and biggan's FID becomes these, in turn
    RGPLUG_TEST_WITHOUT       "module.name": that name is deleted from the module
    RGPLUG_TEST_WITNESS       folder: what an attached run had at certain moments (see `witness`)
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import os
import random
import sys
import time
import types

HOST = os.environ.get("RGPLUG_TEST_HOST")


# ---- CUDA is the CPU ------------------------------------------------------------------------------------------------


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


# ---- older torch and scipy ------------------------------------------------------------------------------------------


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


def witness(folder: str) -> None:
    """Writes into `folder`: resumed.safetensors and resumed.npz (G's weights), the state right after a resume;
    rank<r>.txt, a line with a digest of masks and thresholds at each look at the densities."""
    import hashlib

    import numpy as np

    from rgplug import state
    from rgplug.adapters.common import Run
    from rgplug.processes import rank

    resume_ema, numbers = Run.resume_ema, Run.numbers

    def after_resume(self):
        if self._resumed_ema is not None and self.controller.epoch:
            state.save(os.path.join(folder, "resumed.safetensors"), self.controller.state_dict())
            weights = {w.name: w.data.numpy() for w in self.generator.weights}
            np.savez(os.path.join(folder, "resumed.npz"), **weights)
        resume_ema(self)

    def looked(self, *args):
        digest = hashlib.sha256()
        for net in self.controller.networks.values():
            for w in net.weights:
                for x in (w.mask, w.threshold, w.dormant, w.data):
                    digest.update(x.contiguous().numpy().tobytes())
        with open(os.path.join(folder, f"rank{rank()}.txt"), "a") as file:
            file.write(digest.hexdigest() + "\n")
        return numbers(self, *args)

    Run.resume_ema, Run.numbers = after_resume, looked


def given_values():
    """The values of RGPLUG_TEST_FID, one each time."""
    path = os.environ.get("RGPLUG_TEST_FID")
    if path is None:
        return None
    with open(path) as file:
        values = [float(x) for x in file.read().split()]
    state = {"next": 0}

    def following():
        value = values[min(state["next"], len(values) - 1)]
        state["next"] += 1
        return value

    return following


# ---- the hosts ------------------------------------------------------------------------------------------------------


def stylegan2() -> None:
    import numpy as np
    import torch
    from metrics import frechet_inception_distance, kernel_inception_distance, metric_main, metric_utils
    from training import training_loop as loop

    class Detector(torch.nn.Module):
        """64 fixed random features in Inception's place."""

        def __init__(self):
            super().__init__()
            fixed = torch.Generator().manual_seed(0)
            self.first = torch.randn(32, 3, 3, 3, generator=fixed) * 0.2
            self.second = torch.randn(64, 32, 3, 3, generator=fixed) * 0.1

        def forward(self, x, return_features=True):
            x = torch.nn.functional.interpolate(x.float() / 127.5 - 1, size=(32, 32), mode="area")
            x = torch.relu(torch.nn.functional.conv2d(x, self.first, stride=2))
            return torch.relu(torch.nn.functional.conv2d(x, self.second, stride=2)).mean([2, 3])

    detector = Detector()
    metric_utils.get_feature_detector = lambda *a, **k: detector
    fid, kid = frechet_inception_distance.compute_fid, kernel_inception_distance.compute_kid
    given = given_values()

    evaluated = os.environ.get("RGPLUG_TEST_WITNESS")

    def compute_fid(opts, max_real, num_gen):
        value = fid(opts, max_real=max_real, num_gen=32)
        if evaluated:  # what is evaluated, drawn with the latent of generate.py's seed 3
            z = torch.from_numpy(np.random.RandomState(3).randn(1, opts.G.z_dim))
            image = opts.G(z, torch.zeros(1, opts.G.c_dim), truncation_psi=1, noise_mode="const")
            image = (image.permute(0, 2, 3, 1) * 127.5 + 128).clamp(0, 255).to(torch.uint8)
            np.save(os.path.join(evaluated, "evaluated.npy"), image[0].numpy())
        return value if given is None else given()

    frechet_inception_distance.compute_fid = compute_fid
    kernel_inception_distance.compute_kid = lambda opts, max_real, num_gen, num_subsets, max_subset_size: kid(
        opts, max_real=max_real, num_gen=32, num_subsets=4, max_subset_size=16
    )
    assert metric_main.is_valid_metric("fid50k_full")
    train = loop.training_loop

    def training_loop(**arguments):
        batch = arguments["batch_size"]
        arguments["total_kimg"] = int(os.environ.get("RGPLUG_TEST_ITERATIONS", 8)) * batch / 1000
        arguments["kimg_per_tick"] = int(os.environ.get("RGPLUG_TEST_TICK", 4)) * batch / 1000
        arguments["G_kwargs"].update(z_dim=32, w_dim=32)
        for blocks in (arguments["G_kwargs"]["synthesis_kwargs"], arguments["D_kwargs"]):
            blocks.update(channel_base=1024, channel_max=32, num_fp16_res=0)
        return train(**arguments)

    loop.training_loop = training_loop
    grid = loop.setup_snapshot_image_grid

    def small_grid(training_set, random_seed=0):
        _, images, labels = grid(training_set, random_seed)
        return (3, 3), images[:9], labels[:9]

    loop.setup_snapshot_image_grid = small_grid
    start = torch.distributed.init_process_group
    torch.distributed.init_process_group = lambda backend=None, **k: start(backend="gloo", **k)
    parallel = torch.nn.parallel.DistributedDataParallel

    class Parallel(parallel):
        """Older versions made buffers equal at construction even with broadcast_buffers=False; the host needs that."""

        def __init__(self, module, device_ids=None, **kwargs):
            super().__init__(module, device_ids=None, **kwargs)
            with torch.no_grad():
                for buffer in module.buffers():
                    torch.distributed.broadcast(buffer, src=0)

    torch.nn.parallel.DistributedDataParallel = Parallel


def biggan() -> None:
    import numpy as np
    import torch
    import torchvision

    tensorflow = types.ModuleType("dnnlib.tflib")
    tensorflow.init_tf = lambda *a, **k: None
    import dnnlib

    dnnlib.tflib = sys.modules["dnnlib.tflib"] = tensorflow
    import dnnlib.util

    class Net:
        """Fixed random features, or class probabilities, in the place of the downloaded networks."""

        def __init__(self, size, softmax):
            self.weight = np.random.RandomState(size).randn(192, size).astype(np.float32) / 14
            self.softmax = softmax

        def run(self, images, num_gpus=1, assume_frozen=True):
            x = images.astype(np.float32).reshape(len(images), 3, 8, 4, 8, 4).mean((3, 5)).reshape(len(images), -1)
            y = np.maximum((x / 127.5 - 1) @ self.weight, 0)
            if self.softmax:
                y = np.exp(y - y.max(1, keepdims=True))
                y /= y.sum(1, keepdims=True)
            return y

    load_pkl = dnnlib.util.load_pkl
    networks = {"softmax": Net(10, True), "features": Net(48, False)}
    dnnlib.util.load_pkl = lambda path: next((n for k, n in networks.items() if k in path), None) or load_pkl(path)
    torchvision.datasets.CIFAR10._check_integrity = lambda self: True
    torchvision.datasets.CIFAR10.download = lambda self: None
    import datasets

    init = datasets.CIFAR10.__init__

    def few(self, *args, **kwargs):
        init(self, *args, **kwargs)
        if not kwargs.get("train", True):
            self.data, self.labels = self.data[:32], self.labels[:32]

    datasets.CIFAR10.__init__ = few
    import utils

    # since torch 1.7 samples would become utils.Distribution objects, whose .to() fails
    utils.Distribution.__torch_function__ = torch._C._disabled_torch_function_impl
    loaders = utils.get_data_loaders

    def few_for_accuracy(**config):
        """The host measures D's accuracy on all 50,000 training images; two batches say as much here."""
        made = loaders(**config)
        if config.get("train", True) and not config.get("use_multiepoch_sampler", True):
            made[0] = [batch for _, batch in zip(range(2), made[0])]
        return made

    utils.get_data_loaders = few_for_accuracy
    given, evaluated, count = given_values(), os.environ.get("RGPLUG_TEST_WITNESS"), iter(range(1000))
    if given is not None:
        import inception_tf

        prepare = inception_tf.prepare_inception_metrics

        def prepare_inception_metrics(*args, **kwargs):
            measure = prepare(*args, **kwargs)

            def measured(sample, *a, **k):
                mean, std, _ = measure(sample, *a, **k)
                if evaluated:
                    G = copy.deepcopy(sample.keywords["G"]).eval()
                    z = torch.from_numpy(np.random.RandomState(3).randn(4, G.dim_z)).float()
                    with torch.no_grad():
                        images = G(z, G.shared(torch.arange(4)))
                    np.save(os.path.join(evaluated, f"evaluated-{next(count)}.npy"), images.numpy())
                return mean, std, given()

            return measured

        inception_tf.prepare_inception_metrics = prepare_inception_metrics


def fastgan() -> None:
    import numpy as np
    import torch
    import torchvision

    vgg = torchvision.models.vgg16
    torchvision.models.vgg16 = lambda *a, **k: vgg(weights=None)
    import lpips
    import models

    for network in (models.Generator, models.Discriminator):

        def narrow(self, *args, _init=network.__init__, **kwargs):
            _init(self, *args, **{k: 4 if k in ("ngf", "ndf") else v for k, v in kwargs.items()})

        network.__init__ = functools.wraps(network.__init__)(narrow)

    class Difference(torch.nn.Module):
        def __init__(self, *args, **kwargs):
            super().__init__()

        def forward(self, a, b):
            return (a - b).abs().mean([1, 2, 3])

    lpips.PerceptualLoss = Difference
    seed = np.random.seed
    np.random.seed = lambda *given: seed(*(given or (0,)))  # the host's sampler seeds from the clock
    for start in (seed, random.seed, torch.manual_seed):
        start(0)
    given, evaluated = given_values(), os.environ.get("RGPLUG_TEST_WITNESS")
    if given is None:
        return
    from rgplug.controller import Controller
    from rgplug.evaluation import masked_values
    from rgplug.metrics.isolation import preserved_buffers, preserved_rng, swapped_weights

    evaluate = Controller.evaluate

    def measured(self, *, ema=None, sample_fn=None):
        if evaluated:
            G = self.modules["G"]
            masked = masked_values(ema, G, self.networks["G"])
            with torch.no_grad(), preserved_buffers(G), preserved_rng(3), swapped_weights(G, masked):
                np.save(os.path.join(evaluated, "evaluated.npy"), G(torch.randn(2, 256))[0].numpy())
        return dataclasses.replace(evaluate(self, ema=ema, sample_fn=sample_fn), value=given())

    Controller.evaluate = measured


if HOST:
    import warnings

    warnings.filterwarnings("ignore")
    cuda_is_the_cpu()
    older_libraries()
    loaders_without_processes()
    {"stylegan2": stylegan2, "biggan": biggan, "fastgan": fastgan}[HOST]()
    if os.environ.get("RGPLUG_TEST_WITNESS"):
        witness(os.environ["RGPLUG_TEST_WITNESS"])
    if os.environ.get("RGPLUG_TEST_WITHOUT"):
        _module, _, _name = os.environ["RGPLUG_TEST_WITHOUT"].rpartition(".")
        delattr(importlib.import_module(_module), _name)

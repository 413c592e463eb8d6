"""Lets a GAN repository's own train.py run where there is no GPU, without changing a file of it.

With this folder and the repository on PYTHONPATH and RGPLUG_TEST_HOST naming the host, every Python process of the run
(spawned ones too) comes through here first: CUDA becomes the CPU, what the host would download is replaced by small
fixed networks, and networks and schedules shrink. Only for tests.

    RGPLUG_TEST_HOST          stylegan2 | biggan | biggan_pytorch | fastgan
    RGPLUG_TEST_ITERATIONS    stylegan2: batches in all; RGPLUG_TEST_TICK: batches in a tick
    RGPLUG_TEST_FID           file with values, one per line: stylegan2's and biggan's FID becomes these, in turn
    RGPLUG_TEST_WITHOUT       "module.name": that name is deleted from the module
    RGPLUG_TEST_WITNESS       folder: what an attached run had at certain moments (see `witness`)
    RGPLUG_TEST_AVERAGES      folder: G and its moving average before each step of G (see `averages`)
"""

from __future__ import annotations

import importlib
import os

if os.environ.get("RGPLUG_TEST_HOST"):
    import warnings

    from without_cuda import machine
    from without_cuda.witness import averages, witness

    warnings.filterwarnings("ignore")
    machine.cuda_is_the_cpu()
    machine.older_libraries()
    machine.loaders_without_processes()
    importlib.import_module(f"without_cuda.{os.environ['RGPLUG_TEST_HOST']}").install()
    if os.environ.get("RGPLUG_TEST_WITNESS"):
        witness(os.environ["RGPLUG_TEST_WITNESS"])
    if os.environ.get("RGPLUG_TEST_AVERAGES"):
        averages(os.environ["RGPLUG_TEST_AVERAGES"])
    if os.environ.get("RGPLUG_TEST_WITHOUT"):
        _module, _, _name = os.environ["RGPLUG_TEST_WITHOUT"].rpartition(".")
        delattr(importlib.import_module(_module), _name)

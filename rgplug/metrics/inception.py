"""Inception-v3 features as clean-fid computes them: the ones whose Frechet distance is called FID."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import platform
import tempfile
import threading
import time
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rgplug import files
from rgplug.errors import RgplugError
from rgplug.metrics.cache import cache_dir
from rgplug.metrics.features import Features

log = logging.getLogger("rgplug.metrics")
FILE = "inception-2015-12-05.pt"
URL = f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{FILE}"
SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
STALL = 5.0  # seconds without a byte after which the download is given up
QUICK = 60.0  # seconds that "auto" waits for the whole file (96 MB)
PATIENT = 900.0  # seconds that "inception", asked for by name, waits
_unreachable = False  # a failed download is not tried again by "auto" in this process


class InceptionFeatures:
    """2048 pooled features of the 2015 TensorFlow Inception (TorchScript translation of StyleGAN2-ADA) and its logits.

    Images go through clean-fid's resize (each channel in float, Pillow's antialiased bicubic, 299 x 299) and then
    through its wrapper of the network. logits: [N, 1008], without the bias of the last layer, as the original
    inception score has them. RgplugError when the weights cannot be had.
    """

    name = "inception"
    dim = 2048
    settings = f"clean-fid {FILE}, Pillow bicubic 299"

    def __init__(self, device: torch.device) -> None:
        published = weights(limit=PATIENT)
        from cleanfid.inception_torchscript import InceptionV3W
        from cleanfid.resize import build_resizer

        self.device = device
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch.jit.load is deprecated, the file is TorchScript
            self.network = _from_bytes(InceptionV3W, published).to(device).eval()
        self.network.requires_grad_(False)
        self.resize = build_resizer("clean")

    def __call__(self, images: Tensor) -> Features:
        arrays = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        resized = torch.from_numpy(np.stack([self.resize(a) for a in arrays])).permute(0, 3, 1, 2)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            features = self.network(resized.contiguous().to(self.device)).float()
            logits = features @ self.network.base.output.weight.float().T
        return Features(features, logits)


def _from_bytes(wrapper: Any, contents: bytes) -> Any:
    """clean-fid's wrapper around the network in `contents`; the wrapper itself would open a path."""
    network = wrapper.__new__(wrapper)
    torch.nn.Module.__init__(network)
    network.base = torch.jit.load(io.BytesIO(contents)).eval()
    network.layers, network.resize_inside = network.base.layers, False
    return network


def weights_folder(limit: float = PATIENT) -> Path:
    """The folder that holds Inception's weights, fetched into the cache if they are nowhere yet. Arguments and errors
    as those of `weights`."""
    return _find(limit)[0].parent


def weights(limit: float = PATIENT) -> bytes:
    """Inception's weights as published, fetched into the cache if they are nowhere yet.

    Looked for in $RGPLUG_INCEPTION (the file or its folder), the cache folder, and where clean-fid keeps them, which
    others may write to. limit: seconds the download may take. RgplugError, after a few seconds without a network, when
    they cannot be had, and when a file found is not the published one: a TorchScript file is code, so the SHA-256 of
    the very bytes that are returned is checked.
    """
    return _find(limit)[1]


def _find(limit: float) -> tuple[Path, bytes]:
    """The file, and what was in it when it was read."""
    given = os.environ.get("RGPLUG_INCEPTION")
    for place in [Path(given).expanduser()] if given else [cache_dir(), shared_folder()]:
        path = place if place.name == FILE else place / FILE
        if path.is_file():
            return path, _published(path)
    if given:
        raise RgplugError(f"RGPLUG_INCEPTION names {given}, but there is no {FILE} there")
    path = _fetch(cache_dir() / FILE, limit)
    return path, _published(path)


def _published(path: Path) -> bytes:
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise RgplugError(f"Inception's weights cannot be read: {error}") from error
    if hashlib.sha256(contents).hexdigest() != SHA256:
        raise RgplugError(f"{path} is not Inception's published weights (cut off?): delete it or fetch {URL}")
    return contents


def check_weights() -> None:
    """Raise RgplugError where the weights are not on this machine and may not be fetched, or were not where
    $RGPLUG_INCEPTION says. What a file holds is looked at when it is loaded."""
    given = os.environ.get("RGPLUG_INCEPTION")
    places = [Path(given).expanduser()] if given else [cache_dir(), shared_folder()]
    if any((place if place.name == FILE else place / FILE).is_file() for place in places):
        return
    if given:
        raise RgplugError(f"RGPLUG_INCEPTION names {given}, but there is no {FILE} there")
    if os.environ.get("RGPLUG_OFFLINE"):
        raise RgplugError(_advice("RGPLUG_OFFLINE is set"))


def shared_folder() -> Path:
    """Where clean-fid keeps the weights."""
    return Path("./") if platform.system() == "Windows" else Path("/tmp")


def _fetch(path: Path, limit: float) -> Path:
    """Download to `path` in a thread of its own, so that no resolver, proxy or server can make us wait for ever.

    (clean-fid's download has no time limit and leaves a cut-off file behind.)
    """
    global _unreachable
    if os.environ.get("RGPLUG_OFFLINE"):
        raise RgplugError(_advice("RGPLUG_OFFLINE is set"))
    if _unreachable and limit <= QUICK:
        raise RgplugError(_advice("the download failed before"))
    state = _Download(path)
    threading.Thread(target=state.run, daemon=True).start()
    start = time.monotonic()
    while not state.done.wait(0.05):
        now = time.monotonic()
        if now - state.heard > STALL or now - start > limit:
            state.cancelled = True
            state.error = f"no answer for {STALL:g} s" if now - start <= limit else f"not here after {limit:g} s"
            break
    if state.error:
        _unreachable = True
        raise RgplugError(_advice(state.error))
    return path


class _Download:
    """One download: the thread writes `heard`, `error`, `done`; whoever waits may set `cancelled`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.heard = time.monotonic()
        self.error = ""
        self.cancelled = False
        self.done = threading.Event()

    def run(self) -> None:
        temporary = None
        try:
            with urllib.request.urlopen(URL, timeout=STALL) as response:
                log.info("fetching Inception's weights (96 MB) to %s", self.path)
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.NamedTemporaryFile(dir=self.path.parent, prefix=".fetching-", delete=False) as opened:
                    temporary = opened.name
                    while not self.cancelled and (chunk := response.read(1 << 16)):
                        opened.write(chunk)
                        self.heard = time.monotonic()
            if self.cancelled:
                return
            if _sha256(Path(temporary)) != SHA256:
                raise OSError("what came is not the published file")
            files.force(Path(temporary))
            files.rename(Path(temporary), self.path)
        except Exception as error:  # of any kind: it must not die unseen in the thread
            self.error = self.error or str(error) or type(error).__name__
        finally:
            if temporary is not None and os.path.exists(temporary):
                os.unlink(temporary)
            self.done.set()


def _advice(reason: str) -> str:
    return (
        f"Inception's weights cannot be had ({reason}): fetch {URL} elsewhere and name the file in RGPLUG_INCEPTION, "
        f"or use other features"
    )


def _sha256(path: Path) -> str:
    hashed = hashlib.sha256()
    with open(path, "rb") as opened:
        while chunk := opened.read(1 << 20):
            hashed.update(chunk)
    return hashed.hexdigest()

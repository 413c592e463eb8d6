"""FastGAN: narrow networks, a plain difference in the place of the perceptual loss."""

from __future__ import annotations

import dataclasses
import functools
import os
import random

from without_cuda.witness import given_values


def install() -> None:
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

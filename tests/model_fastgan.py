"""FastGAN (Liu et al. 2021): the networks of lightweight-gan from PyPI, with the loss and averaging of its trainer."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from typing import Any
from unittest import mock

import pytest
import torch
from model_training import Inputs, Training
from torch import Tensor


def lightweight_gan() -> Any:
    if importlib.util.find_spec("lightweight_gan") is None:
        pytest.skip("lightweight-gan is not installed")
    with mock.patch("torch.cuda.is_available", return_value=True), warnings.catch_warnings():  # its import asserts CUDA
        warnings.simplefilter("ignore")
        return importlib.import_module("lightweight_gan.lightweight_gan")


class FastGAN(Training):
    size = 32
    iterations = 3
    alike = 4  # before a pixel shuffle each filter is there four times at first

    def __init__(self) -> None:
        module = lightweight_gan()
        common = {"image_size": self.size, "fmap_max": 8, "attn_res_layers": []}
        # its discriminator has attention of fixed width, which nearly all of the time would go to
        narrow = functools.partial(module.LinearAttention, dim_head=4, heads=2)
        with mock.patch.object(module, "LinearAttention", narrow):
            G = module.Generator(latent_dim=self.z_dim, **common)
            D = module.Discriminator(disc_output_size=1, **common)
        super().__init__(G, D, lr=2e-4, betas=(0.5, 0.9))
        self.left_out["D"] = {f"to_shape_disc_out.{i}.fn.norm.{own}": "a norm" for i in (1, 3) for own in "gb"}

    def score(self, images: Tensor, *rest: Any) -> Tensor:
        return self.nets["D"](images)[0]

    def d_loss(self, real: Inputs, z: Inputs) -> Tensor:
        """Hinge on both scores, reconstruction of real images, and a gradient penalty every fourth step."""
        images = real[0].requires_grad_()
        scores, small, reconstruction = self.nets["D"](images, calc_aux_loss=True)
        fake_scores, fake_small, _ = self.nets["D"](self.fake(z).detach())
        loss = reconstruction + sum(torch.relu(1 - s).mean() for s in (scores, small))
        loss = loss + sum(torch.relu(1 + s).mean() for s in (fake_scores, fake_small))
        if self.steps["D"] % 4 == 0:
            (slope,) = torch.autograd.grad(scores.sum() + small.sum(), images, create_graph=True)
            loss = loss + 10 * (slope.flatten(1).norm(dim=1) - 1).square().mean()
        return loss

    def g_loss(self, z: Inputs) -> Tensor:
        scores, small, _ = self.nets["D"](self.fake(z))
        return -scores.mean() - small.mean()

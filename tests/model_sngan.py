"""SNGAN (Miyato et al. 2018): the ResNet pair of tests/sngan.py, reduced; hinge loss, two steps of D per step of G."""

from __future__ import annotations

from model_training import Training
from sngan import SNGANDiscriminator, SNGANGenerator


class SNGAN(Training):
    size = 32
    iterations, d_steps = 4, 2

    def __init__(self) -> None:
        super().__init__(SNGANGenerator(8, self.z_dim), SNGANDiscriminator(8), lr=2e-4, betas=(0.0, 0.9))

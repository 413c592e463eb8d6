"""DiffAugment (mit-han-lab/data-efficient-gans): its StyleGAN2 and its BigGAN.

    from rgplug.adapters import diffaugment
    diffaugment.install(policy="rg-gan.yaml")          # at module top level of train.py, after its imports

DiffAugment-stylegan2-pytorch has StyleGAN2-ADA's training loop, and so its adapter (`stylegan2_ada`);
DiffAugment-biggan-cifar has that of BigGAN-PyTorch, and so its adapter (`biggan`).
"""

from __future__ import annotations

from typing import Any

from rgplug.adapters import biggan, stylegan2_ada
from rgplug.adapters.hosting import Host, importable

STYLEGAN2 = Host("DiffAugment-StyleGAN2", "0b63395")
BIGGAN = Host("DiffAugment-BigGAN", "0b63395")


def install(policy: Any = "rg-gan", *, metric: str | None = None) -> None:
    """Train with rgplug from here on, in whichever of the two hosts this is.

    policy: as for rgplug.attach. metric: what decides the phase; StyleGAN2: see stylegan2_ada.install; BigGAN: see
    biggan.install. Raises RgplugError where the code is neither host's.
    """
    if importable("training") and importable("training.training_loop"):
        stylegan2_ada.install(policy, metric=metric, host=STYLEGAN2)
        return
    if metric in (None, *biggan.DECIDING) and not importable("BigGAN") and not importable("train_fns"):
        raise BIGGAN.unknown("there is neither a module training.training_loop (StyleGAN2) nor BigGAN")
    biggan.install(policy, metric=metric, host=BIGGAN)


def uninstall() -> None:
    """Undo `install`."""
    biggan.uninstall()
    stylegan2_ada.uninstall()

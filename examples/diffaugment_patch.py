"""Train DiffAugment's StyleGAN2 or BigGAN with RG-GAN: two lines in its train.py.

    python examples/diffaugment_patch.py CHECKOUT/DiffAugment-stylegan2-pytorch [--dry-run]
    python examples/diffaugment_patch.py CHECKOUT/DiffAugment-biggan-cifar --run -- --DiffAugment translation,cutout ...

CHECKOUT is a clone of github.com/mit-han-lab/data-efficient-gans (0b63395). One adapter serves both folders; which of
the two it is in decides the policy that is proposed.

    python examples/diffaugment_patch.py CHECKOUT/DiffAugment-stylegan2-pytorch --compare dense,rg-gan,tickets \
        --rounds 3 --seeds 1 --out runs/obama -- --data=100-shot-obama.zip --gpus=1 --batch=16 --kimg=300
    python examples/diffaugment_patch.py CHECKOUT/DiffAugment-biggan-cifar --compare dense,rg-gan,tickets \
        --rounds 3 --seeds 1 --out runs/biggan --length 100000 -- --DiffAugment translation,cutout ...

compare with a ticket at equal density, as described in stylegan2_ada_patch.py. DiffAugment-BigGAN counts epochs, so
--length says how many iterations of G a run has.
"""

import sys
from pathlib import Path

from rgplug.adapters.comparing import BIGGAN
from rgplug.examples.stylegan2_ada_patch import KNOWN, main

if __name__ == "__main__":
    policies = Path(__file__).parent / "policies"
    if any((Path(x) / "BigGAN.py").is_file() for x in sys.argv[1:]):
        known = ("BigGAN.py", "train_fns.py")
        sys.exit(main("diffaugment", policies / "diffaugment_biggan.yaml", known, __doc__, BIGGAN))
    sys.exit(main("diffaugment", policies / "stylegan2_ada.yaml", KNOWN, __doc__))

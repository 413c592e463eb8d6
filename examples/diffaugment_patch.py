"""Train DiffAugment's StyleGAN2 or BigGAN with RG-GAN: two lines in its train.py.

    python examples/diffaugment_patch.py CHECKOUT/DiffAugment-stylegan2-pytorch [--dry-run]
    python examples/diffaugment_patch.py CHECKOUT/DiffAugment-biggan-cifar --run -- --DiffAugment translation,cutout ...

CHECKOUT is a clone of github.com/mit-han-lab/data-efficient-gans (0b63395). One adapter serves both folders; which of
the two it is in decides the policy that is proposed.
"""

import sys
from pathlib import Path

from rgplug.examples.stylegan2_ada_patch import KNOWN, main

if __name__ == "__main__":
    policies = Path(__file__).parent / "policies"
    if any((Path(x) / "BigGAN.py").is_file() for x in sys.argv[1:]):
        sys.exit(main("diffaugment", policies / "diffaugment_biggan.yaml", ("BigGAN.py", "train_fns.py"), __doc__))
    sys.exit(main("diffaugment", policies / "stylegan2_ada.yaml", KNOWN, __doc__))

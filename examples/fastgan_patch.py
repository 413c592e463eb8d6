"""Train FastGAN with RG-GAN: two lines in its train.py.

    python examples/fastgan_patch.py CHECKOUT [--dry-run]
    python examples/fastgan_patch.py CHECKOUT --run -- --path IMAGES --im_size 256 --iter 50000 --name mine

CHECKOUT is FastGAN-pytorch as its author published it (1a848e5). The host measures nothing while it trains; rgplug
measures the averaged generator against IMAGES at every 1,000th iteration (ten times --save_interval) and decides from
that. `--ckpt .../all_N.pth` finds the sidecar beside it. eval.py reads models/N.pth as ever.

    python examples/fastgan_patch.py CHECKOUT --compare dense,rg-gan,tickets --rounds 3 --seeds 1 --out runs/fastgan \
        -- --path IMAGES --im_size 256 --iter 50000 --batch_size 8

compares with a ticket at equal density, as described in stylegan2_ada_patch.py. The host has no option for a seed: the
adapter seeds it in each run of a comparison, the order of its images too. `--install every=500` measures more often.
"""

import sys
from pathlib import Path

from rgplug.adapters.comparing import FASTGAN
from rgplug.examples.stylegan2_ada_patch import main

if __name__ == "__main__":
    policy = Path(__file__).parent / "policies" / "fastgan.yaml"
    sys.exit(main("fastgan", policy, ("models.py", "operation.py", "diffaug.py"), __doc__, FASTGAN))

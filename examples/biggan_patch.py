"""Train BigGAN-PyTorch with STU-GAN, Re-GAN or RG-GAN: two lines in its train.py.

    python examples/biggan_patch.py CHECKOUT                    # shows the two lines as a diff
    python examples/biggan_patch.py CHECKOUT --run -- --dataset C10 --shuffle --batch_size 50 --num_D_steps 4 \
        --G_init N02 --D_init N02 --G_attn 0 --D_attn 0 --ema --use_ema --ema_start 1000 --num_epochs 500

CHECKOUT is a clone of github.com/ajbrock/BigGAN-PyTorch (9845943), as its authors published it. The proposed policy is
STU-GAN's; examples/policies has diffaugment_biggan.yaml (RG-GAN) and diffaugment_biggan_re_gan.yaml for the same
networks. The host measures FID and IS against moments that its calculate_inception_moments.py writes once.

    python examples/biggan_patch.py CHECKOUT --compare dense,stu-gan,tickets --rounds 3 --seeds 1 --out runs/biggan \
        --length 125000 -- --data_root DATA --dataset C10 --shuffle --batch_size 50 --num_D_steps 4 ...

compares methods at equal density, as described in stylegan2_ada_patch.py. The host counts epochs, so --length says how
many iterations of G a run has; DATA holds cifar/cifar-10-batches-py.
"""

import sys
from pathlib import Path

from rgplug.adapters.comparing import BIGGAN
from rgplug.examples.stylegan2_ada_patch import main

if __name__ == "__main__":
    known = ("BigGAN.py", "train_fns.py", "utils.py")
    policy = Path(__file__).parent / "policies" / "diffaugment_biggan_stu_gan.yaml"
    sys.exit(main("biggan", policy, known, __doc__, BIGGAN))

"""examples/sngan.py as a command with rgplug's two lines in it, for whoever wants to see a script that is compared.

    rgplug compare --methods dense,rg-gan,stu-gan,tickets --seeds 3 --out runs/sngan --density 0.2 --length 50000 \
        --n-critic 5 --set metric.real=CIFAR.npz --set batch_size=64 \
        -- python examples/sngan_command.py --data CIFAR.npz --share 0.1 --out {out} --seed {seed}

gives the same results, bit for bit, as `--host examples/sngan.py`, whose functions run in the comparison's own process.
"""

import functools

import rgplug
from rgplug.examples import sngan


def main(argv=None):
    args = sngan.parse_arguments(argv)
    attach = functools.partial(rgplug.attach, policy={"batch_size": args.batch})
    sngan.train(args, functools.partial(sngan.build, args), attach, args.seed, args.out)


if __name__ == "__main__":
    main()

"""Train the official StyleGAN2-ADA with RG-GAN: two lines in its train.py.

    python examples/stylegan2_ada_patch.py CHECKOUT                        # shows the two lines as a diff
    python examples/stylegan2_ada_patch.py CHECKOUT --dry-run              # prints the patched train.py
    python examples/stylegan2_ada_patch.py CHECKOUT --run -- --outdir=runs --data=images.zip --gpus=1 --cfg=auto

CHECKOUT is a clone of github.com/NVlabs/stylegan2-ada-pytorch (d72cc7d), as its authors published it. `--run` writes
train_rgplug.py beside its train.py, which is not touched, and starts it; what follows `--` are the host's own options.
Its commands stay what they are: generate.py, style_mixing.py, projector.py and calc_metrics.py read the snapshots,
also where rgplug is not installed, and `--resume=SNAPSHOT.pkl` finds the sidecar beside the snapshot
(SNAPSHOT.rgplug.safetensors: masks, thresholds, dormant weights, phase).

In the run folder: history.jsonl has one line per evaluation (metric, its weighted average, phase, densities by layer,
weights pruned, regenerated and restored), and stats.jsonl and TensorBoard have rgplug/density_G, rgplug/sparse and so
on.

Comparing with a lottery ticket (iterative magnitude pruning)
-------------------------------------------------------------

    python examples/stylegan2_ada_patch.py CHECKOUT --compare dense,rg-gan,tickets --rounds 3 --seeds 1 --out runs/sg2 \
        -- --data=images.zip --gpus=1 --cfg=auto --batch=16 --kimg=1000 --metrics=fid50k_full

trains, through rgplug.baselines, with one command line that differs in nothing but --outdir and --seed:

    runs/sg2/dense/seed_0/               the baseline of all, and round 0 of the ticket
    runs/sg2/rg-gan/seed_0/              RG-GAN under the policy file, steered to the ticket's density
    runs/sg2/tickets/seed_0/round_01/    20 % of the weights pruned, the rest rewound to where they began
    runs/sg2/tickets/seed_0/round_03/    after three rounds 51.2 % are left
    runs/sg2/results.jsonl               a line for each method and seed
    runs/sg2/report.html                 tables and figures; table.csv and table.md beside it

A run's folder holds the host's own run folder, history.jsonl and setup.json, and the host's output in output.txt. A
ticket is charged with all its rounds: #RI and training FLOPs of the dense run and of every round before. Densities are
equal by construction (--density 0.46 asks for another one, of the ticket too). The FID is that of G_ema under its mask,
on as many samples for every method, measured at each snapshot (--snap).

Finished runs are not run again: the same command goes on from there, also after a kill. A run that was broken off in
the middle is trained anew, since the host saves no optimizer states. `--seeds 3` is the least for few-shot FIDs, which
differ between seeds by more than methods do. Other methods: rgplug compare --help.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from rgplug.adapters import comparing, patching
from rgplug.errors import RgplugError

ADAPTER = "stylegan2_ada"
POLICY = Path(__file__).parent / "policies" / "stylegan2_ada.yaml"
KNOWN = ("training/training_loop.py", "dnnlib/util.py", "metrics/metric_main.py")


def main(
    adapter: str = ADAPTER,
    policy: Path = POLICY,
    known: tuple[str, ...] = KNOWN,
    about: str = __doc__,
    options: comparing.Options = comparing.STYLEGAN2,
) -> int:
    """The command line, for this host and for others; returns the exit code."""
    own, host = sys.argv[1:], []
    if "--" in own:
        own, host = own[: own.index("--")], own[own.index("--") + 1 :]
    args = arguments(about, policy).parse_args(own)
    chosen = str(Path(args.policy).resolve()) if Path(args.policy).is_file() else args.policy
    script = args.checkout / "train.py"
    try:
        missing = [name for name in ("train.py", *known) if not (args.checkout / name).is_file()]
        if missing:
            raise RgplugError(f"{args.checkout} has no {missing[0]}; give the folder of the repository")
        install = dict(_pair(text) for text in args.install)
        source = script.read_text(encoding="utf-8-sig")
        patched = patching.with_two_lines(source, adapter, chosen, **install)
        if args.dry_run:
            print(patched)
            return 0
        if not args.run and args.compare is None:
            print(patching.diff(source, patched))
            return 0
        needed = _needs_cuda()
        if needed:
            raise RgplugError(needed)
        copy = patching.patched_copy(script, adapter, chosen, **install)
        if args.compare is None:
            return subprocess.run([sys.executable, copy.name, *host], cwd=args.checkout).returncode
        results, page = comparing.compare(
            args.checkout,
            copy,
            options,
            [name.strip() for name in args.compare.split(",") if name.strip()],
            host,
            args.out,
            seeds=args.seeds,
            rounds=args.rounds,
            density=args.density,
            length=args.length,
            jobs=args.jobs,
        )
    except RgplugError as error:
        print(error, file=sys.stderr)
        return 2
    print(comparing.table(results))
    print(f"results in {args.out}, report: {page}")
    return 0


def arguments(about: str, policy: Path) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=about.splitlines()[0], epilog="what follows -- goes to the host's train.py"
    )
    add = parser.add_argument
    add("checkout", type=Path, help="folder of the repository, as its authors published it")
    add("--policy", default=str(policy), help=f"policy file or preset; default {policy.name}")
    add(
        "--install",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a further argument of the adapter's install()",
    )
    add("--run", action="store_true", help="write train_rgplug.py beside train.py and start it")
    add("--dry-run", action="store_true", help="print the patched train.py and write nothing")
    add(
        "--compare",
        metavar="METHODS",
        help="train these methods, with commas between, and report: dense,rg-gan,tickets",
    )
    add("--rounds", type=int, default=3, help="of tickets, after the dense one [%(default)s]")
    add("--seeds", type=int, default=1, help="how many [%(default)s]")
    add("--density", type=float, help="of every method's G and D [what the rounds leave: 0.8 to their number]")
    add("--length", type=int, help="iterations of G in a run, for schedules [from the host's options]")
    add("--jobs", type=int, default=1, help="runs at a time [%(default)s]")
    add("--out", type=Path, default=Path("runs/comparison"), help="folder of the comparison [%(default)s]")
    return parser


def _pair(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not equals:
        raise RgplugError(f"--install {text!r} has no value; write KEY=VALUE, e.g. --install every=500")
    return key, int(value) if value.isdigit() else value


def _needs_cuda() -> str:
    """What the host needs and this machine lacks, as a sentence; empty where nothing is."""
    import torch

    if torch.cuda.is_available():
        return ""
    return (
        "the host trains on CUDA only (an NVIDIA GPU with its driver, for custom operators a CUDA toolkit and a C++ "
        f"compiler), and torch {torch.__version__} sees no GPU here; --dry-run prints what would be started"
    )


if __name__ == "__main__":
    sys.exit(main())

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

A ticket is a mask found by training, pruning the smallest weights, rewinding the rest to where they began, and training
again. A fair comparison keeps everything else alike:

 1. The same data, seed, batch and real images shown to D (#RI) for every training. A ticket costs all its rounds: quote
    #RI and FLOPs over all of them (`real_images` and `flops` in history.jsonl) beside the FID of the last.
 2. The dense run is the baseline of both: --policy dense. It is bit-identical to the host without rgplug and fills
    history.jsonl with the same columns.
 3. RG-GAN: --policy examples/policies/stylegan2_ada.yaml, whose `target` fixes the density that the ticket is to have.
 4. The ticket: rounds of training with masks that do not move, each prune removing a share of what is left; three
    rounds of 20 % leave 51 %. Compare at equal density of G and of D, not at equal lambda.
 5. FID of the average of the generator under its mask (what the snapshot holds), from the same number of samples, best
    and last snapshot both; over at least three seeds, since few-shot FIDs differ between seeds by more than methods do.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from rgplug.adapters import patching
from rgplug.errors import RgplugError

ADAPTER = "stylegan2_ada"
POLICY = Path(__file__).parent / "policies" / "stylegan2_ada.yaml"
KNOWN = ("training/training_loop.py", "dnnlib/util.py", "metrics/metric_main.py")


def main(adapter: str = ADAPTER, policy: Path = POLICY, known: tuple[str, ...] = KNOWN, about: str = __doc__) -> int:
    """The command line, for this host and for others; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=about.splitlines()[0], epilog="what follows -- goes to the host's train.py"
    )
    parser.add_argument("checkout", type=Path, help="folder of the repository, as its authors published it")
    parser.add_argument("--policy", default=str(policy), help=f"policy file or preset; default {policy.name}")
    parser.add_argument("--run", action="store_true", help="write train_rgplug.py beside train.py and start it")
    parser.add_argument("--dry-run", action="store_true", help="print the patched train.py and write nothing")
    own, host = sys.argv[1:], []
    if "--" in own:
        own, host = own[: own.index("--")], own[own.index("--") + 1 :]
    args = parser.parse_args(own)
    chosen = str(Path(args.policy).resolve()) if Path(args.policy).is_file() else args.policy
    script = args.checkout / "train.py"
    try:
        missing = [name for name in ("train.py", *known) if not (args.checkout / name).is_file()]
        if missing:
            raise RgplugError(f"{args.checkout} has no {missing[0]}; give the folder of the repository")
        source = script.read_text(encoding="utf-8-sig")
        patched = patching.with_two_lines(source, adapter, chosen)
        if args.dry_run:
            print(patched)
            return 0
        if not args.run:
            print(patching.diff(source, patched))
            return 0
        needed = _needs_cuda()
        if needed:
            raise RgplugError(needed)
        copy = patching.patched_copy(script, adapter, chosen)
    except RgplugError as error:
        print(error, file=sys.stderr)
        return 2
    return subprocess.run([sys.executable, copy.name, *host], cwd=args.checkout).returncode


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

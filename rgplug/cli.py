"""The command `rgplug`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rgplug.errors import RgplugError
from rgplug.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status. Bad input is one sentence on stderr."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except RgplugError as error:
        print(f"rgplug: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("rgplug: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rgplug", description="Pruning and regeneration for GAN training code that exists."
    )
    parser.add_argument("--version", action="version", version=f"rgplug {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="train a small GAN on 200 robots, or on your images, with RG-GAN attached")
    demo.add_argument("--data", type=Path, help="folder of images [the 200 robots that come with rgplug]")
    demo.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder for what the run leaves [%(default)s]"
    )
    demo.add_argument("--iterations", type=int, help="steps of G and of D [the script's default]")
    demo.add_argument("--epoch-iterations", type=int, help="iterations between two evaluations [the script's default]")
    demo.add_argument("--seed", type=int, default=0, help="seed of everything random [%(default)s]")
    demo.set_defaults(run=_demo)

    inspect = commands.add_parser(
        "inspect",
        help="print which weights of a script's networks would be managed, and why others would not",
        description="Imports FILE (its main is not run), builds its networks and prints the attach report.",
    )
    inspect.add_argument("file", type=Path, help="Python file that defines the networks")
    inspect.add_argument("--G", default="Generator()", help="expression that builds the generator [%(default)s]")
    inspect.add_argument("--D", default="Discriminator()", help="... the discriminator; '' for none [%(default)s]")
    inspect.add_argument("--policy", default="rg-gan", help="preset or path to YAML [%(default)s]")
    inspect.add_argument("--check", action="store_true", help="also try on copies what hosts do to networks")
    inspect.set_defaults(run=_inspect)
    return parser


def _demo(args: argparse.Namespace) -> None:
    from rgplug.demo import demo

    demo(args.data, args.out, iterations=args.iterations, epoch_iterations=args.epoch_iterations, seed=args.seed)


def _inspect(args: argparse.Namespace) -> None:
    from rgplug.inspection import inspect

    print(inspect(args.file, args.G, args.D, args.policy, args.check))


if __name__ == "__main__":
    sys.exit(main())

"""The command `rgplug`."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rgplug import reading, schema
from rgplug.baselines.methods import METHODS
from rgplug.errors import RgplugError
from rgplug.report.command import add_report
from rgplug.version import __version__

TAKE_A_COMMAND = ("compare", "tickets")  # whose words after -- are a command


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status. Bad input is one sentence on stderr."""
    given = list(sys.argv[1:] if argv is None else argv)
    rest = given.index("--") if "--" in given else len(given)
    parser = _parser()
    args, unknown = parser.parse_known_args(given[:rest])
    if unknown:
        hint = ""
        if args.command in TAKE_A_COMMAND and rest == len(given):
            hint = "; the command that trains goes after --, e.g. -- python train.py --outdir {out} --seed {seed}"
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    args.rest = given[rest + 1 :]
    try:
        with _ended_like_ctrl_c():
            args.run(args)
    except RgplugError as error:
        print(f"rgplug: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("rgplug: interrupted", file=sys.stderr)
        return 130
    return 0


@contextlib.contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """SIGTERM (a batch system's, kill) ends this process as Ctrl-C does: a command that it runs is ended too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rgplug", description="Pruning and regeneration for GAN training code that exists."
    )
    parser.add_argument("--version", action="version", version=f"rgplug {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

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
    _add_compare(commands)
    _add_tickets(commands)

    _add_export(commands)

    add_report(commands)
    return parser


def _add_compare(commands: Any) -> None:
    compare = commands.add_parser(
        "compare",
        allow_abbrev=False,  # --seed would be taken for --seeds, which is how many
        help="train a host under several methods and seeds, under the same evaluation",
        usage="rgplug compare --methods NAMES [OPTIONS] -- COMMAND ...\n"
        "       rgplug compare --methods NAMES --host FILE [OPTIONS] [-- ARGUMENTS ...]",
        description="COMMAND trains a script with rgplug's two lines in it; {out} and {seed} in it become each run's "
        "folder and seed, and {round} that of tickets. Or HOST defines host(argv) -> (build, train), with argv what "
        "follows --, or build() -> (G, D) and train(build, attach, seed, run_dir). Finished runs are not run again; "
        "several processes may work in one folder.",
        epilog="Methods: " + ", ".join(METHODS),
    )
    add = compare.add_argument
    add("--host", help="Python file of a host that is functions, e.g. examples/sngan.py")
    add("--methods", default="", help="names, separated by commas")
    add("--seeds", type=int, default=1, help="how many [%(default)s]")
    add(
        "--only", action="append", default=[], metavar="METHOD:SEED", help="make this run, and what it builds on, alone"
    )
    add("--status", action="store_true", help="print what is done, running, failed or broken off, and run nothing")
    add("--out", type=Path, default=Path("runs/comparison"), help="folder of the comparison [%(default)s]")
    add("--policy", help="preset or YAML with keys common to all methods: metric, batch_size, networks")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="one such key, e.g. metric.real=FOLDER")
    add("--density", help="asked of every method that can be asked for one: 0.2, or G=0.1,D=0.5 [published]")
    add("--length", type=int, help="iterations of G in a run, to which schedules are scaled [published]")
    add("--n-critic", type=int, default=1, help="steps of D per iteration of G, for the schedules [%(default)s]")
    add("--rounds", type=int, default=10, help="of tickets, after the dense one [%(default)s]")
    add(
        "--ratio",
        default="0.2",
        help="of the remaining weights that a round prunes; 'density': so that the last round has the density that is "
        "asked for [%(default)s]",
    )
    add("--grid", action="append", default=[], metavar="KEY=V1,V2", help="a sweep: key of a policy, density.G, {KEY}")
    add(
        "--checkpoint",
        default="",
        metavar="GLOB",
        help="below {out}: files that a broken run of COMMAND can go on from",
    )
    add("--resume", default="", metavar="WORDS", help="added to COMMAND then, e.g. '--ckpt {checkpoint}'")
    add("--early", type=int, help="iteration of G that tickets-early rewinds to [5 %% of the length]")
    add("--jobs", type=int, default=1, help="processes [%(default)s]")
    compare.set_defaults(run=_compare)


def _add_tickets(commands: Any) -> None:
    tickets = commands.add_parser(
        "tickets",
        help="iterative magnitude pruning over a host's own command line, round by round",
        usage="rgplug tickets [OPTIONS] -- COMMAND ...",
        description="The short way to `rgplug compare --methods tickets -- COMMAND`. COMMAND trains a script with "
        "rgplug's two lines in it; {out}, {seed} and {round} in it become the round's folder, seed and number. "
        "Finished rounds are not run again.",
    )
    add = tickets.add_argument
    add("--rounds", type=int, default=10, help="after the dense one [%(default)s]")
    add("--ratio", type=float, default=0.2, help="of the remaining weights that a round prunes [%(default)s]")
    add("--rewind", choices=("init", "early", "none"), default="init", help="where a round starts from [%(default)s]")
    add("--early", type=int, help="iterations of G after which --rewind early keeps the weights")
    add("--networks", default="G,D", help="which are pruned [%(default)s]")
    add("--seed", type=int, default=0, help="for {seed} in the command [%(default)s]")
    add("--out", type=Path, default=Path("runs/tickets"), help="folder of the rounds [%(default)s]")
    tickets.set_defaults(run=_tickets)


def _add_export(commands: Any) -> None:
    export = commands.add_parser(
        "export",
        help="take a pruned network of a checkpoint away: sparse file, compact network, ONNX file, cost card",
        description="The sparse file needs the checkpoint alone. The other three need the network itself: --network "
        "imports FILE.py (its main is not run), evaluates EXPRESSION in it and loads the state dict, strictly.",
    )
    add = export.add_argument
    add("checkpoint", type=Path, help="what the host saved with torch.save")
    add("out", type=Path, help="the sparse file (safetensors)")
    add("--key", default="", help="where the state dict is in the checkpoint, dotted, e.g. G_ema")
    add("--state", type=Path, metavar="FILE", help="rgplug's state file, for the mask; else the one in the checkpoint")
    add("--half", action="store_true", help="values of the sparse file as float16")
    add("--network", metavar="FILE.py:EXPRESSION", help="builds the network, e.g. 'examples/sngan.py:Generator()'")
    add("--compact", type=Path, metavar="FILE", help="the network with the channels taken out that it does not need")
    add("--onnx", type=Path, metavar="FILE", help="an ONNX file, of the compact network where --compact is given")
    add("--card", type=Path, metavar="FILE", help="what each form costs, counted and measured, as markdown; - prints")
    export.set_defaults(run=_export)


def _demo(args: argparse.Namespace) -> None:
    from rgplug.demo import demo

    demo(args.data, args.out, iterations=args.iterations, epoch_iterations=args.epoch_iterations, seed=args.seed)


def _compare(args: argparse.Namespace) -> None:
    from rgplug.baselines.compare import plan, run
    from rgplug.baselines.methods import Scale
    from rgplug.baselines.status import status_of, table

    common: dict[str, Any] = {} if args.policy is None else {"base": args.policy}
    for text in args.set:
        common = schema.merge(common, schema.resolve(dict([_pair(text, "--set", "metric.real=FOLDER")]), {}))
    scale = Scale(_density(args.density), args.length, args.n_critic)
    methods = [name.strip() for name in args.methods.split(",") if name.strip()]
    methods = methods or list(dict.fromkeys((name.rpartition(":")[0] or name).partition("@")[0] for name in args.only))
    grid = dict(_values(text) for text in args.grid)
    ratio: Any = args.ratio if args.ratio == "density" else _number(args.ratio, "--ratio")
    if args.status and (not methods or (args.host is None and not args.rest)):
        found = status_of(args.out)
        print(table(s for s in found if not methods or s.method.partition("@")[0] in methods))
        return
    if not methods:
        raise RgplugError("compare needs --methods, e.g. --methods dense,rg-gan,stu-gan")
    asked: Any = (args.seeds, common, scale, args.rounds, ratio, args.early, args.jobs, grid, args.only or None)
    if args.status:
        print(table(status_of(args.out, plan(methods, _host(args), args.out.resolve(), *asked))))
        return
    for r in run(methods, _host(args), args.out, *asked):
        best = "diverged" if r.best is None else f"{r.metric or 'metric'} {r.best:.3f} at epoch {r.best_epoch}"
        print(f"{r.method} seed {r.seed}: {best}, density {' '.join(f'{k} {v:.3f}' for k, v in r.density.items())}")
    print(f"results in {args.out}; `rgplug report {args.out}` makes tables and figures")


def _host(args: argparse.Namespace) -> Any:
    """What is trained: a file of functions, or the command after --."""
    from rgplug.baselines.command import Command
    from rgplug.baselines.host import HostFile

    if args.host is not None:
        if args.checkpoint or args.resume:
            raise RgplugError(
                "--checkpoint and --resume are of a command; a host of functions finds its own in run_dir"
            )
        return HostFile(str(Path(args.host).resolve()), tuple(args.rest))
    return Command(tuple(args.rest), checkpoint=args.checkpoint, resume=tuple(shlex.split(args.resume)))


def _pair(text: str, option: str, example: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise RgplugError(f"{option} {text!r} has no value; write KEY=VALUE, e.g. {option} {example}")
    return key, reading.parse(value, f"the value of {option} {text!r}")


def _values(text: str) -> tuple[str, list[Any]]:
    """KEY=V1,V2: each value as a policy would read it."""
    key, equals, values = text.partition("=")
    if not equals or not all(value.strip() for value in values.split(",")):
        raise RgplugError(f"--grid {text!r} has no values; write KEY=V1,V2, e.g. --grid density.G=0.1,0.2")
    return key.strip(), [reading.parse(value.strip(), f"a value of --grid {text!r}") for value in values.split(",")]


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise RgplugError(f"{option} is {text!r}; give a number, e.g. {option} 0.2, or 'density'") from None


def _density(text: str | None) -> float | dict[str, float] | None:
    try:
        if text is None or "=" not in text:
            return None if text is None else float(text)
        pairs = [(k.strip(), float(v)) for k, v in (part.split("=") for part in text.split(","))]
        if len({k for k, _ in pairs}) < len(pairs):
            raise ValueError
        return dict(pairs)
    except ValueError:
        raise RgplugError(f"--density is {text!r}; give one number, or G=0.1,D=0.5") from None


def _tickets(args: argparse.Namespace) -> None:
    from rgplug.baselines.driven import drive_tickets

    drive_tickets(
        args.rest,
        args.out,
        rounds=args.rounds,
        ratio=args.ratio,
        rewind=args.rewind,
        early=args.early,
        networks=[name.strip() for name in args.networks.split(",")],
        seed=args.seed,
    )


def _export(args: argparse.Namespace) -> None:
    from rgplug.export.command import export

    for line in export(
        args.checkpoint, args.out, args.key, args.half, args.network, args.compact, args.onnx, args.card, args.state
    ):
        print(line, flush=True)


def _inspect(args: argparse.Namespace) -> None:
    from rgplug.inspection import inspect

    print(inspect(args.file, args.G, args.D, args.policy, args.check))


if __name__ == "__main__":
    sys.exit(main())

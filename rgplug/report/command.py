"""`rgplug report`: its options."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rgplug.errors import RgplugError


def add_report(commands: Any) -> None:
    """The subcommand. commands: what argparse's add_subparsers returns."""
    report = commands.add_parser(
        "report",
        help="tables, figures and one HTML page from comparisons and runs",
        description="FOLDER is the --out of a comparison, the folder of a run (of an adapter too), or one below which "
        "there are such, at any depth. Several are reported together.",
        epilog="Keys are those of a run: method, seed, folder, density.G, sparsity.G, keys of its policy "
        "(exploration.every), options of its command (share), class.G. Cells: best, last, ri, flops, seconds, density, "
        "sparsity.G, parameters, inference, ever_active, and names of metrics; metrics side by side are one, fid,is is "
        "(FID, IS).",
    )
    report.add_argument("runs", type=Path, nargs="+", metavar="FOLDER", help="of a comparison, of runs, or of a run")
    report.add_argument("--out", type=Path, metavar="PAGE", help="the page [FOLDER/report.html]; tables go beside it")
    report.add_argument("--rows", metavar="KEYS", help="a table more: keys of its rows, with commas [method]")
    report.add_argument("--columns", metavar="KEYS", help="keys of its columns [none]")
    report.add_argument("--cells", metavar="NAMES", help="what its cells show [best]")
    report.add_argument("--figures", type=Path, metavar="DIR", help="write each figure there too, as .png and .pdf")
    report.add_argument("--sweep", metavar="KEY", help="a figure of the metric over this key [the first of the grid]")
    report.add_argument("--by", metavar="KEY", help="a line of it for each value of this key [method]")
    report.set_defaults(run=_report)


def _report(args: argparse.Namespace) -> None:
    from rgplug.report.page import write_report
    from rgplug.report.pivot import wanted_of

    if args.by is not None and args.sweep is None:
        raise RgplugError("--by says what the lines of a figure over a key are; give --sweep KEY too")
    swept = None if args.sweep is None else (args.sweep, args.by)
    wanted = wanted_of(args.rows, args.columns, args.cells)
    print(write_report(args.runs, args.out, wanted, args.figures, swept))

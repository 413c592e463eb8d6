"""The host of tests/hosts_of_comparisons.py as a command with the two lines in it.

python command_host.py --out FOLDER --seed N [--fault KIND] [--pause SECONDS] [--lr X]
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import hosts_of_comparisons as hosts
import tiny

import rgplug


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--round", type=int, default=0)
    parser.add_argument("--fault", default="")
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--pause", type=float, default=0.0)
    args = parser.parse_args()
    print(f"training with seed {args.seed}")
    if args.fault == "never attaches" or ("then nothing" in args.fault and (args.out / "history.jsonl").is_file()):
        return
    attach: Any = functools.partial(rgplug.attach, policy={"batch_size": tiny.BATCH})
    if args.fault == "no history":
        rg = attach(*hosts.build())
        rg.detach()
        return
    if args.fault == "ends with an error":
        raise ValueError("the loader found no images")

    def after(rg: Any, host: Any) -> None:
        time.sleep(args.pause)
        if args.fault.startswith("killed") and host.iteration == 2 * hosts.EVERY:
            os.kill(os.getpid(), signal.SIGKILL)

    if args.fault == "empties its folder":
        shutil.rmtree(args.out)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.fault == "writes run.json":
        (args.out / "run.json").write_text('{"lr": 0.1}')
    hosts.run(hosts.build, attach, args.seed, args.out, after_end=after)


if __name__ == "__main__":
    main()

"""GAN tickets by iterative magnitude pruning: masks of the next round, and rounds over a host's own command line."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from rgplug.baselines.checks import amount, group, has, needed, share, shown, word_or_none
from rgplug.baselines.checks import number as numeric
from rgplug.baselines.files import Damaged, read_json, write_json, write_whole
from rgplug.baselines.methods import TICKET, Rewind
from rgplug.baselines.records import records_of
from rgplug.errors import RgplugError
from rgplug.filter_scores import scores_in
from rgplug.methods.magnitude import prune_remaining
from rgplug.methods.two_of_four import two_of_four
from rgplug.policy import ENVIRONMENT, Granularity
from rgplug.snapshot import Masks, read, save_masks
from rgplug.units import Units, of_entries, spared

DONE = "done.json"


def next_masks(
    trained: Path,  # snapshot of the round that ended
    masks: Path | None,  # its masks; None: all weights were kept
    ratio: float,  # share of the remaining weights that is pruned
    networks: Sequence[str],
    managed: Mapping[str, Sequence[str]],  # names of the weights that may be pruned, by network
    criterion: str | None = None,  # of torch-pruning, whose scores `trained` holds; None: by magnitude
) -> Masks:
    """Masks of the next round: globally over each network, the smallest magnitudes of what remains go.

    Magnitudes are those of the Parameter itself (under spectral norm: before the division, as published). Where the
    round was run under a granularity, `trained` says what is pruned as a whole, and means over that are ranked. With a
    criterion of torch-pruning whole filters are ranked, by the scores that the round's snapshots were asked for
    (policy.snapshots.scores). Raises RgplugError for files that do not fit.
    """
    check_rounds(1, ratio)
    held = read(trained)
    pair = held["pair"]
    before: Masks = {} if masks is None else read(masks, "masks")["masks"]
    after: Masks = {}
    for network in networks:
        names = list(managed.get(network, ()))
        if not names or network not in pair:
            raise RgplugError(
                f"{trained} holds no managed weights of {network}; attach it, or leave it out of networks"
            )
        earlier = before.get(network, {})
        _check_shapes(trained, masks or trained, network, names, pair[network], earlier)
        scores: list[Tensor] | None = None
        if criterion is None:
            units = held["units"].get(network) or of_entries({name: pair[network][name].shape for name in names})
        else:
            units, scores = scores_in(held, trained, network, criterion)
        after[network] = _pruned(pair[network], earlier, units, ratio, scores)
    return after


def _check_shapes(
    trained: Path,
    masks: Path,
    network: str,
    names: Sequence[str],
    held: Mapping[str, Tensor],
    earlier: Mapping[str, Tensor],
) -> None:
    """Raise RgplugError unless the snapshot has these weights, and the masks fit them."""
    for name in names:
        if name not in held:
            raise RgplugError(f"{trained} has no weight {network}.{name}, which was managed; it is of another run")
        if name in earlier and earlier[name].shape != held[name].shape:
            raise RgplugError(
                f"{masks}: the mask of {network}.{name} is of shape {list(earlier[name].shape)}, the weight of "
                f"{list(held[name].shape)} ({trained}); the two are of different runs"
            )


def _pruned(
    thetas: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    units: Units,
    ratio: float,
    scores: list[Tensor] | None = None,  # of the units of each block; None: their magnitudes
) -> dict[str, Tensor]:
    """One network's masks of the next round."""
    sizes = scores or [b.scores({name: thetas[name].abs() for name in b.names}) for b in units.blocks]
    if units.granularity == "2:4":
        check_rounds(1, ratio, units.granularity)
        if masks:
            raise RgplugError("granularity 2:4 has one round: what is left cannot be halved again; set rounds to 1")
        kept = [two_of_four(size) for size in sizes]
    else:
        ones = {name: torch.ones(part.layout.shape, dtype=torch.bool) for name, part in units.parts.items()}
        old = [b.kept({name: masks.get(name, ones[name]) for name in b.names}) for b in units.blocks]
        entries = [b.sizes(torch.device("cpu")) for b in units.blocks] if units.coarse else None
        kept = prune_remaining(sizes, old, ratio, entries)
    found: dict[str, Tensor] = {}
    for block, chosen, size in zip(units.blocks, kept, sizes):
        found |= block.masks(spared(block, chosen, size))
    return found


def random_masks(masks: Path, seed: int, trained: Path | None = None) -> Masks:
    """Control: random masks with as many entries in each layer as the given ones.

    trained: a snapshot of the run under these masks; where it has a granularity, as many units in each layer, and
    layers that are tied are drawn together.
    """
    generator = torch.Generator().manual_seed(seed)
    described = {} if trained is None else read(trained)["units"]
    held: Masks = read(masks, "masks")["masks"]
    drawn: Masks = {}
    for network, layers in held.items():
        drawn[network] = {}
        units = described.get(network) or of_entries({name: mask.shape for name, mask in layers.items()})
        fits = {name: tuple(part.layout.shape) for name, part in units.parts.items()}
        if any(fits.get(name) != tuple(mask.shape) for name, mask in layers.items()) or fits.keys() != layers.keys():
            raise RgplugError(f"{masks} does not fit the {network} of {trained}; the two are of different runs")
        for block in units.blocks:
            kept = block.kept({name: layers[name] for name in block.names})
            if units.granularity == "2:4":
                new = two_of_four(torch.rand(kept.shape, generator=generator))
            else:
                order = torch.randperm(kept.numel(), generator=generator)
                new = torch.zeros(kept.numel(), dtype=torch.bool)
                new[order[: int(kept.sum())]] = True
            drawn[network] |= block.masks(new.view(kept.shape))
    return drawn


def drive_tickets(
    command: Sequence[str],
    out: Path,
    *,
    rounds: int = 10,
    ratio: float = 0.2,
    rewind: Rewind = "init",
    early: int | None = None,
    networks: Sequence[str] = ("G", "D"),
) -> list[dict[str, Any]]:
    """Iterative magnitude pruning over a command that trains a host under rgplug, round by round.

    Round 0 trains dense; each round after it prunes `ratio` of the remaining weights and trains again from the first
    weights (rewind "init"), from those after `early` iterations of G ("early"), or from the trained ones ("none").
    The command is the host's own, with `attach` or an adapter in it; `{out}` and `{round}` in it are replaced by the
    round's folder and number. It gets the round's policy through the environment (RGPLUG_POLICY). Finished rounds are
    not run again; one that was interrupted is started anew. Returns one dict per round: density, best metric, costs.
    """
    check_rounds(rounds, ratio)
    _check(command, rewind, early)
    out = out.resolve()
    _check_settings(out, list(command), ratio, rewind, early, networks)
    rows = []
    for number in range(rounds + 1):
        folder = out / f"round_{number:02d}"
        if not (folder / DONE).is_file():
            policy = _round_policy(out, number, ratio, rewind, early, networks)
            write_whole(folder / "policy.yaml", yaml.safe_dump(policy, sort_keys=False))
            _run(command, folder, number)
            write_json(folder / DONE, _summary(folder, number))
        rows.append(_read_done(folder / DONE, number))
        print(f"rgplug: {_line(rows[-1])}", flush=True)
    return rows


def check_rounds(rounds: int, ratio: float, granularity: Granularity = "weight") -> None:
    """Raise RgplugError unless there is a round, and something to prune and to keep in it."""
    if granularity == "2:4" and (rounds != 1 or ratio != 0.5):
        raise RgplugError(
            f"granularity 2:4 prunes one half, once; tickets were asked for rounds {rounds} of ratio {ratio:g}: give "
            "rounds 1 and ratio 0.5, or another granularity"
        )
    if rounds < 1:
        raise RgplugError(f"rounds is {rounds}; tickets need at least one after the dense round")
    if not 0 < ratio < 1:
        raise RgplugError(f"ratio is {ratio}; it has to lie between 0 and 1 (exclusive)")


def _check(command: Sequence[str], rewind: Rewind, early: int | None) -> None:
    if not command:
        raise RgplugError(
            "there is no command to run; give the host's own after --, e.g. -- python train.py --out {out}"
        )
    if rewind == "early" and early is None:
        raise RgplugError("rewind early needs --early N, the iterations of G after which the weights are kept")


def _check_settings(
    out: Path, command: list[str], ratio: float, rewind: str, early: int | None, networks: Sequence[str]
) -> None:
    """Rounds of other settings are not mixed; the number of rounds may grow."""
    now = {"command": command, "ratio": ratio, "rewind": rewind, "early": early, "networks": list(networks)}
    path = out / "tickets.json"
    if not path.is_file():
        if next(out.glob(f"round_*/{DONE}"), None) is not None:
            raise RgplugError(
                f"{out} holds rounds and no {path.name}, so nothing says with which settings they were trained; give "
                "another --out, or delete that folder"
            )
        write_json(path, now)
        return
    before = read_json(path, f"delete {out} and run the same command again")
    for key, value in now.items():
        if key not in before or before[key] != value:
            raise RgplugError(
                f"{out} holds rounds with {key} {shown(before.get(key))}, now it is {shown(value)}; give another --out"
            )


def _round_policy(
    out: Path, number: int, ratio: float, rewind: Rewind, early: int | None, networks: Sequence[str]
) -> dict[str, Any]:
    """Keys that replace those of the script's policy in this round."""
    folder, first = out / f"round_{number:02d}", out / "round_00"
    policy: dict[str, Any] = {
        **TICKET,
        "method": "dense" if number == 0 else "sparse",
        "target": None,
        "exploration": None,
        "balance": None,
        "start": None,
        "snapshots": {"folder": str(folder), "early": early if number == 0 else None, "optimizers": False},
        "run_dir": str(folder),
    }
    if number > 0:
        last = out / f"round_{number - 1:02d}"
        masks = folder / "masks.safetensors"
        managed = _read_done(first / DONE, 0)["managed"]
        earlier = last / "masks.safetensors" if number > 1 else None
        save_masks(masks, next_masks(last / "trained.safetensors", earlier, ratio, networks, managed))
        start = {"init": first / "initial.safetensors", "early": first / "early.safetensors"}
        policy["masks"] = {"file": str(masks)}
        policy["start"] = {"weights": str(start.get(rewind, last / "trained.safetensors"))}
    return policy


def _run(command: Sequence[str], folder: Path, number: int) -> None:
    filled = [part.replace("{out}", str(folder)).replace("{round}", str(number)) for part in command]
    print(f"rgplug: round {number}: {' '.join(filled)}", flush=True)
    try:
        status = subprocess.run(filled, env={**os.environ, ENVIRONMENT: str(folder / "policy.yaml")}).returncode
    except OSError as error:
        raise RgplugError(f"the command {filled[0]!r} cannot be run: {error.strerror}") from error
    if status:
        raise RgplugError(
            f"round {number} ended with status {status}; rounds before it are finished, and the same command line "
            "goes on from there"
        )
    if not (folder / "trained.safetensors").is_file():
        raise RgplugError(
            f"round {number} left no trained weights in {folder}: nothing was attached, or neither end_epoch nor "
            "detach was called; put the two lines into the script"
        )


def _summary(folder: Path, number: int) -> dict[str, Any]:
    lines = records_of(folder, ("metric", "metric_name"))
    values = [line["metric"] for line in lines if line["metric"] is not None]
    last = lines[-1] if lines else {}
    return {
        "round": number,
        "density": last.get("density"),
        "best": min(values, default=None),
        "metric": last.get("metric_name"),
        "real_images": last.get("real_images"),
        "flops": last.get("flops"),
        "managed": {k: list(v) for k, v in last.get("layers", {}).items()},
    }


def _read_done(path: Path, number_of_round: int) -> dict[str, Any]:
    """A finished round's summary. Raises RgplugError where the file is damaged or of another round."""
    advice = "delete this file and run the same command again, which trains the round anew"
    row = read_json(path, advice)
    try:
        has(row, ("round", "density", "best", "metric", "real_images", "flops", "managed"))
        if needed(row, "round") != number_of_round:
            raise Damaged(f"it is of round {row['round']}")
        group(row, "density", share)
        numeric(row, "best")
        word_or_none(row, "metric")
        for key in ("real_images", "flops"):
            amount(row, key)
        managed = row["managed"]
        lists = list(managed.values()) if isinstance(managed, dict) else [None]
        if not all(isinstance(names, list) and all(isinstance(n, str) for n in names) for names in lists):
            raise Damaged("managed has to hold a list of names for each network")
    except Damaged as error:
        raise RgplugError(f"{path} is damaged: {error}; {advice}") from None
    return row


def _line(row: Mapping[str, Any]) -> str:
    density = " ".join(f"{k} {v:.3f}" for k, v in (row["density"] or {}).items())
    best = "no metric" if row["best"] is None else f"{row['metric'] or 'metric'} {row['best']:.3f} (best)"
    return f"round {row['round']}: density {density or 'unknown'} | {best}"

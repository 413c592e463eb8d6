"""How the methods of a comparison train: once, on top of a trained pair, or in rounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from rgplug import schema
from rgplug.baselines.host import Host
from rgplug.baselines.methods import Baseline, Scale
from rgplug.baselines.records import NEEDED, digest_of, records_of
from rgplug.baselines.results import RESULT, read_result
from rgplug.baselines.run import SPEC, Training, same_settings
from rgplug.baselines.tickets import next_masks, random_masks, ratio_for
from rgplug.errors import RgplugError
from rgplug.history import HISTORY
from rgplug.run_setup import Setup
from rgplug.sealed import digest, is_sealed, read_json, write_json
from rgplug.snapshot import Masks, read, save_masks

INITIAL, EARLY, TRAINED, MASKS = (f"{n}.safetensors" for n in ("initial", "early", "trained", "masks"))
TASK = "task.json"
CHARGED = {  # what was trained before is charged with the whole of it
    "real_images": "real_images_total",
    "flops": "flops_total",
    "flops_proportional": "flops_proportional",
}


@dataclass(frozen=True)
class Task:
    """One row of the results: a method and a seed."""

    baseline: Baseline
    seed: int
    host: Host
    common: Mapping[str, Any]
    scale: Scale
    root: Path
    rounds: int = 10
    ratio: float | Literal["density"] = 0.2
    early: int | None = None
    names: Mapping[str, str] = field(default_factory=dict)  # method -> name of its folder, where a grid makes several
    keys: Mapping[str, Any] = field(default_factory=dict)  # what its result is known by besides its policy

    @property
    def name(self) -> str:
        return self.names.get(self.baseline.name, self.baseline.name)

    @property
    def label(self) -> str:
        """How a message names it."""
        return f"{self.name} seed {self.seed}"

    @property
    def folder(self) -> Path:
        return self.folder_of(self.baseline.name)

    def folder_of(self, method: str) -> Path:
        return self.root / self.names.get(method, method) / f"seed_{self.seed}"

    @property
    def finished(self) -> bool:
        """Whether the folder holds the result of this task, under all the settings that are asked for now.

        Raises RgplugError where it holds one of other settings, begun or finished, or a file of it is damaged.
        """
        self._check_early()
        known = [training.check() for training in self.trainings()]
        settled = self._check_task()
        if not (self.folder / RESULT).is_file():
            return False
        held = read_result(self.folder / RESULT, self.name, self.seed, self.root)
        # more rounds than before, or a folder of a version that did not keep all settings: what is there is checked
        # once more on the way to a new result, and only what is missing is trained
        rounds = len(held.get("rounds") or ()) - 1 if self.baseline.procedure == "tickets" else self.rounds
        return settled and all(known) and rounds == self.rounds

    @property
    def of_earlier_version(self) -> bool:
        """Whether a training here was begun by a version that stored less about it."""
        files = (training.folder / SPEC for training in self.trainings())
        return any(path.is_file() and not is_sealed(path) for path in files)

    def run(self, held: int | None = None) -> None:
        """Train what is left to train, and write the result. held: descriptor of the claim on the folder."""
        self._check_early()
        settled = self._check_task() and self.baseline.procedure != "tickets"  # which may get more rounds
        if not settled and (settings := self._settings()):
            write_json(self.folder / TASK, settings)
        procedure = {
            "train": self._train,
            "fine-tune": self._fine_tune,
            "tickets": self._tickets,
            "random-init": self._random_init,
            "random-mask": self._random_mask,
        }[self.baseline.procedure]
        write_json(self.folder / RESULT, procedure(held))

    def trainings(self) -> list[Training]:
        """What the task trains, in this order; files that a training starts from need not be there yet."""
        if self.baseline.procedure == "tickets":
            return [self._round(number) for number in range(1, self.rounds + 1)]
        if self.baseline.procedure == "fine-tune":
            start = {"weights": str(self.folder_of("dense") / TRAINED), "optimizers": True}
            return [self._training(self.folder, start=start)]
        if self.baseline.procedure == "random-init":
            training = self._training(self.folder, masks={"file": str(self._last_masks())})
            return [dataclasses.replace(training, init_seed=self.seed + 10007)]
        if self.baseline.procedure == "random-mask":
            start = {"weights": str(self.folder_of("dense") / INITIAL)}
            return [self._training(self.folder, masks={"file": str(self.folder / MASKS)}, start=start)]
        changes: dict[str, Any] = {}
        if self.baseline.name == "dense":  # what fine-tuning and tickets start from
            changes["snapshots"] = {"early": self.early, **self._scores}
        return [self._training(self.folder, **changes)]

    def _training(self, folder: Path, number: int = 0, **changes: Any) -> Training:
        policy = {**self.scale.policy(self.baseline), **changes}
        asked = self.common.get("snapshots")
        if "snapshots" in changes or asked:
            policy["snapshots"] = {**(asked or {}), **changes.get("snapshots", {}), "folder": str(folder)}
        return Training(
            host=self.host,
            common=self.common,
            policy=policy,
            method=self.name,
            seed=self.seed,
            folder=folder,
            root=self.root,
            round=number,
            keys=self.keys,
        )

    def _round(self, number: int) -> Training:
        """Round `number` of the tickets, from 1 on."""
        folder = self._round_folder(number)
        before = self.folder_of("dense") if number == 1 else self._round_folder(number - 1)
        start = {"init": self.folder_of("dense") / INITIAL, "early": self.folder_of("dense") / EARLY}
        # beside a file the criterion says no more than how that came about: other settings make another round
        criterion = {"criterion": self.baseline.scores[0]} if self.baseline.scores else {}
        return self._training(
            folder,
            number,
            masks={"file": str(folder / MASKS), **criterion},
            start={"weights": str(start.get(self.baseline.rewind, before / TRAINED))},
            snapshots={"optimizers": False, **self._scores},
        )

    @property
    def _scores(self) -> dict[str, Any]:
        """What snapshots hold for tickets that rank by a criterion of torch-pruning."""
        return {"scores": list(self.baseline.scores)} if self.baseline.scores else {}

    def _round_folder(self, number: int) -> Path:
        return self.folder / f"round_{number:02d}"

    def _settings(self) -> dict[str, Any]:
        """What decides about this task besides the settings of its trainings; {} where nothing does."""
        if self.baseline.needs is None:
            return {}
        tickets: dict[str, Any] = {}
        if self.baseline.procedure in ("tickets", "random-init", "random-mask"):
            tickets = {"rounds": self.rounds, "ratio": self.ratio}
            if self.ratio == "density":
                tickets["ratio"] = self._ratios()
        if self.baseline.procedure == "tickets":
            tickets |= {"rewind": self.baseline.rewind, "networks": list(self.baseline.networks)}
        if self.baseline.rewind == "early":
            tickets["early"] = self.early
        return {**tickets, "built on": {self.baseline.needs: digest(self._result_of(self.baseline.needs))}}

    def _check_task(self) -> bool:
        """Whether the folder says what the task was, where its trainings do not say all. Raises RgplugError where it
        was another one. Tickets may get more rounds; what was trained for fewer is a part of them."""
        path = self.folder / TASK
        if self.baseline.needs is None:
            return True
        if not path.is_file() or not (self.folder_of(self.baseline.needs) / RESULT).is_file():
            return False
        before, now = read_json(path, f"delete {self.folder} and run the same command again"), self._settings()
        held, asked = before.get("rounds"), now.get("rounds")
        if self.baseline.procedure == "tickets" and isinstance(held, int) and isinstance(asked, int) and held < asked:
            before = {**before, "rounds": asked}
        same_settings(self.folder, before, now)
        return True

    def _check_early(self) -> None:
        """Tickets that are rewound to an early snapshot need it to be that of the iteration that is asked for."""
        path = self.folder_of("dense") / SPEC
        if self.baseline.rewind != "early" or not path.is_file():
            return
        held = read_json(path, f"delete {path.parent} and run the same command again").get("policy")
        snapshots = held.get("snapshots") if isinstance(held, dict) else None
        early = snapshots.get("early") if isinstance(snapshots, dict) else None
        if early != self.early and early is not None:
            raise RgplugError(
                f"{path.parent} kept an early snapshot at iteration {early}, and {self.baseline.name} is to be rewound "
                f"to iteration {self.early}; give --early {early}, or another --out"
            )

    def _train(self, held: int | None) -> dict[str, Any]:
        return _result(self._only().run(held))

    def _fine_tune(self, held: int | None) -> dict[str, Any]:
        """PF: the trained pair with its optimizers' moments, pruned once, trained as long again (STU-GAN, Sec. 4.1)."""
        self._needed(TRAINED)
        return _result(self._only().run(held), [self._result_of("dense")])

    def _tickets(self, held: int | None) -> dict[str, Any]:
        """IMP: round 0 is the dense run; each round prunes what the one before has trained, and rewinds."""
        dense = self._result_of("dense")
        rounds = [dense]
        trained, masks = self._needed(TRAINED), None
        self._needed({"init": INITIAL, "early": EARLY, "none": TRAINED}[self.baseline.rewind])
        managed = self._managed()
        self._check_whole_filters()
        for training in self.trainings():
            mine = training.folder / MASKS
            criterion = next(iter(self.baseline.scores), None)
            _settle(mine, next_masks(trained, masks, self._ratios(), self.baseline.networks, managed, criterion))
            rounds.append(training.run(held))
            trained, masks = training.folder / TRAINED, mine
        return _result(rounds[-1], rounds[:-1], rounds=True)

    def _check_whole_filters(self) -> None:
        """Raise RgplugError for a criterion of torch-pruning over single weights. What the script's own policy says of
        them is known from the dense run."""
        if not self.baseline.scores:
            return
        setup = Setup.read(self.folder_of("dense"))
        held = None if setup is None else setup.policy.get("granularity")
        asked = schema.merge(self.common, self.scale.policy(self.baseline)).get("granularity", held)
        for network in self.baseline.networks:
            granularity = asked.get(network, "weight") if isinstance(asked, Mapping) else asked
            if granularity != "filter":
                raise RgplugError(
                    f"{self.name} ranks whole filters by {self.baseline.scores[0]}, and {network} is pruned under "
                    f"granularity {granularity}; give granularity: filter (--set granularity=filter)"
                )

    def _random_init(self, held: int | None) -> dict[str, Any]:
        """Control: the ticket's masks on weights of another initialization (X. Chen et al. 2021)."""
        return _result(self._only().run(held), [self._result_of("tickets")])

    def _random_mask(self, held: int | None) -> dict[str, Any]:
        """Control: the first weights under random masks with the ticket's layer densities."""
        ticket = self._result_of("tickets")
        last = self._last_masks()
        _settle(self.folder / MASKS, random_masks(last, self.seed, last.with_name(TRAINED)))
        return _result(self._only().run(held), [ticket])

    def _ratios(self) -> float | dict[str, float]:
        """The share that a round prunes; by network where the last round is to have the density that is asked for."""
        if self.ratio != "density":
            return self.ratio
        return {net: ratio_for(self.scale.density_of(net), self.rounds) for net in self.baseline.networks}

    def _only(self) -> Training:
        (training,) = self.trainings()
        return training

    def _last_masks(self) -> Path:
        return self.folder_of("tickets") / f"round_{self.rounds:02d}" / MASKS

    def _needed(self, name: str) -> Path:
        """A snapshot of the dense run. Raises RgplugError where there is none."""
        path = self.folder_of("dense") / name
        if not path.is_file():
            hint = "; give --early ITERATIONS and a new --out" if name == EARLY else ""
            raise RgplugError(
                f"{self.baseline.name} needs the trained dense pair, and there is no snapshot {path}; run the method "
                f"'dense' into the same folder first{hint}"
            )
        return path

    def _managed(self) -> dict[str, list[str]]:
        """Weights that the dense run managed, by network."""
        folder = self.folder_of("dense")
        lines = records_of(folder, NEEDED)
        written = self._result_of("dense").get("history")
        if not lines or (written is not None and written != digest_of(lines)):
            raise RgplugError(
                f"{folder / HISTORY} is not the history that the run wrote; restore it, or delete {folder} and run the "
                "same command again"
            )
        return {network: list(layers) for network, layers in lines[0]["layers"].items()}

    def _result_of(self, method: str) -> dict[str, Any]:
        path = self.folder_of(method) / RESULT
        if not path.is_file():
            raise RgplugError(f"{self.baseline.name} needs the finished run {path.parent}, which is not there")
        return read_result(path, self.names.get(method, method), self.seed, self.root)


def _settle(path: Path, masks: Masks) -> None:
    """Masks as a file; where it is there already, it has to hold these. Raises RgplugError where it holds others."""
    if not path.is_file():
        save_masks(path, masks)
        return
    held: Masks = read(path, "masks")["masks"]
    if not _equal(held, masks):
        raise RgplugError(
            f"{path} holds other masks than these settings give (was the ratio, or the run before it, another one?); "
            f"give another --out, or delete {path.parent}"
        )


def _equal(a: Masks, b: Masks) -> bool:
    if {net: layers.keys() for net, layers in a.items()} != {net: layers.keys() for net, layers in b.items()}:
        return False
    return all(torch.equal(mask, b[net][name]) for net, layers in a.items() for name, mask in layers.items())


def _result(outcome: dict[str, Any], earlier: list[dict[str, Any]] | None = None, rounds: bool = False) -> Any:
    """The row of a training, charged with all that was trained before it."""
    before: dict[str, float | None] = {}
    for key, whole in CHARGED.items():
        before[key] = _sum(part for o in earlier or [] for part in (o.get(whole), (o.get("before") or {}).get(key, 0)))
    seconds = _sum(part for o in earlier or [] for part in (o.get("seconds_total"), o.get("seconds_before", 0)))
    rows = []
    for number, o in enumerate([*(earlier or []), outcome] if rounds else []):
        kept = (
            "run", "density", "best", "real_images", "flops", "real_images_total", "flops_total", "seconds",
            "seconds_total", "parameters_kept",
        )  # fmt: skip
        rows.append({"round": number, **{k: o.get(k) for k in kept}})
    return {**outcome, "before": before, "seconds_before": seconds, "rounds": rows}


def _sum(parts: Iterable[float | None]) -> float | None:
    """Their sum; None where one of them is not known."""
    known = list(parts)
    return None if any(part is None for part in known) else sum(part for part in known if part is not None)

"""How the methods of a comparison train: once, on top of a trained pair, or in rounds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rgplug.baselines.host import Host
from rgplug.baselines.methods import Baseline, Scale
from rgplug.baselines.results import RESULT, write_whole
from rgplug.baselines.run import Training
from rgplug.baselines.tickets import next_masks, random_masks
from rgplug.errors import RgplugError
from rgplug.history import history_of
from rgplug.snapshot import save_masks

INITIAL, EARLY, TRAINED, MASKS = (f"{n}.safetensors" for n in ("initial", "early", "trained", "masks"))


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
    ratio: float = 0.2
    early: int | None = None

    @property
    def folder(self) -> Path:
        return self.folder_of(self.baseline.name)

    def folder_of(self, method: str) -> Path:
        return self.root / method / f"seed_{self.seed}"

    @property
    def finished(self) -> bool:
        return (self.folder / RESULT).is_file()

    def run(self) -> None:
        """Train what is left to train, and write the result."""
        procedure = {
            "train": self._train,
            "fine-tune": self._fine_tune,
            "tickets": self._tickets,
            "random-init": self._random_init,
            "random-mask": self._random_mask,
        }[self.baseline.procedure]
        write_whole(self.folder / RESULT, json.dumps(procedure()))

    def training(self, folder: Path, **changes: Any) -> Training:
        policy = {**self.scale.policy(self.baseline), **changes}
        return Training(self.host, self.common, policy, self.baseline.name, self.seed, folder, self.root)

    def _train(self) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        if self.baseline.name == "dense":  # what fine-tuning and tickets start from
            changes["snapshots"] = {"folder": str(self.folder), "early": self.early}
        return _result(self.training(self.folder, **changes).run())

    def _fine_tune(self) -> dict[str, Any]:
        """PF: the trained pair with its optimizers' moments, pruned once, trained as long again (STU-GAN, Sec. 4.1)."""
        start = {"weights": str(self._needed(TRAINED)), "optimizers": True}
        outcome = self.training(self.folder, start=start).run()
        return _result(outcome, [self._result_of("dense")])

    def _tickets(self) -> dict[str, Any]:
        """IMP: round 0 is the dense run; each round prunes what the one before has trained, and rewinds."""
        dense = self._result_of("dense")
        rounds = [dense]
        trained, masks = self._needed(TRAINED), None
        for number in range(1, self.rounds + 1):
            folder = self.folder / f"round_{number:02d}"
            mine = folder / MASKS
            if not mine.is_file():
                save_masks(mine, next_masks(trained, masks, self.ratio, self.baseline.networks, self._managed()))
            start = {"init": self._needed(INITIAL), "none": trained}.get(self.baseline.rewind)
            training = self.training(
                folder,
                masks={"file": str(mine)},
                start={"weights": str(start or self._needed(EARLY))},
                snapshots={"folder": str(folder), "optimizers": False},
            )
            rounds.append(training.run())
            trained, masks = folder / TRAINED, mine
        return _result(rounds[-1], rounds[:-1], rounds=True)

    def _random_init(self) -> dict[str, Any]:
        """Control: the ticket's masks on weights of another initialization (X. Chen et al. 2021)."""
        ticket = self._result_of("tickets")
        masks = self._last_masks()
        training = dataclasses.replace(
            self.training(self.folder, masks={"file": str(masks)}), init_seed=self.seed + 10007
        )
        return _result(training.run(), [ticket])

    def _random_mask(self) -> dict[str, Any]:
        """Control: the first weights under random masks with the ticket's layer densities."""
        ticket = self._result_of("tickets")
        mine = self.folder / MASKS
        if not mine.is_file():
            last = self._last_masks()
            save_masks(mine, random_masks(last, self.seed, last.with_name(TRAINED)))
        start = {"weights": str(self.folder_of("dense") / INITIAL)}
        return _result(self.training(self.folder, masks={"file": str(mine)}, start=start).run(), [ticket])

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
        line = history_of(self.folder_of("dense"))[0]
        return {network: list(layers) for network, layers in line["layers"].items()}

    def _result_of(self, method: str) -> dict[str, Any]:
        path = self.folder_of(method) / RESULT
        if not path.is_file():
            raise RgplugError(f"{self.baseline.name} needs the finished run {path.parent}, which is not there")
        found: dict[str, Any] = json.loads(path.read_text())
        return found


def _result(outcome: dict[str, Any], earlier: list[dict[str, Any]] | None = None, rounds: bool = False) -> Any:
    """The row of a training, charged with all that was trained before it."""
    before: dict[str, float | None] = {}
    for key in ("real_images", "flops"):
        parts = [part for o in earlier or [] for part in (o[f"{key}_total"], o.get("before", {}).get(key, 0))]
        before[key] = None if any(p is None for p in parts) else sum(parts)
    rows = []
    for number, o in enumerate([*(earlier or []), outcome] if rounds else []):
        kept = {k: o[k] for k in ("run", "density", "best", "real_images", "flops")}
        rows.append({"round": number, **kept})
    return {**outcome, "before": before, "rounds": rows}

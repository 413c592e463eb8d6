"""What a run leaves at each evaluation: history and state in its folder, numbers in the loggers that were asked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from rgplug import files, history
from rgplug.errors import RgplugError
from rgplug.history import HISTORY, Record
from rgplug.logs import Logger, open_logger
from rgplug.policy import ENVIRONMENT, Policy
from rgplug.processes import rank
from rgplug.run_setup import SETUP, Setup
from rgplug.sheet import SHEET, BestSheet
from rgplug.warn import warn as warn

STATE = "rgplug.safetensors"


class Journal:
    """The first rank writes; the others leave nothing."""

    def __init__(self) -> None:
        self.loggers: list[Logger] = []
        self._sheet = BestSheet()

    def open(self, policy: Policy) -> None:
        """Begin the runs of the loggers that the policy asks for; none is left open if one of them cannot be."""
        try:
            for name in policy.log if rank() == 0 else ():
                self.loggers.append(open_logger(name, policy))
        except BaseException:
            self.close()
            raise

    def begin(self, run_dir: str | None, setup: Callable[[], Setup]) -> None:
        """The networks are attached: say so in the folder of a run that a comparison waits for (RGPLUG_POLICY is set).

        All others write nothing before their first record. Where another run has been, which may go on, its setup stays
        as it is until there is a record, and only its time is changed.
        """
        if run_dir is None or rank() != 0 or not os.environ.get(ENVIRONMENT):
            return
        if (path := Path(run_dir) / SETUP).exists():
            path.touch()
        else:
            _write_setup(path.parent, setup())

    def write(
        self,
        run_dir: str | None,
        record: Record,
        *,
        resumed: bool,
        save: Callable[[Path], None],
        setup: Callable[[], Setup],
        images: Tensor | None = None,
        higher_is_better: bool = False,
    ) -> None:
        """Add a record, and before it the images of its evaluation (uint8 [N, 3, H, W]) if that is the best so far.
        What an earlier run left in the folder is set aside at the first epoch; a run that was resumed takes back the
        records that it is about to write again."""
        if run_dir is not None and rank() == 0:
            folder = Path(run_dir)
            if record.epoch == 1:
                self._set_aside(folder)
            elif resumed:
                history.truncate(folder / HISTORY, record.epoch - 1)
            if record.epoch == 1 or resumed:
                _write_setup(folder, setup())
                self._sheet.begin(folder, higher_is_better)
            self._sheet.add(folder, record, images, higher_is_better)
            history.append(folder / HISTORY, record)
            save(folder / STATE)
        for logger in self.loggers:
            logger.write(record)

    @staticmethod
    def _set_aside(folder: Path) -> None:
        """A run from the beginning in a folder where another one has been: perhaps its state was to be loaded."""
        names = (HISTORY, STATE, files.previous_of(Path(STATE)).name)
        earlier = any((folder / name).exists() for name in names)  # setup.json alone is this run's own
        beside = (SETUP, SHEET, files.previous_of(Path(SHEET)).name)
        renamed = history.set_aside(folder, (*names, *beside)) if earlier else {}
        renamed = {old: new for old, new in renamed.items() if old not in beside}
        if renamed:
            kept = ", ".join(f"{old} as {new}" for old, new in renamed.items())
            warn(
                f"{folder} holds an earlier run, and this one began anew: kept are {kept}. If the earlier one was to "
                "go on, load its state (rg.load, rg.load_state_dict) before the first step"
            )

    def close(self) -> None:
        while self.loggers:
            self.loggers.pop().close()


def _write_setup(folder: Path, setup: Setup) -> None:
    try:
        setup.write(folder)
    except OSError as error:
        raise RgplugError(
            f"{folder / SETUP} could not be written ({error.strerror}); give a run_dir that can"
        ) from None

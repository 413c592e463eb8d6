"""What a run leaves at each evaluation: history and state in its folder, numbers in the loggers that were asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rgplug import history
from rgplug.history import HISTORY, Record
from rgplug.logs import Logger, open_logger
from rgplug.policy import Policy
from rgplug.processes import rank

STATE = "rgplug.safetensors"


class Journal:
    """The first rank writes; the others leave nothing."""

    def __init__(self, policy: Policy):
        self._policy = policy
        self.loggers: list[Logger] = []  # opened with the first record: an attach that fails leaves none open

    def write(self, run_dir: str | None, record: Record, *, resumed: bool, save: Callable[[Path], None]) -> None:
        """Add a record. What an earlier run left in the folder is set aside at the first epoch; a run that was resumed
        takes back the records that it is about to write again."""
        if run_dir is not None and rank() == 0:
            folder = Path(run_dir)
            if record.epoch == 1:
                history.set_aside(folder, (HISTORY, STATE))
            elif resumed:
                history.truncate(folder / HISTORY, record.epoch - 1)
            history.append(folder / HISTORY, record)
            save(folder / STATE)
        if not self.loggers and rank() == 0:
            self.loggers = [open_logger(name, self._policy) for name in self._policy.log]
        for logger in self.loggers:
            logger.write(record)

    def close(self) -> None:
        for logger in self.loggers:
            logger.close()

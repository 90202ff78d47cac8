"""A run, the chain it belongs to, and what an engine does with it.

A run's folder belongs to its script. Beside it lie `NAME.log` (what the run printed) and
`NAME.json` (how it ended, written as a whole at that moment).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hf_losses.compare.plan import Plan
from hf_losses.compare.results import RunRecord, RunSettings
from hf_losses.messages import UsageError

POLL = 0.05  # Seconds between two looks at the running processes.
MARK = ".cluster"  # A file in the comparison's folder while it uses a cluster.


@dataclass(frozen=True)
class Run:
    """One process to start.

    Attributes:
        folder: Output folder of the run.
        command: Program and arguments.
        settings: Loss, stage, seed and tuned parameters of the run.
    """

    folder: Path
    command: Sequence[str]
    settings: RunSettings

    def beside(self, ending: str) -> Path:
        """The file `NAME.ending` beside the folder."""
        return self.folder.with_name(f"{self.folder.name}.{ending}")


Chain = Generator[Run, RunRecord, None]


@dataclass(frozen=True)
class Ended:
    """A run that has ended; its folder and its log are on this machine.

    Attributes:
        run: The run.
        code: Exit code of its process, negative for a signal; None if the engine lost the process.
        seconds: Duration of the process.
        reason: Why the engine lost the process; otherwise the log says why a run failed.
    """

    run: Run
    code: int | None
    seconds: float
    reason: str = ""


class RunsRefused(UsageError):
    """No run has succeeded, and none can: the reason holds for all of them."""


class LossesRefused(UsageError):
    """The script refuses the flags of some losses; the others have been compared."""


class Engine(Protocol):
    """Makes runs in parallel."""

    parallel: int  # About how many runs go on at a time.

    def prepare(
        self, plan: Plan, folder: Path, *, keep_models: bool, say: Callable[[str], None]
    ) -> None:
        """Checks that the runs of a plan can be made.

        Args:
            plan: The plan.
            folder: The comparison's folder, which exists.
            keep_models: Whether weights and checkpoints have to arrive in the runs' folders.
            say: Called with sentences for the user.

        Raises:
            RunsRefused: If they cannot; the message says what is missing where.
        """

    def has_room(self) -> bool:
        """Whether another run may be started."""

    def start(self, run: Run) -> None:
        """Starts a run, whose folder will hold nothing of an earlier start."""

    def ended(self) -> list[Ended]:
        """Waits a moment, and returns the runs that have ended since the last call."""

    def stop(self) -> None:
        """Ends all runs, and returns when they have ended."""


def single(run: Run) -> Chain:
    """A chain of one run."""
    yield run


def stored_record(run: Run) -> RunRecord | None:
    """The record of a run from its file; None if the run has not ended yet, or it is damaged."""
    path = run.beside("json")
    if not path.exists():
        return None
    try:
        return RunRecord.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError):
        return None  # As after the machine had no power: the run is made again.

"""Makes the runs of a comparison on an engine, and decides which of them are still worth making."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from hf_losses.compare.engines.run import Chain, Ended, Engine, Run, RunsRefused, stored_record
from hf_losses.compare.plan import Plan
from hf_losses.compare.results import RunRecord, RunSettings
from hf_losses.files import write_json
from hf_losses.messages import UsageError

LONGEST_REASON = 300
ERROR = re.compile(r"[\w.]*(Error|Exception)\b|[\w. -]*error:")
ALIKE = 3  # This many failures for the same reason are the script's fault, not a run's.
REFUSED = 2  # The exit code of a script that does not take its flags.
AHEAD = 60.0  # Seconds after which a script that still runs must have accepted its flags.
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")


class Pool:
    """Runs chains: generators that yield a run, are sent its record, and yield the next.

    A loss whose flags the script refuses is left out, and the others go on. Since flags are the
    same for every seed, a loss with flags of its own starts with one run, and the next ones wait
    until that has ended or has gone on for a minute.

    Args:
        engine: Makes the runs.
        plan: The plan.
        read: Reads the record of a run that exited with 0, from its folder and settings. Raises
            a ValueError if the result does not hold to the contract.
        done: Called with every record, and with whether it is new: those of earlier starts are not.
        say: Called with sentences for the user.
        keep_models: Whether weights and checkpoints of finished runs stay on disk.

    Attributes:
        refused: Why the script refuses the flags of a loss, by loss.
    """

    def __init__(
        self,
        engine: Engine,
        plan: Plan,
        read: Callable[[Path, RunSettings], RunRecord],
        done: Callable[[RunRecord, bool], None],
        say: Callable[[str], None],
        keep_models: bool,
    ) -> None:
        self.engine, self.plan, self.read, self.done, self.say = engine, plan, read, done, say
        self.keep_models = keep_models
        self.refused: dict[str, str] = {}
        self.waiting: list[tuple[Run, Chain]] = []
        self.running: dict[Path, tuple[Run, Chain]] = {}
        self.first_start: dict[str, float] = {}  # By loss, in seconds of the monotonic clock.
        self.accepted: set[str] = set()  # Losses whose flags the script has taken.
        self.proved = False  # Whether a run has succeeded.
        self.reasons: list[str] = []  # Why runs failed before the first success.
        self.refusals: list[tuple[str, str]] = []  # Losses, and what the script said.

    def run(self, chains: Iterable[Chain]) -> None:
        """Runs all chains to their ends.

        Args:
            chains: The chains, which start in this order as there is room.

        Raises:
            RunsRefused: If the script refuses the baseline or all other losses, if the first run
                to end has no valid result, or if the first three fail alike.
        """
        chains = iter(chains)
        try:
            while True:
                self._start(chains)
                if not self.running and not self.waiting:
                    return
                for ended in self.engine.ended():
                    _, chain = self.running.pop(ended.run.folder)
                    if record := self._record(ended):
                        self._advance(chain, record)
        finally:
            self.engine.stop()
            self.running.clear()

    def _start(self, chains: Iterator[Chain]) -> None:
        """Starts runs as long as there are some and the engine has room."""
        while self.engine.has_room():
            entry = next((entry for entry in self.waiting if self._may_start(entry[0])), None)
            if entry is not None:
                run = entry[0]
                self.waiting.remove(entry)
                self.first_start.setdefault(run.settings.loss, time.monotonic())
                self.engine.start(run)
                self.running[run.folder] = entry
            elif chain := next(chains, None):
                self._advance(chain, None)
            else:
                return

    def _may_start(self, run: Run) -> bool:
        """Whether a run need not wait for another that will show if the script takes its flags."""
        loss = run.settings.loss
        if loss in self.accepted or not has_flags(loss):
            return True
        runs = any(other.settings.loss == loss for other, _ in self.running.values())
        return not runs or time.monotonic() - self.first_start[loss] > AHEAD

    def _advance(self, chain: Chain, record: RunRecord | None) -> None:
        """Sends a record to a chain, and queues the chain's next run that has no record yet."""
        while True:
            try:
                run = next(chain) if record is None else chain.send(record)
            except StopIteration:
                return
            if run.settings.loss in self.refused:
                return
            record = stored_record(run)
            if record is None:
                self.waiting.append((run, chain))
                return
            if record.status != "failed":
                self.proved = True
                self.accepted.add(run.settings.loss)
            self.done(record, False)

    def _record(self, ended: Ended) -> RunRecord | None:
        """Writes and returns the record of a run; None if its loss is left out."""
        run, loss = ended.run, ended.run.settings.loss
        reason, record = ended.reason, None
        if ended.code == 0:
            try:
                record = self.read(run.folder, run.settings)
            except ValueError as error:
                reason = str(error)
        elif ended.code is not None:
            reason = failure(run.beside("log"), ended.code)
        self.proved |= record is not None
        if ended.code == REFUSED and loss not in self.accepted:
            self.refusals.append((loss, reason))
            # A tuned value may be what is refused, and the next one not.
            if not run.settings.parameters or self.refusals.count((loss, reason)) >= ALIKE:
                self._refuse(run, reason)
                return None
        elif ended.code is not None:
            self.accepted.add(loss)
            self._check_first_failures(ended, reason)
        if record is None:
            record = RunRecord(**vars(run.settings), status="failed", reason=reason)
        record = replace(record, wall_seconds=round(ended.seconds, 2))
        if not self.keep_models:
            remove_models(run.folder)
        write_json(run.beside("json"), record.to_json())
        self.done(record, True)
        return record

    def _refuse(self, run: Run, reason: str) -> None:
        """Leaves out the loss of a run, or ends the comparison if nothing remains of it."""
        loss = run.settings.loss
        if loss in self.refused:
            return
        self.refused[loss] = f"{reason}; the command was: {shlex.join(run.command)}"
        if loss == self.plan.baseline or len(self.refused) == len(self.plan.losses) - 1:
            message = "\n".join(self.refused.values())
            raise UsageError(message) if self.proved else RunsRefused(message)
        self.waiting = [entry for entry in self.waiting if entry[0].settings.loss != loss]
        self.say(f"{loss} is left out, since the script refuses it: {self.refused[loss]}")

    def _check_first_failures(self, ended: Ended, reason: str) -> None:
        """Ends the comparison if its first runs failed as all others will."""
        if self.proved:
            return
        self.reasons.append(re.sub(r"\d[\d.]*", "#", reason))  # Of memory the amounts differ.
        alike = len(self.reasons) >= ALIKE and len(set(self.reasons)) == 1
        if alike or (ended.code == 0 and len(self.reasons) == 1):
            message = f"{reason}; the command was: {shlex.join(ended.run.command)}"
            if alike:
                message += f"\nIts log ends:\n{last_lines(ended.run.beside('log'))}"
            raise RunsRefused(message)


def has_flags(loss: str) -> bool:
    """Whether flags of the script follow the name of a loss."""
    return len(shlex.split(loss)) > 1


def failure(log: Path, code: int) -> str:
    """Why a process failed, in one line.

    Args:
        log: The file of what the process printed.
        code: Exit code of the process, negative for a signal.
    """
    if code < 0:
        name = signal.Signals(-code).name
        return f"ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    # Launchers and progress bars go on writing after the error itself.
    errors = [line for line in lines if ERROR.match(line) and "CalledProcessError" not in line]
    errors = errors or lines[-1:]
    return (errors[-1] if errors else f"exit code {code}, and nothing was printed")[:LONGEST_REASON]


def last_lines(log: Path, count: int = 20) -> str:
    """The end of what a process printed.

    Args:
        log: The file of what the process printed.
        count: Number of lines.
    """
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])


def remove_models(folder: Path) -> None:
    """Removes weights and checkpoints, and keeps everything else.

    Args:
        folder: The output folder of a run.
    """
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)
    for pattern in WEIGHTS:
        for path in folder.glob(pattern):
            path.unlink()

"""Runs commands in parallel, each in its own folder; after a kill at any point it can resume.

A run's folder belongs to its script. Beside it lie `NAME.log` (what the run printed), `NAME.json`
(how it ended, written as a whole at that moment) and, while it runs, `NAME.pid`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_losses.compare.results import RunRecord, RunSettings
from hf_losses.files import write_json
from hf_losses.messages import UsageError

POLL = 0.05  # Seconds between two looks at the running processes.
GRACE = 10.0  # Seconds that a process gets to end by itself.
LONGEST_REASON = 300
ERROR = re.compile(r"[\w.]*(Error|Exception)\b|[\w. -]*error:")
ALIKE = 3  # The comparison ends if this many runs, its first ones, fail for the same reason.
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")


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
class Running:
    """A run whose process has been started."""

    run: Run
    chain: Chain
    process: subprocess.Popen[bytes]
    started: float  # Seconds of the monotonic clock.


class RunsRefused(UsageError):
    """No run has succeeded, and the first ones failed for a reason that holds for all others."""


class Pool:
    """Runs chains: generators that yield a run, are sent its record, and yield the next.

    Args:
        jobs: Number of parallel runs.
        environments: Environment variables of each of the parallel slots; as many as `jobs`.
        read: Reads the record of a run that exited with 0, from its folder and settings. Raises
            a ValueError if the result does not hold to the contract.
        done: Called with every record, and with whether it is new: those of earlier starts are not.
        keep_models: Whether weights and checkpoints of finished runs stay on disk.
    """

    def __init__(
        self,
        jobs: int,
        environments: Sequence[Mapping[str, str]],
        read: Callable[[Path, RunSettings], RunRecord],
        done: Callable[[RunRecord, bool], None],
        keep_models: bool,
    ) -> None:
        """See the class."""
        self.free_slots = list(range(jobs))
        self.environments, self.read, self.done = environments, read, done
        self.keep_models = keep_models
        self.running: dict[int, Running] = {}  # By slot.
        self.proved = False  # Whether a run has succeeded.
        self.reasons: list[str] = []  # Why runs failed before the first success.

    def run(self, chains: Iterable[Chain]) -> None:
        """Runs all chains to their ends, in their order.

        Args:
            chains: The chains, which start in this order as slots become free.

        Raises:
            RunsRefused: If the first run to end exits with code 2 or without a valid result, or if
                the first three fail alike.
        """
        waiting = iter(chains)
        exhausted = False
        try:
            while not exhausted or self.running:
                with uninterrupted():  # A process that has just started must not get lost.
                    while self.free_slots and not exhausted:
                        chain = next(waiting, None)
                        exhausted = chain is None
                        if chain is not None:
                            self._advance(chain, None)
                    for slot, running in list(self.running.items()):
                        if (code := running.process.poll()) is not None:
                            del self.running[slot]
                            self.free_slots.append(slot)
                            seconds = time.monotonic() - running.started
                            record = self._record(running.run, code, seconds)
                            self._advance(running.chain, record)
                if not self.free_slots or (exhausted and self.running):
                    time.sleep(POLL)
        finally:
            with uninterrupted():
                for running in self.running.values():
                    end_tree(running.process.pid)
                    running.process.poll()
                    running.run.beside("pid").unlink(missing_ok=True)
                self.running.clear()

    def _advance(self, chain: Chain, record: RunRecord | None) -> None:
        """Sends a record to a chain, and starts the chain's next run that has no record yet."""
        while True:
            try:
                run = next(chain) if record is None else chain.send(record)
            except StopIteration:
                return
            record = stored_record(run)
            if record is None:
                self.free_slots.sort()
                slot = self.free_slots.pop(0)
                process = start(run, self.environments[slot])
                self.running[slot] = Running(run, chain, process, time.monotonic())
                return
            self.proved |= record.status != "failed"
            self.done(record, False)

    def _record(self, run: Run, code: int, seconds: float) -> RunRecord:
        """Writes and returns the record of a run that has just ended."""
        reason, record = "", None
        if code:
            reason = failure(run.beside("log"), code)
        else:
            try:
                record = self.read(run.folder, run.settings)
            except ValueError as error:
                reason = str(error)
        self.proved |= record is not None
        if not self.proved:
            self.reasons.append(reason)
            alike = len(self.reasons) >= ALIKE and len(set(self.reasons)) == 1
            if alike or (code in (0, 2) and len(self.reasons) == 1):
                run.beside("pid").unlink(missing_ok=True)
                message = f"{reason}; the command was: {shlex.join(run.command)}"
                if alike:
                    message += f"\nIts log ends:\n{last_lines(run.beside('log'))}"
                raise RunsRefused(message)
        if record is None:
            record = RunRecord(**vars(run.settings), status="failed", reason=reason)
        record = replace(record, wall_seconds=round(seconds, 2))
        if not self.keep_models:
            remove_models(run.folder)
        write_json(run.beside("json"), record.to_json())
        run.beside("pid").unlink(missing_ok=True)
        self.done(record, True)
        return record


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Defers SIGINT and SIGTERM until the block has ended."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {
        number: signal.signal(number, lambda signum, _: received.append(signum))
        for number in numbers
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for signum in received:
            signal.raise_signal(signum)


def single(run: Run) -> Chain:
    """A chain of one run."""
    yield run


def stored_record(run: Run) -> RunRecord | None:
    """The record of a run from its file; None if the run has not ended yet."""
    path = run.beside("json")
    if not path.exists():
        return None
    return RunRecord.from_json(json.loads(path.read_text(encoding="utf-8")))


def start(run: Run, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Starts a run in an empty folder, after ending a process left over from an earlier start.

    Args:
        run: The run.
        environment: Variables to add to those of this process.
    """
    import psutil

    pid = run.beside("pid")
    if pid.exists():  # The comparison was killed, but this run may still be writing.
        with suppress(psutil.NoSuchProcess, ValueError, KeyError):
            previous = json.loads(pid.read_text(encoding="utf-8"))
            if psutil.Process(previous["pid"]).create_time() == previous["created"]:
                end_tree(previous["pid"])
    shutil.rmtree(run.folder, ignore_errors=True)
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    with open(run.beside("log"), "wb") as log:
        process = subprocess.Popen(
            run.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,  # Ctrl-C reaches only this process, which ends the run.
        )
    with suppress(psutil.NoSuchProcess):
        write_json(pid, {"pid": process.pid, "created": psutil.Process(process.pid).create_time()})
    return process


def end_tree(pid: int) -> None:
    """Ends a process that leads a session, and all its children: asks first, then kills.

    Args:
        pid: Number of the process, which may have ended already.
    """
    import psutil

    try:
        parent = psutil.Process(pid)
        processes = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        # A signal to the group also reaches a process that is started at this very moment.
        with suppress(ProcessLookupError):
            os.killpg(pid, number)
        for process in processes:
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                if os.getpgid(process.pid) != pid:
                    process.send_signal(number)
        processes = _survivors({*processes, *_group(pid)})


def _group(pid: int) -> list[Any]:
    """The processes of a process group."""
    import psutil

    members = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == pid:
                members.append(process)
    return members


def _survivors(processes: Iterable[Any]) -> list[Any]:
    """The processes that still run after the grace period."""
    deadline = time.monotonic() + GRACE
    while alive := [process for process in processes if _is_running(process)]:
        if time.monotonic() > deadline:
            break
        time.sleep(POLL)
    return alive


def _is_running(process: Any) -> bool:
    """Whether a process runs; a zombie, which its parent has not waited for, does not."""
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


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

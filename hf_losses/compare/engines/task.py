"""A run on a node of a Ray cluster: makes it, passes on what it prints, and returns its files."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_losses.compare.engines import guard
from hf_losses.compare.engines.local_pool import beside_others
from hf_losses.compare.engines.nodes import Needs, check_node
from hf_losses.compare.engines.pool import remove_models
from hf_losses.compare.plan import Plan
from hf_losses.compare.results import RunSettings
from hf_losses.options import threads_of

PERIOD = 0.5  # Seconds between two looks at what a run prints.
ANNOUNCE = 10.0  # Seconds that the machine of the comparison gets to take notice of a start.
MOST = 64 * 2**20  # Bytes of files, and of the log, that a run returns.
RESULT = "result.json"


@dataclass(frozen=True)
class Task:
    """A run to make on any node.

    Attributes:
        name: Path of the run's folder on the machine of the comparison.
        plan: The comparison's plan.
        settings: Loss, seed and tuned parameters of the run.
        needs: What the node must have.
        attempts: Folder for the run's files where the disk is shared.
        gpus: Number of GPUs, or a share of one.
    """

    name: str
    plan: Plan
    settings: RunSettings
    needs: Needs
    attempts: str
    gpus: float


@dataclass(frozen=True)
class Printed:
    """What a run has printed since the last message.

    Attributes:
        name: The run's name.
        attempt: Distinguishes a run from an earlier start of it, whose node has died.
        node: Where it runs.
        text: What it printed; empty at its start.
    """

    name: str
    attempt: str
    node: str
    text: bytes = b""


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        lacking: What the node lacks, with its name; the run has not begun then.
        code: Exit code of the script.
        seconds: Duration of the script.
        log: What it printed; the end of it if that is very long.
        folder: Where its files lie, if the disk is shared; empty if there are none.
        files: Its files by relative path, if the disk is not shared.
        left_out: Files that were too large to return.
    """

    lacking: str = ""
    code: int = 0
    seconds: float = 0.0
    log: bytes = b""
    folder: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def node_name() -> str:
    """Address of this node, and the start of its number, which may share the address."""
    import ray

    return f"{ray.util.get_node_ip_address()} ({ray.get_runtime_context().get_node_id()[:6]})"


def environment(plan: Plan, gpus: float) -> dict[str, str]:
    """The threads of a run; and no GPU for one without, which Ray would let see the node's."""
    found = threads_of(plan.threads, max(1, int(gpus)) if plan.launcher else 1)
    return found if gpus else found | {"CUDA_VISIBLE_DEVICES": ""}


def make(task: Task, messages: Any) -> Outcome:
    """Makes a run.

    Args:
        task: The run.
        messages: A `ray.util.queue.Queue` for what the run prints.
    """
    node = node_name()
    lacking, shared = check_node(task.needs)
    if lacking:
        return Outcome(lacking=f"node {node} {lacking}")
    with attempt_folder(task, shared) as parent:
        folder, log = parent / Path(task.name).name, parent / "log"
        settings, attempt = task.settings, os.urandom(8).hex()
        command = task.plan.command(
            settings.loss, settings.seed, settings.parameters, folder.absolute()
        )
        started = time.monotonic()
        with guard.open_log(log) as file:
            process = guard.start(
                beside_others(command, task.plan.launcher),
                file,
                environment(task.plan, task.gpus),
                task.needs.directory,
            )
        try:
            with open(log, "rb") as printed:
                announce(messages, Printed(task.name, attempt, node))
                while (code := wait(process)) is None:
                    if text := printed.read():
                        send(messages, Printed(task.name, attempt, node, text))
        finally:  # Also if the task is cancelled.
            guard.end([process])
        seconds = time.monotonic() - started
        text = log.read_bytes()[-MOST:]
        if shared:
            return Outcome("", code, seconds, text, str(folder) if folder.exists() else "")
        remove_models(folder)  # Only a shared disk can hold them.
        return Outcome("", code, seconds, text, "", *pack(folder))


def wait(process: subprocess.Popen[bytes]) -> int | None:
    """Waits a moment for a process; returns its exit code, None if it goes on."""
    with suppress(subprocess.TimeoutExpired):
        return process.wait(PERIOD)
    return None


def announce(messages: Any, message: Printed) -> None:
    """Sends that a run has started, and waits for it to arrive, lest the run end before it does."""
    import ray

    with suppress(ray.exceptions.RayError):
        ray.get(messages.actor.put_nowait.remote(message), timeout=ANNOUNCE)


def send(messages: Any, message: Printed) -> None:
    """Sends what a run prints, without waiting: its whole log returns with it anyway."""
    messages.actor.put_nowait.remote(message)


@contextmanager
def attempt_folder(task: Task, shared: bool) -> Iterator[Path]:
    """A fresh folder for this start of a run: on the shared disk, or until its files are packed.

    A node that the cluster takes for dead may still write; another start must not notice.
    """
    if shared:
        os.makedirs(task.attempts, exist_ok=True)
        yield Path(tempfile.mkdtemp(dir=task.attempts))
    else:
        with tempfile.TemporaryDirectory(prefix="hf_losses-") as folder:
            yield Path(folder)


def pack(folder: Path) -> tuple[dict[str, bytes], list[str]]:
    """Reads the files of a run, the result first and then the smaller ones first.

    Args:
        folder: The run's folder, which may be missing.

    Returns:
        The files by relative path, together at most `MOST` bytes; and the paths of the others.
    """
    paths = [path for path in folder.rglob("*") if path.is_file()]
    files, left_out, total = {}, [], 0
    for path in sorted(paths, key=lambda path: (path.name != RESULT, path.stat().st_size)):
        name, size = path.relative_to(folder).as_posix(), path.stat().st_size
        total += size
        if total > MOST:
            left_out.append(name)
        else:
            files[name] = path.read_bytes()
    return files, left_out

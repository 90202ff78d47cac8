"""Runs a command that must not outlive the process that started it.

As a program, `guard.py COMMAND …` runs the command in a session of its own, and exits as it does.
When its standard input closes, it ends the command and its children: the process that started it
has closed the pipe, or has ended, even by SIGKILL. (`concurrent.futures` ends neither the children
of its workers nor, if it is killed, the workers.) This file is run by its path and imports nothing
else of this package.
"""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NoReturn

POLL = 0.05
GRACE = 10.0  # Seconds that a process gets to end by itself.


@contextmanager
def open_log(path: Path) -> Iterator[IO[bytes]]:
    """Opens an empty log as soon as no process of an earlier start writes to it any more.

    Args:
        path: The file; its folder must exist.

    Yields:
        The file, for `start`.
    """
    with open(path, "ab") as log:
        deadline = time.monotonic() + 3 * GRACE
        while time.monotonic() < deadline:
            try:
                # The lock belongs to the open file, which the command and its children inherit.
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(POLL)
            except OSError:  # The file system has no locks.
                break
        log.truncate(0)
        yield log


def start(
    command: Sequence[str],
    log: IO[bytes],
    environment: Mapping[str, str],
    directory: str | None = None,
) -> subprocess.Popen[bytes]:
    """Starts a command that ends with this process, at the latest.

    Args:
        command: Program and arguments.
        log: What `open_log` gave.
        environment: Variables to add to those of this process.
        directory: Working directory; None for that of this process.

    Returns:
        The guard, which exits as the command does; `end` ends both.
    """
    return subprocess.Popen(
        [sys.executable, "-P", __file__, *command],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=os.environ | environment,
        cwd=directory,
        start_new_session=True,  # Ctrl-C reaches only this process, which ends the run.
    )


def end(guards: Iterable[subprocess.Popen[bytes]]) -> None:
    """Ends guards and their commands, and waits for them.

    Args:
        guards: What `start` returned; they may have ended already.
    """
    guards = list(guards)
    for guard in guards:
        if guard.stdin:
            guard.stdin.close()
    for guard in guards:
        guard.wait()


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


def main() -> None:
    """Runs the command of the command line."""
    if child := os.fork():
        # Ray kills the children of a worker that ends, but not the grandchild that ends the run.
        exit_like(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
    ending = threading.Event()

    def end_with_the_input() -> None:
        os.read(0, 1)
        ending.set()
        end_tree(process.pid)

    watch = threading.Thread(target=end_with_the_input, daemon=True)
    watch.start()
    code = process.wait()
    if ending.is_set():  # The command has ended, its children perhaps not yet.
        watch.join()
    exit_like(code)


def exit_like(code: int) -> NoReturn:
    """Exits with a code, or by the signal that a negative one stands for."""
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with suppress(OSError):  # SIGKILL has no handler.
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()

"""What tests of `hf-losses compare` share."""

import time

import psutil
import pytest

from hf_losses.cli.main import main


def refused(arguments, capture):
    """The error message of a command that is refused; `capture` is capsys or capfd."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    return " ".join(capture.readouterr().err.split())


def wait_for(condition, seconds=60):
    """Waits until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def runs_still(pid):
    """Whether a process runs; a zombie that a container's first process never reaps does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

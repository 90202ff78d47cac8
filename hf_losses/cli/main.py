"""The command `hf-losses`: puts the parsers of its commands together."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from hf_losses import __version__
from hf_losses.cli import compare, plot, publish, run
from hf_losses.cli import list as list_
from hf_losses.messages import UsageError, nearest


class _Parser(argparse.ArgumentParser):
    """Reports a wrong argument in one line, with the valid values and the nearest one."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            valid = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(
                action, f"got {value!r}; choose one of {', '.join(valid)}.{nearest(value, valid)}"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: Arguments; `sys.argv[1:]` if None.

    Returns:
        The exit code: 0, or what the command returns. Wrong arguments exit with 2 and one line on
        stderr.
    """
    # A file or a pipe may have an encoding without the signs of formulas, as on Windows.
    with _any_encoding(sys.stdout):
        remaining_work = _command(argv)
    # Errors of a user's script keep their traceback, as bugs of ours do.
    return remaining_work() if remaining_work else 0


@contextlib.contextmanager
def _any_encoding(stream: Any) -> Iterator[None]:
    """Within this context a stream shows `?` for what its encoding does not have."""
    if not isinstance(stream, io.TextIOWrapper):
        yield
        return
    errors = stream.errors
    stream.reconfigure(errors="replace")
    try:
        yield
    finally:
        stream.reconfigure(errors=errors)  # As a user's script expects it.


def _command(argv: Sequence[str] | None) -> Callable[[], int] | None:
    """Runs a command; returns what is left to do, of which no error is caught."""
    parser = _Parser(prog="hf-losses", description="Loss functions for Hugging Face fine-tuning.")
    parser.add_argument("--version", action="version", version=f"hf-losses {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command")

    for module in (list_, plot, publish, run, compare):
        module.add_command(commands)

    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.error(f"a command is missing; choose one of {', '.join(commands.choices)}")
    try:
        remaining: Callable[[], int] | None = arguments.run(arguments)
        return remaining
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except UsageError as error:
        parser.error(str(error))

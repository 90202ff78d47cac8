"""The command `hf-losses`: puts the parsers of its commands together."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from hf_losses import __version__
from hf_losses.cli import compare, plot, publish, run
from hf_losses.cli import list as list_
from hf_losses.messages import nearest


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, with the valid values and the nearest one."""

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
        0. What is wrong with the arguments exits with 2 and one line on stderr.
    """
    parser = _Parser(prog="hf-losses", description="Loss functions for Hugging Face fine-tuning.")
    parser.add_argument("--version", action="version", version=f"hf-losses {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command")

    for module in (list_, plot, publish, run, compare):
        module.add_command(commands)

    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.error(f"a command is missing; choose one of {', '.join(commands.choices)}")
    try:
        then = arguments.run(arguments)
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    # A script's own errors are its own.
    return then() if then else 0

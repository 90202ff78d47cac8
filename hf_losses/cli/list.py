"""`hf-losses list`: losses, their formulas and parameters."""

from __future__ import annotations

import argparse

from hf_losses.losses import table
from hf_losses.losses.registry import KINDS, TASKS, match_losses


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    command = commands.add_parser("list", help="show losses, their formulas and parameters")
    command.add_argument("pattern", nargs="?", default="*", help="wildcard, such as 'liberal_*'")
    command.add_argument("--kind", choices=KINDS, help="only losses of this kind")
    command.add_argument("--task", choices=TASKS, help="only losses for this task")
    command.add_argument(
        "--format", choices=table.FORMATS, default="text", help="text (default), markdown or json"
    )
    command.set_defaults(run=_list)


def _list(arguments: argparse.Namespace) -> None:
    names = match_losses([arguments.pattern], kind=arguments.kind, task=arguments.task)
    print(table.FORMATS[arguments.format](names))

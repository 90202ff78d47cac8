"""`hf-losses run`: a training script as it is, with another loss."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from hf_losses.losses.registry import list_losses


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    command = commands.add_parser(
        "run",
        help="run a training script as it is, with another loss",
        usage="hf-losses run --loss LOSS [options] [-m] SCRIPT [its own arguments]",
        description="Runs an unmodified script; every transformers Trainer in it uses the loss. "
        "Distributed: accelerate launch -m hf_losses run --loss LOSS SCRIPT … . The exit code is "
        "the script's, 1 if no Trainer was trained with the loss, or 2 if its source shows that.",
    )
    command.add_argument("--loss", required=True, help=f"one of {', '.join(list_losses())}")
    command.add_argument(
        "--loss_kwargs", metavar="JSON", help="its parameters, such as '{\"alpha\": 0.3}'"
    )
    command.add_argument(
        "--loss_warmup_ratio",
        type=float,
        metavar="R",
        help="share of the steps that go over linearly from another loss, such as 0.1",
    )
    command.add_argument(
        "--loss_warmup_steps", type=int, metavar="N", help="the same as a number of steps"
    )
    command.add_argument(
        "--loss_warmup_from",
        metavar="LOSS",
        help="the loss to begin with; by default cross_entropy (regression: mse)",
    )
    command.add_argument(
        "--allow_loss_change",
        action="store_true",
        default=None,
        help="let the script resume a checkpoint that was trained with another loss",
    )
    command.add_argument("-m", dest="module", action="store_true", help="SCRIPT is a module")
    command.add_argument("script", metavar="SCRIPT", help="file, or with -m the name of a module")
    command.add_argument(
        "arguments", metavar="…", nargs=argparse.REMAINDER, help="the script's own arguments"
    )
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> Callable[[], int]:
    from hf_losses.script.run import prepare

    return prepare(
        arguments.script,
        arguments.arguments,
        module=arguments.module,
        loss=arguments.loss,
        loss_kwargs=arguments.loss_kwargs,
        loss_warmup_ratio=arguments.loss_warmup_ratio,
        loss_warmup_steps=arguments.loss_warmup_steps,
        loss_warmup_from=arguments.loss_warmup_from,
        allow_loss_change=arguments.allow_loss_change,
    )

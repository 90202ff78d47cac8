"""`hf-losses plot`: losses and their gradient weights as a picture."""

from __future__ import annotations

import argparse

from hf_losses.losses.registry import list_losses, match_losses


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    command = commands.add_parser("plot", help="draw losses and their gradient weights")
    command.add_argument(
        "names", nargs="*", help="names or wildcards; by default every classification loss"
    )
    command.add_argument(
        "--output", "-o", required=True, metavar="FILE", help="picture to write, .png or .svg"
    )
    command.set_defaults(run=_plot)


def _plot(arguments: argparse.Namespace) -> None:
    from hf_losses.losses.plots import plot_losses

    names = list_losses(task="classification")
    if arguments.names:
        names = match_losses(arguments.names)
    plot_losses(names, arguments.output)
    print(f"wrote {arguments.output}")

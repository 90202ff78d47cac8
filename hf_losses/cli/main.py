"""The command `hf-losses`: what the registry holds, as tables and pictures."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from hf_losses import __version__
from hf_losses.cli import compare as compare_command
from hf_losses.losses import table
from hf_losses.losses.registry import KINDS, TASKS, list_losses, match_losses
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

    command = commands.add_parser("list", help="show losses, their formulas and parameters")
    command.add_argument("pattern", nargs="?", default="*", help="wildcard, such as 'liberal_*'")
    command.add_argument("--kind", choices=KINDS, help="only losses of this kind")
    command.add_argument("--task", choices=TASKS, help="only losses for this task")
    command.add_argument(
        "--format", choices=table.FORMATS, default="text", help="text (default), markdown or json"
    )
    command.set_defaults(run=_list)

    command = commands.add_parser("plot", help="draw losses and their gradient weights")
    command.add_argument(
        "names", nargs="*", help="names or wildcards; by default every classification loss"
    )
    command.add_argument(
        "--output", "-o", required=True, metavar="FILE", help="picture to write, .png or .svg"
    )
    command.set_defaults(run=_plot)

    command = commands.add_parser(
        "publish",
        help="upload a finished run to the Hugging Face Hub",
        description="Uploads model, tokenizer, results and a model card, without local paths and "
        "tokens. What is there already is not uploaded again, so that the same command resumes.",
    )
    command.add_argument("run_dir", metavar="RUN_DIR", help="output_dir of a finished run")
    command.add_argument("--repo", required=True, metavar="OWNER/NAME", help="repository")
    command.add_argument("--private", action="store_true", help="make a new repository private")
    command.add_argument("--revision", metavar="BRANCH", help="an existing branch; default: main")
    command.add_argument(
        "--overwrite", action="store_true", help="take the place of another model of that name"
    )
    command.add_argument(
        "--dry_run",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="only write what would be uploaded to FOLDER (default: RUN_DIR-publish)",
    )
    command.set_defaults(run=_publish)

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

    compare_command.add_commands(commands)

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


def _list(arguments: argparse.Namespace) -> None:
    names = match_losses([arguments.pattern], kind=arguments.kind, task=arguments.task)
    print(table.FORMATS[arguments.format](names))


def _plot(arguments: argparse.Namespace) -> None:
    from hf_losses.losses.plots import plot_losses

    names = list_losses(task="classification")
    if arguments.names:
        names = match_losses(arguments.names)
    plot_losses(names, arguments.output)
    print(f"wrote {arguments.output}")


def _publish(arguments: argparse.Namespace) -> None:
    from hf_losses.hub import publish

    if arguments.dry_run is not None:
        folder = publish.dry_run(arguments.run_dir, arguments.repo, arguments.dry_run or None)
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            if path.name != publish.DRY_RUN:
                print(f"{path.stat().st_size:>13,} bytes  {path.relative_to(folder)}")
        print(f"wrote {folder}; nothing was uploaded")
        return
    commit = publish.publish(
        arguments.run_dir,
        arguments.repo,
        private=arguments.private or None,
        revision=arguments.revision,
        overwrite=arguments.overwrite,
    )
    print(f"published {commit.repo_url}")


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

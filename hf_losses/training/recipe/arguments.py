"""Arguments that the recipes share."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import HfArgumentParser

from hf_losses.losses.registry import get_spec, list_losses
from hf_losses.messages import UsageError, nearest
from hf_losses.options import THREADS, cores, option
from hf_losses.training.arguments import LossTrainingArguments
from hf_losses.training.reports.machine import emulates_bfloat16

logger = logging.getLogger(__name__)

# What recipes cannot do without, and would find out only after an epoch.
WHOLE_PREDICTIONS = (
    ("prediction_loss_only", True, "its predictions"),
    ("eval_do_concat_batches", False, "the predictions of all batches in one"),
    ("batch_eval_metrics", True, "the predictions of all batches at once"),
)


@dataclass
class RecipeTrainingArguments(LossTrainingArguments):
    """All training arguments of transformers; those listed here have the recipes' defaults."""

    output_dir: str = option("", "without one: runs/RECIPE/TASK-LOSS-seedSEED")
    do_train: bool = option(True, "train before evaluating")
    eval_strategy: str = option("epoch", "when to evaluate: no, steps or epoch")
    save_strategy: str = option("epoch", "when to write a checkpoint: no, steps, epoch or best")
    save_total_limit: int | None = option(2, "checkpoints to keep: the last and the best")
    per_device_train_batch_size: int = option(32, "training batch of every device")
    per_device_eval_batch_size: int = option(64, "evaluation batch of every device")
    logging_steps: float = option(25, "steps between two lines of the log")
    dataloader_pin_memory: bool = option(torch.accelerator.is_available(), "pin memory of batches")
    metric_for_best_model: str | None = option("task", "task: the task's own")

    def __post_init__(self) -> None:
        """Checks the arguments, and takes the cores that the launchers leave unused on a CPU."""
        super().__post_init__()
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        if processes > 1 and self.world_size == 1:
            raise UsageError(
                f"{processes} processes were started, but each would train by itself: there is no "
                "GPU for them; add --use_cpu"
            )
        if self.fp16 and self.device.type == "cpu":
            raise UsageError("--fp16 would have no effect on a CPU; use --bf16, or neither")
        emulated = self.mixed_precision == "bf16" and emulates_bfloat16(self.device)
        if emulated and self.process_index == 0:
            logger.warning(
                "--bf16: this GPU has no instructions for bfloat16; use --fp16, or neither"
                if self.device.type == "cuda"
                else "--bf16: this processor has no instructions for bfloat16, so training takes "
                "many times as long as without --bf16"
            )
        for name, value, needed in WHOLE_PREDICTIONS:
            if getattr(self, name) == value:
                raise UsageError(
                    f"--{name} {str(value).lower()}: the metrics of a recipe are made of "
                    f"{needed}; leave it out"
                )
        launcher_variables = {"ACCELERATE_MIXED_PRECISION", "LOCAL_WORLD_SIZE"} & set(os.environ)
        threads = os.environ.get("OMP_NUM_THREADS")
        ours = threads == os.environ.get(THREADS, "1" if launcher_variables else None)
        if self.device.type == "cpu" and threads and ours:
            torch.set_num_threads(cores())  # Launchers set 1 by default, on any number of cores.


def choose_metric(
    args: RecipeTrainingArguments, metrics: Sequence[str], sets: Sequence[str] = ()
) -> None:
    """Takes the task's own metric for `task`, and refuses one that no evaluation reports.

    Args:
        args: The arguments of a recipe; its `metric_for_best_model` is replaced.
        metrics: What an evaluation reports, the task's own metric first.
        sets: Names of validation sets. Where there are several, each has metrics under its own
            name, and those of the first are the task's own.

    Raises:
        ValueError: If the metric is unknown: Trainer would find it out after the first epoch.
    """
    prefixes = [f"{name}_" for name in sets] if len(sets) > 1 else [""]
    valid = [prefix + name for prefix in prefixes for name in (*metrics, "loss")]
    metric = args.metric_for_best_model
    if metric == "task":
        args.metric_for_best_model = valid[0]
    elif metric is not None and metric.removeprefix("eval_") not in valid:
        raise UsageError(
            f"unknown --metric_for_best_model {metric!r};{nearest(metric, valid)} choose one of: "
            f"task, {', '.join(valid)}"
        )


def check_loss(loss: str | None, kind: str | None, name: str) -> None:
    """Refuses a loss that is not for the task, before anything is loaded.

    Args:
        loss: A registered name; None fits every task.
        kind: `classification` or `regression`; None if it is not known yet.
        name: Name of the task or file.

    Raises:
        ValueError: If the loss does not fit the task; the message names the losses that do.
    """
    if loss and kind and get_spec(loss).task != kind:
        raise UsageError(
            f"{name} is a {kind} task and {loss!r} a {get_spec(loss).task} loss; choose one of: "
            f"{', '.join(list_losses(task=kind))}"
        )


def parse(parser: HfArgumentParser, argv: Sequence[str] | None) -> tuple[Any, ...]:
    """Parses a command line into a recipe's argument classes.

    Args:
        parser: The parser, which itself reports unknown flags and values of the wrong type.
        argv: Arguments; `sys.argv[1:]` if None.

    Returns:
        An object of each class.

    Raises:
        UsageError: If values do not fit each other. What transformers raises for its own arguments
            becomes a UsageError too.
    """
    try:
        parsed: tuple[Any, ...] = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    return parsed

"""The loss among the training arguments: `--loss strict_m_power --loss_kwargs '{"alpha": 0.3}'`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from hf_losses.losses.fused import triton_launch
from hf_losses.losses.registry import list_losses, parse_loss_kwargs
from hf_losses.messages import UsageError
from hf_losses.metrics.direction import lower_is_better
from hf_losses.training.loss.choose import loss_of_arguments
from hf_losses.training.loss.warmup import check_warmup
from hf_losses.training.reports.item_stats import check_stats_steps


@dataclass
class LossTrainingArguments(TrainingArguments):  # type: ignore[misc]
    """`TrainingArguments` with the loss as a hyperparameter.

    Without `greater_is_better`, less of a `metric_for_best_model` such as `cross_entropy`, `mae` or
    `ece` is better, whichever set's name precedes it. A learning rate that follows the metric
    (`reduce_lr_on_plateau`, `greedy`) follows it in the same direction.

    Args:
        loss: Name of a registered loss. None is the baseline of the model's task: `cross_entropy`,
            or `mse` for a regression head.
        loss_kwargs: Its parameters and the options of `get_loss`, as a dict or as JSON text. Class
            weights (`weight`) may also be a dict by label name or index, where classes without an
            entry weigh 1, or follow from the labels of the training data: `"balanced"` is
            n / (C · n_c), `"effective"` (or `"effective:0.99"`, with another β than 0.999) the
            effective number of labels; see `ClassWeights.resolve`. The labels are read row by row
            unless the dataset has them in a column that no transform changes, or as `class_labels`.
        loss_warmup_ratio: Share of the steps, from the first, in which training goes over linearly
            from `loss_warmup_from` to `loss`: a cure for the cold start of the bounded losses.
        loss_warmup_steps: The length of that warm-up in optimizer steps, instead of a share.
        loss_warmup_from: The loss that training begins with; None is the baseline of the task. It
            shares class weights and label smoothing with `loss`.
        fused_linear: Trains a causal language model without its logits in memory: the last layer,
            the loss and their gradients are computed a few rows at a time
            (see `hf_losses.losses.linear`).
        loss_stats_steps: Every `loss_stats_steps` optimizer steps, logs quantiles over the items of
            the step: of p_y, of the margin and of the gradient weight; see
            `hf_losses.training.reports.item_stats`. 0 switches this off.
        allow_loss_change: Lets training resume from a checkpoint of another loss.
        logging_nan_inf_filter: False by default here, so that a loss that is not finite is seen.

    Raises:
        ValueError: If the loss or one of its parameters is unknown or out of range, or another of
            these settings is invalid.
    """

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "loss_kwargs"]  # noqa: RUF012

    loss: str | None = field(
        default=None,
        metadata={
            "help": f"The loss: {', '.join(list_losses())}. "
            "Without one, the task's baseline: cross_entropy, or mse for a regression head."
        },
    )
    loss_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "The loss's parameters as JSON, such as '{\"alpha\": 0.3}'; class weights "
            'as \'{"weight": [1, 5]}\', \'{"weight": {"LABEL": 5}}\' or '
            '\'{"weight": "balanced"}\' (or "effective").'
        },
    )
    loss_warmup_ratio: float = field(
        default=0.0,
        metadata={"help": "Go over from another loss to --loss in this share of the steps."},
    )
    loss_warmup_steps: int = field(
        default=0,
        metadata={"help": "Go over from another loss to --loss in this many steps."},
    )
    loss_warmup_from: str | None = field(
        default=None,
        metadata={"help": "The loss to begin with; by default cross_entropy (regression: mse)."},
    )
    fused_linear: bool = field(
        default=False,
        metadata={"help": "Causal LMs: fuse the last layer with the loss; no logits in memory."},
    )
    loss_stats_steps: int = field(
        default=0,
        metadata={
            "help": "Log quantiles of p_y, margin and gradient weight over the examples of every "
            "N-th optimizer step, and the share of those at max_weight (0: off)."
        },
    )
    allow_loss_change: bool = field(
        default=False,
        metadata={"help": "Resume from a checkpoint that was trained with another loss."},
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Log the last finite loss instead of NaN or inf (off: they are seen)."},
    )

    def __post_init__(self) -> None:
        """Checks the loss before anything is loaded or written."""
        self.loss_kwargs = parse_loss_kwargs(self.loss_kwargs) or None
        if self.loss is not None:
            loss_of_arguments(self.loss, self.loss_kwargs)
        elif self.loss_kwargs:
            raise UsageError(
                f"loss_kwargs {self.loss_kwargs} need a loss; add one of: "
                f"{', '.join(list_losses())}"
            )
        check_warmup(
            self.loss, self.loss_warmup_ratio, self.loss_warmup_steps, self.loss_warmup_from
        )
        check_stats_steps(self.loss_stats_steps)
        triton_launch.choice()  # Raises if its variable is wrong.
        args: Any = self  # The type checker does not see the fields of transformers.
        # By default transformers takes more for better, except for names that end in `loss`.
        if args.greater_is_better is None and lower_is_better(args.metric_for_best_model or ""):
            args.greater_is_better = False
        super().__post_init__()
        if args.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"):
            mode = "max" if args.greater_is_better else "min"
            args.lr_scheduler_kwargs = {"mode": mode} | (args.lr_scheduler_kwargs or {})


def check_direction(args: TrainingArguments) -> None:
    """Raises a ValueError if transformers, by its default, would take a larger error for better.

    Args:
        args: Training arguments. `LossTrainingArguments` always pass: their default is right.
    """
    metric = args.metric_for_best_model or ""
    # For `…loss` the default is right, so that True is the user's choice.
    by_default = args.greater_is_better and not metric.endswith("loss")
    if by_default and lower_is_better(metric) and not isinstance(args, LossTrainingArguments):
        raise UsageError(
            f"metric_for_best_model={metric!r} with greater_is_better=True, the default of "
            f"{type(args).__name__}, would choose the worst model: set greater_is_better=False, or "
            "use LossTrainingArguments, which know the direction"
        )

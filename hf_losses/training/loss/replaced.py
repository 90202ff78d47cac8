"""What a model of the user's own computes from labels, and what of it is lost if it is replaced."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_losses.losses.base import RegressionLoss
from hf_losses.losses.modules import ClassificationLoss
from hf_losses.losses.registry import IGNORE_INDEX
from hf_losses.models.builtin import is_transformers, shifts_labels
from hf_losses.models.heads import without_loss
from hf_losses.training.loss.items import Items, item_mask, sum_over_items

# Of float32, and of a loss that may have been computed in half precision.
EXACT, ROUNDED = 1e-4, 2e-2


class ReplacedLoss:
    """Compares the loss of a forward of the user's own with the baseline, on the first batch.

    That batch is run with its labels. Transformers' own forwards are known: see
    `check_builtin_loss`.
    """

    def __init__(self) -> None:
        """Nothing has been compared yet."""
        self._compared: Any = None  # The model whose first batch has been run.

    def outputs(
        self, trainer: Any, model: Any, inputs: dict[str, Any], labels: dict[str, Any]
    ) -> tuple[Any, Any]:
        """Runs the model, without its labels unless it needs them or its loss is to be compared.

        Args:
            trainer: The trainer.
            model: Its model, possibly wrapped.
            inputs: The batch without its labels.
            labels: Its labels by name; None for those that it has not.

        Returns:
            The outputs, without a loss where the labels were given; and the same with a loss that
            `compare` should see, else None.
        """
        if self._to_compare(trainer, labels):
            try:
                outputs = model(**(inputs | labels))
            except Exception as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                outputs = None  # What it cannot compute is not lost.
            self._compared = trainer._wrapped.core
            if _has_logits(outputs):
                return without_loss(outputs), outputs
        copies = 1
        if trainer._wrapped.needs_labels:
            name = trainer.label_names[0]
            inputs, rows = inputs | {name: labels[name]}, len(labels[name])
            copies = -(-rows // -(-rows // max(1, trainer.args.n_gpu)))  # As DataParallel has it.
        return without_loss(model(**inputs), copies=copies), None

    def _to_compare(self, trainer: Any, labels: dict[str, Any]) -> bool:
        args, core = trainer.args, trainer._wrapped.core
        return (
            core is not self._compared
            and trainer.model.training
            and not is_transformers(core)
            and isinstance(trainer._active.criterion, ClassificationLoss | RegressionLoss)
            and args.n_gpu <= 1  # Each copy has a loss of its own.
            and not args.torch_compile
            and not args.label_smoothing_factor  # Trainer does not use the model's loss then.
            and {*labels} <= inspect.signature(core.forward).parameters.keys()
            and all(value is not None for value in labels.values())
        )

    def compare(
        self, trainer: Any, outputs: Any, batches: Sequence[Items], auxiliary: Tensor | float
    ) -> str | None:
        """What the model's loss has that the baseline of the same logits and labels has not.

        Args:
            trainer: The trainer.
            outputs: What the model returned with labels.
            batches: The classifications of the batch.
            auxiliary: What the trainer adds to its loss.

        Returns:
            A sentence; None if both agree, or the model returned no loss.
        """
        core, active = trainer._wrapped.core, trainer._active
        own = next(_losses(outputs), None)
        if own is None or not math.isfinite(found := float(own.detach())):
            return None
        halved = trainer.accelerator.mixed_precision != "no" or any(
            logits.dtype not in (torch.float32, torch.float64) for logits, _, _ in batches
        )
        tolerance = ROUNDED if halved else EXACT
        with torch.no_grad():
            expected = [float(value + auxiliary) for value in _baselines(active, batches)]
        if any(math.isclose(found, each, rel_tol=tolerance, abs_tol=1e-5) for each in expected):
            return None
        text = (
            f"{type(core).__name__}.forward computes another loss than {active.baseline_name} of "
            f"its logits and labels ({found:.5g}, not {expected[0]:.5g} on the first batch): what "
            "it has beside that (weights, further terms, other labels or rules of what is left "
            "out) has no part in this training"
        )
        if shifts_labels(core):
            text += (
                "; labels are taken for the next tokens, as transformers names its loss: if they "
                "stand at the positions of their logits, give shift_labels"
            )
        return text


def _has_logits(outputs: Any) -> bool:
    """Whether there is anything but a loss in a model's outputs."""
    values = outputs.values() if isinstance(outputs, Mapping) else outputs
    values = values if isinstance(outputs, Mapping | tuple) else (outputs,)
    return any(torch.is_tensor(value) and value.dim() for value in values)


def _baselines(active: Any, batches: Sequence[Items]) -> Iterator[Tensor]:
    """The baseline of a batch; and with the weights and the smoothing of the loss in force."""
    problem = active.problem
    for loss in (active.baseline(), active.with_options(active.baseline_name)):
        summed = sum_over_items(loss, problem)
        means = [
            summed(logits, labels, item_mask(labels, problem).sum(), None)
            for logits, labels, _ in batches
        ]
        yield torch.stack(means).mean()
    weight, (logits, labels, _) = getattr(active.criterion, "weight", None), batches[0]
    if torch.is_tensor(weight) and len(batches) == 1 and not labels.is_floating_point():
        # PyTorch divides by the sum of the weights.
        rows, smoothing = logits.flatten(0, -2).float(), active.criterion.label_smoothing
        yield F.cross_entropy(
            rows,
            labels.flatten(),
            weight.float(),
            ignore_index=IGNORE_INDEX,
            label_smoothing=smoothing,
        )


def _losses(outputs: Any) -> Iterator[Tensor]:
    values = outputs if isinstance(outputs, tuple) else (outputs,)
    if isinstance(outputs, Mapping):
        values = (outputs.get("loss"),)
    for value in values:
        if torch.is_tensor(value) and not value.dim() and value.is_floating_point():
            yield value

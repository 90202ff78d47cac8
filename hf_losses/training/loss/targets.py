"""Whether a loss is defined for labels and weights: by their shapes, and by their values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hf_losses.losses.base import check_item_weight_values
from hf_losses.losses.modules import MULTI_LABEL, ClassificationLoss
from hf_losses.losses.registry import IGNORE_INDEX
from hf_losses.messages import UsageError
from hf_losses.training.loss.items import Items, item_mask

SEVERAL_LABELS = f'set --loss_kwargs \'{{"problem_type": "{MULTI_LABEL}"}}\''
HINT = f"for numbers name a regression loss, such as loss='mse'; for yes/no labels {SEVERAL_LABELS}"


class FirstTargets:
    """Checks the targets of the first batch of a training and of its evaluations.

    The values of targets on a GPU are checked later, when `read` may wait for them.
    """

    def __init__(self) -> None:
        """Nothing has been seen yet."""
        self._seen: set[bool] = set()
        self._unread: list[tuple[Tensor, Tensor | None, Any, int]] = []

    def add(self, batches: Sequence[Items], loss: Any, training: bool, head: Any = None) -> None:
        """Checks a batch if it is the first one.

        Args:
            batches: Its classifications, as `fit` returns them.
            loss: The loss.
            training: Whether the model is being trained.
            head: The last layer, if the batches have its inputs in place of logits.

        Raises:
            ValueError: See `check_targets`.
        """
        if training in self._seen:
            return
        self._seen.add(training)
        for logits, labels, weight in batches:
            _check_shape(logits, loss)
            classes = logits.shape[-1] if head is None else len(head.weight)
            self._unread.append((labels, weight, loss, classes))
        if all(labels.is_cpu for _, labels, _ in batches):
            self.read()

    def read(self) -> None:
        """Checks values that have not been checked yet, and waits for their device."""
        unread, self._unread = self._unread, []
        for of_batch in unread:
            _check_values(*of_batch)


def check_targets(items: Items, loss: Any) -> None:
    """Raises a ValueError unless the loss is defined for the labels and weights.

    This reads their values, which makes a GPU wait: call it for the first batch only.

    Args:
        items: As `fit` returns them.
        loss: The loss; one of the user's own is accepted as it is.
    """
    logits, labels, weight = items
    _check_shape(logits, loss)
    _check_values(labels, weight, loss, logits.shape[-1])


def _check_shape(logits: Tensor, loss: Any) -> None:
    if not isinstance(loss, ClassificationLoss):
        return
    if loss.problem_type != MULTI_LABEL and (logits.dim() < 2 or logits.shape[-1] < 2):
        raise UsageError(
            f"the model's output of shape {tuple(logits.shape)} has no dimension of classes for "
            f"the loss {loss.spec.name!r}: {HINT}"
        )


def _check_values(labels: Tensor, weight: Tensor | None, loss: Any, classes: int) -> None:
    if weight is not None:
        check_item_weight_values(weight)
    if not isinstance(loss, ClassificationLoss):
        return
    multi_label = loss.problem_type == MULTI_LABEL
    if not multi_label and not labels.is_floating_point():
        loss.check_indices(labels, classes)
        return
    if not multi_label and labels.shape[-1:] != (classes,):
        raise UsageError(f"classes are whole numbers, but the labels are {labels.dtype}; {HINT}")
    values = labels[item_mask(labels, loss.problem_type)]
    if not values.numel():
        return
    low, high = values.min().item(), values.max().item()
    if not (low >= 0 and high <= 1):
        expected = "yes/no labels" if multi_label else "probabilities of the classes"
        raise UsageError(
            f"labels from {low:g} to {high:g} are no {expected}, which lie in [0, 1] "
            f"(or are {IGNORE_INDEX}, to be left out); {HINT}"
        )
    if not multi_label:
        sums = values.sum(-1)
        worst = sums[(sums - 1).abs().argmax()].item()
        if abs(worst - 1) > 0.01:
            raise UsageError(
                f"a row of labels sums to {worst:g}, but probabilities of the classes sum to 1; "
                f"{HINT}"
            )

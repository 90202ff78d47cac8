"""One loss for one optimizer step: the sum over its items, divided by their number.

`Trainer` counts the items (labels that are not -100) of all micro-batches and processes of a step
and hands the count to the loss. A loss that sums over its micro-batch and divides by that count
gives the same gradients for batch 16, 8 x 2 accumulated, and 2 processes x 8.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_losses.builtin import outputs_shift
from hf_losses.criterion import (
    MULTI_LABEL,
    SINGLE_LABEL,
    ClassificationLoss,
    RegressionLoss,
    get_loss,
)

IGNORE = -100

# Of logits, labels and the number to divide the sum by.
SumFunction = Callable[[Tensor, Tensor, Tensor | float], Tensor]


def sum_over_items(loss: Callable[..., Tensor]) -> SumFunction:
    """Makes of any loss the sum over the items of a batch, divided by a given number.

    Args:
        loss: A loss of this project, a loss module of PyTorch, or a callable `loss(logits, labels)`
            that returns a mean over the items that are not -100, or one value per item.

    Returns:
        A function of logits, labels and the divisor that returns a scalar.

    Raises:
        ValueError: If the loss sums already, or normalises by something else than the items.
    """
    if getattr(loss, "reduction", "mean") == "sum":
        raise ValueError(
            "the Trainer sums and divides by the number of items itself: "
            "give the loss reduction='mean' (or 'none')"
        )
    if getattr(loss, "ignore_index", IGNORE) != IGNORE:
        raise ValueError(
            f"ignore_index is {getattr(loss, 'ignore_index', None)}, but Trainer counts the items "
            f"whose label is not {IGNORE}: mark those to leave out with {IGNORE}"
        )
    if isinstance(loss, nn.Module) and any(p.requires_grad for p in loss.parameters()):
        raise ValueError(
            f"{type(loss).__name__} has parameters that the optimizer would never see: "
            "make it a part of the model"
        )
    if isinstance(loss, ClassificationLoss) and loss.spec.name == "cross_entropy":
        return _cross_entropy(loss)
    if isinstance(loss, ClassificationLoss | RegressionLoss):
        mean: SumFunction = _reduced(loss, "mean")
        return mean
    if isinstance(loss, nn.modules.loss._Loss):
        return _divided(_reduced(loss, "sum"))
    return _divided(_scaled_to_sum(loss))


def _reduced(loss: nn.Module, reduction: str) -> Any:
    again: Any = copy.copy(loss)
    again.reduction = reduction
    return again


def _cross_entropy(loss: ClassificationLoss) -> SumFunction:
    own = _reduced(loss, "mean")
    kernel = nn.CrossEntropyLoss(loss.weight, reduction="sum", label_smoothing=loss.label_smoothing)

    def summed(logits: Tensor, labels: Tensor, divisor: Tensor | float) -> Tensor:
        if labels.is_floating_point() or loss.problem_type == MULTI_LABEL:
            mean: Tensor = own(logits, labels, divisor)
            return mean
        # PyTorch's kernel, so that the baseline is the stock Trainer's to the last bit.
        try:
            value: Tensor = kernel(*_flat(logits.float(), labels.long()))
        except IndexError as error:
            loss.check_indices(labels, logits.shape[-1], error)
            raise
        return value / divisor

    return summed


def _flat(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if labels.shape == logits.shape[:-1] and not labels.is_floating_point():
        return logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    return logits.squeeze(-1) if logits.shape == (*labels.shape, 1) else logits, labels


def _divided(function: Callable[..., Tensor]) -> SumFunction:
    return lambda logits, labels, divisor: function(*_flat(logits, labels)) / divisor


def _scaled_to_sum(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def summed(logits: Tensor, labels: Tensor) -> Tensor:
        value = loss(logits, labels)
        return value.sum() if value.dim() else value * item_count(logits, labels, None, loss)

    return summed


def item_count(logits: Tensor, labels: Tensor, counted: Any, loss: Any) -> Tensor | Any:
    """Items to divide by: those of the whole step where they were counted, else of this batch."""
    items = labels.ne(IGNORE).sum() if counted is None else counted
    soft = labels.is_floating_point() and labels.shape == logits.shape
    if soft and getattr(loss, "problem_type", None) == SINGLE_LABEL:
        # Trainer counts every number of a row of probabilities as a label.
        items = items / logits.shape[-1]
    return items.clamp(min=1) if torch.is_tensor(items) else max(items, 1)


def shift_left(labels: Tensor) -> Tensor:
    """Labels of the next token; shifting the logits instead would copy them."""
    return F.pad(labels, (0, 1), value=IGNORE)[..., 1:].contiguous()


def logits_of(outputs: Any) -> Tensor:
    """The logits of a model's outputs, a `ModelOutput` or a tuple without a loss."""
    logits = outputs.get("logits") if hasattr(outputs, "get") else outputs[0]
    if logits is None:
        raise ValueError(
            "the model returned no logits, so no loss can be computed from them "
            "(is a fused head such as Liger's switched on?)"
        )
    return logits  # type: ignore[no-any-return]


def compute_loss_func(
    name: str, *, shift_labels: bool | None = None, **params: Any
) -> Callable[..., Tensor]:
    """A loss for the stock `Trainer(compute_loss_func=...)`.

    `LossTrainer` does more: the stock Trainer ignores `label_smoothing_factor` (give
    `label_smoothing` here), needs `return_dict` outputs, and does not save the loss.

    Args:
        name: A registered loss.
        shift_labels: True: labels are the input_ids of a causal language model, each learned one
            position earlier. False: they belong to the positions they stand at; for an
            encoder-decoder the batch must hold `decoder_input_ids` too, which
            `DataCollatorForSeq2Seq(tokenizer, model=model)` makes. None decides by the class of
            the model's outputs, and refuses those that do not say it (CpmAnt alone looks like a
            model that shifts and does not: give False).
        **params: See `get_loss`.

    Returns:
        A function of the model's outputs, labels and `num_items_in_batch`.

    Raises:
        ValueError: If the loss or a parameter is unknown; later, if labels or logits are missing,
            the outputs are a tuple, float labels could mean two things, or it is not certain which
            labels the logits are of.

    Example:
        >>> Trainer(model, args, compute_loss_func=compute_loss_func("strict_m_power", alpha=0.3))
    """
    loss = get_loss(name, **params)
    summed = sum_over_items(loss)

    def compute(outputs: Any, labels: Tensor | None, num_items_in_batch: Any = None) -> Tensor:
        if labels is None:
            raise ValueError(f"the loss {name!r} needs the batch to have 'labels'")
        if isinstance(outputs, tuple):
            raise ValueError(
                "the stock Trainer cannot evaluate a model that returns tuples with a loss of its "
                "own: set config.return_dict=True, or use LossTrainer"
            )
        logits = logits_of(outputs)
        if outputs.get("aux_loss") is not None:
            raise ValueError(
                "the stock Trainer would leave out the aux_loss of the mixture of experts: set "
                "config.output_router_logits=False, or use LossTrainer, which adds it"
            )
        shift = outputs_shift(outputs, labels) if shift_labels is None else shift_labels
        labels = shift_left(labels) if shift else labels
        if (
            loss.spec.task == "classification"
            and "problem_type" not in params
            and labels.is_floating_point()
        ):
            raise ValueError(
                "float labels are either probabilities of the classes or several yes/no labels: "
                f"add problem_type={SINGLE_LABEL!r} or {MULTI_LABEL!r} to compute_loss_func"
            )
        if torch.is_tensor(num_items_in_batch) and num_items_in_batch.dim():
            # Under DataParallel the count comes once per GPU, and the stock Trainer multiplies the
            # loss by their number although it was computed on all outputs at once.
            num_items_in_batch = num_items_in_batch.flatten()[0] * num_items_in_batch.numel()
        return summed(logits, labels, item_count(logits, labels, num_items_in_batch, loss))

    return compute

"""A loss for the stock `Trainer`, as its `compute_loss_func`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hf_losses.losses.modules import MULTI_LABEL, SINGLE_LABEL, get_loss
from hf_losses.losses.registry import IGNORE_INDEX
from hf_losses.messages import UsageError
from hf_losses.models.builtin import outputs_shift
from hf_losses.models.forwards import logits_of
from hf_losses.models.heads import REGRESSION, shift_left
from hf_losses.training.loss.items import fit, item_count, problem_of, sum_over_items
from hf_losses.training.loss.targets import check_targets


def compute_loss_func(
    name: str, *, shift_labels: bool | None = None, **params: Any
) -> Callable[..., Tensor]:
    """A loss for the stock `Trainer(compute_loss_func=...)`.

    `LossTrainer` does more: the stock Trainer ignores `label_smoothing_factor` (give
    `label_smoothing` here), needs `return_dict` outputs, and does not save the loss. AdaLoRA
    trains without its regulariser, which PEFT adds where the model computes the loss. It also does
    not count regression labels of exactly -100, although they are trained on: the divisor of a
    micro-batch's loss misses those of the step's other micro-batches. With `predict_with_generate`
    a stock `Seq2SeqTrainer` evaluates by the model's own loss.

    Args:
        name: A registered loss.
        shift_labels: True: labels are the input_ids of a causal language model, each learned one
            position earlier. False: they belong to the positions they stand at; for an
            encoder-decoder the batch must hold `decoder_input_ids` too, which
            `DataCollatorForSeq2Seq(tokenizer, model=model)` makes. None decides by the class of
            the model's outputs, and refuses classes that do not tell.
        **params: See `get_loss`.

    Returns:
        A function of the model's outputs, labels and `num_items_in_batch`.

    Raises:
        ValueError: If the loss or a parameter is unknown. The function raises it if labels or
            logits are missing, the outputs are a tuple, float labels could mean two things, or it
            is not certain which labels belong to the logits.

    Example:
        >>> Trainer(model, args, compute_loss_func=compute_loss_func("strict_m_power", alpha=0.3))
    """
    loss = get_loss(name, **params)
    problem = problem_of(loss)
    summed = sum_over_items(loss, problem)
    seen: list[bool] = []  # Not empty once the labels of a batch have been checked.

    def compute(outputs: Any, labels: Tensor | None, num_items_in_batch: Any = None) -> Tensor:
        if labels is None:
            raise UsageError(f"the loss {name!r} needs the batch to have 'labels'")
        if isinstance(outputs, tuple):
            raise UsageError(
                "the stock Trainer cannot evaluate a model that returns tuples with a loss of its "
                "own: set config.return_dict=True, or use LossTrainer"
            )
        logits = logits_of(outputs)
        if outputs.get("aux_loss") is not None:
            raise UsageError(
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
            raise UsageError(
                "float labels are either probabilities of the classes or several yes/no labels: "
                f"add problem_type={SINGLE_LABEL!r} or {MULTI_LABEL!r} to compute_loss_func"
            )
        if torch.is_tensor(num_items_in_batch) and num_items_in_batch.dim():
            # Under DataParallel the count comes once per GPU, and the stock Trainer multiplies the
            # loss by their number although it was computed on all outputs at once.
            num_items_in_batch = num_items_in_batch.flatten()[0] * num_items_in_batch.numel()
        items = num_items_in_batch
        batch = fit(logits, labels, problem)
        if not seen:
            seen.append(True)
            check_targets(batch, loss)
        if items is not None and problem == REGRESSION:
            items = (
                items + (labels == IGNORE_INDEX).sum()
            )  # Trainer has left them out of the count.
        elif items is not None and problem == SINGLE_LABEL and labels.is_floating_point():
            items = items / labels.shape[-1]  # Trainer has counted every number of a row.
        logits, labels, _ = batch
        return summed(logits, labels, item_count(labels, items, problem), None)

    return compute

"""What a model of the user's own computes from labels, and what of it is lost if it is replaced."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_losses.models.builtin import is_transformers, shifts_labels
from hf_losses.training.loss.items import Items, item_mask, sum_over_items

# Of float32, and of a loss that may have been computed in half precision.
EXACT, ROUNDED = 1e-4, 2e-2


class ReplacedLoss:
    """The loss that a forward of the user's own computes on the first batch of a training.

    Transformers' own forwards are known: see `check_builtin_loss`.
    """

    def __init__(self) -> None:
        """Nothing has been computed yet."""
        self._seen: Any = None  # The model whose first batch has been seen.

    def of_first_batch(
        self, trainer: Any, model: Any, inputs: Mapping[str, Any], labels: Tensor | None
    ) -> Tensor | None:
        """The model's own loss, computed as in training; random numbers and buffers stay as before.

        Args:
            trainer: The trainer.
            model: Its model, possibly wrapped.
            inputs: The batch without its labels.
            labels: Its labels.

        Returns:
            A scalar; None if this is not the first batch, or the model is transformers' own or
            returns no loss.
        """
        core = trainer._wrapped.core
        if core is self._seen or not model.training or labels is None or trainer.args.n_gpu > 1:
            return None
        self._seen = core
        name = trainer.label_names[0]
        if is_transformers(core) or name not in inspect.signature(core.forward).parameters:
            return None
        device = trainer.args.device
        kept = {key: buffer.clone() for key, buffer in model.named_buffers()}
        accelerators = {} if device.type == "cpu" else {"device_type": device.type}
        with (
            torch.no_grad(),
            torch.random.fork_rng([] if device.type == "cpu" else [device], **accelerators),
        ):
            try:
                outputs = model(**{**inputs, name: labels})
            except Exception:  # What it cannot compute is not lost.
                return None
            finally:
                for key, buffer in model.named_buffers():
                    buffer.copy_(kept[key])
        return _loss_of(outputs)


def difference(trainer: Any, own: Tensor, batches: Sequence[Items], auxiliary: Any) -> str | None:
    """What a model's own loss has that the baseline of the same logits and labels has not.

    Args:
        trainer: The trainer.
        own: The model's own loss.
        batches: The classifications of the batch.
        auxiliary: What the trainer adds to its loss.

    Returns:
        A sentence; None if both agree.
    """
    active, core = trainer._active, trainer._wrapped.core
    summed = sum_over_items(active.baseline(), active.problem)
    with torch.no_grad():
        means = [
            summed(logits.detach(), labels, item_mask(labels, active.problem).sum(), None)
            for logits, labels, _ in batches
        ]
        expected = float(torch.stack(means).mean() + auxiliary)
    found = float(own)
    halved = trainer.accelerator.mixed_precision != "no" or any(
        logits.dtype not in (torch.float32, torch.float64) for logits, _, _ in batches
    )
    close = math.isclose(found, expected, rel_tol=ROUNDED if halved else EXACT, abs_tol=1e-5)
    if close or not math.isfinite(found) or not math.isfinite(expected):
        return None
    name, baseline = type(core).__name__, active.baseline_name
    tail = (
        "; labels are taken for the next tokens, as transformers names its loss: if they stand at "
        "the positions of their logits, give shift_labels"
        if shifts_labels(core)
        else ""
    )
    return (
        f"{name}.forward computes another loss than {baseline} of its logits and labels "
        f"({found:.5g}, not {expected:.5g} on the first batch): what it has beside that (weights, "
        f"further terms, other labels or rules of what is left out) has no part in this "
        f"training{tail}"
    )


def _loss_of(outputs: Any) -> Tensor | None:
    values = outputs if isinstance(outputs, tuple) else (outputs,)
    if isinstance(outputs, Mapping):
        values = (outputs.get("loss"),)
    scalars = (out for out in values if torch.is_tensor(out) and not out.dim())
    return next((out.float() for out in scalars if out.is_floating_point()), None)

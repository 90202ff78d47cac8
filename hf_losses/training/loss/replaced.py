"""What a model of the user's own computes from labels, and what of it is lost if it is replaced."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_losses.losses.base import RegressionLoss
from hf_losses.losses.modules import MULTI_LABEL, ClassificationLoss
from hf_losses.losses.registry import IGNORE_INDEX
from hf_losses.models.builtin import is_transformers, shifts_labels
from hf_losses.models.heads import without_loss
from hf_losses.training.loss.items import Items, fit, item_mask, sum_over_items

logger = logging.getLogger(__name__)

# Logits of a head that begins with zeros do not show weights: they are compared once more.
AGAIN = 10  # Optimizer steps.
# Of float32, and of a loss that was computed in half precision.
EXACT, ROUNDED = 1e-4, 5e-3


class ReplacedLoss:
    """Compares the loss of a forward of the user's own with that of its logits and labels.

    Transformers' own forwards are known: see `check_builtin_loss`.
    """

    def __init__(self) -> None:
        """Nothing has been compared yet."""
        self._model: Any = None
        self._next: int | None = None  # The step at which this model is compared.

    def lost(
        self,
        trainer: Any,
        inputs: dict[str, Any],
        own_labels: dict[str, Any],
        labels: list[Tensor],
        *,
        shifted: bool,
    ) -> str | None:
        """What the model's loss has on this batch that the trainer's has not.

        The model is run as in an evaluation, twice, on the first batch and on one ten steps later.

        Args:
            trainer: The trainer.
            inputs: The batch as the model gets it.
            own_labels: Its labels by name; None for those that it has not.
            labels: What `Targets.of_batch` made of them.
            shifted: Whether the batch had `shift_labels`.

        Returns:
            A sentence; None if nothing is lost, or there is nothing to compare now.
        """
        if not self._is_due(trainer, own_labels):
            return None
        model = trainer._wrapped.adapted

        def run(given: dict[str, Any]) -> Any:
            # Some forwards change their labels.
            return model(**{key: _copy(value, key in own_labels) for key, value in given.items()})

        device = trainer.args.device
        try:
            with (
                torch.no_grad(),
                _evaluating(model),
                torch.random.fork_rng(
                    [] if device.type == "cpu" else [device], device_type=device.type
                ),
            ):
                own = next(_losses(run(inputs | own_labels)), None)
                if own is None or not math.isfinite(float(own)):
                    return None
                outputs = without_loss(run(inputs))
                logits = trainer._wrapped.targets.logits(outputs, labels, shifted=shifted)
                batches = [
                    fit(*pair, trainer._active.problem) for pair in zip(logits, labels, strict=True)
                ]
                added = trainer._auxiliary(outputs)
                expected = [float(value + added) for value in _losses_of(trainer._active, batches)]
        except Exception as error:
            if trainer.is_world_process_zero():
                logger.warning(
                    "Whether the loss of %s.forward has more than that of its logits and labels "
                    "could not be found out: %s",
                    type(trainer._wrapped.core).__name__,
                    error,
                )
            return None
        halved = any(t.dtype not in (torch.float32, torch.float64) for t in (own, *logits))
        tolerance = ROUNDED if halved else EXACT
        found = float(own)
        if not math.isfinite(expected[0]) or any(
            math.isclose(found, value, rel_tol=tolerance, abs_tol=1e-5) for value in expected
        ):
            return None
        self._next = None
        return _sentence(trainer, found, expected[0])

    def _is_due(self, trainer: Any, own_labels: dict[str, Any]) -> bool:
        core, step = trainer._wrapped.core, trainer.state.global_step
        if core is not self._model:
            self._model, self._next = core, step
        if self._next is None or step < self._next or not trainer.model.training:
            return False
        self._next = AGAIN if step < AGAIN else None
        parameters = inspect.signature(core.forward).parameters
        kinds = {parameter.kind for parameter in parameters.values()}
        return (
            not is_transformers(core)
            and isinstance(trainer._active.criterion, ClassificationLoss | RegressionLoss)
            and trainer.args.n_gpu <= 1
            and not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)
            and not trainer.args.label_smoothing_factor  # Trainer does not use its loss then.
            and (inspect.Parameter.VAR_KEYWORD in kinds or {*own_labels} <= parameters.keys())
            and all(value is not None for value in own_labels.values())
        )


def _sentence(trainer: Any, found: float, expected: float) -> str:
    core, baseline = trainer._wrapped.core, trainer._active.baseline_name
    text = (
        f"{type(core).__name__}.forward computes another loss than {baseline} of its logits and "
        f"labels ({found:.5g}, not {expected:.5g} on one batch): what it has beside that (weights, "
        "further terms, other labels or rules of what is left out) has no part in this training"
    )
    if shifts_labels(core):
        text += (
            "; labels are taken for the next tokens, as transformers names its loss: if they stand "
            "at the positions of their logits, give shift_labels"
        )
    return text


def _losses_of(active: Any, batches: Sequence[Items]) -> Iterator[Tensor]:
    """The baseline, the same with weights and smoothing of the loss in force, and that loss."""
    problem, criterion = active.problem, active.criterion
    for loss in (active.baseline(), active.with_options(active.baseline_name), criterion):
        summed = sum_over_items(loss, problem)
        means = [
            summed(logits, labels, item_mask(labels, problem).sum(), None)
            for logits, labels, _ in batches
        ]
        yield torch.stack(means).mean()
    logits, labels, _ = batches[0]
    weight = getattr(criterion, "weight", None)
    if weight is None or problem == MULTI_LABEL or labels.is_floating_point() or batches[1:]:
        return
    # PyTorch divides by the sum of the weights.
    yield F.cross_entropy(
        logits.flatten(0, -2).float(),
        labels.flatten().long(),
        weight.float(),
        ignore_index=IGNORE_INDEX,
        label_smoothing=criterion.label_smoothing,
    )


def _losses(outputs: Any) -> Iterator[Tensor]:
    """The losses among a model's outputs, mostly one."""
    values = outputs if isinstance(outputs, tuple) else (outputs,)
    if isinstance(outputs, Mapping):
        values = (outputs.get("loss"),)
    for value in values:
        if torch.is_tensor(value) and value.numel() == 1 and value.is_floating_point():
            yield value


def _copy(value: Any, changed: bool) -> Any:
    return value.clone() if changed and torch.is_tensor(value) else value


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True

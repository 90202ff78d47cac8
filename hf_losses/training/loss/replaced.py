"""What a model of the user's own computes from labels, and what of it is lost if it is replaced."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_losses.losses.base import RegressionLoss
from hf_losses.losses.modules import MULTI_LABEL, SINGLE_LABEL, ClassificationLoss
from hf_losses.losses.registry import IGNORE_INDEX
from hf_losses.models.builtin import shifts_labels
from hf_losses.models.forwards import has_own_loss, is_transformers, without_loss
from hf_losses.training.loss.items import Items, fit, item_mask, sum_over_items
from hf_losses.training.loss.targets import SEVERAL_LABELS
from hf_losses.training.model_state import state_of

logger = logging.getLogger(__name__)

# Logits of a head that begins with zeros do not show weights: they are compared once more.
AGAIN = 10  # Optimizer steps.
LEFT_OUT = "has no part in this training"
CLASS_WEIGHTS = "class weights go into --loss_kwargs '{\"weight\": [1.0, 2.5]}', a number per class"
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

        The model is run as in an evaluation, with and without labels, and with them as in the
        training, on the first batch and on one ten steps later.

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
        model, wrapped = trainer._wrapped.adapted, trainer._wrapped

        def run(**given: Any) -> Any:
            # Some forwards change their labels. The same numbers are drawn in each run.
            copies = {key: _copy(value, key in own_labels) for key, value in given.items()}
            restore = state_of(model, trainer.args.device)
            try:
                return model(**copies)
            finally:
                restore()

        def compare(own: Tensor, outputs: Any) -> _Compared:
            logits = wrapped.targets.logits(outputs, labels, shifted=shifted)
            pairs = zip(logits, labels, strict=True)
            batches = [fit(*pair, trainer._active.problem) for pair in pairs]
            added = trainer._auxiliary(outputs)
            if trainer.model.training:  # The model's own is that of a step of one batch.
                added = added * trainer.current_gradient_accumulation_steps
            losses = [float(value + added) for value in _losses_of(trainer._active, batches)]
            return _Compared(float(own), losses, _tolerance(own, *logits), batches)

        only_training = False
        try:
            with torch.no_grad():
                with _evaluating(model):
                    outputs = run(**inputs | own_labels)
                    own = next(losses_among(outputs), None)
                    if own is None or not math.isfinite(float(own)):
                        return None
                    compared = compare(own, wrapped.call(run, inputs, own_labels))
                    one_output = _compare_if_possible(compare, own, outputs)
                if compared.agree() and one_output and one_output.agree():
                    # What a forward adds only while it is trained: of the very logits of that loss.
                    outputs = run(**inputs | own_labels)
                    own = next(losses_among(outputs), own)
                    trained = _compare_if_possible(compare, own, outputs) or compared
                    compared, only_training = trained, not trained.agree()
        except Exception as error:
            if trainer.is_world_process_zero():
                logger.warning(
                    "Whether the loss of %s.forward has more than that of its logits and labels "
                    "could not be found out: %s",
                    type(wrapped.core).__name__,
                    error,
                )
            return None
        if compared.agree():
            return None
        self._next = None
        return _sentence(trainer, compared, only_training=only_training)

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
            (not is_transformers(core) or has_own_loss(core))
            and isinstance(trainer._active.criterion, ClassificationLoss | RegressionLoss)
            and trainer.args.n_gpu <= 1
            and not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)
            and not trainer.args.label_smoothing_factor  # Trainer does not use its loss then.
            and (inspect.Parameter.VAR_KEYWORD in kinds or {*own_labels} <= parameters.keys())
            and all(value is not None for value in own_labels.values())
        )


class _Compared(NamedTuple):
    """A model's own loss of a batch, and the losses of its logits and labels."""

    own: float
    losses: list[float]
    tolerance: float
    batches: list[Items]

    def agree(self) -> bool:
        """Whether the model's own is one of them, or there is nothing to say."""
        return not math.isfinite(self.losses[0]) or any(map(self.is_own, self.losses))

    def is_own(self, loss: float) -> bool:
        """Whether a loss is the model's own."""
        return math.isclose(self.own, loss, rel_tol=self.tolerance, abs_tol=1e-5)


def _compare_if_possible(
    compare: Callable[[Tensor, Any], _Compared], own: Tensor, outputs: Any
) -> _Compared | None:
    """Compares outputs of a forward with labels, which may not have the logits."""
    try:
        return compare(own, without_loss(outputs))
    except Exception:
        return None


def _tolerance(*tensors: Tensor) -> float:
    halved = any(tensor.dtype not in (torch.float32, torch.float64) for tensor in tensors)
    return ROUNDED if halved else EXACT


def _sentence(trainer: Any, compared: _Compared, *, only_training: bool) -> str:
    core, baseline = trainer._wrapped.core, trainer._active.baseline_name
    text = (
        f"{type(core).__name__}.forward computes another loss than {baseline} of its logits and "
        f"labels ({compared.own:.5g}, not {compared.losses[0]:.5g} on one batch)"
    )
    if only_training:
        return (
            f"{text}, though not in an evaluation: what it does only while it is trained (R-Drop, "
            f"several dropouts of one batch, further terms) {LEFT_OUT}"
        )
    logits, labels, _ = compared.batches[0]
    if logits.shape == labels.shape:
        if labels.is_floating_point() and trainer._active.problem == MULTI_LABEL:
            shares = F.cross_entropy(logits.float(), labels.float())
            if compared.is_own(float(shares)):
                return (
                    f"{text}, but of labels that are probabilities of the classes: set "
                    f"config.problem_type={SINGLE_LABEL!r}"
                )
        binary = F.binary_cross_entropy_with_logits(logits.float(), labels.float())
        if compared.is_own(float(binary)):
            return f"{text}, but of yes/no labels: {SEVERAL_LABELS}"
    text += (
        ": what it has beside that (weights, further terms, other labels or rules of what is left "
        f"out) {LEFT_OUT}; {CLASS_WEIGHTS}"
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


def losses_among(outputs: Any) -> Iterator[Tensor]:
    """The losses among a model's outputs, mostly one."""
    values = outputs if isinstance(outputs, tuple) else (outputs,)
    if isinstance(outputs, Mapping):
        values = (outputs.get("loss"),)
    for value in values:
        if torch.is_tensor(value) and value.dim() == 0 and value.is_floating_point():
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

"""Which loss a trainer uses: as named or given, and as fits what the model's head is for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hf_losses.losses.modules import (
    MULTI_LABEL,
    SINGLE_LABEL,
    ClassificationLoss,
    RegressionLoss,
    get_loss,
)
from hf_losses.losses.registry import get_spec, list_losses, neutral_loss, parse_loss_kwargs
from hf_losses.messages import UsageError
from hf_losses.models.heads import REGRESSION, is_classifier, problem_type
from hf_losses.training.loss.class_weights import check_number, early_loss


def builtin_loss(model: Any) -> str:
    """Name of the loss that is built into the model without wrappers."""
    return neutral_loss(_task(problem_type(model)))


def choose_loss(
    given: Any, args: Any, model: Any, weigh: Callable[[dict[str, Any], Any], dict[str, Any]]
) -> Any:
    """The loss of a trainer.

    Args:
        given: Its `loss`: a name, a module, a callable, or None.
        args: Its training arguments, with or without the fields of `LossTrainingArguments`.
        model: Its model without wrappers.
        weigh: `ClassWeights.resolve` of the parameters and the model.

    Returns:
        A module of this project, or what was given; the task's baseline if nothing names a loss.

    Raises:
        ValueError: If two losses are named, the loss is unknown, no loss at all or does not fit the
            model's head, or label smoothing would be ignored.
    """
    if isinstance(given, type):
        raise UsageError(
            f"loss={given.__name__} is a class: give one of its instances, {given.__name__}(…)"
        )
    if given is not None and not isinstance(given, str) and not callable(given):
        raise UsageError(f"loss={given!r} is neither a name nor a callable loss(logits, labels)")
    named, smoothing = getattr(args, "loss", None), args.label_smoothing_factor
    if given is not None and named is not None and given != named:
        raise UsageError(
            f"two losses: loss={given!r} given to the trainer and {named!r} in its arguments; "
            "keep one"
        )
    if given is not None and not isinstance(given, str):
        if smoothing:
            raise UsageError(
                f"label_smoothing_factor={smoothing} would be ignored by a loss that is "
                "already built: use get_loss(name, label_smoothing=…) instead"
            )
        check_fit(given, model)
        return given
    params = parse_loss_kwargs(getattr(args, "loss_kwargs", None))
    problem = problem_type(model)
    name = given or named or builtin_loss(model)
    if smoothing:
        if problem in (MULTI_LABEL, REGRESSION):
            raise UsageError(
                f"label_smoothing_factor={smoothing} does not apply to {problem} "
                "(for several labels: loss_kwargs '{\"label_smoothing\": …}')"
            )
        if params.setdefault("label_smoothing", smoothing) != smoothing:
            raise UsageError(
                f"label_smoothing_factor={smoothing} and loss_kwargs {params} contradict each "
                "other; keep one"
            )
    if problem == MULTI_LABEL and get_spec(name).task == "classification":
        params.setdefault("problem_type", MULTI_LABEL)
    check_fit(early_loss(name, params), model)  # Before labels are counted.
    loss = get_loss(name, **weigh(params, model))
    check_fit(loss, model)
    return loss


def check_fit(loss: Any, model: Any) -> None:
    """Raises a ValueError if a loss of this project is not one for the model's head.

    Args:
        loss: A loss; one of the user's own is taken as it is.
        model: The model without wrappers.
    """
    problem = problem_type(model)
    if problem != REGRESSION:
        check_number(loss, model)
    if not isinstance(loss, ClassificationLoss | RegressionLoss):
        return
    name, head = loss.spec.name, f"{type(model).__name__}, problem_type={problem!r}"
    if is_classifier(model):
        head += f", num_labels={model.config.num_labels}"
    if problem is not None and loss.spec.task != _task(problem):
        raise UsageError(
            f"loss {name!r} is for {loss.spec.task} and does not fit the model's head "
            f"({head}); choose one of: {', '.join(list_losses(task=_task(problem)))}"
        )
    if problem is None and is_classifier(model) and loss.spec.task == REGRESSION:
        raise UsageError(
            f"loss {name!r} is for regression and does not fit the model's head ({head}); set "
            "config.problem_type='regression', or choose one of: "
            f"{', '.join(list_losses(task='classification'))}"
        )
    if problem in (SINGLE_LABEL, MULTI_LABEL) and loss.problem_type != problem:
        raise UsageError(
            f"the loss was built for {loss.problem_type} and does not fit the model's head "
            f"({head}); make config.problem_type and the loss's problem_type the same"
        )


def _task(problem: str | None) -> str:
    return "regression" if problem == REGRESSION else "classification"

"""Which loss a trainer uses, and whether it fits the model's head."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hf_losses.losses.base import RegressionLoss
from hf_losses.losses.modules import MULTI_LABEL, SINGLE_LABEL, ClassificationLoss, get_loss
from hf_losses.losses.registry import get_spec, list_losses, neutral_loss, parse_loss_kwargs
from hf_losses.messages import UsageError
from hf_losses.models.heads import REGRESSION, is_classifier, problem_type
from hf_losses.training.loss.class_weights import ClassWeights, check_keyword, check_weight
from hf_losses.training.loss.items import SumFunction, problem_of, sum_over_items

ONE_YES_NO = f"; for one yes/no label set config.problem_type={MULTI_LABEL!r}"


def builtin_loss(model: Any) -> str:
    """Name of the loss that is built into a model, which is given without wrappers."""
    return neutral_loss(_task(problem_type(model)))


def loss_of_arguments(
    name: str, loss_kwargs: dict[str, Any] | str | None
) -> ClassificationLoss | RegressionLoss:
    """The loss of training arguments, built before there is a model or data.

    Args:
        name: A registered name.
        loss_kwargs: Its parameters, as for `LossTrainingArguments`.

    Returns:
        The loss. It lacks class weights that are given by name or as "balanced", which are only
        checked as far as is possible here.

    Raises:
        ValueError: If the loss or a parameter is unknown or out of range.
    """
    params = parse_loss_kwargs(loss_kwargs)
    weight = params.get("weight")
    if isinstance(weight, str | dict):
        params["weight"] = [1.0] if isinstance(weight, str) else [*weight.values()]
        get_loss(name, **params)
        check_keyword(weight)
        del params["weight"]
    return get_loss(name, **params)


def choose_loss(
    loss: Any, args: Any, model: Any, weigh: Callable[[dict[str, Any], Any], dict[str, Any]]
) -> Any:
    """The loss of a trainer.

    Args:
        loss: The trainer's `loss`: a name, a module, a callable, or None.
        args: The trainer's arguments, with or without the fields of `LossTrainingArguments`.
        model: The trainer's model without wrappers.
        weigh: `ClassWeights.resolve` as a function of the parameters and the model.

    Returns:
        A module of this project, or the callable passed as `loss`; the task's baseline if no loss
        is named.

    Raises:
        ValueError: If two losses are named, the loss is unknown, not callable or does not fit the
            model's head, or label smoothing would be ignored.
    """
    if isinstance(loss, type):
        raise UsageError(
            f"loss={loss.__name__} is a class: give one of its instances, {loss.__name__}(…)"
        )
    if loss is not None and not isinstance(loss, str) and not callable(loss):
        raise UsageError(f"loss={loss!r} is neither a name nor a callable loss(logits, labels)")
    name_in_args, smoothing = getattr(args, "loss", None), args.label_smoothing_factor
    if loss is not None and name_in_args is not None and loss != name_in_args:
        raise UsageError(
            f"two losses: loss={loss!r} given to the trainer and {name_in_args!r} in its "
            "arguments; keep one"
        )
    if loss is not None and not isinstance(loss, str):
        if smoothing:
            raise UsageError(
                f"label_smoothing_factor={smoothing} would be ignored by a loss that is "
                "already built: use get_loss(name, label_smoothing=…) instead"
            )
        check_fit(loss, model)
        return loss
    params = parse_loss_kwargs(getattr(args, "loss_kwargs", None))
    problem = problem_type(model)
    name = loss or name_in_args or builtin_loss(model)
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
    check_fit(loss_of_arguments(name, params), model)  # Fails before any labels are counted.
    criterion = get_loss(name, **weigh(params, model))
    check_fit(criterion, model)
    return criterion


def check_fit(loss: Any, model: Any) -> None:
    """Raises a ValueError if a loss of this project is not one for the model's head.

    Args:
        loss: A loss; one of the user's own is accepted as it is.
        model: The model without wrappers.
    """
    problem = problem_type(model)
    if problem != REGRESSION:
        check_weight(loss, model)
    if not isinstance(loss, ClassificationLoss | RegressionLoss):
        return
    name, head = loss.spec.name, f"{type(model).__name__}, problem_type={problem!r}"
    if is_classifier(model):
        head += f", num_labels={model.config.num_labels}"
    if problem is not None and loss.spec.task != _task(problem):
        raise UsageError(
            f"loss {name!r} is for {loss.spec.task} and does not fit the model's head "
            f"({head}); choose one of: {', '.join(list_losses(task=_task(problem)))}"
            + (ONE_YES_NO if is_classifier(model) and model.config.problem_type is None else "")
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


def config_of_callable(loss: Any) -> dict[str, Any]:
    """Name and settings of a loss of the user's own, as JSON.

    Args:
        loss: A module, of which tensors are named by a hash; a callable, or a partial of one.
    """
    settings: dict[str, Any] = {}
    while isinstance(loss, functools.partial):
        arguments = {f"argument_{number}": value for number, value in enumerate(loss.args)}
        settings = arguments | loss.keywords | settings
        loss = loss.func
    if isinstance(loss, nn.Module):
        public = {name: value for name, value in vars(loss).items() if name[0] != "_"}
        settings = public | dict(loss.named_buffers()) | settings
        settings.pop("training", None)
        loss = type(loss)
    name = f"{loss.__module__}:{getattr(loss, '__qualname__', type(loss).__name__)}"
    return {**{key: _as_json(value) for key, value in settings.items()}, "name": name}


def _as_json(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_as_json(each) for each in value]
    if torch.is_tensor(value):
        content = json.dumps(value.tolist()).encode()
        return f"sha256:{hashlib.sha256(content).hexdigest()[:12]}"
    return getattr(value, "__qualname__", type(value).__name__)


class ActiveLoss:
    """The loss of a trainer, the one its warm-up begins with, and the baseline of its task.

    They are built when they are asked for, and anew when the arguments have changed: a
    hyperparameter search sets the fields of the arguments before every trial.

    Args:
        trainer: The trainer; not read before its `__init__` is done.
        loss: The `loss` that the trainer was given.

    Attributes:
        class_weights: The class weights of the loss, if it has any.
    """

    def __init__(self, trainer: Any, loss: Any) -> None:
        self.trainer = trainer
        self.loss = loss
        self.class_weights = ClassWeights()
        self._target: tuple[Any, Any, SumFunction] | None = None
        self._made_for: tuple[Any, Any] = (None, None)  # The config, and the training data.
        self._recorded: tuple[Any, dict[str, Any]] | None = None
        self._initial: tuple[Any, Any, SumFunction] | None = None

    @property
    def criterion(self) -> Any:
        """The loss in force: a module of this project, or the callable passed as `loss`."""
        return self.target()[0]

    @property
    def config(self) -> dict[str, Any]:
        """Name and parameters of the loss in force, as JSON."""
        criterion = self.criterion
        if isinstance(criterion, ClassificationLoss | RegressionLoss):
            return criterion.config
        if self._recorded is None or self._recorded[0] is not criterion:
            # As it was at first: its state may change while it is trained with.
            self._recorded = (criterion, config_of_callable(criterion))
        return self._recorded[1]

    @property
    def problem(self) -> str | None:
        """The problem type of the labels: by the model's head, or by the loss if it is unknown."""
        return problem_type(self.trainer._wrapped.core) or problem_of(self.criterion)

    def target(self) -> tuple[Any, SumFunction]:
        """The loss in force, and its sum over the items of a batch."""
        trainer = self.trainer
        if trainer.model is None and self._target is not None:
            return self._target[1:]  # After a search: that of the last trial.
        model, args = trainer._wrapped.core, trainer.args
        key = (
            getattr(args, "loss", None),
            json.dumps(self.class_weights.plain_kwargs(args)),
            args.label_smoothing_factor,
            problem_type(model),
        )
        made_for = getattr(model, "config", None), trainer.train_dataset
        new = any(one is not other for one, other in zip(made_for, self._made_for, strict=True))
        if self._target is None or self._target[0] != key or new:
            self._made_for = made_for
            weigh = functools.partial(
                self.class_weights.resolve,
                dataset=trainer.train_dataset,
                label_names=trainer.label_names,
                show=trainer.is_world_process_zero(),
            )
            criterion = choose_loss(self.loss, args, model, weigh)
            if isinstance(criterion, nn.Module):
                criterion.to(args.device)
            problem = problem_type(model) or problem_of(criterion)
            self._target = (key, criterion, sum_over_items(criterion, problem))
        return self._target[1:]

    def initial(self) -> tuple[Any, SumFunction]:
        """The loss that a warm-up begins with, which shares class weights and smoothing."""
        criterion, args = self.criterion, self.trainer.args
        key = (criterion, getattr(args, "loss_warmup_from", None))
        if self._initial is None or self._initial[0] != key:
            initial = self.with_options(key[1] or self.baseline_name)
            check_fit(initial, self.trainer._wrapped.core)
            self._initial = (key, initial, sum_over_items(initial, self.problem))
        return self._initial[1:]

    def with_options(self, name: str) -> ClassificationLoss | RegressionLoss:
        """Another loss with the class weights and the smoothing of the one in force."""
        criterion = self.criterion
        options = dict(getattr(criterion, "config", {}))
        spec = getattr(criterion, "spec", None)
        for key in ("name", "max_weight", *(spec.parameters if spec else ())):
            options.pop(key, None)
        if spec is None and self.problem == MULTI_LABEL:
            options["problem_type"] = MULTI_LABEL
        return get_loss(name, **options).to(self.trainer.args.device)

    @property
    def baseline_name(self) -> str:
        """The baseline of the task, such as `cross_entropy`."""
        spec = getattr(self.criterion, "spec", None)
        return neutral_loss(_task(self.problem) if spec is None else spec.task)

    def baseline(self) -> ClassificationLoss | RegressionLoss:
        """The plain baseline of the task, by which runs with different losses are compared."""
        several = self.problem == MULTI_LABEL
        return get_loss(self.baseline_name, **({"problem_type": MULTI_LABEL} if several else {}))

"""A `Trainer` whose loss is a hyperparameter: chosen, computed, reported, saved and resumed."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from hf_losses.losses.linear import HeadOutput, linear_of_head
from hf_losses.losses.registry import get_spec
from hf_losses.messages import UsageError
from hf_losses.models.adapters import adapter_term
from hf_losses.models.builtin import auxiliary_weight, check_batch
from hf_losses.models.decoder_inputs import decoder_inputs
from hf_losses.models.forwards import logits_of, with_loss
from hf_losses.models.heads import LOSS_WEIGHT, settle_problem_type
from hf_losses.training.base_trainers import SFTLog, check_base, check_order
from hf_losses.training.checks import check_trainer
from hf_losses.training.loss.choose import ActiveLoss
from hf_losses.training.loss.item_weights import (
    check_weights_arrive,
    check_weights_kept,
    keeping_weights,
    truncated_weights,
)
from hf_losses.training.loss.items import Items, SumFunction, divisors, fit, items_of
from hf_losses.training.loss.replaced import ReplacedLoss
from hf_losses.training.loss.targets import FirstTargets
from hf_losses.training.loss.warmup import warmup_share
from hf_losses.training.publishing import PublishingMixin
from hf_losses.training.reports.evaluation import EvaluationMixin
from hf_losses.training.reports.item_stats import stats_due
from hf_losses.training.reports.steps import StepReportsMixin
from hf_losses.training.sampling import GroupedByLength, ResumesEpoch
from hf_losses.training.wrapped_model import WrappedModel

logger = logging.getLogger(__name__)


class _AsItIs:
    """Stands in the arguments for a value, so that a search takes another one without a cast."""

    def __new__(cls, value: Any) -> Any:
        return value


class _Replaceable:
    """A property that a trainer of the user's may set to something of its own."""

    def __init__(self, get: Callable[[Any], Any]) -> None:
        self.get, self.__doc__ = get, get.__doc__

    def __get__(self, trainer: Any, cls: Any = None) -> Any:
        return self if trainer is None else self.get(trainer)


class LossMixin(EvaluationMixin, StepReportsMixin, PublishingMixin):
    """Gives any `Trainer` subclass a loss: `class MyTrainer(LossMixin, SFTTrainer)`.

    Args:
        *args: Arguments of the trainer class.
        loss: A registered name, a module (`get_loss("strict_m_power", alpha=0.3)`,
            `torch.nn.MultiMarginLoss()`), or a callable `loss(logits, labels)` that returns the
            mean over the items whose label is not -100, or one value per item. None takes the loss
            of the training arguments, or without one the baseline of the task.
        **kwargs: Arguments of the trainer class.

    Raises:
        ValueError: If the loss is unknown, is named in two places that differ, does not fit the
            model's head, or could not be applied (Liger's fused head, several label tensors, …).
    """

    # Since transformers 5.19: the loss is already divided by the items of the whole step.
    loss_is_scaled_for_ga = True
    # Trainer sets these: the first during training, the others when it is built.
    current_gradient_accumulation_steps = 1
    label_names: list[str]
    model: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_order(cls, LossMixin)

    def __init__(
        self, *args: Any, loss: str | Callable[..., Tensor] | None = None, **kwargs: Any
    ) -> None:
        if isinstance(loss, str):
            get_spec(loss)  # Before the trainer makes folders, or a repository on the Hub.
        self._check_base()
        self._active = ActiveLoss(self, loss)
        self._wrapped = WrappedModel(self)
        self._sft = SFTLog(self)
        self._fused_head: Any = None  # Set while a step is computed without logits.
        self._first_targets = FirstTargets()
        self._replaced = ReplacedLoss()
        # Labels and attention mask of the last batch that the model was run on.
        self._adapter_inputs: tuple[Tensor | None, Tensor | None] = (None, None)
        super().__init__(*args, **kwargs)
        self._check_trainer()
        self.add_callback(ResumesEpoch)
        # Trainer counts the items of a step only for a loss function that is set here.
        self.compute_loss_func = self._loss_of_outputs

    # ---- Which loss --------------------------------------------------------------------------

    @_Replaceable
    def criterion(self) -> Any:
        """The loss in force: a module of this project, or the callable passed as `loss`."""
        return self._active.criterion

    @_Replaceable
    def loss_config(self) -> dict[str, Any]:
        """Name and parameters of the loss in force, as JSON."""
        return self._active.config

    def _check_base(self) -> None:
        check_base(type(self), LossMixin)

    def _check_trainer(self) -> None:
        check_trainer(self)

    def _set_signature_columns_if_needed(self) -> None:
        with self._wrapped.uncompiled():  # Compiled, it has *args and **kwargs.
            super()._set_signature_columns_if_needed()
        if LOSS_WEIGHT not in self._signature_columns:
            self._signature_columns.append(LOSS_WEIGHT)

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's data loader, whose batches keep the column `loss_weight`."""
        with keeping_weights(self):
            return super()._get_dataloader(*args, **kwargs)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's sampler; by length, with an order that a resumed run finds again."""
        sampler = super()._get_train_sampler(*args, **kwargs)
        if type(sampler) is LengthGroupedSampler and sampler.generator is None:
            return GroupedByLength(sampler, self)
        return sampler

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """The data as `SFTTrainer` prepares them, which must not lose the column `loss_weight`."""
        prepared = super()._prepare_dataset(dataset, *args, **kwargs)
        check_weights_kept(dataset, prepared)
        if not self._sft.is_sft:
            return prepared
        return truncated_weights(prepared, kwargs["args"] if "args" in kwargs else args[1])

    def _hp_search_setup(self, trial: Any) -> None:
        if trial is None or not hasattr(self.args, "loss_kwargs"):
            super()._hp_search_setup(trial)
            return
        # Those of the trial before may belong to another loss.
        kwargs = self.args.loss_kwargs
        if self._kwargs_before_search is not None:
            (kwargs,) = self._kwargs_before_search
        # Trainer makes a new value by the class of the old one, and a dict of JSON text it cannot.
        placeholder = self.args.loss_kwargs = object.__new__(_AsItIs)
        try:
            super()._hp_search_setup(trial)
        finally:
            if self.args.loss_kwargs is placeholder:
                self.args.loss_kwargs = kwargs

    # ---- Computing the loss ------------------------------------------------------------------

    def _prepare_inputs(self, inputs: dict[str, Any]) -> Any:
        """Trainer's batch on the device, where DeepSpeed must not round what the loss is told."""
        prepared = super()._prepare_inputs(inputs)
        if self.is_deepspeed_enabled:
            for name in (*self.label_names, LOSS_WEIGHT):
                given, cast = inputs.get(name), prepared.get(name)
                if not torch.is_tensor(given) or not torch.is_tensor(cast):
                    continue
                exact = given.to(cast.device)
                # A script's own override may have put other labels in their place.
                if exact.dtype != cast.dtype and torch.equal(exact.to(cast.dtype), cast):
                    prepared[name] = exact
        return prepared

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The loss of one micro-batch, divided by the items of the whole optimizer step.

        Args:
            model: The model, possibly wrapped.
            inputs: A batch with `labels`, and perhaps `loss_weight`; it is not changed.
            return_outputs: Whether to return the model's outputs too.
            num_items_in_batch: The items in all micro-batches and processes of this optimizer
                step, as counted by `item_mask`; for question answering two numbers, of starts and
                of ends. None divides by the items of this micro-batch.

        Returns:
            A scalar, or the scalar and the outputs.

        Raises:
            ValueError: If labels or logits are missing or do not fit each other.
        """
        # The model gets a copy without labels: with them it would compute its own loss in vain.
        batch, inputs = inputs, {**inputs, **self._sft.model_inputs()}
        targets = self._wrapped.targets
        if not targets.present(inputs):
            raise UsageError(
                f"the batch has no {' and '.join(map(repr, self.label_names))} for the loss, only: "
                f"{', '.join(inputs)} (the data needs a column 'label' or 'labels', or another "
                "name in label_names of the training arguments)"
            )
        self._settle_problem_type(inputs)
        raw_labels = inputs.get(self.label_names[0])
        weight = inputs.pop(LOSS_WEIGHT, self._weight_of_evaluation)
        labels, shifted = targets.of_batch(inputs), inputs.get("shift_labels") is not None
        loss_of = functools.partial(
            self.compute_loss_func,
            labels=labels,
            num_items_in_batch=num_items_in_batch,
            shifted=shifted,
            weights=targets.weights_of_batch(inputs, weight),
        )
        own_labels = {name: inputs.pop(name, None) for name in self.label_names}
        for name in ("shift_labels", "skip_logits"):
            inputs.pop(name, None)
        core = self._wrapped.core
        if (
            raw_labels is not None
            and not {"decoder_input_ids", "decoder_inputs_embeds"} & inputs.keys()
        ):
            inputs = decoder_inputs(core, raw_labels) | inputs
        self._adapter_inputs = (raw_labels, inputs.get("attention_mask"))
        fused = getattr(self.args, "fused_linear", False) and self.model.training
        if fused and not return_outputs:
            return self._fused_loss(model, inputs, batch, loss_of)
        if lost := self._replaced.lost(self, inputs, own_labels, labels, shifted=shifted):
            self._say_what_is_lost(lost)
        outputs = self._wrapped.call(model, inputs, own_labels)
        self._sft.add(batch, outputs)
        loss = loss_of(outputs)
        return (loss, with_loss(outputs, loss)) if return_outputs else loss

    def _settle_problem_type(self, inputs: Mapping[str, Any]) -> None:
        """Checks a batch, and sets the problem type by its labels if the config has none."""
        labels = inputs.get(self.label_names[0])
        if labels is not None and not torch.is_tensor(labels):
            raise UsageError(
                f"the labels of a batch are a {type(labels).__name__}, not one tensor: a loss that "
                "is one function of logits and labels needs that"
            )
        if labels is not None:
            label_keys = (*self.label_names, "shift_labels")
            others = {name: value for name, value in inputs.items() if name not in label_keys}
            core = self._wrapped.core
            check_batch(core, others, labels)
            settled = settle_problem_type(core, labels, lambda: self._active.criterion)
            if settled and hasattr(core.config, "hf_losses"):
                self._name_loss_in_config()  # It was named without the problem type.

    def _fused_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        batch: dict[str, Any],
        loss_of: Callable[..., Tensor],
    ) -> Tensor:
        """Lets the head return the loss, not logits: its weight may only be used in forward."""
        head = self._fused_head = self._wrapped.core.get_output_embeddings()

        def loss_of_hidden(hidden: Tensor) -> Tensor:
            self._sft.add_tokens(batch, hidden, head)
            return loss_of((hidden,))

        try:
            with HeadOutput(head, loss_of_hidden):
                outputs = model(**inputs)
        finally:
            self._fused_head = None
        self._sft.add_balance(outputs)
        loss: Tensor = logits_of(outputs) + self._auxiliary(outputs)
        return loss

    def _loss_of_outputs(
        self,
        outputs: Any,
        labels: list[Tensor] | Tensor,
        num_items_in_batch: Any = None,
        shifted: bool = False,
        weights: list[Tensor | None] | None = None,
    ) -> Tensor:
        """The mean over the classifications of a row, mostly a single one; see `Targets`."""
        targets, problem = self._wrapped.targets, self._active.problem
        if torch.is_tensor(labels):  # A script's own call, as Trainer makes it.
            labels = targets.of_batch({self.label_names[0]: labels})
        logits = targets.logits(outputs, labels, shifted=shifted)
        weights = weights or [None] * len(labels)
        batches = [
            fit(z, target, problem, weight)
            for z, target, weight in zip(logits, labels, weights, strict=True)
        ]
        self._first_targets.add(
            batches, self._active.criterion, self.model.training, self._fused_head
        )
        self._batch_has_loss = True
        auxiliary = self._auxiliary(outputs)
        if self._evaluation is not None:
            return self._loss_of_evaluation(batches, auxiliary)
        of_each = divisors(self, [b.labels for b in batches], num_items_in_batch, problem)
        losses = [self._loss_of_step(*pair) for pair in zip(batches, of_each, strict=True)]
        loss = losses[0] if len(losses) == 1 else torch.stack(losses).mean()
        return loss + auxiliary

    def _say_what_is_lost(self, text: str) -> None:
        if self.is_world_process_zero():
            logger.warning(text)

    def _divided(self, loss: tuple[Any, SumFunction], batch: Items, divisor: Any) -> Tensor:
        criterion, summed = loss
        logits, labels, weight = batch
        if self._fused_head is not None:  # The logits are hidden states.
            return linear_of_head(logits, self._fused_head, labels, criterion, divisor, weight)
        return summed(logits, labels, divisor, weight)

    def _loss_of_step(self, batch: Items, divisor: Any) -> Tensor:
        """One classification of a micro-batch, with the loss warm-up while it lasts."""
        share = None
        if self.model.training:
            if stats_due(self.args, self.state.global_step + 1):
                self._stats.add(self._active.criterion, batch)
            share = warmup_share(self.args, self.state.global_step, self.state.max_steps)
        if share == 0:
            return self._divided(self._active.initial(), batch, divisor)
        loss = self._divided(self._active.target(), batch, divisor)
        if share is not None and share < 1:
            initial_loss = self._divided(self._active.initial(), batch, divisor)
            loss = share * loss + (1 - share) * initial_loss
        return loss

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Trainer's count of a step's items; what an item is depends on the head."""
        targets = self._wrapped.targets
        if not batch_samples or not targets.present(batch_samples[0]):
            return None
        if isinstance(batch_samples[0].get(self.label_names[0]), list):
            return None  # As Trainer does: a script makes tensors of them later.
        trains = self._evaluation is None and not self._predicting
        if trains and LOSS_WEIGHT not in batch_samples[0]:
            check_weights_arrive(self)
        items_of_batches = []
        for batch in batch_samples:
            self._settle_problem_type(batch)
            labels = targets.of_batch(batch)
            items_of_batches.append([items_of(tensor, self._active.problem) for tensor in labels])
        counts, args, averages = [], self.args, self.args.average_tokens_across_devices
        # Otherwise Trainer divides the count by the GPUs of DataParallel, and rounds.
        args.average_tokens_across_devices = averages or args.n_gpu > 1
        try:
            for items_of_step in zip(*items_of_batches, strict=True):
                # Trainer counts what is not -100, and takes shift_labels as they are.
                batches = [{"labels": items, "shift_labels": items} for items in items_of_step]
                counts.append(super()._get_num_items_in_batch(batches, device))
        finally:
            args.average_tokens_across_devices = averages
        if trains:  # Before the first step the model is not in training mode.
            self._empty_steps.add(sum(counts))
        return counts[0] if len(counts) == 1 else torch.stack(counts)

    def _auxiliary(self, outputs: Any) -> Tensor | float:
        """What mixtures of experts and PEFT would add to the loss if the model had the labels."""
        if self._fused_head is not None:
            return 0.0  # Called by the head: `_fused_loss` adds it after the model has run.
        added = adapter_term(self._wrapped.adapted, *self._adapter_inputs)
        balance = outputs.get("aux_loss") if hasattr(outputs, "get") else None
        if torch.is_tensor(balance):
            weight = self._sft.balance_weight()
            # DataParallel gives that of each GPU.
            added = added + balance.mean() * (
                auxiliary_weight(self._wrapped.core) if weight is None else weight
            )
        # An optimizer step gets the mean over its micro-batches.
        return added / (self.current_gradient_accumulation_steps if self.model.training else 1)


class LossTrainer(LossMixin, Trainer):  # type: ignore[misc]
    """`transformers.Trainer` with any loss; see `LossMixin` for its `loss`.

    Example:
        >>> LossTrainer(model=model, args=args, train_dataset=data, loss="liberal_exp").train()
    """

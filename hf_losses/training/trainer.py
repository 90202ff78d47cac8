"""A `Trainer` whose loss is a hyperparameter: chosen, computed, reported, saved and resumed."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import is_compiled_module
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress
from transformers.utils.generic import find_labels

from hf_losses.hub.card import write_card
from hf_losses.hub.publish import open_repo, publish, without_paths
from hf_losses.hub.saved_run import (
    ARGUMENTS_FILE,
    COUNT_KEY,
    LOSS_FILE,
    STATE_KEY,
    last_complete_checkpoint,
    load_renamed,
    loss_of_checkpoint,
)
from hf_losses.losses.linear import HeadOutput, check_linear, linear_of_head, plain_head
from hf_losses.losses.modules import MULTI_LABEL, ClassificationLoss, RegressionLoss, get_loss
from hf_losses.losses.registry import get_spec, neutral_loss
from hf_losses.messages import UsageError
from hf_losses.models.adapters import adapter_term, check_adapter
from hf_losses.models.builtin import auxiliary_weight, check_batch, loss_type, shifts_labels
from hf_losses.models.decoder_inputs import decoder_inputs
from hf_losses.models.heads import (
    Targets,
    check_head,
    is_causal,
    logits_of,
    problem_type,
    settle_problem_type,
)
from hf_losses.training.arguments import check_direction
from hf_losses.training.base_trainers import SAME_LOSS, SFTLog, check_base, full_name
from hf_losses.training.loss.choose import builtin_loss, check_fit, choose_loss
from hf_losses.training.loss.class_weights import ClassWeights
from hf_losses.training.loss.items import (
    SumFunction,
    check_targets,
    fit,
    item_count,
    items_of,
    kept,
    problem_of,
    sum_over_items,
)
from hf_losses.training.loss.warmup import target_share
from hf_losses.training.reports.evaluation import EvaluationLosses
from hf_losses.training.reports.item_stats import LossStats, check_stats, stats_due
from hf_losses.training.reports.nonfinite import NonfiniteSteps

logger = logging.getLogger(__name__)

# PEFT's prompts that become keys and values of the attention, not tokens.
KEYS_AND_VALUES = ("PREFIX_TUNING", "CARTRIDGE")
NOT_PUSHED = "This checkpoint was not pushed, the next one will be. %s"

# Any trainer class may stand below; the type checker sees the stock one.
_Base: Any = Trainer if TYPE_CHECKING else object


class LossMixin(_Base):  # type: ignore[misc]
    """Gives any `Trainer` subclass a loss: `class MyTrainer(LossMixin, SFTTrainer)`.

    Args:
        *args: Those of the trainer class.
        loss: A registered name, a module (`get_loss("strict_m_power", alpha=0.3)`,
            `torch.nn.MultiMarginLoss()`), or a callable `loss(logits, labels)` that returns the
            mean over the items whose label is not -100, or one value per item. None takes the loss
            of the training arguments, or without one the baseline of the task.
        **kwargs: Those of the trainer class.

    Raises:
        ValueError: If the loss is unknown, is named in two places that differ, does not fit the
            model's head, or could not be applied (Liger's fused head, several label tensors, …).
    """

    # Since transformers 5.19: the loss is already divided by the items of the whole step.
    loss_is_scaled_for_ga = True
    # Trainer sets these: the first while it trains, the others when it is built.
    current_gradient_accumulation_steps = 1
    label_names: list[str]
    model: Any
    _loss_shifts_labels: bool

    def __init__(
        self, *args: Any, loss: str | Callable[..., Tensor] | None = None, **kwargs: Any
    ) -> None:
        """See the class."""
        if isinstance(loss, str):
            get_spec(loss)  # Before the trainer makes folders, or a repository on the Hub.
        self._check_base()
        self._sft = SFTLog(self)
        self._given_loss = loss
        self._class_weights = ClassWeights()
        self._built: tuple[Any, Any, SumFunction] | None = None
        self._first: tuple[Any, Any, SumFunction] | None = None
        self._fused_head: Any = None  # While a step is computed without logits.
        self._evaluation: EvaluationLosses | None = None  # While one runs.
        self._batch_has_loss = False
        self._targets_checked = {True: False, False: False}  # By whether the model is training.
        self._empty_steps: Any = 0  # Steps of training whose labels were all ignored.
        self._warned_of_empty = False
        self._unwrapped: tuple[Any, Any] | None = None
        self._taken: Targets | None = None
        # Labels and attention mask of the batch that the model was last run on.
        self._adapter_inputs: tuple[Tensor | None, Tensor | None] = (None, None)
        self._nonfinite = NonfiniteSteps()
        self._stats = LossStats()
        self._stats_of_line: dict[str, float] = {}
        super().__init__(*args, **kwargs)
        self._check_trainer()
        check_stats(self.args, self.criterion)
        if target_share(self.args, 0, 1) is not None:
            self._first_loss()
            if getattr(self.criterion, "overwrite_logits", False):
                raise UsageError(
                    "overwrite_logits leaves nothing for the other loss of a warm-up: keep one"
                )
        if getattr(self.args, "fused_linear", False):
            self._check_fused_linear()
        # Trainer counts the items of a step only for a loss function that is set here.
        self.compute_loss_func = self._loss_of_outputs

    # ---- Which loss --------------------------------------------------------------------------

    @property
    def criterion(self) -> Any:
        """The loss in force: a module of this project, or what was given as `loss`."""
        return self._loss()[0]

    @property
    def loss_config(self) -> dict[str, Any]:
        """Name and parameters of the loss in force, as JSON."""
        criterion = self.criterion
        if isinstance(criterion, ClassificationLoss | RegressionLoss):
            return criterion.config
        kind = type(criterion) if isinstance(criterion, nn.Module) else criterion
        return {"name": f"{kind.__module__}:{getattr(kind, '__qualname__', type(kind).__name__)}"}

    def _loss(self) -> tuple[Any, SumFunction]:
        # Read late: a hyperparameter search sets the fields of the arguments before every trial.
        key = (
            getattr(self.args, "loss", None),
            json.dumps(self._class_weights.plain(self.args)),
            self.args.label_smoothing_factor,
            problem_type(self._core()),
        )
        if self._built is None or self._built[0] != key:
            weigh = functools.partial(
                self._class_weights.resolve,
                dataset=self.train_dataset,
                label_names=self.label_names,
                show=self.is_world_process_zero(),
            )
            criterion = choose_loss(self._given_loss, self.args, self._core(), weigh)
            if isinstance(criterion, nn.Module):
                criterion.to(self.args.device)
            problem = problem_type(self._core()) or problem_of(criterion)
            self._built = (key, criterion, sum_over_items(criterion, problem))
        return self._built[1:]

    def _problem(self) -> str | None:
        """What labels are for: the head says it, and of one that is not known, the loss."""
        return problem_type(self._core()) or problem_of(self.criterion)

    def _first_loss(self) -> tuple[Any, SumFunction]:
        """What a loss warm-up begins with: it shares class weights and smoothing with the loss."""
        criterion = self.criterion
        key = (criterion, getattr(self.args, "loss_warmup_from", None))
        if self._first is None or self._first[0] != key:
            options = dict(getattr(criterion, "config", {}))
            spec = getattr(criterion, "spec", None)
            for own in ("name", "max_weight", *(spec.parameters if spec else ())):
                options.pop(own, None)
            first = get_loss(key[1] or self._neutral_name(), **options).to(self.args.device)
            check_fit(first, self._core())
            self._first = (key, first, sum_over_items(first, self._problem()))
        return self._first[1:]

    def _core(self) -> Any:
        """The model without wrappers and adapters."""
        adapted = self._adapted()
        return adapted.get_base_model() if hasattr(adapted, "get_base_model") else adapted

    def _adapted(self) -> Any:
        """The model without wrappers, with its adapters."""
        if self._unwrapped is None or self._unwrapped[0] is not self.model:
            # Unwrapping walks through all modules; a search replaces the model for every trial.
            found = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            self._unwrapped = (self.model, found)
        return self._unwrapped[1]

    def _check_base(self) -> None:
        check_base(type(self), LossMixin)

    def _check_trainer(self) -> None:
        check_direction(self.args)
        if self.compute_loss_func is not None:
            raise UsageError(
                "compute_loss_func would compete with this trainer's loss: pass it as loss=, "
                "or use the stock Trainer"
            )
        for base in map(full_name, type(self).__mro__):
            option, stock = SAME_LOSS.get(base, ("", None))
            if option and getattr(self.args, option) != stock:
                raise UsageError(
                    f"{option}={getattr(self.args, option)!r} asks {base} for another loss than "
                    f"this trainer's: leave it at {stock!r}"
                )
        if self.args.use_liger_kernel and (self.args.liger_kernel_config or {}).get(
            "fused_linear_cross_entropy", True
        ):
            raise UsageError(
                "use_liger_kernel fuses cross-entropy into the head and leaves no logits for "
                "another loss: set liger_kernel_config to "
                '{"fused_linear_cross_entropy": false, "cross_entropy": false}, or switch it off'
            )
        parallelism = getattr(self.accelerator, "parallelism_config", None)
        if parallelism is not None and parallelism.sp_enabled:
            raise UsageError(
                "sequence parallelism computes the model's built-in loss; "
                "use data or tensor parallelism with this trainer"
            )
        if not self.label_names:
            # Of a compiled model Trainer has not found them; that itself never sees them.
            self.label_names = find_labels(type(self._core())) or ["labels"]
        check_head(self._core(), self.label_names)
        check_adapter(
            self._adapted(),
            data_parallel=self.args.n_gpu > 1,
            processes=self.accelerator.num_processes,
        )
        # Trainer asks transformers' name of the loss, which GPT-2 does not have and BART's decoder
        # does not follow.
        self._loss_shifts_labels = shifts_labels(self._core())

    def _targets(self) -> Targets:
        """How labels and logits are taken from a batch of the model as it is now."""
        core = self._core()
        if self._taken is None or self._taken.model is not core:
            shifts, virtual = self._loss_shifts_labels, self._virtual_tokens()
            self._taken = Targets(core, self.label_names, shifts=shifts, virtual_tokens=virtual)
        return self._taken

    def _virtual_tokens(self) -> int:
        """How many embeddings PEFT puts before those of the tokens."""
        config = getattr(self._adapted(), "active_peft_config", None)
        if config is None or not config.is_prompt_learning or config.peft_type in KEYS_AND_VALUES:
            return 0
        return int(config.num_virtual_tokens)

    def _check_fused_linear(self) -> None:
        core = self._core()
        if not is_causal(core):
            raise UsageError(
                f"fused_linear is for causal language models, not {type(core).__name__}: switch it "
                "off"
            )
        check_linear(self.criterion)
        plugin = self.accelerator.state.deepspeed_plugin
        for what, present in (
            ("loss_stats_steps, which needs the logits", self.args.loss_stats_steps),
            ("torch_compile", self.args.torch_compile or is_compiled_module(self.model)),
            ("DataParallel (start one process per GPU)", self.args.n_gpu > 1),
            ("FSDP, which shards the head", self.is_fsdp_enabled),
            ("DeepSpeed's ZeRO-3, which shards the head", plugin and plugin.zero_stage == 3),
            ("tensor parallelism, which shards the head", self.get_tp_size() > 1),
        ):
            if present:
                raise UsageError(f"fused_linear does not work with {what}: switch one of them off")
        if hasattr(plain_head(core), "_hf_hook"):
            raise UsageError(
                "fused_linear does not work with a head that a hook of Accelerate moves between "
                "devices: load the model without device_map, or switch fused_linear off"
            )

    def _set_signature_columns_if_needed(self) -> None:
        with self._uncompiled():  # Else they are *args and **kwargs.
            super()._set_signature_columns_if_needed()

    @contextmanager
    def _uncompiled(self) -> Iterator[None]:
        """The model itself in the place of `torch.compile(model)`, if that was given."""
        given = self.model
        if is_compiled_module(given):
            self.model = given._orig_mod
        try:
            yield
        finally:
            self.model = given

    # ---- Computing it ------------------------------------------------------------------------

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
            inputs: A batch with `labels`; left as it is.
            return_outputs: Whether to return the model's outputs too.
            num_items_in_batch: The items in all micro-batches and processes of this optimizer
                step, as `kept` counts them; for answers two numbers, of starts and of ends. None:
                this micro-batch counts alone.

        Returns:
            A scalar, or the scalar and the outputs.

        Raises:
            ValueError: If labels or logits are missing or do not fit each other.
        """
        # A copy without labels: given them, the model would compute its built-in loss for nothing.
        batch, inputs = inputs, {**inputs, **self._sft.model_inputs()}
        targets = self._targets()
        if not targets.present(inputs):
            raise UsageError(
                f"the batch has no {' and '.join(map(repr, self.label_names))} for the loss, only: "
                f"{', '.join(inputs)} (the data needs a column 'label' or 'labels')"
            )
        given = [inputs.get(name) for name in self.label_names]
        self._settle_problem_type(inputs)
        labels = targets.of_batch(inputs)
        shifted = inputs.get("shift_labels") is not None
        for name in (*self.label_names, "shift_labels", "skip_logits"):
            inputs.pop(name, None)
        core = self._core()
        if (
            given[0] is not None
            and not {"decoder_input_ids", "decoder_inputs_embeds"} & inputs.keys()
        ):
            inputs = decoder_inputs(core, given[0]) | inputs
        self._adapter_inputs = (given[0], inputs.get("attention_mask"))
        fuses = getattr(self.args, "fused_linear", False) and self.model.training
        if fuses and not return_outputs:
            return self._fused_loss(model, inputs, labels, shifted, num_items_in_batch, batch)
        if loss_type(core) is None and _needs_labels(core):
            inputs["labels"] = given[0]
        outputs = model(**inputs)
        self._sft.add(batch, outputs)
        if torch.is_tensor(outputs):
            outputs = (outputs,)  # Of a user's own module.
        if isinstance(outputs, tuple):
            # Without labels some return (None, logits); if they had to have them, (loss, logits).
            outputs = tuple(o for o in outputs if not torch.is_tensor(o) or o.dim())
            outputs = tuple(o for o in outputs if o is not None)
        loss = self.compute_loss_func(
            outputs, labels, num_items_in_batch=num_items_in_batch, shifted=shifted
        )
        if isinstance(outputs, tuple):
            outputs = (loss, *outputs)  # Trainer's evaluation leaves out the first of a tuple.
        return (loss, outputs) if return_outputs else loss

    def _settle_problem_type(self, inputs: Mapping[str, Any]) -> None:
        labels = inputs.get(self.label_names[0])
        if labels is not None:
            taken = (*self.label_names, "shift_labels")
            others = {name: value for name, value in inputs.items() if name not in taken}
            check_batch(self._core(), others, labels)
            settle_problem_type(self._core(), labels)

    def _fused_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        labels: list[Tensor],
        shifted: bool,
        items: Any,
        batch: dict[str, Any],
    ) -> Tensor:
        """The loss in the place of the logits: the head's weight may be used in forward alone."""
        head = self._fused_head = self._core().get_output_embeddings()

        def of_hidden(hidden: Tensor) -> Tensor:
            self._sft.add_tokens(batch, hidden, head)
            loss: Tensor = self.compute_loss_func(
                (hidden,), labels, num_items_in_batch=items, shifted=shifted
            )
            return loss

        try:
            with HeadOutput(head, of_hidden):
                outputs = model(**inputs)
        finally:
            self._fused_head = None
        self._sft.add_balance(outputs)
        loss: Tensor = logits_of(outputs) + self._auxiliary(outputs)
        return loss

    def _loss_of_outputs(
        self,
        outputs: Any,
        labels: list[Tensor],
        num_items_in_batch: Any = None,
        shifted: bool = False,
    ) -> Tensor:
        """The mean over the classifications that a row goes through, mostly one; see `Targets`."""
        targets, problem = self._targets(), self._problem()
        logits = targets.logits(outputs, labels, shifted=shifted)
        pairs = [fit(*pair, problem) for pair in zip(logits, labels, strict=True)]
        if not self._targets_checked[self.model.training]:
            self._targets_checked[self.model.training] = True
            for pair in pairs:
                check_targets(*pair, self.criterion)
        if self._evaluation is not None:
            loss = self._evaluated(self._evaluation, pairs)
        else:
            counts = self._divisors([own for _, own in pairs], num_items_in_batch)
            losses = [self._loss_of_step(*p, c) for p, c in zip(pairs, counts, strict=True)]
            loss = losses[0] if len(losses) == 1 else torch.stack(losses).mean()
        self._batch_has_loss = True
        added = self._auxiliary(outputs)
        if self._evaluation is not None and torch.is_tensor(added):
            self._evaluation.add_term(added, len(labels[0]))
        total: Tensor = loss + added
        return total

    def _divisors(self, labels: list[Tensor], items: Any) -> list[Any]:
        """What each classification's sum is divided by, from Trainer's count of the step."""
        several = items if len(labels) > 1 and items is not None else [items] * len(labels)
        divisors = []
        for own, counted in zip(labels, several, strict=True):
            if torch.is_tensor(counted) and counted.dim():
                # DataParallel: once per GPU, and without averaging across devices already divided.
                counted = counted.flatten()[0]
                if not self.args.average_tokens_across_devices:
                    counted = counted * self.args.n_gpu
            count = item_count(own, counted, self._problem())
            if counted is None:
                if self.model.training:
                    count = count * self.current_gradient_accumulation_steps
            elif self.args.average_tokens_across_devices:
                # The count is over all processes, but their gradients are averaged.
                count = count / (self.accelerator.num_processes // self.get_tp_size())
            divisors.append(count)
        return divisors

    def _summed(
        self, loss: tuple[Any, SumFunction], logits: Tensor, labels: Tensor, divisor: Any
    ) -> Tensor:
        criterion, summed = loss
        if self._fused_head is not None:  # The logits are hidden states.
            return linear_of_head(logits, self._fused_head, labels, criterion, divisor)
        return summed(logits, labels, divisor)

    def _loss_of_step(self, logits: Tensor, labels: Tensor, divisor: Any) -> Tensor:
        """One classification of a micro-batch, with the loss warm-up while it lasts."""
        share = None
        if self.model.training:
            if stats_due(self.args, self.state.global_step + 1):
                self._stats.add(self.criterion, logits, labels)
            share = target_share(self.args, self.state.global_step, self.state.max_steps)
        if share == 0:
            return self._summed(self._first_loss(), logits, labels, divisor)
        loss = self._summed(self._loss(), logits, labels, divisor)
        if share is not None and share < 1:
            first = self._summed(self._first_loss(), logits, labels, divisor)
            loss = share * loss + (1 - share) * first
        return loss

    def _evaluated(
        self, evaluation: EvaluationLosses, pairs: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """The mean over a batch's items; their sums go into the evaluation's."""
        neutral, problem, parts = self._neutral(), self._problem(), []
        same = neutral.config == self.loss_config
        for logits, labels in pairs:
            rows = self._rows_of_last_batch(len(labels))
            logits, labels = logits[:rows], labels[:rows]
            if len(labels):
                loss = self._loss()[1](logits, labels, 1.0)
                baseline = sum_over_items(neutral, problem)
                found = loss if same else baseline(logits, labels, 1.0)
                parts.append(torch.stack([loss, found, kept(labels, problem).sum()]))
            else:
                parts.append(logits.new_zeros(3, dtype=torch.float32))
            of_classes = neutral.spec.task == "classification" and not labels.is_floating_point()
            if of_classes and logits.dim() == 2 and labels.dim() == 1 and len(pairs) == 1:
                evaluation.add_predictions(logits, labels)
        loss, found, items = torch.stack(parts, -1)
        evaluation.add(loss, found, items)
        mean: Tensor = (loss / items.clamp(min=1)).mean()
        return mean

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Trainer's count of a step's items, by what an item of this head is."""
        targets = self._targets()
        if not batch_samples or not targets.present(batch_samples[0]):
            return None
        steps = []
        for batch in batch_samples:
            self._settle_problem_type(batch)
            labels = targets.of_batch(batch)
            steps.append([items_of(own, self._problem()) for own in labels])
        counts = []
        for part in zip(*steps, strict=True):
            # Trainer counts what is not -100, and takes shift_labels as they are.
            batches = [{"labels": items, "shift_labels": items} for items in part]
            counts.append(super()._get_num_items_in_batch(batches, device))
        if self.model.training:
            self._empty_steps = self._empty_steps + (sum(counts) == 0).all()
        return counts[0] if len(counts) == 1 else torch.stack(counts)

    def _neutral(self) -> ClassificationLoss | RegressionLoss:
        """The plain baseline of the task, by which runs with different losses are compared."""
        several = problem_type(self._core()) == MULTI_LABEL
        options = {"problem_type": MULTI_LABEL} if several else {}
        return get_loss(self._neutral_name(), **options)

    def _neutral_name(self) -> str:
        spec = getattr(self.criterion, "spec", None)
        return builtin_loss(self._core()) if spec is None else neutral_loss(spec.task)

    def _auxiliary(self, outputs: Any) -> Tensor | float:
        """What a mixture of experts and PEFT add to a loss, but not when given no labels."""
        if self._fused_head is not None:
            return 0.0  # Within the head; it comes when the model has been run.
        added = adapter_term(self._adapted(), *self._adapter_inputs)
        auxiliary = outputs.get("aux_loss") if hasattr(outputs, "get") else None
        if auxiliary is not None:
            weight = self._sft.balance_weight()
            added = added + auxiliary * (
                auxiliary_weight(self._core()) if weight is None else weight
            )
        # Once per optimizer step: the mean over its micro-batches.
        return added / (self.current_gradient_accumulation_steps if self.model.training else 1)

    # ---- Gradients that are not finite -------------------------------------------------------

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's start of a training; one that is resumed goes on counting."""
        trained = super()._init_training_state(*args, **kwargs)
        record = self.state.stateful_callbacks.get(STATE_KEY, {})
        self._nonfinite = NonfiniteSteps(record.get("attributes", {}).get(COUNT_KEY, 0))
        self._stats = LossStats()
        return trained

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's gradient norm of an optimizer step, which is looked at here."""
        norm = super()._get_grad_norm(*args, **kwargs)
        # DeepSpeed alone has made the step by now, and its norm leaves out the overflow of fp16.
        skipped = self.is_deepspeed_enabled and self.accelerator.optimizer_step_was_skipped
        self._nonfinite.add(norm, skipped)
        return norm

    # ---- Logging -----------------------------------------------------------------------------

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Trainer's work after a step, and the figures of `loss_stats_steps`."""
        self._stats_of_line = self._stats.take(self.criterion, self.accelerator)
        if self._stats_of_line and not self.control.should_log:
            self.log({})
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Trainer's log; its last line of a training has `train_nonfinite_grad_steps`.

        With a loss warm-up, `loss_warmup` is the target loss's share in the step before the line.
        The figures of `loss_stats_steps` stand in the line of their step, or in one of their own.
        """
        if "train_runtime" in logs:
            logs[f"train_{COUNT_KEY}"] = self._nonfinite.count
            if self._nonfinite.count and self.is_world_process_zero():
                # Of a fused optimizer, which does the skipping itself, accelerate does not know it.
                skipped = self.accelerator.scaler or self.accelerator.optimizer_step_was_skipped
                logger.warning(self._nonfinite.warning(self.state.global_step, bool(skipped)))
        if {"loss", "train_runtime"} & logs.keys():
            self._warn_of_empty_steps()
        share = target_share(self.args, self.state.global_step - 1, self.state.max_steps)
        if "loss" in logs and share is not None:
            logs["loss_warmup"] = share
        logs.update(self._stats_of_line)
        self._stats_of_line = {}
        super().log(logs, *args, **kwargs)

    def _warn_of_empty_steps(self) -> None:
        # Here, where the log has waited for the device anyway.
        steps, self._empty_steps = int(self._empty_steps), 0
        if steps and not self._warned_of_empty and self.is_world_process_zero():
            self._warned_of_empty = True
            logger.warning(
                f"no item had a label in {steps} of the last optimizer steps: their loss is 0 and "
                "nothing is learned from them (labels of -100 are left out; is everything masked, "
                "or cut off by the maximum length?)"
            )

    # ---- Evaluation --------------------------------------------------------------------------

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's loop, which also reports the task's baseline, such as `eval_cross_entropy`.

        For a classifier it reports `eval_ece` too, see `expected_calibration_error`.
        """
        self._evaluation = EvaluationLosses()
        try:
            output = super().evaluation_loop(*args, **kwargs)
            prefix = kwargs.get("metric_key_prefix", "eval")
            finite_only = self.args.logging_nan_inf_filter
            found = self._evaluation.metrics(self.accelerator, finite_only=finite_only)
            if found:
                # Trainer's mean weighs batches by their rows, however many items these have.
                output.metrics[f"{prefix}_loss"] = found["loss"]
                output.metrics[f"{prefix}_{self._neutral_name()}"] = found["baseline"]
            if "ece" in found:
                output.metrics.setdefault(f"{prefix}_ece", found["ece"])
        finally:
            self._evaluation = None
        return output

    def _rows_of_last_batch(self, size: int) -> int | None:
        """How many rows of an evaluation's last batch are this process's own.

        Several processes fill it up with rows from the beginning, so that all have equally many.
        None for all of them.
        """
        state, tensor_parallel = self.accelerator.gradient_state, self.get_tp_size() > 1
        if (
            self.accelerator.num_processes == 1
            or tensor_parallel
            or getattr(self.accelerator, "parallelism_config", None) is not None
            or not state.end_of_dataloader
            or state.remainder < 1
        ):
            return None
        return int(max(0, state.remainder - self.accelerator.process_index * size))

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Trainer's step, with this trainer's loss whatever the class below does."""
        self._batch_has_loss = False
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
        if loss is not None and not self._batch_has_loss:
            # Seq2SeqTrainer takes the model's built-in loss when it generates.
            with torch.no_grad(), self.compute_loss_context_manager():
                loss, _ = self.compute_loss(model, self._prepare_inputs(inputs), True)
        return loss, logits, labels

    # ---- Saving and resuming -----------------------------------------------------------------

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Trains; resuming takes the last complete checkpoint and insists on the same loss.

        Args:
            resume_from_checkpoint: A checkpoint folder, or True for the last one in `output_dir`
                that was written to its end.
            *args: Those of `Trainer.train`.
            **kwargs: Those of `Trainer.train`.

        Returns:
            What `Trainer.train` returns.

        Raises:
            ValueError: If the checkpoint was trained with another loss and `allow_loss_change` is
                not set, or there is none.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir)
        if resume_from_checkpoint:
            self.check_same_loss(str(resume_from_checkpoint))
        trained = super().train(resume_from_checkpoint or None, *args, **kwargs)
        self._name_loss_in_config()  # For model.save_pretrained alone.
        return trained

    def _name_loss_in_config(self) -> None:
        config = getattr(self._core(), "config", None)
        if config is not None:
            config.hf_losses = self.loss_config

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Trainer's loading, which also finds weights that transformers has renamed."""
        with self._uncompiled():
            target = self.model if model is None else model
            if self._is_sharded() or not load_renamed(target, resume_from_checkpoint):
                super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        """The same for the best model at the end of a training."""
        best = self.state.best_model_checkpoint
        with self._uncompiled():
            if self._is_sharded() or not load_renamed(self.model, best):
                super()._load_best_model()

    def _is_sharded(self) -> bool:
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def check_same_loss(self, checkpoint: str) -> None:
        """Raises a ValueError if a checkpoint was trained with another loss, unless that is wanted.

        Args:
            checkpoint: Its folder.
        """
        # A checkpoint of the stock Trainer was trained with the built-in loss.
        before = loss_of_checkpoint(checkpoint) or {"name": builtin_loss(self._core())}
        if before != self.loss_config and not getattr(self.args, "allow_loss_change", False):
            raise UsageError(
                f"{checkpoint} was trained with the loss {before}, not {self.loss_config}: resume "
                "with the same loss, start in another output_dir, or pass --allow_loss_change "
                "(LossTrainingArguments(allow_loss_change=True); to hf-losses run before SCRIPT)"
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model, and the loss in its config, its folder and the trainer's state.

        With `push_to_hub` it is pushed too. Where that fails, there is a warning: it is saved.
        """
        self.state.stateful_callbacks[STATE_KEY] = {
            "args": self.loss_config,
            "attributes": {COUNT_KEY: self._nonfinite.count},
        }
        self._name_loss_in_config()
        if self.args.should_save:
            self._write_records(output_dir or self.args.output_dir)
        token, self.args.hub_token = self.args.hub_token, None  # It would get into a pickle.
        try:
            with self._uncompiled():  # Else the weights get names that from_pretrained lacks.
                super().save_model(output_dir, _internal_call=True)
        finally:
            self.args.hub_token = token
        if self.args.push_to_hub and not _internal_call:
            try:
                self.push_to_hub("Model save", revision=self.args.hub_revision)
            except (ValueError, OSError) as error:
                logger.warning("The model is saved but not pushed. %s", error)

    def _write_records(self, folder: str) -> None:
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, LOSS_FILE), "w", encoding="utf-8") as file:
            json.dump(self.loss_config, file, indent=2)
        with open(os.path.join(folder, ARGUMENTS_FILE), "w", encoding="utf-8") as file:
            json.dump(without_paths(self._shown_arguments()), file, indent=2)

    def _shown_arguments(self) -> dict[str, Any]:
        given = self.args.to_dict().items()
        return {k: v for k, v in given if v is not None and not k.endswith("_token")}

    # ---- Publishing --------------------------------------------------------------------------

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Makes the repository on the Hub; `push_to_hub` calls for it before anything is trained.

        Args:
            token: Instead of `hub_token`.
            private: Instead of `hub_private_repo`.

        Raises:
            ValueError: If there is no token or no right to write, or the name is taken.
            OSError: If the Hub cannot be reached.
        """
        if not self.is_world_process_zero():
            return
        folder = self.args.output_dir
        name = self.args.hub_model_id or os.path.basename(os.path.abspath(folder))
        self.hub_model_id = open_repo(
            name,
            private=self.args.hub_private_repo if private is None else private,
            revision=self.args.hub_revision,
            token=token or self.args.hub_token,
            then="To publish later instead, train without push_to_hub and then: "
            f"hf-losses publish {folder} --repo {name}",
        )
        self.push_in_progress = None

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Saves everything and uploads it, as `hf-losses publish` does; on all processes.

        Args:
            commit_message: The commit's first line.
            blocking: Whether to wait for the upload.
            token: Instead of `hub_token`.
            revision: Instead of `hub_revision`.
            private: Instead of `hub_private_repo`, for a new repository.
            **kwargs: Those of `create_model_card`.

        Returns:
            The `CommitInfo`, or without waiting a `Future` of it; None on the other processes.

        Raises:
            ValueError: If the Hub refuses it. The message names the command that publishes later.
            OSError: If the Hub cannot be reached.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        self.save_state()
        if not self.is_world_process_zero():
            return None
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        name = self.hub_model_id.split("/")[-1]
        tags = kwargs.pop("tags", None) or []
        tags = [tags] if isinstance(tags, str) else tags
        tags = list(dict.fromkeys([*tags, *(getattr(self.model, "model_tags", None) or [])]))
        self.create_model_card(**({"model_name": name, "tags": tags} | kwargs))
        self._finish_current_push()
        return publish(
            self.args.output_dir,
            self.hub_model_id,
            private=self.args.hub_private_repo if private is None else private,
            revision=revision or self.args.hub_revision,
            commit_message=commit_message,
            token=token or self.args.hub_token,
            blocking=blocking,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Trainer's push at a save, in the background; where it fails, the training goes on."""
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        jobs: list[Any] = self.push_in_progress.jobs if self.push_in_progress else []
        jobs = [job for job in jobs if not job.done()]
        if jobs and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        last = {
            HubStrategy.CHECKPOINT: "last-checkpoint",
            HubStrategy.ALL_CHECKPOINTS: os.path.basename(checkpoint_folder),
        }
        try:
            # A checkpoint's files are never written again, so that links to them are safe.
            job = publish(
                checkpoint_folder,
                self.hub_model_id,
                private=self.args.hub_private_repo,
                revision=self.args.hub_revision,
                commit_message=f"Training in progress, step {self.state.global_step}",
                token=self.args.hub_token,
                checkpoint=last.get(strategy),
                blocking=False,
            )
        except (ValueError, OSError) as error:
            logger.warning(NOT_PUSHED, error)
            return
        job.add_done_callback(_warn_if_it_failed)
        self.push_in_progress = PushInProgress([*jobs, job])

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes `README.md` and its pictures: Trainer's metadata, and the text of this project.

        Args:
            *args: Those of the trainer class: TRL's take `model_name`, `dataset_name` and `tags`.
            **kwargs: The same.
        """
        takes_tags = "dataset_tags" in inspect.signature(super().create_model_card).parameters
        if takes_tags and not args and kwargs.get("dataset_tags") is None:
            # Trainer would take what has read the files, such as "imagefolder", for their name.
            kwargs["dataset_tags"] = []
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            self._write_records(self.args.output_dir)
            self.state.save_to_json(os.path.join(self.args.output_dir, TRAINER_STATE_NAME))
            write_card(Path(self.args.output_dir), repo_id=self.hub_model_id)


def _warn_if_it_failed(job: Future[Any]) -> None:
    if error := job.exception():
        logger.warning(NOT_PUSHED, error)


def _needs_labels(model: nn.Module) -> bool:
    """Whether forward cannot be called without labels, as in some users' modules."""
    labels = inspect.signature(model.forward).parameters.get("labels")
    return labels is not None and labels.default is inspect.Parameter.empty


class LossTrainer(LossMixin, Trainer):  # type: ignore[misc]
    """`transformers.Trainer` with any loss; see `LossMixin` for its `loss`.

    Example:
        >>> LossTrainer(model=model, args=args, train_dataset=data, loss="liberal_exp").train()
    """

"""A `Trainer` whose loss is a hyperparameter: chosen, computed, reported, saved and resumed."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from hf_losses.builtin import auxiliary_weight, check_batch, shifts_labels
from hf_losses.calibration import calibration_bins, expected_calibration_error
from hf_losses.checkpoint import (
    ARGUMENTS_FILE,
    COUNT_KEY,
    LOSS_FILE,
    STATE_KEY,
    last_complete_checkpoint,
    load_renamed,
    loss_of_checkpoint,
)
from hf_losses.choice import (
    builtin_loss,
    check_fit,
    check_head,
    choose_loss,
    is_causal,
    problem_type,
    settle_problem_type,
)
from hf_losses.criterion import MULTI_LABEL, ClassificationLoss, RegressionLoss, get_loss
from hf_losses.decoder_inputs import decoder_inputs
from hf_losses.gradients import NonfiniteSteps
from hf_losses.linear import HeadOutput, check_linear, linear_of_head, plain_head
from hf_losses.loss_stats import LossStats, check_stats, stats_due
from hf_losses.model_card import write_card
from hf_losses.normalise import (
    IGNORE,
    SumFunction,
    item_count,
    logits_of,
    shift_left,
    sum_over_items,
)
from hf_losses.publish import open_repo, publish, without_paths
from hf_losses.registry import get_spec, neutral_loss
from hf_losses.schedule import target_share

logger = logging.getLogger(__name__)

# Trainers whose compute_loss is the stock loss and metrics, unless this argument says otherwise.
SAME_LOSS = {"trl.trainer.sft_trainer.SFTTrainer": ("loss_type", "nll")}
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
    # Trainer sets it while it trains.
    current_gradient_accumulation_steps = 1
    _loss_shifts_labels: bool

    def __init__(
        self, *args: Any, loss: str | Callable[..., Tensor] | None = None, **kwargs: Any
    ) -> None:
        """See the class."""
        if isinstance(loss, str):
            get_spec(loss)  # Before the trainer makes folders, or a repository on the Hub.
        self._given_loss = loss
        self._built: tuple[Any, Any, SumFunction] | None = None
        self._first: tuple[Any, Any, SumFunction] | None = None
        self._fused_head: Any = None  # While a step is computed without logits.
        self._neutral_losses: list[Tensor] | None = None
        self._neutral_of_batch: Tensor | None = None
        self._bins: Tensor | None = None
        self._batch_has_loss = False
        self._unwrapped: tuple[Any, Any] | None = None
        self._nonfinite = NonfiniteSteps()
        self._stats = LossStats()
        self._stats_of_line: dict[str, float] = {}
        super().__init__(*args, **kwargs)
        self._check_trainer()
        check_stats(self.args, self.criterion)
        if target_share(self.args, 0, 1) is not None:
            self._first_loss()
            if getattr(self.criterion, "overwrite_logits", False):
                raise ValueError(
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
            json.dumps(getattr(self.args, "loss_kwargs", None)),
            self.args.label_smoothing_factor,
            problem_type(self._core()),
        )
        if self._built is None or self._built[0] != key:
            criterion = choose_loss(self._given_loss, self.args, self._core())
            if isinstance(criterion, nn.Module):
                criterion.to(self.args.device)
            self._built = (key, criterion, sum_over_items(criterion))
        return self._built[1:]

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
            self._first = (key, first, sum_over_items(first))
        return self._first[1:]

    def _core(self) -> Any:
        """The model without wrappers and adapters."""
        if self._unwrapped is None or self._unwrapped[0] is not self.model:
            # Unwrapping walks through all modules; a search replaces the model for every trial.
            model = self.accelerator.unwrap_model(self.model)
            core = model.get_base_model() if hasattr(model, "get_base_model") else model
            self._unwrapped = (self.model, core)
        return self._unwrapped[1]

    def _check_trainer(self) -> None:
        if self.compute_loss_func is not None:
            raise ValueError(
                "compute_loss_func would compete with this trainer's loss: pass it as loss=, "
                "or use the stock Trainer"
            )
        for base in map(full_name, type(self).__mro__):
            option, stock = SAME_LOSS.get(base, ("", None))
            if option and getattr(self.args, option) != stock:
                raise ValueError(
                    f"{option}={getattr(self.args, option)!r} asks {base} for another loss than "
                    f"this trainer's: leave it at {stock!r}"
                )
        if self.args.use_liger_kernel and (self.args.liger_kernel_config or {}).get(
            "fused_linear_cross_entropy", True
        ):
            raise ValueError(
                "use_liger_kernel fuses cross-entropy into the head and leaves no logits for "
                "another loss: set liger_kernel_config to "
                '{"fused_linear_cross_entropy": false, "cross_entropy": false}, or switch it off'
            )
        parallelism = getattr(self.accelerator, "parallelism_config", None)
        if parallelism is not None and parallelism.sp_enabled:
            raise ValueError(
                "sequence parallelism computes the model's built-in loss; "
                "use data or tensor parallelism with this trainer"
            )
        if not self.label_names:
            self.label_names = ["labels"]  # The model itself never sees them.
        check_head(self._core(), self.label_names)
        # Trainer asks transformers' name of the loss, which GPT-2 does not have and BART's decoder
        # does not follow.
        self._loss_shifts_labels = shifts_labels(self._core())

    def _check_fused_linear(self) -> None:
        core = self._core()
        if not is_causal(core):
            raise ValueError(
                f"fused_linear is for causal language models, not {type(core).__name__}: switch it "
                "off"
            )
        check_linear(self.criterion)
        plugin = self.accelerator.state.deepspeed_plugin
        for what, present in (
            ("loss_stats_steps, which needs the logits", self.args.loss_stats_steps),
            ("torch_compile", self.args.torch_compile),
            ("DataParallel (start one process per GPU)", self.args.n_gpu > 1),
            ("FSDP, which shards the head", self.is_fsdp_enabled),
            ("DeepSpeed's ZeRO-3, which shards the head", plugin and plugin.zero_stage == 3),
            ("tensor parallelism, which shards the head", self.get_tp_size() > 1),
        ):
            if present:
                raise ValueError(f"fused_linear does not work with {what}: switch one of them off")
        if hasattr(plain_head(core), "_hf_hook"):
            raise ValueError(
                "fused_linear does not work with a head that a hook of Accelerate moves between "
                "devices: load the model without device_map, or switch fused_linear off"
            )

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
            num_items_in_batch: Labels other than -100 in all micro-batches and processes of this
                optimizer step. None: this micro-batch counts alone.

        Returns:
            A scalar, or the scalar and the outputs.

        Raises:
            ValueError: If labels or logits are missing or do not fit each other.
        """
        # A copy without labels: given them, the model would compute its built-in loss for nothing.
        inputs = dict(inputs)
        labels = inputs.pop("labels", None)
        shifted = inputs.pop("shift_labels", None)
        inputs.pop("skip_logits", None)
        if labels is None and shifted is None:
            raise ValueError(
                f"the batch has no 'labels' for the loss, only: {', '.join(inputs)} "
                "(the data needs a column 'label' or 'labels')"
            )
        core = self._core()
        if labels is not None:
            check_batch(core, inputs, labels)
            settle_problem_type(core, labels)
            if not {"decoder_input_ids", "decoder_inputs_embeds"} & inputs.keys():
                inputs = decoder_inputs(core, labels) | inputs
        if shifted is None:
            shifted = shift_left(labels) if self._loss_shifts_labels else labels
        fuses = getattr(self.args, "fused_linear", False) and self.model.training
        if fuses and not return_outputs:
            return self._fused_loss(model, inputs, shifted, num_items_in_batch)
        outputs = model(**inputs)
        if torch.is_tensor(outputs):
            outputs = (outputs,)  # Of a user's own module.
        loss = self.compute_loss_func(outputs, shifted, num_items_in_batch=num_items_in_batch)
        if isinstance(outputs, tuple):
            outputs = (loss, *outputs)  # Trainer's evaluation leaves out the first of a tuple.
        return (loss, outputs) if return_outputs else loss

    def _fused_loss(
        self, model: nn.Module, inputs: dict[str, Any], labels: Tensor, items: Any
    ) -> Tensor:
        """The loss in the place of the logits: the head's weight may be used in forward alone."""
        self._fused_head = self._core().get_output_embeddings()
        try:
            with HeadOutput(
                self._fused_head,
                lambda hidden: self.compute_loss_func((hidden,), labels, num_items_in_batch=items),
            ):
                outputs = model(**inputs)
        finally:
            self._fused_head = None
        loss: Tensor = logits_of(outputs) + self._auxiliary(outputs)
        return loss

    def _loss_of_outputs(
        self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None
    ) -> Tensor:
        criterion = self.criterion
        logits = logits_of(outputs)  # Of a fused head, hidden states.
        if logits.dim() == 3 and labels.dim() == 2 and self._has_virtual_tokens():
            logits = logits[:, -labels.shape[1] :]
        items = num_items_in_batch
        if torch.is_tensor(items) and items.dim():
            # DataParallel: once per GPU, and without averaging across devices already divided.
            items = items.flatten()[0]
            if not self.args.average_tokens_across_devices:
                items = items * self.args.n_gpu
        rows = self._rows_of_last_batch(len(labels))
        if rows is not None:
            logits, labels = logits[:rows], labels[:rows]
            items = self.accelerator.reduce(labels.ne(IGNORE).sum())
        count = item_count(logits, labels, items, criterion)
        if rows is None and num_items_in_batch is None:
            if self.model.training:
                count = count * self.current_gradient_accumulation_steps
        elif rows is None and self.args.average_tokens_across_devices:
            # The count is over all processes, but their gradients are averaged.
            count = count / (self.accelerator.num_processes // self.get_tp_size())

        def of_step(criterion: Any, summed: SumFunction) -> Tensor:
            if self._fused_head is not None:
                return linear_of_head(logits, self._fused_head, labels, criterion, count)
            if rows is None:
                return summed(logits, labels, count)
            # One mean for all: processes with fewer rows, or none, must not weigh as much.
            own = summed(logits, labels, 1) if rows else logits.float().sum()
            mean: Tensor = self.accelerator.reduce(own) / count
            return mean

        if self.model.training and stats_due(self.args, self.state.global_step + 1):
            self._stats.add(criterion, logits, labels)
        share = None
        if self.model.training:
            share = target_share(self.args, self.state.global_step, self.state.max_steps)
        if share == 0:
            loss = of_step(*self._first_loss())
        else:
            loss = of_step(*self._loss())
            if share is not None and share < 1:
                loss = share * loss + (1 - share) * of_step(*self._first_loss())
        self._batch_has_loss = True
        if self._neutral_losses is not None:
            neutral = self._neutral()
            same = neutral.config == self.loss_config
            found = loss if same else of_step(neutral, sum_over_items(neutral))
            self._neutral_of_batch = found.detach()
            one_of_many = neutral.spec.task == "classification" and not labels.is_floating_point()
            if one_of_many and logits.dim() == 2 and labels.dim() == 1:
                bins = calibration_bins(logits.detach(), labels)
                self._bins = bins if self._bins is None else self._bins + bins
        total: Tensor = loss + self._auxiliary(outputs)
        return total

    def _neutral(self) -> ClassificationLoss | RegressionLoss:
        """The plain baseline of the task, by which runs with different losses are compared."""
        several = problem_type(self._core()) == MULTI_LABEL
        options = {"problem_type": MULTI_LABEL} if several else {}
        return get_loss(self._neutral_name(), **options)

    def _neutral_name(self) -> str:
        spec = getattr(self.criterion, "spec", None)
        return builtin_loss(self._core()) if spec is None else neutral_loss(spec.task)

    def _auxiliary(self, outputs: Any) -> Tensor | float:
        """What a mixture of experts adds to its loss; models leave it out when given no labels."""
        auxiliary = outputs.get("aux_loss") if hasattr(outputs, "get") else None
        if auxiliary is None:
            return 0.0
        steps = self.current_gradient_accumulation_steps if self.model.training else 1
        added: Tensor = auxiliary * (auxiliary_weight(self._core()) / steps)
        return added

    def _has_virtual_tokens(self) -> bool:
        model = self.accelerator.unwrap_model(self.model)
        config = getattr(model, "active_peft_config", None)
        return config is not None and bool(config.is_prompt_learning)

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
        share = target_share(self.args, self.state.global_step - 1, self.state.max_steps)
        if "loss" in logs and share is not None:
            logs["loss_warmup"] = share
        logs.update(self._stats_of_line)
        self._stats_of_line = {}
        super().log(logs, *args, **kwargs)

    # ---- Evaluation --------------------------------------------------------------------------

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's loop, which also reports the task's baseline, such as `eval_cross_entropy`.

        For a classifier it reports `eval_ece` too, see `expected_calibration_error`.
        """
        self._neutral_losses, self._bins = [], None
        try:
            output = super().evaluation_loop(*args, **kwargs)
            if self._neutral_losses:
                prefix = kwargs.get("metric_key_prefix", "eval")
                mean = torch.cat(self._neutral_losses).cpu().numpy().mean().item()
                output.metrics[f"{prefix}_{self._neutral_name()}"] = mean
                if self._bins is not None:
                    bins = self.accelerator.reduce(self._bins)
                    output.metrics.setdefault(f"{prefix}_ece", expected_calibration_error(bins))
        finally:
            self._neutral_losses = None
        return output

    def _rows_of_last_batch(self, size: int) -> int | None:
        """How many rows of an evaluation's last batch are this process's own.

        Several processes fill it up with rows from the beginning, so that all have equally many.
        None wherever Trainer's mean is right without it.
        """
        state, tensor_parallel = self.accelerator.gradient_state, self.get_tp_size() > 1
        if (
            self._neutral_losses is None
            or self.accelerator.num_processes == 1
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
        self._neutral_of_batch, self._batch_has_loss = None, False
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
        if loss is not None and not self._batch_has_loss:
            # Seq2SeqTrainer takes the model's built-in loss when it generates.
            with torch.no_grad(), self.compute_loss_context_manager():
                loss, _ = self.compute_loss(model, self._prepare_inputs(inputs), True)
        if self._neutral_losses is not None and self._neutral_of_batch is not None:
            repeated = self._neutral_of_batch.repeat(self.args.eval_batch_size)
            self._neutral_losses.append(self.gather_function(repeated))
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
        return super().train(resume_from_checkpoint or None, *args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Trainer's loading, which also finds weights that transformers has renamed."""
        target = self.model if model is None else model
        if self._is_sharded() or not load_renamed(target, resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        """The same for the best model at the end of a training."""
        best = self.state.best_model_checkpoint
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
            raise ValueError(
                f"{checkpoint} was trained with the loss {before}, not {self.loss_config}: resume "
                "with the same loss, start in another output_dir, or pass --allow_loss_change "
                "(LossTrainingArguments(allow_loss_change=True))"
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model, and the loss in its config, its folder and the trainer's state.

        With `push_to_hub` it is pushed too. Where that fails, there is a warning: it is saved.
        """
        self.state.stateful_callbacks[STATE_KEY] = {
            "args": self.loss_config,
            "attributes": {COUNT_KEY: self._nonfinite.count},
        }
        config = getattr(self._core(), "config", None)
        if config is not None:
            config.hf_losses = self.loss_config
        if self.args.should_save:
            self._write_records(output_dir or self.args.output_dir)
        token, self.args.hub_token = self.args.hub_token, None  # It would get into a pickle.
        try:
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
            *args: Those of `Trainer.create_model_card`.
            **kwargs: The same.
        """
        if not args and kwargs.get("dataset_tags") is None:
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


def full_name(cls: type) -> str:
    """Module and name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


class LossTrainer(LossMixin, Trainer):  # type: ignore[misc]
    """`transformers.Trainer` with any loss; see `LossMixin` for its `loss`.

    Example:
        >>> LossTrainer(model=model, args=args, train_dataset=data, loss="liberal_exp").train()
    """

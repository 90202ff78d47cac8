"""What a training reports of its steps: gradients that are not finite, statistics, the warm-up."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from transformers import Trainer

from hf_losses.hub.saved_run import COUNT_KEY, STATE_KEY
from hf_losses.training.loss.warmup import check_warmup_ends, warmup_share
from hf_losses.training.reports.empty_steps import EmptySteps
from hf_losses.training.reports.item_stats import LossStats
from hf_losses.training.reports.nonfinite import NonfiniteSteps

logger = logging.getLogger(__name__)

# Any trainer class may stand below; the type checker sees the stock one.
_Base: Any = Trainer if TYPE_CHECKING else object


class StepReportsMixin(_Base):  # type: ignore[misc]
    """Counts the steps that could not be made, and logs what `loss_stats_steps` asks for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._empty_steps = EmptySteps()
        self._nonfinite = NonfiniteSteps()
        self._stats = LossStats()
        self._stats_to_log: dict[str, float] = {}
        super().__init__(*args, **kwargs)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        """Starts as Trainer does; a resumed training goes on counting its non-finite steps."""
        trained = super()._init_training_state(*args, **kwargs)
        try:
            check_warmup_ends(self.args, self.state.max_steps)
        except ValueError as error:
            if not self.state.is_hyper_param_search:  # A trial of a search must not end the others.
                raise
            logger.warning("%s", error)
        record = self.state.stateful_callbacks.get(STATE_KEY, {})
        self._nonfinite = NonfiniteSteps(record.get("attributes", {}).get(COUNT_KEY, 0))
        self._stats = LossStats()
        return trained

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's gradient norm of an optimizer step; counts those that are not finite."""
        self._first_targets.read()  # Before the first step is made.
        norm = super()._get_grad_norm(*args, **kwargs)
        # Only DeepSpeed has made the step by now; its norm does not show an overflow of fp16.
        skipped = self.is_deepspeed_enabled and self.accelerator.optimizer_step_was_skipped
        self._nonfinite.add(norm, skipped)
        return norm

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Does Trainer's work after a step, and logs the figures of `loss_stats_steps`."""
        self._stats_to_log = self._stats.take(self._active.criterion, self.accelerator)
        if self._stats_to_log and not self.control.should_log:
            self.log({})
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logs as Trainer does; the last line of a training gets `train_nonfinite_grad_steps`.

        With a loss warm-up, `loss_warmup` is the target loss's share in the step before the line.
        The figures of `loss_stats_steps` are in the line of their step, or in one of their own.
        """
        if "train_runtime" in logs:
            logs[f"train_{COUNT_KEY}"] = self._nonfinite.count
            if self._nonfinite.count and self.is_world_process_zero():
                # A fused optimizer skips the step itself, and accelerate does not notice.
                skipped = self.accelerator.scaler or self.accelerator.optimizer_step_was_skipped
                logger.warning(self._nonfinite.warning(self.state.global_step, bool(skipped)))
        if {"loss", "train_runtime"} & logs.keys():
            self._empty_steps.warn(self.is_world_process_zero())
        share = warmup_share(self.args, self.state.global_step - 1, self.state.max_steps)
        if "loss" in logs and share is not None:
            logs["loss_warmup"] = share
        logs.update(self._stats_to_log)
        self._sft.read()
        self._stats_to_log = {}
        super().log(logs, *args, **kwargs)

"""What an evaluation reports: means over all of its items, however they are batched."""

from __future__ import annotations

import copy
from collections.abc import Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer
from transformers.trainer_utils import default_compute_objective

from hf_losses.losses.registry import IGNORE_INDEX
from hf_losses.metrics.calibration import calibration_bins, expected_calibration_error
from hf_losses.metrics.classes import class_counts
from hf_losses.models.heads import LOSS_WEIGHT
from hf_losses.training.loss.choose import ActiveLoss
from hf_losses.training.loss.items import Items, item_mask, sum_over_items

# Any trainer class may stand below; the type checker sees the stock one.
_Base: Any = Trainer if TYPE_CHECKING else object
MOST_CLASSES = 1000  # More of them would swell result.json.


class EvaluationLosses:
    """Adds up the losses and the items of an evaluation, batch by batch, on each process."""

    def __init__(self) -> None:
        """Starts without items."""
        self._sums: list[Tensor] = []
        # By whom they are added: the model, or a compute_loss of the user's.
        self._terms: dict[str, list[Tensor]] = {"model": [], "user": []}
        self._bins: Tensor | None = None
        self._classes: Tensor | None = None
        self._has_baseline = True

    def add(self, active: ActiveLoss, batches: Sequence[Items]) -> Tensor:
        """Adds a batch.

        Args:
            active: The loss and the baseline of its task.
            batches: As `fit` returns them: one, or two for the start and the end of an answer. Item
                weights are part of the loss, but not of the baseline.

        Returns:
            The mean over the items of the batch, a scalar.
        """
        baseline, problem, parts = active.baseline(), active.problem, []
        criterion, summed = active.target()
        # Class weights are on the device, where comparing them would have to be waited for.
        weighted = getattr(criterion, "weight", None) is not None
        same = not weighted and baseline.config == active.config
        summed_baseline = sum_over_items(baseline, problem)
        for logits, labels, weight in batches:
            # A user's loss may take these for anything: ranks, say, or the persons in pictures.
            self._has_baseline &= problem is not None or not labels.is_floating_point()
            if not hasattr(criterion, "spec") and baseline.spec.task == "classification":
                self._has_baseline &= labels.is_floating_point() or _are_classes(labels, logits)
            if len(labels):
                loss = summed(logits, labels, 1.0, weight)
                baseline_loss = loss
                if self._has_baseline and (not same or weight is not None):
                    baseline_loss = summed_baseline(logits, labels, 1.0, None)
                parts.append(torch.stack([loss, baseline_loss, item_mask(labels, problem).sum()]))
            else:
                parts.append(logits.new_zeros(3, dtype=torch.float32))
            are_classes = baseline.spec.task == "classification" and not labels.is_floating_point()
            if are_classes and logits.dim() == 2 and labels.dim() == 1 and len(batches) == 1:
                if not self._has_baseline:  # Every process adds up as much.
                    logits, labels = logits[:0], labels[:0]
                bins = calibration_bins(logits.detach(), labels)
                self._bins = bins if self._bins is None else self._bins + bins
                if logits.shape[-1] <= MOST_CLASSES:
                    counts = class_counts(logits.detach(), labels)
                    self._classes = _sum_of_counts(self._classes, counts)
        sums = torch.stack(parts, -1)
        self._sums.append(sums.detach())
        loss, _, items = sums
        mean: Tensor = (loss / items.clamp(min=1)).mean()
        return mean

    def add_term(self, by: str, term: Tensor, rows: int) -> None:
        """Adds the term that a batch of `rows` rows adds to its loss, such as a router's."""
        self._terms[by].append(torch.stack([term.detach() * rows, term.new_full((), rows)]))

    def metrics(self, accelerator: Any, *, finite_only: bool) -> dict[str, float]:
        """The means over the items of all processes, which must all call this.

        Args:
            accelerator: The trainer's accelerator.
            finite_only: Whether to leave out batches whose loss is not finite, as Trainer does with
                `logging_nan_inf_filter`.

        Returns:
            `loss`, `baseline` if the task is known, and for a classifier `ece`; empty if there were
            no batches.
        """
        if not self._sums:
            return {}
        sums = torch.stack(self._sums).cpu().double()
        if finite_only and (finite := sums[:, 0].isfinite().all(-1)).any():
            sums = sums[finite]
        loss, baseline, items = _summed_over_processes(sums.sum(0), accelerator)
        metrics = {"loss": _mean(loss, items)}
        without = torch.tensor(float(not self._has_baseline))
        self._has_baseline = not _summed_over_processes(without, accelerator)
        if self._has_baseline:
            metrics["baseline"] = _mean(baseline, items)
        for terms in filter(None, self._terms.values()):
            term, rows = _summed_over_processes(
                torch.stack(terms).cpu().double().sum(0), accelerator
            )
            metrics["loss"] += float(term / rows)
        if self._bins is not None:
            self._bins = accelerator.reduce(self._bins)
            if self._has_baseline:
                metrics["ece"] = expected_calibration_error(self._bins)
        if self._classes is not None:
            self._classes = accelerator.pad_across_processes(self._classes, dim=1)
            self._classes = accelerator.reduce(self._classes)
        return metrics

    def prediction_counts(self) -> dict[str, dict[str, list[float]]]:
        """What a classifier predicts, over all processes, once `metrics` has been called.

        Only where each row has one label: tokens and pixels are not counted.

        Returns:
            `calibration`: by bin of probability, the `count` of predictions, the sum of their
            `probability`, and how many are `right`. `classes`: by class, how often it is `true`,
            `predicted` and `right`. Empty for other tasks; without classes above 1,000 of them.
        """
        counts: dict[str, dict[str, list[float]]] = {}
        if not self._has_baseline:
            return counts
        if self._bins is not None:
            names = ("count", "probability", "right")
            counts["calibration"] = dict(zip(names, self._bins.tolist(), strict=True))
        if self._classes is not None:
            names = ("true", "predicted", "right")
            counts["classes"] = dict(zip(names, self._classes.tolist(), strict=True))
        return counts


def _are_classes(labels: Tensor, logits: Tensor) -> bool:
    classes = (labels >= 0) & (labels < logits.shape[-1])
    return bool((classes | (labels == IGNORE_INDEX)).all())


def _sum_of_counts(counts: Tensor | None, added: Tensor) -> Tensor:
    """Adds counts `[3, C]`; of a multiple choice, C may be another in each batch."""
    if counts is None:
        return added
    more = added.shape[1] - counts.shape[1]
    return F.pad(counts, (0, max(more, 0))) + F.pad(added, (0, max(-more, 0)))


def _summed_over_processes(sums: Tensor, accelerator: Any) -> Tensor:
    if accelerator.num_processes == 1:
        return sums
    total: Tensor = accelerator.reduce(sums.to(accelerator.device)).cpu()
    return total


def _mean(sums: Tensor, items: Tensor) -> float:
    return float((sums / items).mean())  # NaN, as of the stock Trainer, where nothing has a label.


def rows_of_last_batch(accelerator: Any, size: int, *, tensor_parallel: bool) -> int | None:
    """How many rows of an evaluation batch are this process's own.

    Several processes fill up the last batch with rows from the start, so that all have as many.

    Args:
        accelerator: The trainer's accelerator, within its evaluation loop.
        size: Rows of the batch.
        tensor_parallel: Whether several processes get the same batch.

    Returns:
        A number of rows; None for all of them.
    """
    state = accelerator.gradient_state
    if (
        accelerator.num_processes == 1
        or tensor_parallel
        or getattr(accelerator, "parallelism_config", None) is not None
        or not state.end_of_dataloader
        or state.remainder < 1
    ):
        return None
    return int(max(0, state.remainder - accelerator.process_index * size))


class _Noted:
    """A user's `compute_metrics`, of which the names of its metrics are noted.

    Args:
        function: It may have attributes of its own.
    """

    def __init__(self, function: Any) -> None:
        self.function, self.names = function, set[str]()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        metrics = self.function(*args, **kwargs)
        self.names.update(metrics or ())  # None of a batch whose metrics come with the last one.
        return metrics

    def __getattr__(self, name: str) -> Any:
        return getattr(self.function, name)


class EvaluationMixin(_Base):  # type: ignore[misc]
    """Evaluates with the loss of the trainer, and reports the task's baseline beside it.

    Attributes:
        prediction_counts: What a classifier predicted in the last evaluation, by its
            `metric_key_prefix`; see `EvaluationLosses.prediction_counts`.
    """

    prediction_counts: dict[str, dict[str, dict[str, list[float]]]]
    compute_metrics: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.prediction_counts = {}
        self._evaluation: EvaluationLosses | None = None  # Set while an evaluation runs.
        self._added: frozenset[str] = frozenset()  # Metrics that are not the user's.
        self._kwargs_before_search: tuple[Any] | None = None  # Set while a search runs.
        self._predicting = False  # While a batch is evaluated, in an evaluation of ours or not.
        self._batch_has_loss = False
        self._weight_of_evaluation: Tensor | None = None  # `loss_weight` of the present batch.
        self._own_losses: list[tuple[Tensor, int]] = []  # Of the present batch, and their rows.
        super().__init__(*args, **kwargs)

    def _loss_of_evaluation(self, batches: Sequence[Items], auxiliary: Tensor | float) -> Tensor:
        """Adds a batch, and the term that the model adds to its loss; returns their sum."""
        assert self._evaluation is not None
        size = len(batches[0].labels)
        rows = rows_of_last_batch(self.accelerator, size, tensor_parallel=self.get_tp_size() > 1)
        loss = self._evaluation.add(self._active, [batch.rows(rows) for batch in batches])
        if torch.is_tensor(auxiliary):
            self._evaluation.add_term("model", auxiliary, size)
        loss = loss + auxiliary
        self._own_losses.append((loss, size))
        return loss

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Evaluates as Trainer does, and reports the task's baseline, such as `eval_cross_entropy`.

        For a classifier it also reports `eval_ece`; see `expected_calibration_error`.
        """
        # A metric may itself evaluate or predict.
        around, evaluation = self._evaluation, EvaluationLosses()
        self._evaluation = evaluation
        compute_metrics = self.compute_metrics
        noted = _Noted(compute_metrics)
        try:
            self.compute_metrics = compute_metrics and noted
            # As Trainer calls it: a script's override may have fewer arguments, or others' order.
            output = super().evaluation_loop(
                dataloader,
                description=description,
                prediction_loss_only=prediction_loss_only,
                ignore_keys=ignore_keys,
                metric_key_prefix=metric_key_prefix,
            )
            self._first_targets.read()
            prefix = metric_key_prefix
            finite_only = self.args.logging_nan_inf_filter
            losses = evaluation.metrics(self.accelerator, finite_only=finite_only)
            if losses and "loss" not in noted.names:
                # Trainer's mean weighs batches by their rows, however many items they have.
                output.metrics[f"{prefix}_loss"] = losses["loss"]
                self._added |= {f"{prefix}_loss"}
            # Trainer's own, from the second evaluation on.
            self._added |= {f"{prefix}_model_preparation_time"}
            if "baseline" in losses:
                # A metric of the user's by this name, of rescaled numbers perhaps, stays.
                self._add(output.metrics, prefix, self._active.baseline_name, losses["baseline"])
            if "ece" in losses:
                self._add(output.metrics, prefix, "ece", losses["ece"])
            self.prediction_counts[prefix] = evaluation.prediction_counts()
        finally:
            self._evaluation, self.compute_metrics = around, compute_metrics
        return output

    def _add(self, metrics: dict[str, float], prefix: str, name: str, value: float) -> None:
        if f"{prefix}_{name}" not in metrics:
            metrics[f"{prefix}_{name}"] = value
            self._added |= {f"{prefix}_{name}"}

    def hyperparameter_search(
        self,
        hp_space: Callable[..., Any] | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Trainer's search. Without an objective it is the sum of the user's metrics, as Trainer's.

        What is reported beside them has no part in it. Without any metrics it is the baseline, such
        as `eval_cross_entropy`, which does not depend on the loss that is tried; of several
        evaluation sets, their sum. A trial that gives no `loss_kwargs` has those from before.
        """
        objective = compute_objective or self._default_objective
        self._kwargs_before_search = (getattr(self.args, "loss_kwargs", None),)
        try:
            return super().hyperparameter_search(hp_space, objective, *args, **kwargs)
        finally:
            self._kwargs_before_search = None

    def _default_objective(self, metrics: dict[str, float]) -> float:
        own = default_compute_objective({k: v for k, v in metrics.items() if k not in self._added})
        if own is not None:
            return float(own)
        ours = {name: value for name, value in metrics.items() if name in self._added}
        ends = f"_{self._active.baseline_name}"
        baseline = [value for name, value in ours.items() if name.endswith(ends)]
        return sum(baseline or [v for name, v in ours.items() if name.endswith("_loss")])

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Trainer's step, with this trainer's loss even where a base class takes another."""
        self._batch_has_loss, self._own_losses = False, []
        inputs = copy.copy(inputs)  # Of its own class: scripts use a BatchEncoding's methods.
        # The model, which may generate from the batch or have no labels, must not see the weights.
        if isinstance(inputs, MutableMapping) and LOSS_WEIGHT in inputs:
            self._weight_of_evaluation = inputs.pop(LOSS_WEIGHT)
        self._predicting = True
        try:
            # A script's override may take the labels out of its batch.
            given = copy.copy(inputs)
            loss, logits, labels = super().prediction_step(model, given, *args, **kwargs)
            wanted = loss is not None and self._wrapped.targets.present(inputs)
            if wanted and not self._batch_has_loss:
                # Seq2SeqTrainer takes the model's built-in loss when it generates.
                with torch.no_grad(), self.compute_loss_context_manager():
                    batch = self._prepare_inputs(inputs)
                    loss, _ = self.compute_loss(model, batch, return_outputs=True)
        finally:
            self._predicting, self._weight_of_evaluation = False, None
        if loss is not None and self._own_losses and self._evaluation is not None:
            # A script may compute several, of views of a batch: all of them are in the sums.
            sums = torch.stack([own_loss * rows for own_loss, rows in self._own_losses]).sum()
            rows = sum(rows for _, rows in self._own_losses)
            added = (loss.mean() - sums / rows).where(sums.isfinite(), 0.0)
            self._evaluation.add_term("user", added, rows)
        return loss, logits, labels

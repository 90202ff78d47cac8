"""What an evaluation reports of losses: means over all of its items, whatever its batches are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_losses.metrics.calibration import calibration_bins, expected_calibration_error


class EvaluationLosses:
    """Adds up an evaluation's losses and their items, batch by batch, on its own process."""

    def __init__(self) -> None:
        """Starts without items."""
        self._sums: list[Tensor] = []
        self._added: list[Tensor] = []
        self._bins: Tensor | None = None

    def add(self, loss: Tensor, baseline: Tensor, items: Tensor) -> None:
        """Takes a batch.

        Args:
            loss: `[P]`, the sums over its items: of one classification, or of start and end of an
                answer.
            baseline: `[P]`, the same of the task's baseline.
            items: `[P]`, their numbers.
        """
        self._sums.append(torch.stack([loss, baseline, items.to(loss.dtype)]).detach())

    def add_term(self, term: Tensor, rows: int) -> None:
        """Takes what a batch of so many rows adds to its loss, such as that of a router."""
        self._added.append(torch.stack([term.detach() * rows, term.new_tensor(float(rows))]))

    def add_predictions(self, logits: Tensor, labels: Tensor) -> None:
        """Takes a batch's predictions for the calibration error; see `calibration_bins`."""
        bins = calibration_bins(logits.detach(), labels)
        self._bins = bins if self._bins is None else self._bins + bins

    def metrics(self, accelerator: Any, *, finite_only: bool) -> dict[str, float]:
        """The means over the items of all processes, which must all call this.

        Args:
            accelerator: That of the trainer.
            finite_only: Leaves out batches with a loss that is not finite, as the stock Trainer
                does by `logging_nan_inf_filter`.

        Returns:
            `loss`, `baseline` and for a classifier `ece`; empty if there were no batches.
        """
        if not self._sums:
            return {}
        sums = torch.stack(self._sums).cpu().double()
        if finite_only and (finite := sums[:, 0].isfinite().all(-1)).any():
            sums = sums[finite]
        loss, baseline, items = _of_all(sums.sum(0), accelerator)
        found = {"loss": _mean(loss, items), "baseline": _mean(baseline, items)}
        if self._added:
            term, rows = _of_all(torch.stack(self._added).cpu().double().sum(0), accelerator)
            found["loss"] += float(term / rows)
        if self._bins is not None:
            found["ece"] = expected_calibration_error(accelerator.reduce(self._bins))
        return found


def _of_all(sums: Tensor, accelerator: Any) -> Tensor:
    if accelerator.num_processes == 1:
        return sums
    total: Tensor = accelerator.reduce(sums.to(accelerator.device)).cpu()
    return total


def _mean(sums: Tensor, items: Tensor) -> float:
    return float((sums / items.clamp(min=1)).mean())

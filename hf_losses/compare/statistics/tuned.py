"""What the tuning of a loss shows: where its best value lies, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hf_losses.compare.plan import Plan, by_logarithm
from hf_losses.compare.results import RunRecord

EDGE = 0.1  # The outer tenth of a range, at both ends.


@dataclass(frozen=True)
class TunedLoss:
    """The trials of a loss, which are judged on the validation set.

    Attributes:
        loss: The loss, perhaps with flags.
        parameters: The tuned flags of the best trial.
        value: Its value on the validation set.
        trials: Number of trials that finished.
        at_edge: Flags whose best value lies in the outer tenth of its range, where a better one may
            lie beyond.
        spread: Standard deviation of the best value if as many trials were drawn again from these
            (the bootstrap of a maximum, as in Dodge et al. 2019, "Show your work"); None for fewer
            than two trials. It is no more than a rough one for trials that Optuna chose by the
            results of others, which begins with the eleventh.
    """

    loss: str
    parameters: Mapping[str, float]
    value: float
    trials: int
    at_edge: Sequence[str]
    spread: float | None


def tuned_losses(plan: Plan, runs: Sequence[RunRecord], lower_is_better: bool) -> list[TunedLoss]:
    """What the tuning of every loss shows.

    Args:
        plan: The plan.
        runs: All runs.
        lower_is_better: Whether a smaller value of the metric is better.

    Returns:
        The losses that have a finished trial, in the order of the plan.
    """
    tuned = []
    for loss in plan.losses:
        trials = [
            (run.value, run)
            for run in runs
            if (run.stage, run.loss) == ("tune", loss) and run.value is not None
        ]
        if not trials:
            continue
        sign = -1 if lower_is_better else 1
        value, best = max(trials, key=lambda trial: sign * trial[0])
        at_edge = [
            name
            for name, (low, high) in plan.tune.items()
            if not EDGE < _place(best.parameters[name], low, high) < 1 - EDGE
        ]
        spread = _spread_of_best([sign * trial for trial, _ in trials])
        tuned.append(TunedLoss(loss, best.parameters, value, len(trials), at_edge, spread))
    return tuned


def _place(value: float, low: float, high: float) -> float:
    """Where a value lies in its range, from 0 to 1, as it was searched."""
    if by_logarithm(low, high):
        value, low, high = math.log(value), math.log(low), math.log(high)
    return (value - low) / (high - low)


def _spread_of_best(scores: Sequence[float]) -> float | None:
    """The standard deviation of the largest of as many scores, drawn with replacement."""
    count = len(scores)
    if count < 2:
        return None
    # The largest is at most the k-th smallest if all draws are among the k smallest.
    chances = np.diff((np.arange(count + 1) / count) ** count)
    ordered = np.sort(scores)
    mean = float(chances @ ordered)
    return math.sqrt(float(chances @ (ordered - mean) ** 2))

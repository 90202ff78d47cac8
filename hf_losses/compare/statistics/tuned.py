"""What the tuning of a loss shows: where its best value lies, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hf_losses.compare.plan import Plan
from hf_losses.compare.ranges import by_logarithm
from hf_losses.compare.results import RunRecord, Trial, finished_trials

EDGE = 0.1  # The outer tenth of a range, at both ends.


@dataclass(frozen=True)
class TunedLoss:
    """The trials of a loss, which are judged on the validation set.

    Attributes:
        loss: The loss, perhaps with flags.
        parameters: The tuned flags of the best trial.
        value: Its value on the validation set, the mean over the tuning seeds.
        trials: Number of trials that finished.
        at_edge: Flags whose best value is the lowest or the highest of three or more that were
            tried, or lies in the outer tenth of its range: a better one may lie beyond.
        spread: Standard deviation of the best value if as many trials were drawn again from these
            (the bootstrap of a maximum, as in Dodge et al. 2019, "Show your work"); None for fewer
            than two trials. It is no more than a rough one for trials that Optuna chose by the
            results of others, which begins with the eleventh.
        seed_spread: What another tuning seed makes in a tuning with one: the standard deviation of
            the values of the trials that each tuning seed alone would have chosen. A rough
            estimate, as these values are means of few seeds; None with one tuning seed or trial.
    """

    loss: str
    parameters: Mapping[str, float]
    value: float
    trials: int
    at_edge: Sequence[str]
    spread: float | None
    seed_spread: float | None


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
        trials = finished_trials(plan, loss, runs)
        if not trials:
            continue
        sign = -1 if lower_is_better else 1
        best = max(trials, key=lambda trial: sign * trial.mean)
        of_loss = [run for run in runs if (run.stage, run.loss) == ("tune", loss)]
        tried = {name: {run.parameters[name] for run in of_loss} for name in plan.tune}
        at_edge = [
            name
            for name in plan.tune
            if _at_edge(best.parameters[name], tried[name], *plan.tune[name])
        ]
        spread = _spread_of_best([sign * trial.mean for trial in trials])
        seed_spread = _spread_by_seed(trials, sign)
        tuned.append(
            TunedLoss(loss, best.parameters, best.mean, len(trials), at_edge, spread, seed_spread)
        )
    return tuned


def _at_edge(value: float, tried: Collection[float], low: float, high: float) -> bool:
    """Whether a better value may lie beyond; trials that failed were tried as well."""
    outermost = len(tried) > 2 and value in (min(tried), max(tried))
    return outermost or not EDGE < _place(value, low, high) < 1 - EDGE


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


def _spread_by_seed(trials: Sequence[Trial], sign: int) -> float | None:
    """The standard deviation of the values of the trials that single seeds would choose."""
    seeds = list(trials[0].values)
    if len(seeds) < 2 or len(trials) < 2:
        return None
    scores = np.array([[sign * trial.values[seed] for seed in seeds] for trial in trials])
    chosen = scores.argmax(axis=0)  # By each seed.
    return float(np.std(scores.mean(axis=1)[chosen], ddof=1))

"""How soon a loss reaches the best value of the baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from hf_losses.compare.results import RunRecord


@dataclass(frozen=True)
class TimeToBaseline:
    """When a loss first reaches the baseline's best value on the validation set.

    Attributes:
        steps: Median of the optimizer steps; None unless more than half of the runs reach it.
        seconds: Median of the seconds of training; None in the same case, or if a run that
            reaches the value reports no times.
        reached: Number of runs that reach the value.
        runs: Number of runs.
        by_seed: The steps by seed; None for a run that never reaches the value.
    """

    steps: float | None
    seconds: float | None
    reached: int
    runs: int
    by_seed: Mapping[str, int | None]


def time_to_baseline(
    runs: Sequence[RunRecord],
    baseline: Sequence[RunRecord],
    metric: str,
    lower_is_better: bool,
) -> TimeToBaseline | None:
    """When a loss first reaches the baseline's best value on the validation set.

    Args:
        runs: Runs of the loss.
        baseline: Runs of the baseline; runs with the same seed are compared.
        metric: The compared metric.
        lower_is_better: Whether the better value is the smaller one.

    Returns:
        The times; None without evaluations during training. A run that failed counts as one that
        never reaches the value.
    """
    sign = -1 if lower_is_better else 1
    best = {}
    for run in baseline:
        scores = [sign * entry[metric] for entry in run.history if is_number(entry.get(metric))]
        if scores:
            best[run.seed] = max(scores)
    paired = [run for run in runs if run.seed in best]
    if not paired:
        return None
    steps, seconds = {}, []
    for run in paired:
        reached_at = [
            entry["step"]
            for entry in run.history
            if is_number(entry.get(metric)) and sign * entry[metric] >= best[run.seed]
        ]
        steps[str(run.seed)] = reached_at[0] if reached_at else None
        if reached_at and run.seconds and run.steps:
            seconds.append(run.seconds * reached_at[0] / run.steps)
    reached = [step for step in steps.values() if step is not None]
    return TimeToBaseline(
        steps=_median(reached, len(paired)),
        seconds=_median(seconds, len(paired)) if len(seconds) == len(reached) else None,
        reached=len(reached),
        runs=len(paired),
        by_seed=steps,
    )


def _median(finite: Sequence[float], count: int) -> float | None:
    """The median of `count` values, of which all but the `finite` ones are infinite."""
    value = median([*finite, *[math.inf] * (count - len(finite))])
    return value if math.isfinite(value) else None


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)

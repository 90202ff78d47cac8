"""How soon a loss reaches what the baseline reaches in the end."""

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
        steps: Median of the optimizer steps; None if less than half of the runs get there.
        seconds: Median of the seconds of training; None likewise, or without times.
        reached: How many runs get there.
        runs: How many runs there are.
        by_seed: The steps by seed; None if that run never gets there.
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
    """When a loss first reaches what the baseline reaches at its best, on the validation set.

    Args:
        runs: Those of the loss.
        baseline: Those of the baseline; runs of equal seeds are compared.
        metric: The compared metric.
        lower_is_better: Whether the better value is the smaller one.

    Returns:
        None without evaluations during training. A run that failed has not reached it.
    """
    sign = -1 if lower_is_better else 1
    best = {}
    for run in baseline:
        scores = [sign * e[metric] for e in run.history if is_number(e.get(metric))]
        if scores:
            best[run.seed] = max(scores)
    paired = [run for run in runs if run.seed in best]
    if not paired:
        return None
    steps, seconds = {}, []
    for run in paired:
        reached = [
            entry["step"]
            for entry in run.history
            if is_number(entry.get(metric)) and sign * entry[metric] >= best[run.seed]
        ]
        steps[str(run.seed)] = reached[0] if reached else None
        if reached and run.seconds and run.steps:
            seconds.append(run.seconds * reached[0] / run.steps)
    finite = [step for step in steps.values() if step is not None]
    return TimeToBaseline(
        steps=_median(finite, len(paired)),
        seconds=_median(seconds, len(paired)) if len(seconds) == len(finite) else None,
        reached=len(finite),
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

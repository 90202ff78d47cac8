"""How soon a loss reaches the best value of the baseline, or most of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from hf_losses.compare.results import RunRecord, is_number
from hf_losses.compare.statistics.p_values import ALPHA, SignFlips

MOST = 0.95  # The share of the baseline's best value that is "most of it".


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
        ratio: These steps relative to the baseline's own with the same seed, the geometric mean;
            None unless every run reaches the value, and none of either before the first step.
        ratio_interval: All ratios that a sign-flip test of their logarithms does not reject at 5 %,
            without any correction; None for fewer than six seeds. Where a run does not reach the
            value, the upper limit is None, since nothing is known of its ratio but that it is
            greater than that of its last evaluation, which the lower limit takes. The baseline
            always reaches its own best value, another loss must reach that of another run: even of
            a loss that learns as fast, the ratios need not be 1 on average.
    """

    steps: float | None
    seconds: float | None
    reached: int
    runs: int
    by_seed: Mapping[str, int | None]
    ratio: float | None = None
    ratio_interval: Sequence[float | None] | None = None


def time_to_baseline(
    runs: Sequence[RunRecord],
    baseline: Sequence[RunRecord],
    metric: str,
    lower_is_better: bool,
    share: float = 1.0,
) -> TimeToBaseline | None:
    """When a loss first reaches the baseline's best value on the validation set, or most of it.

    Args:
        runs: Runs of the loss.
        baseline: Runs of the baseline; runs with the same seed are compared.
        metric: The compared metric.
        lower_is_better: Whether the better value is the smaller one.
        share: What part of the best value is enough; an error may be greater by as much.

    Returns:
        The times; None without evaluations during training, or if `share` is not 1 and a best value
        of the baseline is not positive. A run that failed counts as one that never reaches it.
    """
    sign = -1 if lower_is_better else 1
    goals = {}
    for run in baseline:
        scores = [sign * entry[metric] for entry in run.history if is_number(entry.get(metric))]
        if scores:
            if share != 1 and sign * max(scores) <= 0:
                return None  # Leaving out a collapsed seed would bias the rest.
            goals[run.seed] = max(scores) * share**sign
    baseline_steps = {
        run.seed: _first_step(run, metric, sign, goals.get(run.seed)) for run in baseline
    }
    paired = [run for run in runs if run.seed in goals]
    if not paired:
        return None
    steps, seconds, ratios = {}, [], []
    for run in paired:
        step = _first_step(run, metric, sign, goals[run.seed])
        steps[str(run.seed)] = step
        if step is not None and run.seconds and run.steps:
            seconds.append(run.seconds * step / run.steps)
        at_least = _last_step(run, metric) if step is None else step
        if at_least and (baseline_step := baseline_steps[run.seed]):
            ratios.append(math.log(at_least / baseline_step))
    reached = [step for step in steps.values() if step is not None]
    known = len(ratios) == len(paired)  # There is no ratio to an evaluation before the first step.
    complete = known and len(reached) == len(paired)
    interval = SignFlips.of(ratios).interval(ALPHA) if known else None
    return TimeToBaseline(
        steps=_median(reached, len(paired)),
        seconds=_median(seconds, len(paired)) if len(seconds) == len(reached) else None,
        reached=len(reached),
        runs=len(paired),
        by_seed=steps,
        ratio=math.exp(fmean(ratios)) if complete else None,
        ratio_interval=interval
        and [math.exp(interval[0]), math.exp(interval[1]) if complete else None],
    )


def _first_step(run: RunRecord, metric: str, sign: int, goal: float | None) -> int | None:
    """The first evaluated step at which a run is as good as the goal."""
    steps = (
        entry["step"]
        for entry in run.history
        if goal is not None and is_number(entry.get(metric)) and sign * entry[metric] >= goal
    )
    return next(steps, None)


def _last_step(run: RunRecord, metric: str) -> int | None:
    """The last step at which a run was evaluated."""
    steps = [entry["step"] for entry in run.history if is_number(entry.get(metric))]
    return max(steps, default=None)


def _median(finite: Sequence[float], count: int) -> float | None:
    """The median of `count` values, of which all but the `finite` ones are infinite."""
    value = median([*finite, *[math.inf] * (count - len(finite))])
    return value if math.isfinite(value) else None

"""What a comparison shows, stage by stage: the entry `statistics` of `results.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from hf_losses.compare.results import Metric, Results, RunRecord
from hf_losses.compare.statistics.comparison import (
    Comparison,
    compare,
    seed_spread,
    with_outlook,
)
from hf_losses.compare.statistics.p_values import ALPHA, share_of_look, smallest_p
from hf_losses.compare.statistics.power import (
    POWER,
    detectable_difference,
    median_spread,
    seeds_needed,
)
from hf_losses.compare.statistics.speed import MOST, TimeToBaseline, time_to_baseline
from hf_losses.compare.statistics.tuned import TunedLoss, tuned_losses

CALIBRATION = ("cross_entropy", "ece")


@dataclass(frozen=True)
class LossResult:
    """What the runs of a loss show in a stage.

    Attributes:
        loss: The loss, perhaps with flags.
        mean: Mean of the compared metric; None without a finished run.
        sd: Standard deviation of the metric; None for fewer than two runs.
        values: The metric of the finished runs by seed.
        failed: Why runs have no value, by seed.
        missing: Seeds whose run has not been made.
        cross_entropy: Mean on the compared set; None unless every finished run reports it.
        ece: Mean expected calibration error, under the same condition.
        time_to_baseline: When the loss reaches the baseline's best value; None without
            evaluations during training.
        time_to_most: When it reaches 95 % of that value; None also if that is not positive.
        comparison: The comparison with the baseline; None for the baseline itself.
    """

    loss: str
    mean: float | None
    sd: float | None
    values: Mapping[str, float]
    failed: Mapping[str, str]
    missing: Sequence[int]
    cross_entropy: float | None
    ece: float | None
    time_to_baseline: TimeToBaseline | None
    time_to_most: TimeToBaseline | None
    comparison: Comparison | None


@dataclass(frozen=True)
class Look:
    """A look at the results of a stage: the first one, or one after seeds were added.

    Attributes:
        seeds: Number of seeds that it had.
        alpha: The level of all its tests together: its share of 5 %.
        margin: Differences within it did not matter; None if there was no margin.
        verdicts: The verdict of each loss.
    """

    seeds: int
    alpha: float
    margin: float | None
    verdicts: Mapping[str, str | None]


@dataclass(frozen=True)
class StageResult:
    """What a stage of a comparison shows, and what its design can show.

    Attributes:
        stage: `main`, `screen` or `confirm`.
        tested: Whether there are p values, which a screening does not have.
        seeds: Seeds of the design.
        comparisons: Number of losses tested against the baseline, on all tasks together.
        smallest_p: The smallest p value that the design can give.
        seeds_needed: The fewest seeds with which a difference can be significant.
        detectable_difference: The true difference that is found with a probability of `POWER`;
            None if there is no such difference.
        margin: Differences within it do not matter: `--margin`, or the standard deviation of the
            baseline; None if that is zero or unknown, or in a screening.
        looks: Every look at the results; the last one is that of the comparisons below.
        losses: The baseline, then the others, the best first.
    """

    stage: str
    tested: bool
    seeds: Sequence[int]
    comparisons: int
    smallest_p: float
    seeds_needed: int
    detectable_difference: float | None
    margin: float | None
    looks: Sequence[Look]
    losses: Sequence[LossResult]


@dataclass(frozen=True)
class Statistics:
    """What a comparison shows: the entry `statistics` of `results.json`.

    Attributes:
        alpha: Level of significance.
        power: Probability for which `detectable_difference` holds.
        lower_is_better: Whether a smaller value of the metric is the better one.
        stages: The stages that have runs.
        tuned: The losses that were tuned; empty without a tuning.
    """

    alpha: float
    power: float
    lower_is_better: bool
    stages: Sequence[StageResult]
    tuned: Sequence[TunedLoss] = ()


def statistics(results: Results) -> Statistics:
    """What a comparison shows so far.

    Args:
        results: The results of the runs.
    """
    plan, lower = results.plan, results.lower_is_better
    stages = [stage for name in plan.stages if (stage := _stage(results, name))]
    return Statistics(ALPHA, POWER, lower, stages, tuned_losses(plan, results.runs, lower))


def _stage(results: Results, stage: str) -> StageResult | None:
    runs = [run for run in results.runs if run.stage == stage]
    if not runs:
        return None
    plan, metric = results.plan, results.metric
    tested = stage != "screen"
    seeds = plan.seeds_of(stage)
    # The confirmation leaves most losses out; the other stages have all of them.
    run_losses = {run.loss for run in runs}
    losses = [loss for loss in plan.losses if stage != "confirm" or loss in run_losses]
    by_loss = {loss: [run for run in runs if run.loss == loss] for loss in losses}
    values = {
        loss: {run.seed: run.value for run in loss_runs if run.value is not None}
        for loss, loss_runs in by_loss.items()
    }
    looks = []
    # Earlier looks follow from the same runs; only the last one decides.
    for look, count in enumerate(plan.looks if tested else [len(seeds)], 1):
        seen = {
            loss: {seed: value for seed, value in of_loss.items() if seed in seeds[:count]}
            for loss, of_loss in values.items()
        }
        margin = (plan.margin or seed_spread(seen, plan.baseline)) if tested else None
        comparisons = compare(
            seen,
            plan.baseline,
            seeds[:count],
            margin=margin,
            look=look,
            lower_is_better=results.lower_is_better,
            tested=tested,
        )
        verdicts = {loss: comparison.verdict for loss, comparison in comparisons.items()}
        looks.append(Look(count, ALPHA * share_of_look(look), margin, verdicts))
    comparisons = with_outlook(comparisons, margin, len(looks), plan.tasks)
    loss_results = []
    for loss, loss_runs in by_loss.items():
        scores = list(values[loss].values())
        ended = {run.seed for run in loss_runs}
        speed, speed_to_most = None, None
        if metric:
            course = (loss_runs, by_loss.get(plan.baseline, []), metric.name)
            speed = time_to_baseline(*course, results.lower_is_better)
            speed_to_most = time_to_baseline(*course, results.lower_is_better, MOST)
        loss_results.append(
            LossResult(
                loss=loss,
                mean=fmean(scores) if scores else None,
                sd=stdev(scores) if len(scores) > 1 else None,
                values={str(seed): value for seed, value in sorted(values[loss].items())},
                failed={str(run.seed): run.reason or "" for run in loss_runs if not run.finished},
                missing=[seed for seed in seeds if seed not in ended],
                **{name: _mean_of(loss_runs, metric, name) for name in CALIBRATION},
                time_to_baseline=speed,
                time_to_most=speed_to_most,
                comparison=comparisons.get(loss),
            )
        )
    sign = 1 if results.lower_is_better else -1
    loss_results.sort(
        key=lambda result: (
            result.loss != plan.baseline,
            result.mean is None,
            0 if result.mean is None else sign * result.mean,
        )
    )
    # Of the planned ones fewer may have survived the screening.
    tests = plan.comparisons
    if stage == "confirm":
        tests = max(1, tests + len(losses) - 1 - plan.comparisons // plan.tasks)
    spread = median_spread(comparison.sd for comparison in comparisons.values())
    detectable = math.inf
    if spread is not None:
        detectable = detectable_difference(spread, len(seeds), tests, len(looks))
    return StageResult(
        stage=stage,
        tested=tested,
        seeds=seeds,
        comparisons=tests,
        smallest_p=smallest_p(len(seeds), tests, len(looks)),
        seeds_needed=seeds_needed(tests, len(looks)),
        detectable_difference=detectable if math.isfinite(detectable) else None,
        margin=margin,
        looks=looks if tested else [],
        losses=loss_results,
    )


def _mean_of(runs: Sequence[RunRecord], metric: Metric | None, name: str) -> float | None:
    """The mean of another metric on the compared set, over the runs that finished."""
    if not metric:
        return None
    scores: list[Any] = [run.metrics[metric.set].get(name) for run in runs if run.finished]
    return fmean(scores) if scores and None not in scores else None

"""What paired runs show: differences to the baseline, their intervals and tests, by scipy.

Every loss ran on the same seeds as the baseline, so each seed gives one difference, and the tests
ask whether these differ from zero: a sign-flip permutation test, corrected for the number of
losses by Holm's method. For any metric, differences are positive where the loss is better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

from hf_losses.compare.results import Metric, Results, RunRecord
from hf_losses.compare.statistics.intervals import bootstrap_interval
from hf_losses.compare.statistics.p_values import ALPHA, holm, sign_flip_p, smallest_p
from hf_losses.compare.statistics.power import (
    POWER,
    detectable_difference,
    median_spread,
    seeds_needed,
)
from hf_losses.compare.statistics.speed import TimeToBaseline, time_to_baseline

CALIBRATION = ("cross_entropy", "ece")


@dataclass(frozen=True)
class Comparison:
    """A loss against the baseline, on the same seeds; positive differences are better.

    Attributes:
        pairs: Number of seeds on which both have a value.
        differences: The difference by seed.
        difference: Mean difference; None without pairs.
        sd: Standard deviation of the differences; None for fewer than two pairs.
        interval: 95 % interval by the BCa bootstrap; None for fewer than five pairs.
        p: P value of the sign-flip test; None if seeds are missing, or in a screening.
        p_holm: P value after Holm's correction.
        probability_better: Share of the seeds with a better value, where ties count half.
        verdict: `better`, `worse`, `tie` or `incomplete`; None in a screening.
    """

    pairs: int
    differences: Mapping[str, float]
    difference: float | None
    sd: float | None
    interval: Sequence[float] | None
    p: float | None
    p_holm: float | None
    probability_better: float | None
    verdict: str | None


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
    comparison: Comparison | None


@dataclass(frozen=True)
class StageResult:
    """What a stage of a comparison shows, and what its design can show.

    Attributes:
        stage: `main`, `screen` or `confirm`.
        tested: Whether there are p values, which a screening does not have.
        seeds: Seeds of the design.
        comparisons: Number of losses tested against the baseline.
        smallest_p: The smallest p value that the design can give.
        seeds_needed: The fewest seeds with which a difference can be significant.
        detectable_difference: The true difference that is found with a probability of `POWER`;
            None if there is no such difference.
        losses: The baseline, then the others, the best first.
    """

    stage: str
    tested: bool
    seeds: Sequence[int]
    comparisons: int
    smallest_p: float
    seeds_needed: int
    detectable_difference: float | None
    losses: Sequence[LossResult]


@dataclass(frozen=True)
class Statistics:
    """What a comparison shows: the entry `statistics` of `results.json`.

    Attributes:
        alpha: Level of significance.
        power: Probability for which `detectable_difference` holds.
        lower_is_better: Whether a smaller value of the metric is the better one.
        stages: The stages that have runs.
    """

    alpha: float
    power: float
    lower_is_better: bool
    stages: Sequence[StageResult]


def statistics(results: Results) -> Statistics:
    """What a comparison shows so far.

    Args:
        results: The results of the runs.
    """
    stages = (_stage(results, stage) for stage in results.plan.stages)
    return Statistics(ALPHA, POWER, results.lower_is_better, [stage for stage in stages if stage])


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
    comparisons = compare(
        values, plan.baseline, seeds, lower_is_better=results.lower_is_better, tested=tested
    )
    loss_results = []
    for loss, loss_runs in by_loss.items():
        scores = list(values[loss].values())
        ended = {run.seed for run in loss_runs}
        speed = None
        if metric:
            reference = by_loss.get(plan.baseline, [])
            speed = time_to_baseline(loss_runs, reference, metric.name, results.lower_is_better)
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
    spread = median_spread(comparison.sd for comparison in comparisons.values())
    detectable = math.inf
    if spread is not None:
        detectable = detectable_difference(spread, len(seeds), plan.comparisons)
    return StageResult(
        stage=stage,
        tested=tested,
        seeds=seeds,
        comparisons=plan.comparisons,
        smallest_p=smallest_p(len(seeds), plan.comparisons),
        seeds_needed=seeds_needed(plan.comparisons),
        detectable_difference=detectable if math.isfinite(detectable) else None,
        losses=loss_results,
    )


def _mean_of(runs: Sequence[RunRecord], metric: Metric | None, name: str) -> float | None:
    """The mean of another metric on the compared set, over the runs that finished."""
    if not metric:
        return None
    scores: list[Any] = [run.metrics[metric.set].get(name) for run in runs if run.finished]
    return fmean(scores) if scores and None not in scores else None


def compare(
    values: Mapping[str, Mapping[int, float]],
    baseline: str,
    seeds: Sequence[int],
    *,
    lower_is_better: bool = False,
    tested: bool = True,
) -> dict[str, Comparison]:
    """Compares every loss with the baseline, seed by seed.

    Args:
        values: The metric by loss and seed; a seed that failed is absent.
        baseline: One of the losses.
        seeds: Seeds of the design. If a loss or the baseline lacks one, the comparison is
            `incomplete`: a run may have failed because of the loss, so that the rest is no fair
            sample. In Holm's correction it still counts, as p = 1.
        lower_is_better: Whether a smaller value is the better one.
        tested: Whether there are p values and verdicts, which a screening does not have.

    Returns:
        The comparison of every loss but the baseline.
    """
    sign = -1.0 if lower_is_better else 1.0
    reference = values.get(baseline, {})
    comparisons = {
        loss: _compare_pairs(loss_values, reference, seeds, sign, tested)
        for loss, loss_values in values.items()
        if loss != baseline
    }
    if not tested or not comparisons:
        return comparisons
    corrected = holm(
        [1.0 if comparison.p is None else comparison.p for comparison in comparisons.values()]
    )
    return {
        loss: _with_verdict(comparison, p_holm)
        for (loss, comparison), p_holm in zip(comparisons.items(), corrected, strict=True)
    }


def _compare_pairs(
    values: Mapping[int, float],
    reference: Mapping[int, float],
    seeds: Sequence[int],
    sign: float,
    tested: bool,
) -> Comparison:
    """The comparison of a loss's values with the baseline's, without a verdict."""
    pairs = [seed for seed in seeds if seed in values and seed in reference]
    differences = [sign * (values[seed] - reference[seed]) for seed in pairs]
    better = [(difference > 0) + (difference == 0) / 2 for difference in differences]
    return Comparison(
        pairs=len(pairs),
        differences=dict(zip(map(str, pairs), differences, strict=True)),
        difference=fmean(differences) if pairs else None,
        sd=stdev(differences) if len(pairs) > 1 else None,
        interval=bootstrap_interval(differences),
        p=sign_flip_p(differences) if tested and len(pairs) == len(seeds) else None,
        p_holm=None,
        probability_better=fmean(better) if pairs else None,
        verdict=None,
    )


def _with_verdict(comparison: Comparison, p_holm: float) -> Comparison:
    """The comparison with its corrected p value and its verdict."""
    if comparison.p is None or comparison.difference is None:
        return replace(comparison, verdict="incomplete")
    better_or_worse = "better" if comparison.difference > 0 else "worse"
    verdict = better_or_worse if p_holm <= ALPHA else "tie"
    return replace(comparison, p_holm=p_holm, verdict=verdict)


def describe_spread(
    values: Mapping[str, Mapping[int, float]], baseline: str, comparisons: int, seeds: int
) -> str:
    """What a design can show, in words, judged by the spread of the first runs.

    Args:
        values: The metric by loss and seed, for the first seeds.
        baseline: One of the losses.
        comparisons: Number of losses that will be tested against the baseline.
        seeds: Number of pairs per loss that the tests will have.

    Returns:
        A sentence; empty if no loss has two pairs or the design can show nothing.
    """
    pilot_seeds = sorted({seed for loss_values in values.values() for seed in loss_values})
    pilot = compare(values, baseline, pilot_seeds, tested=False)
    spread = median_spread(comparison.sd for comparison in pilot.values())
    if spread is None:
        return ""
    detectable = detectable_difference(spread, seeds, comparisons)
    if not math.isfinite(detectable):
        return ""
    return (
        f"By the first {len(pilot_seeds)} seeds, paired differences have a standard deviation of "
        f"{spread:.2g}; {seeds} seeds find a true difference of {detectable:.2g} four times out of "
        "five, and larger ones more often."
    )

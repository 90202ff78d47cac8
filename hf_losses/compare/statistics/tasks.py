"""What a comparison over several tasks shows: tests over all of them, means, and ranks.

Tasks differ in their metric, its direction and its scale. So differences are counted in standard
deviations that another seed makes to the baseline on the same task (a unit that every task has),
and losses are ranked within each task.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from hf_losses.compare.plan import Plan
from hf_losses.compare.results import Results
from hf_losses.compare.statistics.comparison import Comparison, compare, judge, with_outlook
from hf_losses.compare.statistics.p_values import ALPHA
from hf_losses.compare.statistics.summary import LossResult, StageResult, Statistics, statistics

CONFIDENCE = 0.95
RESAMPLES = 10_000
NOT_RUN = Comparison(0, {}, None, None)
DIGITS = 12  # Means that differ by less, relative to the largest, are equal: rounding errors.


@dataclass(frozen=True)
class LossOverTasks:
    """What a loss shows over all tasks.

    Attributes:
        loss: The loss, perhaps with flags.
        verdicts: The verdict by task, with Holm's correction over all losses and tasks; None for
            the baseline.
        differences: The mean difference by task, in standard deviations of the baseline there; None
            where the baseline does not vary.
        difference: The mean of these over the tasks.
        interval: Its interval by the bootstrap, stratified by task.
        probability_better: Share of the seeds with a better value than the baseline, where ties
            count half: the mean over the tasks.
        probability_interval: Its interval by the same bootstrap.
        ranks: The rank among the losses by task, by the mean over the seeds; 1 is the best, and
            losses that are equal share their mean rank.
        rank: The mean of the ranks.
    """

    loss: str
    verdicts: Mapping[str, str | None] | None
    differences: Mapping[str, float | None] | None = None
    difference: float | None = None
    interval: Sequence[float] | None = None
    probability_better: float | None = None
    probability_interval: Sequence[float] | None = None
    ranks: Mapping[str, float] | None = None
    rank: float | None = None


@dataclass(frozen=True)
class OverTasks:
    """What a comparison over several tasks shows: the entry `statistics` of its `results.json`.

    Attributes:
        alpha: Level of significance.
        confidence: Of the intervals by the bootstrap.
        resamples: Number of its resamples.
        tasks: The names of the tasks.
        baseline: The loss that the others are compared with.
        units: The standard deviation of the baseline over the seeds (these, or more that the
            caller knows), by task; None where it is zero or not known.
        friedman_p: P value of Friedman's test that all losses have the same ranks; None for fewer
            than three ranked losses.
        critical_difference: Nemenyi's: mean ranks that differ by more are different at `alpha`;
            None for fewer than two ranked losses.
        losses: The losses, the best mean rank first; those without a rank, because runs are
            missing, last.
    """

    alpha: float
    confidence: float
    resamples: int
    tasks: Sequence[str]
    baseline: str
    units: Mapping[str, float | None]
    friedman_p: float | None
    critical_difference: float | None
    losses: Sequence[LossOverTasks]


def over_tasks(
    results: Mapping[str, Results | None], units: Mapping[str, float | None] | None = None
) -> tuple[dict[str, Statistics], OverTasks]:
    """What a comparison shows so far, on each task and over all of them.

    Args:
        results: The results by task, with the same losses and seeds in all; None for a task that
            has not begun. One at least must have begun.
        units: The standard deviation that another seed makes to the baseline, by task, if it is
            known from more seeds than these.

    Returns:
        The statistics of each task that has begun, with tests that allow for all losses on all
        tasks; and what all tasks together show.
    """
    plan = max((task.plan for task in results.values() if task), key=lambda plan: plan.look)
    # A kill may have left a task without seeds that others already have.
    begun = {
        name: replace(task, plan=replace(task.plan, added=plan.added))
        for name, task in results.items()
        if task
    }
    by_task = {name: statistics(task) for name, task in begun.items()}
    stages = {name: stats.stages[0] for name, stats in by_task.items() if stats.stages}
    entries = {
        (name, entry.loss): entry for name, stage in stages.items() for entry in stage.losses
    }
    others = [loss for loss in plan.losses if loss != plan.baseline]
    looks = []
    for look, count in enumerate(plan.looks, 1):
        pairs = {(name, loss): NOT_RUN for name in results for loss in others}
        for name, stage in stages.items():
            pairs |= {(name, loss): pair for loss, pair in _pairs(stage, plan, begun[name], count)}
        margins = {
            (name, loss): stages[name].looks[look - 1].margin if name in stages else None
            for name, loss in pairs
        }
        looks.append(judge(pairs, margins, count, look))
    judged = looks[-1]
    for name, stage in stages.items():
        of_task = [{loss: seen[name, loss] for loss in others} for seen in looks]
        shown = _with_comparisons(stage, of_task, len(results))
        by_task[name] = replace(by_task[name], stages=[shown])
    if units is None:
        units = {name: entries[name, plan.baseline].sd for name in stages}
    units = {name: units.get(name) or None for name in results}
    complete = [
        loss
        for loss in plan.losses
        if all(
            (name, loss) in entries and len(entries[name, loss].values) == plan.tested_seeds
            for name in results
        )
    ]
    ranks = _ranks(complete, begun, entries)
    losses = [
        LossOverTasks(
            loss,
            None
            if loss == plan.baseline
            else {name: judged[name, loss].verdict for name in results},
        )
        for loss in plan.losses
    ]
    for number, entry in enumerate(losses):
        loss = entry.loss
        if loss not in complete:
            continue
        of_loss = dict(zip(results, map(float, ranks[:, complete.index(loss)]), strict=True))
        entry = replace(entry, ranks=of_loss, rank=float(np.mean(list(of_loss.values()))))
        if loss != plan.baseline and plan.baseline in complete:
            differences = [list(judged[name, loss].differences.values()) for name in results]
            entry = _averaged(entry, differences, units)
        losses[number] = entry
    losses.sort(key=lambda entry: (entry.rank is None, entry.rank))
    return by_task, OverTasks(
        alpha=ALPHA,
        confidence=CONFIDENCE,
        resamples=RESAMPLES,
        tasks=list(results),
        baseline=plan.baseline,
        units=units,
        friedman_p=_friedman_p(ranks),
        critical_difference=critical_difference(len(complete), len(results)),
        losses=losses,
    )


def _pairs(
    stage: StageResult, plan: Plan, task: Results, seeds: int
) -> Iterable[tuple[str, Comparison]]:
    """The differences of each loss on a task over the first seeds, without tests."""
    first_seeds = stage.seeds[:seeds]
    values = {
        entry.loss: {
            int(seed): value for seed, value in entry.values.items() if int(seed) in first_seeds
        }
        for entry in stage.losses
    }
    lower = task.lower_is_better
    return compare(values, plan.baseline, first_seeds, lower_is_better=lower, tested=False).items()


def _with_comparisons(
    stage: StageResult, looks: Sequence[Mapping[str, Comparison]], tasks: int
) -> StageResult:
    """A stage with other tests of the same differences, at each look."""
    comparisons = with_outlook(looks[-1], stage.margin, len(looks), tasks)
    return replace(
        stage,
        looks=[
            replace(look, verdicts={loss: seen.verdict for loss, seen in judged.items()})
            for look, judged in zip(stage.looks, looks, strict=True)
        ],
        losses=[replace(entry, comparison=comparisons.get(entry.loss)) for entry in stage.losses],
    )


def _ranks(
    losses: Sequence[str],
    results: Mapping[str, Results],
    entries: Mapping[tuple[str, str], LossResult],
) -> np.ndarray:
    """The ranks of losses that are complete on every task, a row per task."""
    from scipy.stats import rankdata

    if not losses:
        return np.empty((len(results), 0))
    rows = []
    for name, task in results.items():
        sign = 1 if task.lower_is_better else -1
        means = np.array([sign * cast(float, entries[name, loss].mean) for loss in losses])
        scale = np.abs(means).max() or 1.0
        rows.append(rankdata(np.round(means / scale, DIGITS)))
    return np.array(rows)


def _friedman_p(ranks: np.ndarray) -> float | None:
    """The p value of Friedman's test; 1 if all losses are equal on every task."""
    from scipy.stats import friedmanchisquare

    if ranks.shape[1] < 3:  # As scipy demands.
        return None
    if (ranks == ranks[:, :1]).all():
        return 1.0
    return float(friedmanchisquare(*ranks.T).pvalue)


def critical_difference(losses: int, tasks: int, alpha: float = ALPHA) -> float | None:
    """Nemenyi's critical difference of mean ranks (Demšar 2006, JMLR 7, section 3.2.2).

    Args:
        losses: Number of losses.
        tasks: Number of tasks.
        alpha: Level of significance of all differences together.

    Returns:
        The difference; None for fewer than two losses.
    """
    from scipy.stats import studentized_range

    if losses < 2:
        return None
    q = studentized_range.ppf(1 - alpha, losses, np.inf) / np.sqrt(2)
    return float(q * np.sqrt(losses * (losses + 1) / (6 * tasks)))


def _averaged(
    entry: LossOverTasks,
    differences: Sequence[Sequence[float]],
    units: Mapping[str, float | None],
) -> LossOverTasks:
    """Adds means over the tasks, and their intervals, to a loss.

    The seeds are drawn again within each task (a stratified bootstrap, Agarwal et al. 2021), as
    pairs with the baseline. The unit of a task is not drawn again: in some resamples of few seeds
    it would be zero.
    """
    rng = np.random.default_rng(0)
    scores = [np.asarray(of_task, dtype=float) for of_task in differences]
    drawn = [score[rng.integers(0, len(score), (RESAMPLES, len(score)))] for score in scores]
    better = [(score > 0) + (score == 0) / 2 for score in scores]
    better_drawn = [((score > 0) + (score == 0) / 2).mean(1) for score in drawn]
    by_task = {
        name: float(score.mean() / unit) if (unit := units[name]) else None
        for name, score in zip(units, scores, strict=True)
    }
    entry = replace(
        entry,
        differences=by_task,
        probability_better=float(np.mean([share.mean() for share in better])),
        probability_interval=_interval(np.mean(better_drawn, axis=0)),
    )
    known = [unit for unit in units.values() if unit]
    if len(known) < len(units):
        return entry
    means = [score.mean(1) / unit for score, unit in zip(drawn, known, strict=True)]
    return replace(
        entry,
        difference=float(np.mean([value for value in by_task.values() if value is not None])),
        interval=_interval(np.mean(means, axis=0)),
    )


def _interval(values: np.ndarray) -> list[float]:
    tails = (1 - CONFIDENCE) / 2
    return [float(limit) for limit in np.quantile(values, [tails, 1 - tails])]

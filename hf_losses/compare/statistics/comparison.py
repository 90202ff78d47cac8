"""A loss against the baseline: paired differences, their test and interval, and the verdict.

Every loss ran on the same seeds as the baseline, so each seed gives one difference. For any metric,
differences are positive where the loss is better.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import TypeVar

from hf_losses.compare.statistics.p_values import ALPHA, SignFlips, holm, share_of_look
from hf_losses.compare.statistics.power import (
    Outlook,
    detectable_difference,
    median_spread,
    outlook,
)

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Comparison:
    """A loss against the baseline, on the same seeds; positive differences are better.

    Attributes:
        pairs: Number of seeds on which both have a value.
        differences: The difference by seed.
        difference: Mean difference; None without pairs.
        sd: Standard deviation of the differences; None for fewer than two pairs.
        interval: All differences that the test does not reject at `level`; None if the seeds are
            too few to reject any, if seeds are missing, or in a screening.
        level: The level of the interval after the corrections, such as 0.017; None with `p`.
        p: P value of the sign-flip test of no difference; None if seeds are missing, or in a
            screening.
        p_adjusted: The same after Holm's correction, and for the look.
        p_equivalent: P value of two one-sided sign-flip tests of a difference beyond the margin,
            corrected for the number of losses (Bonferroni) and for the look; None without a margin
            or without `p`.
        probability_better: Share of the seeds with a better value, where ties count half.
        verdict: `better` or `worse` if the interval excludes zero, `equivalent` if it lies within
            the margin, otherwise `undecided`; `incomplete` if seeds are missing; None in a
            screening.
        outlook: What would decide an undecided comparison of two pairs or more; otherwise None.
            `compare` leaves it to `with_outlook`.
    """

    pairs: int
    differences: Mapping[str, float]
    difference: float | None
    sd: float | None
    interval: Sequence[float] | None = None
    level: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    p_equivalent: float | None = None
    probability_better: float | None = None
    verdict: str | None = None
    outlook: Outlook | None = None


def compare(
    values: Mapping[str, Mapping[int, float]],
    baseline: str,
    seeds: Sequence[int],
    *,
    margin: float | None = None,
    look: int = 1,
    lower_is_better: bool = False,
    tested: bool = True,
) -> dict[str, Comparison]:
    """Compares every loss with the baseline, seed by seed.

    Args:
        values: The metric by loss and seed; a seed that failed is absent.
        baseline: One of the losses.
        seeds: Seeds of the design. If a loss or the baseline lacks one, the comparison is
            `incomplete`: a run may have failed because of the loss, so that the rest is no fair
            sample. In the corrections it still counts, as p = 1.
        margin: Differences within it do not matter; None if nothing can be equivalent.
        look: Which look at the results it is: 1, and one more each time that seeds are added.
        lower_is_better: Whether a smaller value is the better one.
        tested: Whether there are p values and verdicts, which a screening does not have.

    Returns:
        The comparison of every loss but the baseline.
    """
    sign = -1.0 if lower_is_better else 1.0
    reference = values.get(baseline, {})
    comparisons = {
        loss: _pairs(loss_values, reference, seeds, sign)
        for loss, loss_values in values.items()
        if loss != baseline
    }
    if not tested:
        return comparisons
    return judge(comparisons, dict.fromkeys(comparisons, margin), len(seeds), look)


def judge(
    comparisons: Mapping[Key, Comparison],
    margins: Mapping[Key, float | None],
    seeds: int,
    look: int = 1,
) -> dict[Key, Comparison]:
    """Tests comparisons, which share the probability of an error.

    Args:
        comparisons: Differences without tests, by loss, or by task and loss.
        margins: Differences of each within it do not matter; None if none can be equivalent.
        seeds: Number of seeds of the design; with fewer pairs, a comparison is `incomplete`.
        look: Which look at the results it is.
    """
    if not comparisons:
        return {}
    flips = {
        loss: SignFlips.of(list(comparison.differences.values()))
        for loss, comparison in comparisons.items()
        if comparison.pairs == seeds
    }
    p_values = [flips[loss].p_different() if loss in flips else 1.0 for loss in comparisons]
    count, share = len(p_values), share_of_look(look)
    judged = {}
    for (loss, comparison), p, p_holm in zip(
        comparisons.items(), p_values, holm(p_values), strict=True
    ):
        if loss not in flips:
            judged[loss] = replace(comparison, verdict="incomplete")
            continue
        p_adjusted, p_equivalent = min(1.0, p_holm / share), None
        if (margin := margins[loss]) is not None:
            p_equivalent = min(1.0, flips[loss].p_equivalent(margin) * count / share)
        verdict = _verdict(comparison.difference or 0.0, p_adjusted, p_equivalent)
        # Holm's method tests a loss at a level that grows with the number of smaller p values. For
        # a loss that it does not reject, the level is that of its first step, as it is for
        # equivalence: no method that steps down has intervals that bound such a loss on both sides.
        smaller = sum(other < p for other in p_values)
        level = ALPHA * share / (count - smaller if verdict in ("better", "worse") else count)
        judged[loss] = replace(
            comparison,
            interval=flips[loss].interval(level),
            level=level,
            p=p,
            p_adjusted=p_adjusted,
            p_equivalent=p_equivalent,
            verdict=verdict,
        )
    return judged


def with_outlook(
    comparisons: Mapping[str, Comparison], margin: float | None, look: int, tasks: int = 1
) -> dict[str, Comparison]:
    """Adds what would decide them to the comparisons that are undecided.

    Args:
        comparisons: What `compare` returned.
        margin: The margin that it was given.
        look: The look that it was given.
        tasks: Number of tasks, among which the error is shared as well.
    """
    count = len(comparisons) * tasks

    def ahead(comparison: Comparison) -> Outlook | None:
        if comparison.verdict != "undecided" or comparison.sd is None:
            return None
        difference = comparison.difference or 0.0
        return outlook(difference, comparison.sd, margin, comparison.pairs, count, look)

    return {
        loss: replace(comparison, outlook=ahead(comparison))
        for loss, comparison in comparisons.items()
    }


def _pairs(
    values: Mapping[int, float], reference: Mapping[int, float], seeds: Sequence[int], sign: float
) -> Comparison:
    """The comparison of a loss's values with the baseline's, without tests."""
    pairs = [seed for seed in seeds if seed in values and seed in reference]
    differences = [sign * (values[seed] - reference[seed]) for seed in pairs]
    better = [(difference > 0) + (difference == 0) / 2 for difference in differences]
    return Comparison(
        pairs=len(pairs),
        differences=dict(zip(map(str, pairs), differences, strict=True)),
        difference=fmean(differences) if pairs else None,
        sd=stdev(differences) if len(pairs) > 1 else None,
        probability_better=fmean(better) if pairs else None,
    )


def _verdict(difference: float, p_adjusted: float, p_equivalent: float | None) -> str:
    if p_adjusted <= ALPHA:
        return "better" if difference > 0 else "worse"
    if p_equivalent is not None and p_equivalent <= ALPHA:
        return "equivalent"
    return "undecided"


def seed_spread(values: Mapping[str, Mapping[int, float]], baseline: str) -> float | None:
    """The standard deviation that a change of seed alone makes to the baseline: the default margin.

    Args:
        values: The metric by loss and seed.
        baseline: One of the losses.

    Returns:
        The standard deviation; None if it is zero, or for fewer than two values.
    """
    scores = list(values.get(baseline, {}).values())
    return (stdev(scores) or None) if len(scores) > 1 else None


def describe_spread(
    values: Mapping[str, Mapping[int, float]],
    baseline: str,
    comparisons: int,
    seeds: int,
    look: int = 1,
) -> str:
    """What a design can show, in words, judged by the spread of the first runs.

    Args:
        values: The metric by loss and seed, for the first seeds.
        baseline: One of the losses.
        comparisons: Number of losses that will be tested against the baseline.
        seeds: Number of pairs per loss that the tests will have.
        look: Which look at the results it will be.

    Returns:
        A sentence; empty if no loss has two pairs or the design can show nothing.
    """
    pilot_seeds = sorted({seed for loss_values in values.values() for seed in loss_values})
    pilot = compare(values, baseline, pilot_seeds, tested=False)
    spread = median_spread(comparison.sd for comparison in pilot.values())
    if spread is None:
        return ""
    detectable = detectable_difference(spread, seeds, comparisons, look)
    if not math.isfinite(detectable):
        return ""
    return (
        f"By the first {len(pilot_seeds)} seeds, paired differences have a standard deviation of "
        f"{spread:.2g}; {seeds} seeds find a true difference of {detectable:.2g} four times out of "
        "five, and larger ones more often."
    )

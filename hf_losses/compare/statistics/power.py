"""Which differences a number of seeds can find, and how many seeds would decide."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

import numpy as np

from hf_losses.compare.statistics.p_values import ALPHA, share_of_look, smallest_p

POWER = 0.8
MOST_SEEDS = 100  # If more are needed, the report gives no number.


@dataclass(frozen=True)
class Outlook:
    """What would decide a comparison, if its true difference and spread are the observed ones.

    Attributes:
        seeds: How many more seeds decide it four times out of five; None for more than
            `MOST_SEEDS`.
        shows: What they would show: `difference` or `equivalence`; None together with `seeds`.
    """

    seeds: int | None
    shows: str | None


def seeds_needed(comparisons: int, look: int = 1) -> int:
    """The fewest seeds with which a difference can be significant at 5 %.

    Args:
        comparisons: Number of losses beside the baseline.
        look: Which look at the results it is.
    """
    return math.ceil(1 + math.log2(comparisons / (ALPHA * share_of_look(look))))


def detectable_difference(spread: float, seeds: int, comparisons: int, look: int = 1) -> float:
    """The true difference that a design finds four times out of five.

    It follows from the power of the paired t test at the level of Holm's first step. This
    approximates the sign-flip test, whose power has no closed form.

    Args:
        spread: Standard deviation of the paired differences.
        seeds: Number of pairs per loss.
        comparisons: Number of losses beside the baseline.
        look: Which look at the results it is.

    Returns:
        The difference in the units of `spread`; infinite if the seeds are too few to find any.
    """
    from statsmodels.stats.power import TTestPower

    if smallest_p(seeds, comparisons, look) > ALPHA:
        return math.inf
    alpha = ALPHA * share_of_look(look) / comparisons
    effect = TTestPower().solve_power(nobs=seeds, alpha=alpha, power=POWER)
    return float(effect) * spread


def outlook(
    difference: float,
    spread: float,
    margin: float | None,
    seeds: int,
    comparisons: int,
    look: int,
) -> Outlook:
    """How many more seeds would decide a comparison that is undecided.

    Args:
        difference: Mean of the paired differences.
        spread: Their standard deviation.
        margin: Differences within it do not matter; None if there is no margin.
        seeds: Number of pairs.
        comparisons: Number of losses beside the baseline.
        look: The look that left it undecided; the seeds are those of the next one.

    Returns:
        The smaller number of seeds, by the power of t tests, of those that show a difference and
        those that show equivalence.
    """
    from statsmodels.stats.power import ttest_power

    fewest = max(seeds + 1, seeds_needed(comparisons, look + 1))
    totals = np.arange(fewest, seeds + MOST_SEEDS + 1)
    alpha = ALPHA * share_of_look(look + 1) / comparisons
    spread = max(spread, 1e-9 * (abs(difference) or 1.0))  # Equal differences have none.

    def power(effect: float) -> np.ndarray:
        # Of a two-sided test, less its negligible other side, which scipy often makes NaN. Beyond
        # some effect the distribution cannot be computed, and the power is 1.
        chances = ttest_power(min(effect / spread, 10.0), totals, alpha / 2, alternative="larger")
        return np.asarray(chances, dtype=float)

    powers = {"difference": power(abs(difference))}
    if margin is not None and margin > abs(difference):
        sides = (margin - abs(difference), margin + abs(difference))
        # At least this, by Bonferroni's inequality.
        one, other = map(power, sides)
        powers["equivalence"] = one + other - 1
    enough = {
        shows: int(totals[chances >= POWER][0]) - seeds
        for shows, chances in powers.items()
        if (chances >= POWER).any()
    }
    if not enough:
        return Outlook(None, None)
    shows = min(enough, key=lambda name: enough[name])
    return Outlook(enough[shows], shows)


def median_spread(spreads: Iterable[float | None]) -> float | None:
    """The median over the losses of the standard deviation of the paired differences.

    It is the median since a loss that fails to learn on some seeds has a spread of its own.

    Args:
        spreads: Standard deviation of each loss; None for a loss with fewer than two pairs.

    Returns:
        The median; None if no loss has two pairs.
    """
    known = [spread for spread in spreads if spread is not None]
    return median(known) if known else None


def describe_design(comparisons: int, seeds: int, look: int = 1, tasks: int = 1) -> str:
    """What a design can show, in words, before any run has been made.

    Args:
        comparisons: Number of losses beside the baseline, times the number of tasks.
        seeds: Number of pairs per loss.
        look: Which look at the results it will be.
        tasks: Number of tasks.
    """
    count = comparisons // tasks
    losses = "1 loss" if count == 1 else f"{count} losses"
    again = f", look {look} at the results" if look > 1 else ""
    smallest = smallest_p(seeds, comparisons, look)
    if tasks > 1:
        again = f" on each of {tasks} tasks{again}"
    text = (
        f"{seeds} paired seed{'s' * (seeds != 1)}, {losses} against the baseline{again}: the "
        f"smallest p value possible is {smallest:.2g} after correction for losses"
        f"{', tasks' * (tasks > 1)} and looks"
    )
    if smallest <= ALPHA:
        return f"{text}, so a difference can be found at {ALPHA:.0%}."
    return (
        f"{text}: nothing can be decided at {ALPHA:.0%}, however large a difference is. That takes "
        f"{seeds_needed(comparisons, look)} seeds, or fewer losses (--screen, --confirm, --top)."
    )

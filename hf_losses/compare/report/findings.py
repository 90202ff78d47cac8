"""What a comparison found, in sentences: the answer, the verdicts, and what the design can show.

The formats of all numbers of a report are here as well.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median

from hf_losses.compare.plan import Plan
from hf_losses.compare.results import Results
from hf_losses.compare.statistics.comparison import Comparison
from hf_losses.compare.statistics.p_values import ALPHA
from hf_losses.compare.statistics.power import MOST_SEEDS, Outlook, describe_design
from hf_losses.compare.statistics.summary import StageResult, Statistics

NOTHING = "–"
VERDICTS = ("better", "equivalent", "undecided", "worse", "incomplete")


def answer(results: Results, statistics: Statistics, digits: str) -> str:
    """The answer to "which loss should I use?", in one sentence, and what speaks against it.

    Args:
        results: The results of the runs.
        statistics: The statistics of these results.
        digits: What `number_format` returns.

    Returns:
        Text with the names of losses in backquotes.
    """
    sentence = _answer(results, statistics, digits)
    if results.same_inputs:
        return sentence
    return (
        f"{sentence} But the runs were not made with one script and the same files, to which a "
        "difference may be due."
    )


def _answer(results: Results, statistics: Statistics, digits: str) -> str:
    if not any(run.finished for run in results.runs):
        return "No run has finished, so nothing was found."
    tested = [stage for stage in statistics.stages if stage.tested]
    if not tested:
        return "Nothing is tested yet."
    stage = tested[0]
    comparisons = {r.loss: r.comparison for r in stage.losses if r.comparison}
    if not comparisons:
        return "None of the losses came through the screening, so nothing can be tested."
    verdicts = [str(comparison.verdict) for comparison in comparisons.values()]
    counts = Counter(verdicts)
    if counts["incomplete"] == len(verdicts):
        return "Nothing can be said yet, since runs are missing."
    if len(stage.seeds) < stage.seeds_needed:
        tasks = results.plan.tasks
        on_tasks = f" on {tasks} tasks" if tasks > 1 else ""
        return (
            f"{len(stage.seeds)} seeds are too few for an answer: with "
            f"{_losses(len(verdicts))} to test{on_tasks}, it takes at least {stage.seeds_needed}."
        )
    baseline = f"`{results.plan.baseline}`"
    in_metric = f"in {results.metric.name}" if results.metric else ""
    if better := {loss: c for loss, c in comparisons.items() if c.verdict == "better"}:
        return _use(better, baseline, in_metric, formatted(stage.margin, digits), digits)
    if counts["equivalent"] == len(verdicts):
        losses = f"all {len(verdicts)} losses tested are"
        if len(verdicts) == 1:
            losses = f"`{next(iter(comparisons))}` is"
        margin = formatted(stage.margin, digits)
        return (
            f"It makes no difference that matters: {losses} equivalent to {baseline}, within "
            f"{margin} {in_metric}."
        )
    open_ends = counts["undecided"] + counts["incomplete"]
    keep = f"Keep {baseline}{' for now' * (open_ends > 0)}"
    if len(verdicts) == 1:
        says = "is worse" if verdicts == ["worse"] else "is not shown to be better, nor equivalent"
        return f"{keep}: `{next(iter(comparisons))}` {says}."
    chosen = f" (chosen from {len(results.plan.losses) - 1})" if results.plan.screen else ""
    shares = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    shown = "shown to be better" if open_ends else "better"
    return f"{keep}: none of the {len(verdicts)} losses tested{chosen} is {shown} ({shares})."


def _use(
    better: Mapping[str, Comparison], baseline: str, in_metric: str, margin: str, digits: str
) -> str:
    """The answer where losses are better."""
    beyond = [c.difference or 0.0 for c in better.values() if not within_margin(c)]
    # A larger gain is no reason against a loss because it is better known to be within the margin.
    least = min(beyond, default=-math.inf)
    chosen = {loss: c for loss, c in better.items() if (c.difference or 0.0) >= least}
    gains = sorted(comparison.difference or 0.0 for comparison in chosen.values())
    gain = " to ".join(dict.fromkeys(formatted(value, digits) for value in (gains[0], gains[-1])))
    losses = _joined_by("or", [f"`{loss}`" for loss in chosen])
    if not beyond:
        verb = "are" if len(chosen) > 1 else "is"
        losses = joined([f"`{loss}`" for loss in chosen])
        return (
            f"It hardly matters: {losses} {verb} better than {baseline} by {gain} {in_metric}, "
            f"less than the margin of {margin}."
        )
    if len(chosen) > 1:
        return (
            f"Use {losses}: each is better than {baseline}, by {gain} {in_metric}; they were not "
            "tested against each other."
        )
    (comparison,) = chosen.values()
    interval = ""
    if comparison.interval:
        interval = f" [{', '.join(formatted(limit, digits) for limit in comparison.interval)}]"
    return f"Use {losses}: it is better than {baseline} by {gain}{interval} {in_metric}."


def within_margin(comparison: Comparison) -> bool:
    """Whether a difference is smaller than the margin, even if it is there."""
    p = comparison.p_equivalent
    return p is not None and p <= ALPHA


def _losses(count: int) -> str:
    return f"{count} loss{'es' * (count > 1)}"


def _outlook(outlook: Outlook | None) -> str:
    """What would decide an undecided comparison."""
    if outlook is None:
        return "one seed says nothing of the spread"
    if outlook.seeds is None:
        return f"more than {MOST_SEEDS} more seeds"
    seeds = f"{outlook.seeds} more seed{'s' * (outlook.seeds > 1)}"
    return f"about {seeds} would show {'a ' * (outlook.shows == 'difference')}{outlook.shows}"


def findings(results: Results, statistics: Statistics, digits: str) -> list[str]:
    """The verdicts, in sentences with the names of losses in backquotes; empty without any.

    Args:
        results: The results of the runs.
        statistics: The statistics of these results.
        digits: What `number_format` returns.
    """
    tested = [stage for stage in statistics.stages if stage.tested]
    if not tested or not any(run.finished for run in results.runs):
        return []
    baseline = f"`{results.plan.baseline}`"
    by_verdict: dict[str | None, list[str]] = {}
    for result in tested[0].losses:
        if result.comparison:
            by_verdict.setdefault(result.comparison.verdict, []).append(f"`{result.loss}`")
    sentences = []
    for verdict in ("better", "worse"):
        if losses := by_verdict.get(verdict):
            verb = "are" if len(losses) > 1 else "is"
            sentences.append(f"{joined(losses)} {verb} {verdict} than {baseline}.")
    if losses := by_verdict.get("equivalent"):
        verb = "are" if len(losses) > 1 else "is"
        margin = formatted(tested[0].margin, digits)
        sentences.append(
            f"{joined(losses)} {verb} equivalent to {baseline}: within a margin of {margin}."
        )
    if undecided := [
        f"`{result.loss}` ({_outlook(result.comparison.outlook)})"
        for result in tested[0].losses
        if result.comparison and result.comparison.verdict == "undecided"
    ]:
        sentences.append(f"Undecided against {baseline}: {joined(undecided)}.")
    if losses := by_verdict.get("incomplete"):
        sentences.append(f"Not judged, since runs are missing: {joined(losses)}.")
    values = {tuned.loss: tuned.parameters for tuned in statistics.tuned}
    if other := [
        f"`{result.loss}`"
        for result in tested[0].losses
        if result.comparison
        and result.comparison.verdict in ("better", "worse")
        and values.get(result.loss) != values.get(results.plan.baseline)
    ]:
        flags = joined([f"`{name}`" for name in results.plan.tune])
        sentences.append(
            f"The tuning chose another {flags} for {joined(other)} than for {baseline}, to which a "
            "part of the difference may be due: compare both with the same."
        )
    return sentences


def design_sentences(results: Results, statistics: Statistics, digits: str) -> list[str]:
    """What the design can show, in sentences.

    Args:
        results: The results of the runs.
        statistics: The statistics of these results.
        digits: What `number_format` returns.
    """
    plan = results.plan
    tests = next((stage.comparisons for stage in statistics.stages if stage.tested), 0)
    design = (tests or plan.comparisons, plan.tested_seeds, plan.look, plan.tasks)
    sentences = [describe_design(*design)]
    for stage in statistics.stages:
        if not stage.tested:
            continue
        if stage.detectable_difference is not None:
            difference = formatted(stage.detectable_difference, digits)
            sentences.append(
                f"By the spread of these runs, a true difference of {difference} is found "
                f"{statistics.power:.0%} of the time, and larger ones more often."
            )
        sentences.append(_margin_sentence(plan, stage, digits))
        unseen = 1 - ALPHA ** (1 / len(stage.seeds))  # Of such a share, none is seen at 5 %.
        sentences.append(
            f"The verdicts speak of typical runs: {len(stage.seeds)} seeds can miss failures in up "
            f"to {unseen:.0%} of a loss's runs."
        )
        sentences += _look_sentences(stage)
    return sentences + _fairness_sentences(results, statistics, digits)


def _fairness_sentences(results: Results, statistics: Statistics, digits: str) -> list[str]:
    """What tuning and a lacking test set leave open."""
    sentences = []
    if results.metric and not results.metric.set.startswith("test"):
        sentences.append(
            f"There is no test set: the losses are compared on the {results.metric.set} set, which "
            "says too much for a script that also chooses its checkpoint or its flags by it."
        )
    spreads = {
        tuned.loss: tuned.seed_spread for tuned in statistics.tuned if tuned.seed_spread is not None
    }
    if spreads:
        most = max(spreads, key=spreads.__getitem__)
        count = f"Each loss was tuned with {results.plan.tuning_seeds} seeds"
        if spreads[most]:
            sentences.append(
                f"{count}. What one of them alone would have chosen differs in value by a standard "
                f"deviation of up to {formatted(spreads[most], digits)} (`{most}`): a rough "
                "estimate of what another tuning seed makes. It is not part of the intervals."
            )
        else:
            sentences.append(f"{count}, each of which alone would have chosen the same values.")
    elif statistics.tuned:
        sentences.append(
            "What other trials or another tuning seed would have chosen is not part of the "
            "intervals (--tuning_seeds 3 shows what the seed does)."
        )
    tuned_losses = {tuned.loss for tuned in statistics.tuned}
    if statistics.tuned and statistics.stages:
        for loss in results.plan.losses:
            if loss not in tuned_losses:
                sentences.append(
                    f"`{loss}` was not run with other seeds, since none of its trials finished"
                    + (" with every tuning seed." if results.plan.tuning_seeds > 1 else ".")
                )
    if at_edge := [f"`{tuned.loss}`" for tuned in statistics.tuned if tuned.at_edge]:
        verb = "have their best values" if len(at_edge) > 1 else "has its best value"
        sentences.append(
            f"{joined(at_edge)} {verb} at the edge of what was tried, beyond which a better one "
            "may lie: widen --tune, or take more --trials."
        )
    return sentences


def _margin_sentence(plan: Plan, stage: StageResult, digits: str) -> str:
    """What equivalent means."""
    if stage.margin is None and len(stage.seeds) < 2:
        return (
            f"Nothing can be equivalent, since one seed does not tell how {plan.baseline} varies; "
            "--margin sets a margin."
        )
    if stage.margin is None:
        return (
            f"Nothing can be equivalent, since {plan.baseline} does not vary with the seed; "
            "--margin sets a margin."
        )
    margin = f"Equivalent means a difference of less than {formatted(stage.margin, digits)}"
    if plan.margin is not None:
        return f"{margin} (--margin)."
    return (
        f"{margin}, the standard deviation that another seed alone makes to {plan.baseline} "
        "(--margin sets another)."
    )


def _look_sentences(stage: StageResult) -> list[str]:
    """Which look at the results this is, and what the earlier ones said; empty for the first."""
    *earlier, last = stage.looks
    if not earlier:
        return []
    sentences = [
        f"Seeds were added after the results of {earlier[-1].seeds} had been seen: this is look "
        f"{len(stage.looks)}, whose tests share a level of {last.alpha:.2%}."
    ]
    for number, look in enumerate(earlier, 1):
        verdicts = ", ".join(f"{loss} {verdict}" for loss, verdict in look.verdicts.items())
        sentences.append(f"Look {number} ({look.seeds} seeds, {look.alpha:.2%}): {verdicts}.")
    return sentences


def number_format(results: Results) -> str:
    """The format of values of the metric: four decimals for values up to 1, fewer for larger.

    The median decides: a trial that diverged, but not to infinity, must not take the decimals of
    all others.

    Args:
        results: The results, whose values are to be formatted.
    """
    values = [run.value for run in results.runs if run.value is not None]
    typical = median(map(abs, values or [1])) or 1
    return f"z.{max(0, 4 - math.ceil(math.log10(typical)))}f"  # z: a zero gets no sign.


def formatted(value: float | None, style: str) -> str:
    """A number with a true minus sign; `NOTHING` for None."""
    return NOTHING if value is None else f"{value:{style}}".replace("-", "−")


def formatted_p(value: float | None) -> str:
    """A p value; below 0.001 only that."""
    return "<0.001" if value is not None and value < 0.001 else formatted(value, ".3g")


def joined(words: Sequence[str]) -> str:
    """Words as a list with "and"."""
    return _joined_by("and", words)


def _joined_by(word: str, words: Sequence[str]) -> str:
    return f" {word} ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]

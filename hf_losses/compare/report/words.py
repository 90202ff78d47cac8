"""What a comparison found, in words and formatted numbers, for every form of its report."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_losses.compare.plan import Plan
from hf_losses.compare.results import Metric, Results
from hf_losses.compare.statistics.comparison import Comparison
from hf_losses.compare.statistics.p_values import ALPHA
from hf_losses.compare.statistics.power import MOST_SEEDS, Outlook, describe_design
from hf_losses.compare.statistics.speed import TimeToBaseline
from hf_losses.compare.statistics.summary import LossResult, StageResult, Statistics
from hf_losses.metrics.direction import lower_is_better

NOTHING = "–"
NOT_COMPARED = Comparison(0, {}, None, None)
NO_TIME = TimeToBaseline(None, None, 0, 0, {})
# Columns that hold words; the others hold numbers.
WORDS = ("loss", "verdict", "stage", "status", "reason", "at the edge")
# Title and note of each stage.
STAGES = {
    "main": ("Losses", ""),
    "screen": (
        "Screening",
        "These seeds only chose which losses were confirmed. The best of many look better than "
        "they are, so nothing is tested here.",
    ),
    "confirm": ("Confirmation", "Runs on fresh seeds, which had no part in the choice."),
}
COLUMNS = (
    "The difference is to the baseline with the same seed, and positive where the loss is better. "
    "Its interval holds every value that a sign-flip test does not reject, at a level that allows "
    "for the number of losses and of looks; it is missing where the seeds are too few to reject "
    "anything. A loss is better or worse if its interval excludes zero, equivalent if it lies "
    "within the margin, and otherwise undecided: no proof of anything. p is that of the same test, "
    "and p (adj.) allows for losses (Holm) and looks, as does p (equiv.), by two "
    "one-sided tests at the margin. How many more seeds (--add_seeds) would decide supposes that "
    "the difference and its spread stay as they are. P(better) is the share of seeds with a better "
    "value. Steps and seconds of training are medians, until a run reaches what the baseline "
    "reaches at its best on the validation set; in brackets, how many runs get there. NLL and ECE, "
    "the expected calibration error, are means on the compared set."
)
TUNED_NOTE = (
    "The sd of the best is that of the best value if as many trials were drawn again from these. A "
    "flag is at the edge if its best value lies in the outer tenth of the range."
)

Row = Mapping[str, str]  # Text by column.


@dataclass(frozen=True)
class StageView:
    """What the report says about a stage.

    Attributes:
        title: The heading.
        note: What the reader must know about the stage; may be empty.
        rows: A row for each loss.
        seeds: A row for each seed.
    """

    title: str
    note: str
    rows: Sequence[Row]
    seeds: Sequence[Row]


@dataclass(frozen=True)
class View:
    """Everything that the table and the report say.

    Attributes:
        title: The heading.
        lead: Model, metric and seeds.
        findings: What was found, in sentences with names in backquotes.
        design: What the design can show, in sentences.
        stages: The stages in order.
        failed: A row for each run without a value.
        tuned: A row for the best trial of each tuned loss.
        trials: A row for each trial of the tuning.
        command: The command that makes the same comparison.
        versions: Names and versions of the libraries.
        hardware: Description of the machine.
    """

    title: str
    lead: Sequence[str]
    findings: Sequence[str]
    design: Sequence[str]
    stages: Sequence[StageView]
    failed: Sequence[Row]
    tuned: Sequence[Row]
    trials: Sequence[Row]
    command: str
    versions: str
    hardware: str


def view_of(results: Results, statistics: Statistics) -> View:
    """Puts results and statistics into the words of the table and the report.

    Args:
        results: The results of the runs.
        statistics: The statistics of these results.
    """
    plan, metric = results.plan, results.metric
    digits = _number_format(results)
    others = len(plan.losses) - 1
    task = results.task or Path(plan.script).stem
    seeds = f"{plan.tested_seeds} seeds"
    if plan.screen:
        seeds = f"{plan.screen} seeds to choose {plan.top}, {plan.tested_seeds} to test them"
    direction = "lower" if results.lower_is_better else "higher"
    compared = "no run has finished"
    if metric:
        compared = f"{metric.name} on the {metric.set} set ({direction} is better)"
    return View(
        title=f"{task}: {others} loss{'es' * (others > 1)} against {plan.baseline}",
        lead=[f"model `{results.model or 'not told'}`", compared, seeds],
        findings=_findings(results, statistics, digits),
        design=_design_sentences(results, statistics, digits),
        stages=[
            StageView(
                *STAGES[stage.stage], _loss_rows(results, stage, digits), _seed_rows(stage, digits)
            )
            for stage in statistics.stages
        ],
        failed=[
            {key: str(getattr(run, key)) for key in ("loss", "stage", "seed", "status", "reason")}
            for run in results.runs
            if not run.finished
        ],
        tuned=[
            {
                "loss": tuned.loss,
                **{name: f"{value:.4g}" for name, value in tuned.parameters.items()},
                "validation": formatted(tuned.value, digits),
                "± sd of the best": formatted(tuned.spread, digits),
                "at the edge": ", ".join(tuned.at_edge) or "no",
            }
            for tuned in statistics.tuned
        ],
        trials=[
            {
                "loss": run.loss,
                **{name: f"{value:.4g}" for name, value in run.parameters.items()},
                "validation": run.status if run.value is None else formatted(run.value, digits),
            }
            for run in results.runs
            if run.stage == "tune"
        ],
        command=command_lines(plan, metric, [[plan.script, *plan.arguments]]),
        versions=", ".join(f"{name} {value}" for name, value in results.versions.items()),
        hardware=_hardware(results),
    )


def _seed_rows(stage: StageResult, digits: str) -> list[Row]:
    """The value of every loss, seed by seed."""

    def cell(result: LossResult, seed: str) -> str:
        return "failed" if seed in result.failed else formatted(result.values.get(seed), digits)

    return [
        {"seed": seed} | {result.loss: cell(result, seed) for result in stage.losses}
        for seed in map(str, stage.seeds)
    ]


def _outlook(outlook: Outlook | None) -> str:
    """What would decide an undecided comparison."""
    if outlook is None:
        return "one seed says nothing of the spread"
    if outlook.seeds is None:
        return f"more than {MOST_SEEDS} more seeds"
    seeds = f"{outlook.seeds} more seed{'s' * (outlook.seeds > 1)}"
    return f"about {seeds} would show {'a ' * (outlook.shows == 'difference')}{outlook.shows}"


def _findings(results: Results, statistics: Statistics, digits: str) -> list[str]:
    """What was found, in sentences with the names of losses in backquotes."""
    if not any(run.finished for run in results.runs):
        return ["No run has finished, so nothing was found."]
    tested = [stage for stage in statistics.stages if stage.tested]
    if not tested:
        return ["Nothing is tested yet."]
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
    return sentences


def _design_sentences(results: Results, statistics: Statistics, digits: str) -> list[str]:
    """What the design can show, in sentences."""
    plan = results.plan
    sentences = [describe_design(plan.comparisons, plan.tested_seeds, plan.look, plan.tasks)]
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
    return sentences + _fairness_sentences(results, statistics)


def _fairness_sentences(results: Results, statistics: Statistics) -> list[str]:
    """What tuning and a lacking test set leave open."""
    sentences = []
    if results.metric and not results.metric.set.startswith("test"):
        sentences.append(
            f"There is no test set: the losses are compared on the {results.metric.set} set, which "
            "says too much for a script that also chooses its checkpoint or its flags by it."
        )
    if statistics.tuned:
        sentences.append(
            "Each loss was tuned once: what other trials would have chosen is not part of the "
            "intervals."
        )
    if at_edge := [f"`{tuned.loss}`" for tuned in statistics.tuned if tuned.at_edge]:
        verb = "have their best values" if len(at_edge) > 1 else "has its best value"
        sentences.append(
            f"{joined(at_edge)} {verb} at the edge of the tuned range, beyond which a better one "
            "may lie: widen --tune."
        )
    return sentences


def _margin_sentence(plan: Plan, stage: StageResult, digits: str) -> str:
    """What equivalent means."""
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


def _loss_rows(results: Results, stage: StageResult, digits: str) -> list[Row]:
    """The table of a stage: text by column, without columns that are empty in every row."""
    metric = results.metric.name if results.metric else "metric"
    rows = []
    for result in stage.losses:
        comparison = result.comparison or NOT_COMPARED
        time = result.time_to_baseline or NO_TIME
        limits = ""
        if comparison.interval:
            low, high = (formatted(limit, f"+{digits}") for limit in comparison.interval)
            limits = f" [{low}, {high}]"
        reached = f" ({time.reached}/{time.runs})" if result.time_to_baseline else ""
        row = {
            "loss": result.loss,
            "verdict": _verdict(result, stage) if stage.tested else NOTHING,
            f"{metric} ± sd": formatted(result.mean, digits)
            + ("" if result.sd is None else f" ± {formatted(result.sd, digits)}"),
            "difference [interval]": formatted(comparison.difference, f"+{digits}") + limits,
            "p": formatted_p(comparison.p),
            "p (adj.)": formatted_p(comparison.p_adjusted),
            "p (equiv.)": formatted_p(comparison.p_equivalent),
            "P(better)": formatted(comparison.probability_better, ".2f"),
            "steps": formatted(time.steps, "g") + reached,
            "seconds": formatted(time.seconds, ".1f"),
            "NLL": formatted(result.cross_entropy, ".4f"),
            "ECE": formatted(result.ece, ".4f"),
        }
        rows.append(row)
    columns = [column for column in rows[0] if any(row[column] != NOTHING for row in rows)]
    return [{column: row[column] for column in columns} for row in rows]


def _verdict(result: LossResult, stage: StageResult) -> str:
    """The verdict, with the number of failed and missing seeds where the comparison lacks any."""
    without_value = {"failed": len(result.failed), "missing": len(result.missing)}
    gaps = [f"{count} {reason}" for reason, count in without_value.items() if count]
    of_seeds = f" of {len(stage.seeds)} seeds" if gaps else ""
    if result.comparison is None:
        return "baseline" + (f": {', '.join(gaps)}{of_seeds}" if gaps else "")
    verdict = str(result.comparison.verdict)
    if verdict == "undecided" and result.comparison.outlook:
        seeds = result.comparison.outlook.seeds
        return f"{verdict}: {seeds or f'over {MOST_SEEDS}'} more seeds"
    if verdict in ("better", "worse") and (result.comparison.p_equivalent or 1) <= ALPHA:
        return f"{verdict}: by less than the margin"
    if verdict != "incomplete":
        return verdict
    return f"incomplete: {', '.join(gaps) + of_seeds if gaps else 'the baseline lacks seeds'}"


def command_lines(plan: Plan, metric: Metric | None, sections: Sequence[Sequence[str]]) -> str:
    """The commands that make the same comparison, with FOLDER for the output folder."""
    words = ["hf-losses", "compare", "--losses", *plan.losses, "--baseline", plan.baseline]
    for name in ("seeds", "screen", "confirm", "top", "metric", "margin"):
        if (value := getattr(plan, name)) is not None:
            words += [f"--{name}", str(value)]
    if metric and plan.lower_is_better != lower_is_better(metric.name):
        words.append("--lower_is_better" if plan.lower_is_better else "--no-lower_is_better")
    if plan.tune:
        ranges = [f"{name}={low!r}:{high!r}" for name, (low, high) in plan.tune.items()]
        words += ["--tune", *ranges, "--trials", str(plan.trials)]
    if plan.launcher:
        words += ["--launcher", shlex.join(plan.launcher)]
    words += ["--output_dir", "FOLDER"]
    for section in sections:
        words += ["--", *section]
    commands = [words, *([*words[:2], "--add_seeds", str(n), *words[2:]] for n in plan.added)]
    return "\n".join(map(shlex.join, commands))


def _hardware(results: Results) -> str:
    hardware = results.hardware
    parts = [str(hardware["gpu"])] if hardware.get("gpu") else []
    if hardware.get("cpu_count"):
        parts.append(f"{hardware['cpu_count']} CPU cores")
    text = ", ".join(parts)
    if not results.same_everywhere:
        text += "; runs differ in versions or hardware, and these are those of the first"
    return text.removeprefix("; ")


def _number_format(results: Results) -> str:
    """The format of values of the metric: four decimals for values up to 1, fewer for larger."""
    values = [run.value for run in results.runs if run.value is not None]
    largest = max(map(abs, values), default=1) or 1
    return f"z.{max(0, 4 - math.ceil(math.log10(largest)))}f"  # z: a zero gets no sign.


def formatted(value: float | None, style: str) -> str:
    """A number with a true minus sign; a dash for None."""
    return NOTHING if value is None else f"{value:{style}}".replace("-", "−")


def formatted_p(value: float | None) -> str:
    """A p value."""
    return "<0.001" if value is not None and value < 0.001 else formatted(value, ".3g")


def joined(words: Sequence[str]) -> str:
    """Words as a list within a sentence."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]

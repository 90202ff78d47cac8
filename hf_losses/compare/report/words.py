"""What a comparison found, in words and formatted numbers, for every form of its report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_losses.compare.plan import Plan
from hf_losses.compare.report.findings import (
    NOTHING,
    answer,
    design_sentences,
    findings,
    formatted,
    formatted_p,
    number_format,
    within_margin,
)
from hf_losses.compare.results import Metric, Results
from hf_losses.compare.statistics.comparison import Comparison
from hf_losses.compare.statistics.cost import cost
from hf_losses.compare.statistics.power import MOST_SEEDS
from hf_losses.compare.statistics.speed import TimeToBaseline
from hf_losses.compare.statistics.summary import LossResult, StageResult, Statistics
from hf_losses.messages import UsageError
from hf_losses.metrics.direction import check_direction_known, lower_is_better

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
# What the numbers of a column are; `columns_of` adds the columns whose names depend on the results.
DEFINITIONS = {
    "loss": "the loss, perhaps with flags of the script",
    "verdict": "better or worse if the interval excludes zero, equivalent if it lies within the "
    "margin, otherwise undecided, which is no proof of anything; the number of more seeds "
    "(--add_seeds) supposes that the difference and its spread stay as they are",
    "difference [interval]": "mean difference to the baseline with the same seed, positive where "
    "the loss is better; the interval holds every value that a sign-flip test does not reject, at "
    "a level that allows for the number of losses and of looks, and is missing where the seeds are "
    "too few to reject anything",
    "wall seconds": "median duration of a whole run, with loading and evaluation; it depends on "
    "the machine and on how many runs went on at a time",
    "steps": "median number of optimizer steps of a run",
    "p": "p value of the sign-flip test of no difference, before any correction",
    "p (adj.)": "the same p value after correction for the losses (Holm) and the looks",
    "p (equiv.)": "p value of two one-sided tests at the margin, after the same corrections by "
    "Bonferroni",
    "P(better)": "share of the seeds on which the loss is better; ties count half",
    "steps to baseline": "median number of optimizer steps until a run reaches what the baseline "
    "reaches at its best on the validation set; in brackets, how many runs get there",
    "seconds to baseline": "the same in seconds of training",
    "steps to 95 %": "optimizer steps until a run reaches 95 % of that value (an error: 1/0.95 of "
    "it): the median; behind × the ratio to the baseline's own with the same seed (geometric "
    "mean, and the ratios that a sign-flip test does not reject at 5 %, without correction; up to "
    "∞ where a run does not get there, whose last evaluation is the least that it takes); and how "
    "many runs get there",
    "NLL": "mean negative log-likelihood (cross-entropy) on the compared set",
    "ECE": "mean expected calibration error on the compared set, in 15 bins",
    "seed": "the script's --seed",
    "stage": "the part of the comparison that the run belongs to",
    "status": "failed: the script crashed or wrote no valid result; diverged: the metric is not "
    "finite",
    "reason": "the last line of the error",
    "validation": "the compared metric on the validation set; of the best trial, the mean over the "
    "tuning seeds",
    "± sd of the best": "standard deviation of the best value if as many trials were drawn again "
    "from these",
    "± sd by seed": "roughly what another tuning seed makes: the standard deviation of the values "
    "of the trials that each tuning seed alone would have chosen",
    "at the edge": "flags whose best value is the lowest or the highest of three or more that were "
    "tried, or lies in the outer tenth of the tuned range",
}

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
        answer: The answer in one sentence, with names in backquotes, as in the following ones.
        findings: The verdicts, in sentences.
        design: What the design can show, in sentences.
        stages: The stages in order.
        failed: A row for each run without a value.
        tuned: A row for the best trial of each tuned loss.
        trials: A row for each run of the tuning.
        definitions: What the numbers are, for each column of the tables.
        command: The command that makes the same comparison.
        versions: Names and versions of the libraries.
        hardware: Description of the machine.
    """

    title: str
    lead: Sequence[str]
    answer: str
    findings: Sequence[str]
    design: Sequence[str]
    stages: Sequence[StageView]
    failed: Sequence[Row]
    tuned: Sequence[Row]
    trials: Sequence[Row]
    definitions: Mapping[str, str]
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
    digits = number_format(results)
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
        answer=answer(results, statistics, digits),
        findings=findings(results, statistics, digits),
        design=design_sentences(results, statistics, digits),
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
                **(
                    {"± sd by seed": formatted(tuned.seed_spread, digits)}
                    if plan.tuning_seeds > 1
                    else {}
                ),
                "at the edge": ", ".join(tuned.at_edge) or "no",
            }
            for tuned in statistics.tuned
        ],
        trials=[
            {
                "loss": run.loss,
                **{name: f"{value:.4g}" for name, value in run.parameters.items()},
                **({"seed": str(run.seed)} if plan.tuning_seeds > 1 else {}),
                "validation": run.status if run.value is None else formatted(run.value, digits),
            }
            for run in results.runs
            if run.stage == "tune"
        ],
        definitions=_definitions(results, compared),
        command=command_lines(plan, metric, [[plan.script, *plan.arguments]]),
        versions=", ".join(f"{name} {value}" for name, value in results.versions.items()),
        hardware=_hardware(results),
    )


def _definitions(results: Results, compared: str) -> dict[str, str]:
    """What the numbers are, for every column of every table."""
    plan, metric = results.plan, results.metric
    seeds = f"{compared}: mean and standard deviation over the seeds"
    return {
        **{loss: f"{compared}, with {loss} and this seed" for loss in plan.losses},
        **{flag: f"value of the tuned flag --{flag}" for flag in plan.tune},
        **DEFINITIONS,
        f"{metric.name if metric else 'metric'} ± sd": seeds,
    }


def _seed_rows(stage: StageResult, digits: str) -> list[Row]:
    """The value of every loss, seed by seed."""

    def cell(result: LossResult, seed: str) -> str:
        return "failed" if seed in result.failed else formatted(result.values.get(seed), digits)

    return [
        {"seed": seed} | {result.loss: cell(result, seed) for result in stage.losses}
        for seed in map(str, stage.seeds)
    ]


def _loss_rows(results: Results, stage: StageResult, digits: str) -> list[Row]:
    """The table of a stage: text by column, without columns that are empty in every row."""
    metric = results.metric.name if results.metric else "metric"
    rows = []
    for result in stage.losses:
        comparison = result.comparison or NOT_COMPARED
        time = result.time_to_baseline or NO_TIME
        typical = cost(results, stage.stage, result.loss)
        limits = ""
        if comparison.interval:
            low, high = (formatted(limit, f"+{digits}") for limit in comparison.interval)
            limits = f" [{low}, {high}]"
        row = {
            "loss": result.loss,
            "verdict": _verdict(result, stage) if stage.tested else NOTHING,
            f"{metric} ± sd": formatted(result.mean, digits)
            + ("" if result.sd is None else f" ± {formatted(result.sd, digits)}"),
            "difference [interval]": formatted(comparison.difference, f"+{digits}") + limits,
            "wall seconds": formatted(typical.wall_seconds, ".1f"),
            "steps": formatted(typical.steps, "g"),
            "p": formatted_p(comparison.p),
            "p (adj.)": formatted_p(comparison.p_adjusted),
            "p (equiv.)": formatted_p(comparison.p_equivalent),
            "P(better)": formatted(comparison.probability_better, ".2f"),
            "steps to baseline": formatted(time.steps, "g") + _reached(result.time_to_baseline),
            "seconds to baseline": formatted(time.seconds, ".1f"),
            "steps to 95 %": steps_to_most(result.time_to_most, result.comparison is None),
            "NLL": formatted(result.cross_entropy, ".4f"),
            "ECE": formatted(result.ece, ".4f"),
        }
        rows.append(row)
    columns = [column for column in rows[0] if any(row[column] != NOTHING for row in rows)]
    return [{column: row[column] for column in columns} for row in rows]


def _reached(time: TimeToBaseline | None) -> str:
    """How many runs reach the value."""
    return f" ({time.reached}/{time.runs})" if time else ""


def steps_to_most(time: TimeToBaseline | None, of_baseline: bool) -> str:
    """The steps to most of the baseline's best value, or their ratio to the baseline's own.

    Args:
        time: When a loss gets there; None if that is not known.
        of_baseline: Whether the loss is the baseline.
    """
    if time is None:
        return NOTHING
    if of_baseline or (time.ratio is None and time.ratio_interval is None):
        return formatted(time.steps, "g") + _reached(time)
    if time.ratio is None:
        steps = "" if time.steps is None else f"{time.steps:g}, "
        ratio = f"{steps}×"
    else:
        ratio = f"×{time.ratio:.2f}"
    limits = ""
    if time.ratio_interval is not None:
        low, high = time.ratio_interval
        limits = f" [{low:.2f}, " + ("∞)" if high is None else f"{high:.2f}]")
    return ratio + limits + _reached(time)


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
    if verdict in ("better", "worse") and within_margin(result.comparison):
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
    if metric and not _direction_follows(plan, metric.name):
        words.append("--lower_is_better" if plan.lower_is_better else "--no-lower_is_better")
    if plan.tune:
        ranges = [f"{name}={low!r}:{high!r}" for name, (low, high) in plan.tune.items()]
        words += ["--tune", *ranges, "--trials", str(plan.trials)]
    if plan.tuning_seeds > 1:
        words += ["--tuning_seeds", str(plan.tuning_seeds)]
    if plan.launcher:
        words += ["--launcher", shlex.join(plan.launcher)]
    words += ["--output_dir", "FOLDER"]
    for section in sections:
        words += ["--", *section]
    commands = [words, *([*words[:2], "--add_seeds", str(n), *words[2:]] for n in plan.added)]
    return "\n".join(map(shlex.join, commands))


def _direction_follows(plan: Plan, metric: str) -> bool:
    """Whether the metric's name alone tells the plan's direction."""
    try:
        check_direction_known(metric)
    except UsageError:
        return False
    return plan.lower_is_better == lower_is_better(metric)


def _hardware(results: Results) -> str:
    hardware = results.hardware
    parts = [str(hardware["gpu"])] if hardware.get("gpu") else []
    if hardware.get("cpu_count"):
        of = f" of {hardware['cpu']}" if hardware.get("cpu") else ""
        parts.append(f"{hardware['cpu_count']} CPU cores{of}")
    text = ", ".join(parts)
    if not results.same_everywhere:
        text += "; runs differ in versions, hardware, script or files: these are of the first"
    return text.removeprefix("; ")

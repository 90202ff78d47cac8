"""`hf-losses compare`: the same script with several losses, on the same seeds.

The folder of a comparison holds `plan.json` (the flags), `runs/LOSS/seed-1` (a run's own folder),
`seed-1.log`, `seed-1.json` (see `engines.run`), and the files of the report.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from hf_losses.compare.engines.pool import Pool, has_flags
from hf_losses.compare.engines.run import MARK, Engine, Run, single, stored_record
from hf_losses.compare.plan import PLAN, Plan, read_plan
from hf_losses.compare.results import (
    Facts,
    Metric,
    Results,
    RunRecord,
    RunSettings,
    Tuning,
    finished_trials,
)
from hf_losses.compare.runs import inputs_of, make_run, planned_runs, read_result
from hf_losses.compare.tuning import STORE, trials

LOCK = ".lock"
PILOT_SEEDS = 3  # The spread is estimated after this many seeds.


def collect(folder: Path) -> Results:
    """Everything a comparison has measured so far.

    Args:
        folder: The folder of a comparison.

    Returns:
        Results that do not depend on the order in which the runs ended.

    Raises:
        UsageError: If the folder holds no comparison.
    """
    plan = read_plan(folder)
    records = [record for run in planned_runs(plan, folder) if (record := stored_record(run))]
    reported = [record.facts for record in records if record.facts]
    facts = reported[0] if reported else Facts()
    same_inputs = len({run_facts.inputs for run_facts in reported if run_facts.inputs}) < 2
    metrics = (record.metric for record in records if record.stage != "tune" and record.metric)
    metric = next(metrics, None)
    best = {loss: best_trial(plan, loss, records) for loss in plan.losses}
    # As long as there are only trials, their metric tells the direction.
    known = metric or next((record.metric for record in records if record.metric), None)
    return Results(
        plan=replace(plan, lower_is_better=plan.minimizes(known.name if known else "")),
        task=facts.task,
        model=facts.model,
        metric=metric,
        versions=facts.versions or {},
        hardware=facts.hardware or {},
        # Runs of one comparison may have been made by several machines or installations.
        same_everywhere=_agree([run_facts.versions for run_facts in reported])
        and _agree([run_facts.hardware for run_facts in reported])
        and same_inputs,
        same_inputs=same_inputs,
        tuned={loss: tuning for loss, tuning in best.items() if tuning},
        runs=records,
        classes=facts.classes or (),
    )


def _agree(records: Sequence[Mapping[str, Any] | None]) -> bool:
    """Whether all records say the same; those of later versions of this package name more."""
    named = [record for record in records if record]
    keys = {key for record in named for key in record}
    return len(named) in (0, len(records)) and all(
        len({repr(record[key]) for record in named if key in record}) == 1 for key in keys
    )


def best_trial(plan: Plan, loss: str, records: Iterable[RunRecord]) -> Tuning | None:
    """The trial of a loss that did best on the validation set.

    Args:
        plan: The plan.
        loss: The loss.
        records: Records of any runs.

    Returns:
        Its parameters and value; None if no trial of the loss finished.
    """
    records = list(records)
    finished = finished_trials(plan, loss, records)
    if not finished:
        return None
    sign = -1 if plan.minimizes(next(r.metric.name for r in records if r.metric)) else 1
    best = max(finished, key=lambda trial: sign * trial.mean)
    return Tuning(best.parameters, best.mean)


def best_losses(plan: Plan, records: Sequence[RunRecord]) -> list[str]:
    """The losses that the screening leaves: the baseline and the best ones by their mean.

    Args:
        plan: The plan.
        records: All records so far.

    Returns:
        The losses in the plan's order. Those whose confirmation has begun stay, whatever a run that
        was made once more says of the others.
    """
    begun = [loss for loss in plan.losses if any(_is_of(r, "confirm", loss) for r in records)]
    means = {}
    for loss in plan.losses:
        screened = [record for record in records if _is_of(record, "screen", loss)]
        if loss != plan.baseline and screened and all(record.finished for record in screened):
            means[loss] = sum(_score(plan, record) for record in screened) / len(screened)
    begun = [loss for loss in begun if loss != plan.baseline]
    others = sorted(means.keys() - begun, key=lambda loss: (-means[loss], plan.losses.index(loss)))
    best = [*begun, *others[: max(0, (plan.top or 0) - len(begun))]]
    return [loss for loss in plan.losses if loss == plan.baseline or loss in best]


def _is_of(record: RunRecord, stage: str, loss: str) -> bool:
    return (record.stage, record.loss) == (stage, loss)


def _score(plan: Plan, record: RunRecord) -> float:
    """The value of a finished run, negated if smaller values are better."""
    value, metric = cast(float, record.value), cast(Metric, record.metric)
    return -value if plan.minimizes(metric.name) else value


def stage_runs(
    plan: Plan, folder: Path, stage: str, losses: Sequence[str], records: Sequence[RunRecord]
) -> list[Run]:
    """The runs of a stage, seed by seed, so that pairs are complete early.

    Args:
        plan: The plan.
        folder: The comparison's folder.
        stage: `main`, `screen` or `confirm`.
        losses: The losses in it; in a tuned comparison, those without a finished trial are left
            out.
        records: The records of the tuning.
    """
    best = {loss: best_trial(plan, loss, records) for loss in flagged_first(losses)}
    return [
        make_run(plan, folder, loss, stage, seed, tuning.parameters if tuning else {})
        for seed in plan.seeds_of(stage)
        for loss, tuning in best.items()
        if tuning or not plan.tune
    ]


def compare(
    plan: Plan,
    folder: Path,
    engine: Engine,
    *,
    keep_models: bool,
    progress: Callable[[RunRecord, bool], None],
    say: Callable[[str], None],
) -> dict[str, str]:
    """Makes all runs that have not been made yet.

    Args:
        plan: The plan, as `open_folder` returned it.
        folder: The comparison's folder.
        engine: Makes the runs.
        keep_models: Whether to keep the weights and checkpoints of the runs.
        progress: Called with every record, and whether it is new.
        say: Called with sentences for the user, such as what the design can show.

    Returns:
        Why the script refuses the flags of a loss, by loss; these losses were left out.

    Raises:
        RunsRefused: If the engine cannot make the runs, or the script refuses its arguments.
    """
    from hf_losses.compare.statistics.power import describe_design

    records: list[RunRecord] = []
    pilot: set[tuple[str, str, int]] = set()  # Stage, loss and seed of first runs to wait for.

    def done(record: RunRecord, new: bool) -> None:
        records.append(record)
        progress(record, new)
        if pilot:
            pilot.discard((record.stage, record.loss, record.seed))
            pilot.difference_update([run for run in pilot if run[1] in pool.refused])
            if not pilot and (text := pilot_spread(plan, record.stage, records)):
                say(text)

    def read(run_folder: Path, settings: RunSettings) -> RunRecord:
        return read_result(run_folder, settings, plan)

    engine.prepare(plan, folder, keep_models=keep_models, say=say)
    pool = Pool(engine, plan, read, done, say, keep_models)
    earlier = {record.facts.inputs for record in collect(folder).runs if record.facts}
    if (now := inputs_of(plan)) and not earlier <= {now, None}:
        say(
            "The script, or a file that its flags name, has changed since the runs that are here: "
            "what differs may be due to that. Another --output_dir begins anew."
        )
    say(describe_design(plan.comparisons, plan.tested_seeds, plan.look, plan.tasks))
    if plan.tune:
        pool.run([trials(plan, folder, loss) for loss in flagged_first(plan.losses)])
    for stage in plan.stages:
        losses = plan.losses
        if stage == "confirm":
            begun = [run for run in collect(folder).runs if run.stage == stage]
            losses = best_losses(plan, [*records, *begun])
            say(f"Screening leaves: {', '.join(losses)}; they are compared on fresh seeds.")
        runs = stage_runs(plan, folder, stage, losses, records)
        if stage != "confirm":
            seeds = plan.seeds_of(stage)[:PILOT_SEEDS]
            settings = [run.settings for run in runs if run.settings.seed in seeds]
            pilot.update((stage, run.loss, run.seed) for run in settings)
        pool.run(single(run) for run in runs)
    return pool.refused


def pilot_spread(plan: Plan, stage: str, records: Iterable[RunRecord]) -> str:
    """What the spread on the first seeds says of the differences that all seeds can detect.

    Args:
        plan: The plan.
        stage: `main` or `screen`.
        records: Records of any runs.

    Returns:
        A sentence; empty if there is nothing to say.
    """
    from hf_losses.compare.statistics.comparison import describe_spread

    seeds = plan.seeds_of(stage)[:PILOT_SEEDS]
    values: dict[str, dict[int, float]] = {loss: {} for loss in plan.losses}
    for record in records:
        if record.stage == stage and record.seed in seeds and record.value is not None:
            values[record.loss][record.seed] = record.value
    design = (plan.comparisons, plan.tested_seeds, plan.look)
    return describe_spread(values, plan.baseline, *design)


def flagged_first(losses: Iterable[str]) -> list[str]:
    """Puts losses with flags of their own first: the script may refuse them, before it trains."""
    return sorted(losses, key=lambda loss: not has_flags(loss))


def discard(folder: Path) -> None:
    """Removes a comparison in which no run succeeded, and its folder if nothing else is in it.

    Args:
        folder: The comparison's folder.
    """
    for name in (PLAN, STORE, LOCK, MARK):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "runs", ignore_errors=True)
    with suppress(OSError):
        folder.rmdir()

"""`hf-losses compare`: the same script with several losses, on the same seeds.

The folder of a comparison holds `plan.json` (the flags), `runs/LOSS/seed-1` (a run's own folder),
`seed-1.log`, `seed-1.json` (see `pool`), and what `report` makes of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_losses.compare.local_pool import Pool, Record, Run, single, stored
from hf_losses.compare.plan import Plan, lower_is_better, read_plan
from hf_losses.compare.runs import make_run, planned_runs, read_result
from hf_losses.messages import UsageError

RESULTS = "results.json"
# What the record of a crashed run lacks.
NOTHING: Record = {"value": None, "metrics": {}, "history": [], "steps": None, "seconds": None}
FIRST = 3  # Seeds after which the spread is looked at.


def collect(folder: Path) -> dict[str, Any]:
    """Everything a comparison has found so far; the content of `results.json` but `statistics`.

    Args:
        folder: The folder of a comparison.

    Returns:
        A dict that does not depend on the order in which the runs ended.

    Raises:
        ValueError: If there is no comparison.
    """
    plan = read_plan(folder)
    records = [record for run in planned_runs(plan, folder) if (record := stored(run))]
    finished = [record for record in records if "facts" in record]
    facts = finished[0]["facts"] if finished else {}
    tested = next((r["metric"] for r in finished if r["stage"] != "tune"), None)
    tuned = {
        loss: {"parameters": parameters, "value": value}
        for loss in plan.losses
        if plan.tune and (best := best_trial(plan, loss, records))
        for parameters, value in [best]
    }
    return {
        "plan": asdict(plan) | {"lower_is_better": lower_is_better(plan, tested)},
        "task": facts.get("task"),
        "model": facts.get("model"),
        "metric": tested,
        "versions": facts.get("versions") or {},
        "hardware": facts.get("hardware") or {},
        # Runs of one comparison may have been made by several machines or installations.
        "same_everywhere": all(
            r["facts"][key] == facts.get(key) for r in finished for key in ("versions", "hardware")
        ),
        "tuned": tuned,
        "runs": [
            NOTHING | {k: v for k, v in r.items() if k not in ("facts", "metric")} for r in records
        ],
    }


def best_trial(
    plan: Plan, loss: str, records: Iterable[Record]
) -> tuple[dict[str, float], float] | None:
    """The parameters that did best on the validation set, and their value.

    Args:
        plan: The plan.
        loss: The loss.
        records: Of any runs.

    Returns:
        None if no trial of the loss finished.
    """
    found = [r for r in records if r["stage"] == "tune" and r["loss"] == loss and _finished(r)]
    if not found:
        return None
    sign = -1 if lower_is_better(plan, found[0]["metric"]) else 1
    best = max(found, key=lambda record: sign * record["value"])
    return best["parameters"], best["value"]


def best_losses(plan: Plan, records: Sequence[Record]) -> list[str]:
    """The losses that the screening leaves: the baseline and the best ones by their mean.

    Args:
        plan: The plan.
        records: All records so far.

    Returns:
        In the plan's order. A loss with a failed run is not among them.
    """
    means = {}
    for loss in plan.losses:
        of_loss = [r for r in records if r["stage"] == "screen" and r["loss"] == loss]
        if loss != plan.baseline and of_loss and all(map(_finished, of_loss)):
            sign = -1 if lower_is_better(plan, of_loss[0]["metric"]) else 1
            means[loss] = sign * sum(r["value"] for r in of_loss) / len(of_loss)
    best = sorted(means, key=lambda loss: -means[loss])[: plan.top]
    return [loss for loss in plan.losses if loss == plan.baseline or loss in best]


def stage_runs(
    plan: Plan, folder: Path, stage: str, losses: Sequence[str], records: Sequence[Record]
) -> list[Run]:
    """The runs of a stage, seed by seed, so that pairs are complete early.

    Args:
        plan: The plan.
        folder: The comparison's folder.
        stage: `main`, `screen` or `confirm`.
        losses: The losses in it.
        records: Those of the tuning.
    """
    parameters = {loss: best_trial(plan, loss, records) for loss in losses}
    return [
        make_run(plan, folder, loss, stage, seed, (parameters[loss] or ({}, 0))[0])
        for seed in plan.seeds_of(stage)
        for loss in losses
        if not plan.tune or parameters[loss]
    ]


def compare(
    plan: Plan,
    folder: Path,
    *,
    jobs: int,
    keep_models: bool,
    progress: Callable[[Record, bool], None],
    say: Callable[[str], None],
) -> None:
    """Makes all runs that are not made yet.

    Args:
        plan: The plan, as `open_folder` returned it.
        folder: The comparison's folder.
        jobs: Runs at a time.
        keep_models: Whether the runs' weights and checkpoints are kept.
        progress: Called with every record, and whether it is new.
        say: Called with what the design can show, in words.

    Raises:
        RunsRefused: If the script refuses its arguments.
        ValueError: If there are fewer GPUs than jobs of a launcher.
    """
    from hf_losses.compare.power import describe_design
    from hf_losses.compare.statistics import describe_spread

    records: list[Record] = []

    def done(record: Record, new: bool) -> None:
        records.append(record)
        progress(record, new)

    def read(place: Path, about: Mapping[str, Any]) -> Record:
        return read_result(place, about, plan)

    pool = Pool(jobs, environments(plan, jobs), read, done, keep_models)
    comparisons = plan.top or len(plan.losses) - 1
    tested = len(plan.seeds_of("confirm" if plan.screen else "main"))
    say(describe_design(comparisons, tested))
    if plan.tune:
        from hf_losses.compare.tuning import trials

        pool.run([trials(plan, folder, loss) for loss in plan.losses])
    for stage in ("screen", "confirm") if plan.screen else ("main",):
        losses = best_losses(plan, records) if stage == "confirm" else plan.losses
        if stage == "confirm":
            say(f"Screening leaves: {', '.join(losses)}; they are compared on fresh seeds.")
        runs = stage_runs(plan, folder, stage, losses, records)
        # The first seeds show the spread, and with it what the others can find.
        first = [run for run in runs if run.about["seed"] < plan.seeds_of(stage)[0] + FIRST]
        pool.run(single(run) for run in first)
        if stage != "confirm":
            values = {
                loss: {
                    r["seed"]: r["value"]
                    for r in records
                    if r["stage"] == stage and r["loss"] == loss and _finished(r)
                }
                for loss in losses
            }
            if text := describe_spread(values, plan.baseline, comparisons, tested):
                say(text)
        pool.run(single(run) for run in runs[len(first) :])


def environments(plan: Plan, jobs: int) -> list[dict[str, str]]:
    """What each of the runs at a time adds to the environment: its threads and its GPUs.

    Args:
        plan: The plan.
        jobs: Runs at a time.

    Raises:
        ValueError: If a launcher's job would have no GPU.
    """
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = given.split(",") if given else list(map(str, range(torch.cuda.device_count())))
    if not gpus or not torch.cuda.is_available():
        return [{"OMP_NUM_THREADS": str(plan.threads)}] * jobs
    if plan.launcher and jobs > len(gpus):
        raise UsageError(f"--jobs {jobs} leaves some without a GPU; there are {len(gpus)}")
    shares = [gpus[i::jobs] if plan.launcher else [gpus[i % len(gpus)]] for i in range(jobs)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(share)} for share in shares]


def _finished(record: Record) -> bool:
    return bool(record["status"] == "finished")

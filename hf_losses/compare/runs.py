"""The runs of a comparison: their folders and commands, and the contract with the script.

What is compared is any script that takes `--loss`, `--seed` and `--output_dir` and writes
`result.json` into that folder, with

- `metrics`: `{"validation": {"accuracy": 0.8, …}, "test": {…}}`; the first set whose name begins
  with `test` is compared, or without one the first of all; tuning takes the first `validation` set;
- `metric`: the name of the task's metric (not needed with `--metric`);
- `history` (optional): evaluations on the validation set, `[{"step": 50, "accuracy": 0.7}, …]`;
- `training` (optional): `global_step`, `runtime` and `evaluation_runtime` in seconds;
- `predictions` (optional): counts of a classifier's predictions by set, for the pictures of
  calibration and classes;
- `task`, `model`, `versions`, `hardware`, `classes` (optional): for the report.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_losses.compare.engines.run import Run, stored_record
from hf_losses.compare.plan import TUNING_SEED, Plan, read_plan
from hf_losses.compare.results import Facts, Metric, RunRecord, RunSettings, is_number
from hf_losses.losses.registry import neutral_loss
from hf_losses.messages import UsageError, nearest
from hf_losses.metrics.direction import check_comparable, check_direction_known

# The counts of predictions that a script may report.
COUNTS = {
    "calibration": ("count", "probability", "right"),
    "classes": ("true", "predicted", "right"),
}


def run_folder(folder: Path, loss: str, name: str) -> Path:
    """The output folder of a run of a loss.

    Args:
        folder: Folder of the comparison.
        loss: A loss, perhaps with flags.
        name: Name of the run, such as `seed-1`.
    """
    return folder / "runs" / folder_name(loss) / name


def folder_name(label: str) -> str:
    """A name for the folder of a loss or a task.

    Args:
        label: The loss, perhaps with flags, or the task.
    """
    slug = re.sub(r"[^\w.=-]+", "_", label).strip("_")
    if slug == label:
        return slug
    # Labels that differ only in punctuation must not share a folder.
    return f"{slug[:80]}-{hashlib.sha256(label.encode()).hexdigest()[:6]}"


def make_run(
    plan: Plan,
    folder: Path,
    loss: str,
    stage: str,
    seed: int,
    parameters: Mapping[str, float],
    trial: int | None = None,
) -> Run:
    """The process of one loss and one seed.

    Args:
        plan: The comparison's plan.
        folder: Folder of the comparison.
        loss: A loss, perhaps with flags.
        stage: `main`, `screen`, `confirm` or `tune`.
        seed: The script's seed.
        parameters: Values of the tuned flags.
        trial: Number of the trial; None unless the stage is `tune`.
    """
    name = f"seed-{seed}"
    if trial is not None:
        name = f"trial-{trial}" if seed == TUNING_SEED else f"trial-{trial}-{name}"
    output_dir = run_folder(folder, loss, name)
    settings = RunSettings(loss, stage, seed, dict(parameters))
    return Run(output_dir, plan.command(loss, seed, parameters, output_dir), settings)


def planned_runs(plan: Plan, folder: Path) -> list[Run]:
    """Every run that may have a record, in the order of the results.

    Args:
        plan: The plan.
        folder: The comparison's folder.
    """
    runs = [
        make_run(plan, folder, loss, "tune", seed, {}, trial)
        for loss in plan.losses
        for trial in range(plan.trials)
        for seed in plan.seeds_of("tune")
    ]
    for stage in plan.stages:
        seeds = plan.seeds_of(stage)
        for loss in plan.losses:
            runs += [make_run(plan, folder, loss, stage, seed, {}) for seed in seeds]
    return runs


def forget_failed(plan: Plan, folder: Path) -> None:
    """Removes the records of crashed runs, but not of trials: later trials were built on them.

    Args:
        plan: The plan.
        folder: The comparison's folder.
    """
    for run in planned_runs(plan, folder):
        record = stored_record(run)
        if record and record.status == "failed" and record.stage != "tune":
            run.beside("json").unlink()


def losses_without_result(folder: Path) -> set[str]:
    """The losses of a comparison of which no run has a result, such as those that were refused.

    Args:
        folder: The comparison's folder, with a plan.
    """
    plan = read_plan(folder)
    records = [stored_record(run) for run in planned_runs(plan, folder)]
    return {*plan.losses} - {run.loss for run in records if run and run.status != "failed"}


def read_result(folder: Path, settings: RunSettings, plan: Plan) -> RunRecord:
    """Reads the `result.json` of a run that exited with 0.

    Args:
        folder: The run's folder.
        settings: The run's settings.
        plan: The comparison's plan.

    Returns:
        The run's record, without its `wall_seconds`.

    Raises:
        UsageError: If `result.json` is missing or does not hold to the contract.
    """
    path = folder / "result.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        metrics = result["metrics"]
        sets = [name for name, scores in metrics.items() if scores.keys()]
        name = plan.metric or result["metric"]
    except FileNotFoundError:
        raise UsageError("the script ended well, but wrote no result.json") from None
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"result.json does not hold to the contract: {error!r}") from None
    prefix = "validation" if settings.stage == "tune" else "test"
    compared_set = next((name for name in sets if name.startswith(prefix)), None)
    if compared_set is None and (settings.stage == "tune" or not sets):
        raise UsageError(f"result.json has metrics of {', '.join(sets) or 'no set'}, not {prefix}")
    if plan.tune and not any(name.startswith("test") for name in sets):
        raise UsageError(
            f"result.json has metrics of {', '.join(sets)}, not test: --tune chooses values on the "
            "validation set, so the losses must be compared on a test set apart from it "
            "(glue.py: --train_val_split 0.1)"
        )
    compared_set = compared_set or sets[0]
    if name not in metrics[compared_set]:
        valid = metrics[compared_set]
        raise UsageError(
            f"there is no metric {name!r}.{nearest(name, valid)} Choose --metric from: "
            f"{', '.join(valid)}"
        )
    check_comparable(name, plan.losses)
    if plan.lower_is_better is None:
        check_direction_known(name)
    scores = metrics[compared_set]
    value = scores[name]
    if value is not None and not isinstance(value, int | float):
        raise UsageError(f"result.json has {name} = {value!r}, which is not a number")
    # Logits of NaN have an accuracy, too: that of the first class.
    baselines = [neutral_loss(task) for task in ("classification", "regression")]
    checked = (name, *(baseline for baseline in baselines if baseline in scores))
    failed = next((of for of in checked if not is_number(scores[of])), None)
    finite = failed is None
    training, classes = _mapping(result.get("training")), result.get("classes")
    facts = {name: result.get(name) for name in ("task", "model")}
    facts |= {name: _mapping(result.get(name)) or None for name in ("versions", "hardware")}
    history = result.get("history")
    evaluations = history if isinstance(history, list) else []
    times = [training.get(name) for name in ("runtime", "evaluation_runtime")]
    runtime, evaluation_runtime = (time if is_number(time) else None for time in times)
    steps = training.get("global_step")
    return RunRecord(
        **vars(settings),
        status="finished" if finite else "diverged",
        reason=None if finite else f"{failed} on the {compared_set} set is not finite",
        value=value if finite else None,
        metric=Metric(compared_set, name),
        metrics=metrics,
        # A script may mean something else by these names.
        history=[e for e in evaluations if isinstance(e, dict) and is_number(e.get("step"))],
        steps=steps if is_number(steps) else None,
        seconds=runtime and round(runtime - (evaluation_runtime or 0), 2),
        # Nobody looks at those of the trials.
        predictions={} if settings.stage == "tune" else _counts(result, compared_set),
        facts=Facts(
            **facts,
            classes=[str(name) for name in classes] if isinstance(classes, list) else None,
            inputs=inputs_of(plan),
        ),
    )


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def inputs_of(plan: Plan) -> str | None:
    """A digest of the script and of the sizes of its files; None if it is no file.

    Args:
        plan: A plan. Folders among its flags do not count: the runs may write into them.
    """
    script = Path(plan.script)
    if not script.is_file():
        return None
    values = [argument.rpartition("=")[2] for argument in plan.arguments]
    sizes = [(value, os.path.getsize(value)) for value in values if os.path.isfile(value)]
    return hashlib.sha256(script.read_bytes() + repr(sizes).encode()).hexdigest()[:16]


def _counts(result: Mapping[str, Any], compared_set: str) -> dict[str, dict[str, list[float]]]:
    """The counts of the predictions on a set that can be drawn; a script may mean something else.

    A model whose probabilities are NaN has none for the calibration.
    """
    predictions = result.get("predictions")
    of_set = predictions.get(compared_set) if isinstance(predictions, dict) else None
    counts = {}
    for kind, names in COUNTS.items():
        lists = of_set.get(kind) if isinstance(of_set, dict) else None
        columns: list[Any] = [lists.get(n) for n in names] if isinstance(lists, dict) else []
        if (
            columns
            and all(isinstance(column, list) for column in columns)
            and len({len(column) for column in columns}) == 1
            and all(is_number(number) for column in columns for number in column)
        ):
            counts[kind] = dict(zip(names, columns, strict=True))
    return counts

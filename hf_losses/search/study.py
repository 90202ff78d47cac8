"""Optuna's study of a search: opening and continuing it, its trials, and the report."""

from __future__ import annotations

import json
import math
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings

from hf_losses.files import write_json
from hf_losses.messages import UsageError
from hf_losses.training.reports.machine import hardware, versions

if TYPE_CHECKING:
    import torch
    from optuna import Study

NAME = "search"
RESULT = "search.json"


def open_study(path: Path, settings: dict[str, Any]) -> tuple[Any, Study, list[int]]:
    """Opens a new study, or continues one, in which it marks unfinished trials as failed.

    Args:
        path: The study's database.
        settings: All that determines the result of the search, as JSON values.

    Returns:
        The store, the study in it, and the numbers of all trials that were interrupted, now or
        before.

    Raises:
        ValueError: If the study was begun with other settings, whose differences the message names,
            or the database cannot be read.
    """
    import optuna
    from sqlalchemy.exc import DatabaseError
    from sqlalchemy.pool import NullPool

    url = f"sqlite:///{path}"
    try:  # Open only while it is read or written.
        store = optuna.storages.RDBStorage(url, engine_kwargs={"poolclass": NullPool})
    except DatabaseError as error:
        raise UsageError(
            f"cannot read the search in {path} ({error.orig}): restore the file, or take another "
            "--output_dir"
        ) from error
    study = optuna.create_study(
        storage=store, study_name=NAME, direction="maximize", load_if_exists=True
    )
    stored = study.user_attrs.get("settings", settings)
    differences = [
        f"{name} was {stored.get(name, 'not given')} and is {settings.get(name, 'not given')}"
        for name in stored | settings
        if stored.get(name) != settings.get(name)
    ]
    if differences:
        raise UsageError(
            f"the search there has other flags: {'; '.join(differences)}. Take those to go on with "
            "it, or another --output_dir"
        )
    study.set_user_attr("settings", settings)
    running = study.get_trials(states=[optuna.trial.TrialState.RUNNING])
    interrupted = [*study.user_attrs.get("interrupted", []), *(trial.number for trial in running)]
    study.set_user_attr("interrupted", interrupted)
    for trial in running:
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return store, study, interrupted


def arguments_of(params: dict[str, Any]) -> dict[str, Any]:
    """The training arguments that a trial's parameters stand for.

    Args:
        params: `loss`, `learning_rate`, and the loss's parameters, named `LOSS.PARAMETER`.
    """
    # For a loss without parameters this is {}, not None: Trainer casts the value to the type that
    # the last trial's had, and dict(None) fails.
    kwargs = {name.partition(".")[2]: value for name, value in params.items() if "." in name}
    return {"loss": params["loss"], "loss_kwargs": kwargs, "learning_rate": params["learning_rate"]}


def suggest(trial: Any, losses: list[str], space: dict[str, Any], seed: int) -> dict[str, Any]:
    """The training arguments of a trial: each loss is tried once, then Optuna chooses.

    Args:
        trial: The trial, of a study that `open_study` opened.
        losses: Names to choose from.
        space: The lowest and the highest value by name, as `SearchArguments.ranges` returns them.
        seed: Seed of all choices.
    """
    import optuna

    # The database keeps no state of a sampler. With a new sampler for each trial, an interrupted
    # search continues exactly as it would have without the interruption.
    place = trial.number - len(trial.study.user_attrs["interrupted"])
    sampler: Any = optuna.samplers.TPESampler(seed=seed + place)
    if place < len(losses):
        with catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
            sampler = optuna.samplers.PartialFixedSampler({"loss": losses[place]}, sampler)
    trial.study.sampler = sampler
    params = {"loss": trial.suggest_categorical("loss", losses)}
    for name, (low, high) in space.items():
        if name.partition(".")[0] in ("learning_rate", params["loss"]):
            params[name] = trial.suggest_float(name, low, high, log=low > 0)
    return arguments_of(params)


def announce(
    source: Any,
    data: Any,
    model_name: str,
    n_trials: int,
    space: dict[str, Any],
    losses: list[str],
    done: int,
    folder: Path,
) -> None:
    """Prints the facts of a search, and the flags that change them."""
    used = ((name, rows) for name, rows in data.splits.items() if not name.startswith("test"))
    sizes = ", ".join(f"{len(rows):,} {name}" for name, rows in used)
    ranges = (f"{name} {low:g} to {high:g}" for name, (low, high) in space.items())
    print(f"Data    {source.name}: {sizes}   [--task_name, --train_file]")
    print(f"Model   {model_name}   [--model_name_or_path]")
    print(f"Losses  {', '.join(losses)}   [--losses]")
    print(f"Ranges  {', '.join(ranges)}   [--learning_rate_range, --loss_ranges]")
    print(f"Trials  {n_trials}, {done} of them done   [--n_trials]")
    print(f"Output  {folder}   [--output_dir]", flush=True)


def report(
    study: Study,
    folder: Path,
    script: str,
    flags: dict[str, Any],
    metric: str,
    device: torch.device,
    **facts: Any,
) -> None:
    """Writes `search.json`, and prints the trials and the command that trains the winner.

    Args:
        study: The study after its trials.
        folder: The folder of the file.
        script: The recipe that trains the winner.
        flags: Flags of the recipe besides the loss, its parameters and the learning rate.
        metric: Name of the metric that the trials were judged by.
        device: What the trials were computed on.
        **facts: Further content of the file, such as task and model.

    Raises:
        SystemExit: If no trial has a value.
    """
    trials = [
        {"trial": trial.number, "state": trial.state.name, "value": trial.value}
        | {"params": trial.params, "seconds": trial.duration.total_seconds()}
        for trial in study.trials
    ]
    # Of equal trials the earliest is the best, as in Optuna.
    ranked = sorted(trials, key=lambda t: math.inf if t["value"] is None else -t["value"])
    best = ranked[0] if ranked[0]["value"] is not None else None
    command = _command(script, best["params"], flags) if best else None
    result = facts | {
        "metric": metric,
        "best": best,
        "command": command,
        "trials": trials,
        "versions": versions("optuna"),
        "hardware": hardware(device),
    }
    write_json(folder / RESULT, result)
    width = max(8, len(metric))
    print(f"\ntrial  {metric:>{width}}  loss")
    for trial in ranked:
        value = trial["state"] if trial["value"] is None else f"{trial['value']:.4f}"
        params = dict(trial["params"])
        loss = params.pop("loss", "")  # A trial may have been killed before it was given one.
        numbers = (f"{name.rpartition('.')[2]} {number:.3g}" for name, number in params.items())
        print(f"{trial['trial']:5}  {value:>{width}}  {loss:17}  {', '.join(numbers)}")
    print(f"\nAll of it is in {folder / RESULT}.")
    if command is None:
        sys.exit("No trial came to a value; its log says why.")
    print(f"This trains the winner on all of the data:\n\n{command}")


def _command(script: str, params: dict[str, Any], flags: dict[str, Any]) -> str:
    arguments = arguments_of(params)
    kwargs = arguments.pop("loss_kwargs")
    arguments |= {"loss_kwargs": json.dumps(kwargs)} if kwargs else {}
    words = ["python", script]
    for name, value in (arguments | flags).items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)

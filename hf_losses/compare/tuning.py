"""The tuning of `hf-losses compare`: every loss gets the same number of trials.

A trial is judged by the mean of its runs, one for each tuning seed. The first ten trials are the
same for all losses and spread evenly over the ranges (Halton's sequence: the middle, the quarters,
the eighths …), since a handful of random points may lie together. Those that follow are chosen by
Optuna's TPE.
"""

from __future__ import annotations

import logging
from pathlib import Path
from statistics import fmean

from hf_losses.compare.engines.run import Chain
from hf_losses.compare.plan import Plan
from hf_losses.compare.ranges import by_logarithm, spread_evenly
from hf_losses.compare.runs import make_run
from hf_losses.messages import MissingExtra, UsageError

STORE = "tuning.db"
EVENLY_SPREAD = 10


def trials(plan: Plan, folder: Path, loss: str) -> Chain:
    """The trials of one loss.

    A trial depends only on its number and on the earlier trials of the loss, so that a resumed
    comparison makes the same trials.

    Args:
        plan: The comparison's plan.
        folder: Folder of the comparison, whose `tuning.db` stores the trials.
        loss: The loss.

    Yields:
        The run of each trial.

    Raises:
        ImportError: If Optuna is missing.
        ValueError: If the store cannot be read.
    """
    try:
        import optuna
        from optuna.trial import TrialState
        from sqlalchemy.exc import DatabaseError
        from sqlalchemy.pool import NullPool
    except ImportError as error:
        raise MissingExtra("--tune needs Optuna: pip install 'hf-losses[compare]'") from error
    optuna.logging.set_verbosity(logging.WARNING)
    space: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.FloatDistribution(low, high, log=by_logarithm(low, high))
        for name, (low, high) in plan.tune.items()
    }
    path = folder / STORE
    try:  # Open only while it is read or written.
        store = optuna.storages.RDBStorage(
            f"sqlite:///{path}", engine_kwargs={"poolclass": NullPool}
        )
        study = optuna.create_study(study_name=loss, storage=store, load_if_exists=True)
    except DatabaseError as error:
        raise UsageError(
            f"cannot read the trials in {path} ({error.orig}). Delete that file: the same command "
            "makes it again, and no run is repeated"
        ) from error
    for number in range(plan.trials):
        if number >= len(study.trials):
            params = spread_evenly(number, plan.tune)
            if number >= EVENLY_SPREAD:
                # The store lacks the state of a sampler: a seed for each trial makes it repeatable.
                sampler = optuna.samplers.TPESampler(seed=number)
                # Asked for in memory and stored as a whole: a kill within `ask` would leave a trial
                # without parameters in the store.
                draft = optuna.create_study(sampler=sampler)
                draft.add_trials(study.trials)
                params = draft.ask(space).params
            study.add_trial(
                optuna.trial.create_trial(
                    state=TrialState.RUNNING, params=params, distributions=space
                )
            )
        trial = study.trials[number]
        values: list[float] = []
        for seed in plan.seeds_of("tune"):
            record = yield make_run(plan, folder, loss, "tune", seed, trial.params, number)
            if record.value is None:
                break
            values.append(record.value)
        if trial.state != TrialState.RUNNING:  # Optuna already knows its value.
            continue
        if len(values) == plan.tuning_seeds:
            sign = 1 if plan.minimizes(record.metric.name if record.metric else "") else -1
            study.tell(number, sign * fmean(values))
        else:
            study.tell(number, state=TrialState.FAIL)

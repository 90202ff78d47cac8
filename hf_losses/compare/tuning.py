"""The tuning of `hf-losses compare`: every loss gets the same number of Optuna's trials."""

from __future__ import annotations

import logging
from pathlib import Path

from hf_losses.compare.local_pool import Chain
from hf_losses.compare.plan import TUNING_SEED, Plan
from hf_losses.compare.runs import make_run
from hf_losses.messages import MissingExtra

STORE = "tuning.db"


def trials(plan: Plan, folder: Path, loss: str) -> Chain:
    """The trials of one loss, one after the other, each on what the earlier ones have found.

    A trial depends on the loss's earlier ones and its own number alone, so that a resumed
    comparison gives the same trials; the first trials of all losses are the same.

    Args:
        plan: The comparison's plan.
        folder: Its folder; the trials are stored in its `tuning.db`.
        loss: The loss.

    Yields:
        The runs.

    Raises:
        ImportError: If Optuna is missing.
    """
    try:
        import optuna
        from optuna.trial import TrialState
    except ImportError as error:
        raise MissingExtra("--tune needs Optuna: pip install 'hf-losses[compare]'") from error
    optuna.logging.set_verbosity(logging.WARNING)
    space: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.FloatDistribution(low, high, log=low > 0 and high >= 10 * low)
        for name, (low, high) in plan.tune.items()
    }
    study = optuna.create_study(
        study_name=loss, storage=f"sqlite:///{folder / STORE}", load_if_exists=True
    )
    for number in range(plan.trials):
        if number >= len(study.trials):
            # A sampler's state is not in the store: a seed of its own makes each trial repeatable.
            sampler = optuna.samplers.TPESampler(seed=number)
            # Asked in memory and stored whole: killed within `ask`, the store would keep a trial
            # without parameters.
            draft = optuna.create_study(sampler=sampler)
            draft.add_trials(study.trials)
            params = draft.ask(space).params
            study.add_trial(
                optuna.trial.create_trial(
                    state=TrialState.RUNNING, params=params, distributions=space
                )
            )
        trial = study.trials[number]
        record = yield make_run(plan, folder, loss, "tune", TUNING_SEED, trial.params, number)
        if trial.state == TrialState.RUNNING:  # Optuna may already know its value.
            if record.value is not None:
                sign = 1 if plan.minimizes(record.metric.name if record.metric else "") else -1
                study.tell(number, sign * record.value)
            else:
                study.tell(number, state=TrialState.FAIL)

"""Searches for the loss, its parameters and the learning rate with Optuna.

python recipes/search.py
python recipes/search.py --losses cross_entropy 'liberal_*' --n_trials 40 --max_train_samples 4000
python recipes/search.py --losses strict_m_power --loss_ranges strict_m_power.alpha=0.1:1

Every loss is tried once, then Optuna chooses. A trial trains on a sample and is judged by the
task's own metric on the validation set; the test set stays unseen. Interrupted or killed, the same
command goes on. At its end stands the command for glue.py that trains the winner on all of the
data. The rest are glue.py's arguments.
"""

import importlib.util
import math
import os
import signal
from argparse import Namespace
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from warnings import catch_warnings

import glue
from filelock import FileLock, Timeout
from transformers import HfArgumentParser, PrinterCallback
from transformers.utils import logging

from hf_losses.data.text.dataset import TextArguments
from hf_losses.losses.registry import neutral_loss
from hf_losses.messages import UsageError
from hf_losses.metrics.tasks import METRICS
from hf_losses.models.pretrained import find_model
from hf_losses.options import option
from hf_losses.search import study as studies
from hf_losses.search.space import SearchArguments
from hf_losses.training.outputs import dataset_facts


@dataclass
class SampleArguments(TextArguments):
    """The data, with a budget that two cores train within minutes."""

    max_train_samples: int = option(512, "rows that a trial is trained on, a fixed random sample")
    max_eval_samples: int = option(512, "the same for the validation set")


@dataclass
class TrialArguments(glue.GlueTrainingArguments):
    """The training of every trial."""

    output_dir: str = option("", "without one: runs/search/TASK-seedSEED")
    eval_strategy: str = option("no", "a trial is evaluated once, at its end")
    save_strategy: str = option("no", "no model is kept")
    disable_tqdm: bool | None = option(True, "no progress bar for every trial")


GROUPS = (SearchArguments, SampleArguments, glue.ModelArguments, TrialArguments)
SEARCHED = {"loss": "losses", "loss_kwargs": "loss_ranges", "learning_rate": "learning_rate_range"}
FOR_THE_WINNER = {"do_train", "do_predict", "eval_strategy", "save_strategy", "push_to_hub"}
FOR_THE_WINNER |= {"load_best_model_at_end", "metric_for_best_model", "resume_from_checkpoint"}
FOR_TRIALS = {"max_train_samples", "max_eval_samples", "disable_tqdm"}


def check(given, search, args):
    for name in given:
        if name in SEARCHED:
            raise UsageError(f"a search chooses --{name} itself: see --{SEARCHED[name]}")
        if name in FOR_THE_WINNER:
            raise UsageError(f"--{name} is for glue.py: add it to the command shown at the end")
    if search.n_trials < 1:
        raise UsageError(f"--n_trials must be at least 1, got {search.n_trials}")
    if args.world_size > 1:
        raise UsageError(f"a search runs in one process, not {args.world_size}: start it by python")
    if importlib.util.find_spec("optuna") is None:
        raise UsageError("a search needs Optuna: pip install 'hf-losses[compare]'")


def announce(source, data, model_name, search, space, losses, done, folder):
    sets = (item for item in data.splits.items() if not item[0].startswith("test"))
    sizes = ", ".join(f"{len(rows):,} {name}" for name, rows in sets)
    ranges = (f"{name} {low:g} to {high:g}" for name, (low, high) in space.items())
    print(f"Data    {source.name}: {sizes}   [--task_name, --train_file]")
    print(f"Model   {model_name}   [--model_name_or_path]")
    print(f"Losses  {', '.join(losses)}   [--losses]")
    print(f"Ranges  {', '.join(ranges)}   [--learning_rate_range, --loss_ranges]")
    print(f"Trials  {search.n_trials}, {done} of them done   [--n_trials]")
    print(f"Output  {folder}   [--output_dir]", flush=True)


def main(argv=None):
    parser = HfArgumentParser(
        GROUPS, usage="search.py [--losses LOSS …] [--n_trials N] [--task_name TASK] … (--help)"
    )
    # Whatever the user gives, be it the default, is not None.
    blank = Namespace(**{f.name: None for group in GROUPS for f in fields(group)})
    given = {k: v for k, v in vars(parser.parse_args(argv, blank)).items() if v is not None}
    try:  # Whatever does not fit is said here, before anything is trained or written.
        search, source, options, args = parser.parse_args_into_dataclasses(
            argv, look_for_args_file=False
        )
        check(given, search, args)
        model_name, _, path = find_model(options.model_name_or_path)
        data = source.load()
        losses = search.expand(data.kind)
        space = search.ranges(losses)
        args.output_dir = args.output_dir or f"runs/search/{source.name}-seed{args.seed}"
        tokenizer, _ = glue.load_model(path, options, data)
        logging.set_verbosity_error()  # Every trial loads it again and would report the same.
        logging.disable_progress_bar()
        trainer = glue.make_trainer(
            data,
            tokenizer,
            options,
            args,
            model_init=lambda: glue.load_model(path, options, data)[1],
        )
        folder = Path(args.output_dir)
        storage = f"sqlite:///{folder / 'study.db'}"
        own = {*vars(search), "output_dir"}
        flags = {k: v for k, v in given.items() if k not in own and v != parser.get_default(k)}
        with ExitStack() as stack:
            stack.enter_context(FileLock(folder / ".lock", timeout=0))
            study, interrupted = studies.open_study(storage, flags | {"losses": losses} | space)
            lock = stack.pop_all()  # Held until the search has ended.
    except Timeout:
        parser.error(f"another search is at work in {folder}; choose another --output_dir")
    except (ValueError, OSError) as error:
        parser.error(str(error))

    import optuna

    metric = METRICS[data.metric][0]
    key = f"eval_{args.metric_for_best_model}"
    baseline = key.removesuffix(metric) + neutral_loss(data.kind)

    def hp_space(trial):
        # The store keeps no sampler's state: made anew for each trial, it lets a search that was
        # stopped go on as it would have.
        place = trial.number - len(interrupted)
        sampler = optuna.samplers.TPESampler(seed=args.seed + place)
        if place < len(losses):  # Every loss once; then Optuna chooses.
            with catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
                sampler = optuna.samplers.PartialFixedSampler({"loss": losses[place]}, sampler)
        trial.study.sampler = sampler
        params = {"loss": trial.suggest_categorical("loss", losses)}
        for name, (low, high) in space.items():
            if name.partition(".")[0] in ("learning_rate", params["loss"]):
                params[name] = trial.suggest_float(name, low, high, log=low > 0)
        return studies.arguments_of(params)

    def objective(metrics):
        # Logits that are NaN have an accuracy, too; Optuna records a value of NaN as failed.
        return metrics[key] if math.isfinite(metrics[baseline]) else math.nan

    done = sum(trial.state.is_finished() for trial in study.trials) - len(interrupted)
    announce(source, data, model_name, search, space, losses, done, folder)
    with lock:
        if done < search.n_trials:
            trainer.remove_callback(PrinterCallback)  # Optuna's log has a line per trial.
            with suppress(ValueError):  # At the end there is no best trial if none has a value.
                trainer.hyperparameter_search(
                    hp_space,
                    objective,
                    n_trials=search.n_trials - done,
                    direction="maximize",
                    backend="optuna",
                    storage=storage,
                    study_name=studies.NAME,
                    load_if_exists=True,
                    catch=Exception,
                )
        studies.report(
            study,
            folder,
            os.path.relpath(glue.__file__),
            {name: value for name, value in flags.items() if name not in FOR_TRIALS},
            metric,
            task=source.name,
            model=model_name,
            dataset=dataset_facts(data),
            seed=args.seed,
            n_trials=search.n_trials,
            settings=study.user_attrs["settings"],
        )


if __name__ == "__main__":
    # Ctrl-C leaves its trial unfinished in the store, as a kill does: it does not count.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    main()

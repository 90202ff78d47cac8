"""Searches for the loss, its parameters and the learning rate with Optuna.

python recipes/search.py
python recipes/search.py --losses cross_entropy 'liberal_*' --n_trials 40 --max_train_samples 4000
python recipes/search.py --losses strict_m_power --loss_ranges strict_m_power.alpha=0.1:1

Every loss is tried once, then Optuna chooses. A trial trains on a sample and is judged by the
task's own metric on the validation set; the test set stays unseen. After an interruption, the same
command continues the search. At the end it prints the command for glue.py that trains the winner on
all of the data. All other arguments are those of glue.py.
"""

import math
import os
import signal
from argparse import Namespace
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields
from pathlib import Path

from filelock import FileLock, Timeout
from transformers import HfArgumentParser, PrinterCallback
from transformers.utils import logging

from hf_losses import LossTrainer, UsageError, neutral_loss
from hf_losses.data import TextArguments
from hf_losses.metrics import METRICS, GlueMetric
from hf_losses.models import LoraArguments, find_model, load_text_classifier, usable_length
from hf_losses.options import option
from hf_losses.search import SearchArguments
from hf_losses.search import study as studies
from hf_losses.training import (
    RecipeTrainingArguments,
    check_folder,
    choose_metric,
    dataset_facts,
    parse,
)


@dataclass
class SampleArguments(TextArguments):
    """The data, by default a sample that two cores train on within minutes."""

    max_train_samples: int = option(512, "rows that a trial is trained on, a fixed random sample")
    max_eval_samples: int = option(512, "the same for the validation set")


@dataclass
class ModelArguments(LoraArguments):
    """The model and its adapter."""

    model_name_or_path: str | None = option(None, "Hub name or folder; without one: MiniLM")
    max_length: int = option(128, "tokens after which a text is cut")


@dataclass
class TrialArguments(RecipeTrainingArguments):
    """The training of every trial."""

    num_train_epochs: float = option(1.0, "passes over the training set")
    train_sampling_strategy: str = option("group_by_length", "or random: more padding, slower")

    output_dir: str = option("", "without one: runs/search/TASK-seedSEED")
    eval_strategy: str = option("no", "a trial is evaluated once, at its end")
    save_strategy: str = option("no", "no model is kept")
    disable_tqdm: bool | None = option(True, "no progress bar for every trial")


GROUPS = (SearchArguments, SampleArguments, ModelArguments, TrialArguments)
FOR_TRIALS = {"max_train_samples", "max_eval_samples", "disable_tqdm"}


def make_trainer(data, tokenizer, options, args, **model):
    """Tokenizes the data, and returns the trainer of a `model` or a `model_init`."""
    length = usable_length(options.max_length, tokenizer, args)

    def tokenize(batch):
        return tokenizer(*map(batch.get, data.columns), truncation=True, max_length=length)

    def decide(logits, labels):
        logits = logits[0] if isinstance(logits, tuple) else logits
        return logits.argmax(-1) if data.classes else logits.squeeze(-1)

    metric = GlueMetric(data.metric)

    def compute_metrics(evaluation):
        return metric.compute(predictions=evaluation.predictions, references=evaluation.label_ids)

    with args.main_process_first():
        data.splits = data.splits.map(tokenize, batched=True)
    validation = data.sets("validation")
    return LossTrainer(
        **model,
        args=args,
        train_dataset=data.splits["train"],
        eval_dataset=validation if len(validation) > 1 else validation["validation"],
        processing_class=tokenizer,
        preprocess_logits_for_metrics=decide,
        compute_metrics=compute_metrics,
    )


def main(argv=None):
    parser = HfArgumentParser(
        GROUPS, usage="search.py [--losses LOSS …] [--n_trials N] [--task_name TASK] … (--help)"
    )
    # Parsed without defaults, a flag is None unless the user gave it.
    blank = Namespace(**{f.name: None for group in GROUPS for f in fields(group)})
    user_flags = {k: v for k, v in vars(parser.parse_args(argv, blank)).items() if v is not None}
    try:  # All errors of the user's are found here, before anything is trained or written.
        search, source, options, args = parse(parser, argv)
        search.check(user_flags, args)
        model_name, _, path = find_model(options.model_name_or_path)
        data = source.load()
        choose_metric(args, METRICS[data.metric], list(data.sets("validation")))
        losses = search.expand(data.kind)
        space = search.ranges(losses)
        args.output_dir = args.output_dir or f"runs/search/{source.name}-seed{args.seed}"
        check_folder(args.output_dir)
        tokenizer, _ = load_text_classifier(path, data.classes, options)
        logging.set_verbosity_error()  # Every trial loads the model again and would report it.
        logging.disable_progress_bar()
        trainer = make_trainer(
            data,
            tokenizer,
            options,
            args,
            model_init=lambda: load_text_classifier(path, data.classes, options)[1],
        )
        folder = Path(args.output_dir)
        omitted = {*vars(search), "output_dir"}
        flags = {
            name: value
            for name, value in user_flags.items()
            if name not in omitted and value != parser.get_default(name)
        }
        with ExitStack() as stack:
            stack.enter_context(FileLock(folder / ".lock", timeout=0))
            store, study, interrupted = studies.open_study(
                folder / "study.db", flags | {"losses": losses} | space
            )
            lock = stack.pop_all()  # Held until the search has ended.
    except Timeout:
        parser.error(f"another search is at work in {folder}; choose another --output_dir")
    except UsageError as error:
        parser.error(str(error))

    metric = METRICS[data.metric][0]
    key = f"eval_{args.metric_for_best_model}"
    baseline = key.removesuffix(metric) + neutral_loss(data.kind)

    def hp_space(trial):
        return studies.suggest(trial, losses, space, args.seed)

    def objective(metrics):
        # NaN logits have an accuracy, too, but their loss shows them; for NaN, the trial fails.
        return metrics[key] if math.isfinite(metrics[baseline]) else math.nan

    done = sum(trial.state.is_finished() for trial in study.trials) - len(interrupted)
    studies.announce(source, data, model_name, search.n_trials, space, losses, done, folder)
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
                    storage=store,
                    study_name=studies.NAME,
                    load_if_exists=True,
                    catch=Exception,
                )
        glue = Path(__file__).with_name("glue.py")  # Missing if this file was copied alone.
        studies.report(
            study,
            folder,
            os.path.relpath(glue) if glue.is_file() else glue.name,
            {"num_train_epochs": args.num_train_epochs, "warmup_steps": args.warmup_steps}
            | {name: value for name, value in flags.items() if name not in FOR_TRIALS},
            metric,
            args.device,
            task=source.name,
            model=model_name,
            dataset=dataset_facts(data),
            seed=args.seed,
            n_trials=search.n_trials,
            settings=study.user_attrs["settings"],
        )


if __name__ == "__main__":
    # Ctrl-C leaves its trial unfinished in the database, as a kill does, so it does not count.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    main()

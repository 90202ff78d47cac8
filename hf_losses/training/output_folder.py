"""The output folder of a run: prepared, filled with results, and shown at the end."""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence, Sized
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from transformers import Trainer, TrainingArguments

from hf_losses import ClassificationLoss, RegressionLoss
from hf_losses.files import write_json
from hf_losses.hub.saved_run import last_complete_checkpoint
from hf_losses.messages import UsageError
from hf_losses.training.reports.logged import final_metrics, history
from hf_losses.training.reports.machine import hardware, versions

RESULT = "result.json"
CONTENTS = {
    RESULT: "metrics, loss, versions",
    "predictions_": "predictions for a test set",
    "model.": "the model, for from_pretrained",
    "pytorch_model": "the model, for from_pretrained",
    "adapter_model.": "the LoRA adapter, for PeftModel.from_pretrained",
    "README.md": "model card",
    "learning_curve.png": "picture of the model card",
    "loss.png": "picture of the model card",
    "trainer_state.json": "log of the training",
    "checkpoint-": "to continue from, by --resume_from_checkpoint true",
}


class Data(Protocol):
    """What a recipe's data say about themselves.

    Attributes:
        splits: `train` and every validation and test set by name.
        classes: Class names by id; None for regression.
        inputs: What the model sees, in words.
        options: The flags that choose the data.
        skipped: Names of the rows that were left out.
        origin: Where the data come from; see `dataset_facts`.
    """

    splits: Any
    classes: list[str] | None
    inputs: str
    options: str
    skipped: Sequence[str]
    origin: dict[str, Any]

    def sets(self, kind: str) -> dict[str, Sized]:
        """The `validation` or the `test` sets by name."""
        ...


def prepare(
    args: TrainingArguments,
    recipe: str,
    task: str,
    data: Data,
    model: str,
    loss: ClassificationLoss | RegressionLoss,
    weights: str | None,
    target: str = "",
) -> None:
    """Settles where a run starts or goes on, and shows what is about to run; writes nothing.

    Args:
        args: Training arguments. Sets `output_dir` if it is empty, and in place of `true` the
            checkpoint to resume from.
        recipe: Name of the recipe.
        task: Name of the task.
        data: Data of the task.
        model: Name of the model.
        loss: The loss.
        weights: Where the model is loaded from; None from scratch.
        target: What the model learns, in words. If empty, the classes of the data, or a number.

    Raises:
        UsageError: If there is nothing to resume or to predict, a run is in the way, or nothing can
            be written to the output folder.
    """
    if args.do_predict and not data.sets("test"):
        raise UsageError(f"--do_predict needs a test set; see {data.options}")
    args.output_dir = args.output_dir or f"runs/{recipe}/{task}-{loss.spec.name}-seed{args.seed}"
    resume = args.resume_from_checkpoint
    if not args.do_train:
        _check_evaluation(args)
    if str(resume).lower() == "true":
        args.resume_from_checkpoint = last_complete_checkpoint(args.output_dir)
    elif resume and not Path(resume).is_dir():
        raise UsageError(f"no checkpoint folder {resume!r}; `true` takes the last in output_dir")
    elif args.do_train and not resume and (old := _checkpoints(args)):
        if not _result_path(args).exists():
            raise UsageError(
                f"{args.output_dir} holds an unfinished run: continue it by "
                "--resume_from_checkpoint true, remove that folder, or choose another --output_dir"
            )
        if weights and Path(weights).resolve() in old:
            raise UsageError(
                f"{weights} would go with the old run's checkpoints; choose another --output_dir"
            )
    if args.process_index == 0:
        check_folder(args.output_dir)
        _announce(args, task, data, model, loss, target)


def _check_evaluation(args: TrainingArguments) -> None:
    """Raises a UsageError if without a training something would not be used, or be lost."""
    if args.resume_from_checkpoint:
        raise UsageError(
            "--resume_from_checkpoint continues a training, and --do_train is false: to evaluate a "
            "checkpoint, name it by --model_name_or_path"
        )
    if not _result_path(args).exists():
        return
    try:
        result = json.loads(_result_path(args).read_text(encoding="utf-8"))
        steps = result["training"]["global_step"]
    except (ValueError, LookupError, TypeError):
        steps = None  # Whatever it is, no evaluation of ours has left it.
    if steps != 0:
        raise UsageError(
            f"{args.output_dir} holds the record of a training, which an evaluation alone would "
            "replace; choose another --output_dir"
        )


def check_folder(folder: str) -> None:
    """Raises a UsageError unless files can be written to a folder; leaves nothing behind.

    Args:
        folder: An output folder, which need not exist yet.
    """
    path = Path(folder).absolute()
    missing = [parent for parent in (path, *path.parents) if not parent.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise UsageError(
            f"cannot write to the folder {folder!r} ({error.strerror}); choose another --output_dir"
        ) from error
    finally:
        for parent in missing:
            with suppress(OSError):
                parent.rmdir()


def _announce(
    args: TrainingArguments,
    task: str,
    data: Data,
    model: str,
    loss: ClassificationLoss | RegressionLoss,
    target: str,
) -> None:
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
    labels = f"{len(data.classes)} classes" if data.classes else target or "a number"
    if data.classes and len(data.classes) <= 5:
        labels = ", ".join(data.classes)
    output = args.output_dir
    if args.resume_from_checkpoint:
        output += f", from {Path(args.resume_from_checkpoint).name}"
    elif args.do_train and _result_path(args).exists():
        output += " (replaces the run there)"
    spec, params = loss.spec, "".join(f", {key}={value:g}" for key, value in loss.params.items())
    lines = (
        ("Data", f"{task}: {sizes}", data.options),
        ("", f"{data.inputs} → {labels}", ""),
        ("Model", model, "--model_name_or_path"),
        (
            "Loss",
            f"{spec.name} ({loss.kind}): {spec.full_formula}{params}",
            "--loss",
        ),
        ("Output", output, "--output_dir"),
    )
    for title, text, options in lines:
        print(f"{title:8}{text}" + (f"   [{options}]" if options else ""))
    if skipped := data.skipped:
        more = " …" if len(skipped) > 5 else ""
        print(f"Skipped {len(skipped)} that cannot be read: {', '.join(skipped[:5])}{more}")
    print("In brackets: options that name something else; --help shows all.", flush=True)


def clear(trainer: Trainer) -> None:
    """Removes what would outlive a finished run in its folder, before another takes its place.

    That is its result, its checkpoints, and a model where this run saves an adapter, or an adapter
    where it saves a model, with its card: `from_pretrained` would load both, and Trainer would
    write the card of the old one. The weights that an adapter is trained on stay.

    Args:
        trainer: Before training.
    """
    args, adapters = trainer.args, getattr(trainer.model, "peft_config", {})
    _result_path(args).unlink(missing_ok=True)
    if args.resume_from_checkpoint:
        return
    # One with a higher step would be taken for the last checkpoint of this run.
    for checkpoint in _checkpoints(args):
        shutil.rmtree(checkpoint)
    folder = Path(args.output_dir).resolve()
    bases = {Path(str(adapter.base_model_name_or_path)).resolve() for adapter in adapters.values()}
    other = ("model*.safetensors*", "config.json") if adapters else ("adapter_*",)
    stale = [path for pattern in other for path in folder.glob(pattern)]
    if stale and folder not in bases:
        for path in (*stale, folder / "README.md"):
            path.unlink(missing_ok=True)


def _result_path(args: TrainingArguments) -> Path:
    return Path(args.output_dir) / RESULT


def _checkpoints(args: TrainingArguments) -> list[Path]:
    return sorted(Path(args.output_dir).resolve().glob("checkpoint-*"))


def write_predictions(
    args: TrainingArguments,
    name: str,
    indices: Iterable[Any],
    predictions: np.ndarray,
    classes: list[str] | None,
) -> None:
    """Writes `predictions_NAME.tsv`: `index`, `prediction`, `label`.

    Args:
        args: Training arguments, for the output folder.
        name: Name of the set.
        indices: A number or a file name for each row.
        predictions: `[N]` class ids or numbers.
        classes: Class names, for the column `label`; None for regression.
    """
    path = Path(args.output_dir) / f"predictions_{name}.tsv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(["index", "prediction", "label"] if classes else ["index", "prediction"])
        for index, value in zip(indices, predictions.tolist(), strict=True):
            table.writerow([index, value, classes[value]] if classes else [index, value])


def dataset_facts(data: Data) -> dict[str, Any]:
    """What `result.json` says about the data.

    Args:
        data: The data. `origin` has `name` and, where they apply, `id` (of a dataset on the Hub),
            `config`, `splits` (the split of that dataset for each set), `partial` (sets that are
            not a whole split) and `about` (in words).

    Returns:
        All of these entries, and the number of `rows` of each set. None of them is a path.
    """
    defaults: dict[str, Any] = {
        "id": None,
        "config": None,
        "splits": {},
        "partial": [],
        "about": None,
    }
    rows = {name: len(split) for name, split in data.splits.items()}
    return defaults | data.origin | {"rows": rows}


def write_result(
    trainer: Trainer,
    metrics: dict[str, dict[str, float]],
    training: dict[str, float],
    order: Sequence[str],
    card: dict[str, Any],
    **facts: Any,
) -> None:
    """Writes `result.json` and the model card, and prints the metrics and where the files are.

    Args:
        trainer: After training.
        metrics: What `Trainer.predict` reported, by name of the set, which prefixes its keys.
        training: What `Trainer.train` reported; empty if it did not run.
        order: The metrics to show first.
        card: What `create_model_card` takes.
        **facts: Further entries of the file, such as task and model.
    """
    args, state = trainer.args, trainer.state
    scores = final_metrics(metrics)
    result = {
        **facts,
        "loss": trainer._active.config,
        "kind": trainer._active.criterion.kind,
        "seed": args.seed,
        "metric": order[0],
        "metrics": {name: values for name, values in scores.items() if values},
        "predictions": {n: counts for n in scores if (counts := trainer.prediction_counts.get(n))},
        "history": history(state.log_history, list(scores)),
        "best": {
            "metric": args.metric_for_best_model,
            "value": state.best_metric,
            "step": state.best_global_step,
        },
        "training": {
            "global_step": state.global_step,
            "epochs": state.epoch,
            "runtime": training.get("train_runtime"),
            "evaluation_runtime": sum(
                v for e in state.log_history for k, v in e.items() if fnmatch(k, "eval_*runtime")
            ),
            "samples_per_second": training.get("train_samples_per_second"),
            "world_size": args.world_size,
            # What auto_find_batch_size has come to.
            "batch_size": (state.train_batch_size or args.train_batch_size)
            * args.gradient_accumulation_steps
            * args.world_size,
        },
        "versions": versions(),
        "hardware": hardware(args.device),
    }
    write_json(_result_path(args), result)
    if not trainer.is_world_process_zero():  # The first of another machine, with a disk of its own.
        return
    trainer.create_model_card(**card)
    _print_metrics(result["metrics"], order)
    print(f"\nIn {args.output_dir}:")
    for path in sorted(Path(args.output_dir).iterdir()):
        contents = [text for prefix, text in CONTENTS.items() if path.name.startswith(prefix)]
        if contents:
            print(f"  {path.name:26}{contents[0]}")


def _print_metrics(metrics: dict[str, dict[str, float]], order: Sequence[str]) -> None:
    keys = {key for scores in metrics.values() for key in scores}
    columns = [*order, *sorted(keys - set(order))]
    width = max(map(len, metrics), default=0)
    print("\n" + " " * width + "".join(f"  {column:>8}" for column in columns))
    for name, scores in metrics.items():
        cells = (f"  {scores[column]:{max(8, len(column))}.4f}" for column in columns)
        print(f"{name:{width}}" + "".join(cells))

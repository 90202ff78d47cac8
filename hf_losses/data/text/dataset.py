"""Sentences or sentence pairs with labels: from GLUE, a user's files, or the movie reviews.

Whatever does not fit raises a ValueError that names file and row, before a model is loaded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Value, load_dataset

from hf_losses.data import movie_reviews
from hf_losses.data.labels import (
    are_decimals,
    check_complete,
    check_two_classes,
    class_names,
    encode,
)
from hf_losses.data.splits import UNREADABLE
from hf_losses.data.text.tables import FORMATS, ROW_NAMES, dtype_of, need_column, read_rows, sample
from hf_losses.messages import UsageError

# Text columns, and class names in the order of their ids (None: regression).
GLUE: dict[str, tuple[list[str], list[str] | None]] = {
    "cola": (["sentence"], ["unacceptable", "acceptable"]),
    "mnli": (["premise", "hypothesis"], ["entailment", "neutral", "contradiction"]),
    "mrpc": (["sentence1", "sentence2"], ["not_equivalent", "equivalent"]),
    "qnli": (["question", "sentence"], ["entailment", "not_entailment"]),
    "qqp": (["question1", "question2"], ["not_duplicate", "duplicate"]),
    "rte": (["sentence1", "sentence2"], ["entailment", "not_entailment"]),
    "sst2": (["sentence"], ["negative", "positive"]),
    "stsb": (["sentence1", "sentence2"], None),
    "wnli": (["sentence1", "sentence2"], ["not_entailment", "entailment"]),
}

TASKS = [*movie_reviews.TASKS, *GLUE]
REGRESSION_TASKS = ["stsb", "movie_reviews_score"]

SPLIT_FILE = re.compile(r"(train|validation|test)(_matched|_mismatched)?(-.*)?")


@dataclass
class TextData:
    """Data that has been checked.

    Attributes:
        splits: `train` and every validation and test set by name. Column `label` holds class ids
            (int64) or numbers (float32); an unlabelled test set has none. `idx` or `id` is kept.
        columns: The one or two text columns.
        classes: Class names by id; None for regression.
        metric: Configuration of `GlueMetric`.
        origin: Where the data come from, see `outputs.dataset_facts`.
    """

    splits: DatasetDict
    columns: list[str]
    classes: list[str] | None
    metric: str
    origin: dict[str, Any] = field(default_factory=dict)
    options = "--task_name, --train_file"
    skipped = ()

    @property
    def inputs(self) -> str:
        """The text columns."""
        return " + ".join(self.columns)

    @property
    def kind(self) -> str:
        """`classification` or `regression`."""
        return "regression" if self.classes is None else "classification"

    def sets(self, kind: str) -> dict[str, Dataset]:
        """The `validation` or the `test` sets by name, such as `validation_matched`."""
        return {name: split for name, split in self.splits.items() if name.startswith(kind)}

    def indices(self, name: str) -> Iterable[int]:
        """The names of the rows of a set: their `idx` or `id`, or else their positions.

        Args:
            name: Name of the set.
        """
        split = self.splits[name]
        key = next((column for column in ROW_NAMES if column in split.column_names), None)
        return split[key][:] if key else range(len(split))

    def hold_out(self, share: float) -> dict[str, str]:
        """Takes a validation set from the training set; those there were become test sets.

        A test set without labels, as GLUE has, is left out: nothing can be measured on it.

        Args:
            share: Share of the training set, above 0 and below 1. The rows are drawn once, whatever
                the seed of the training.

        Returns:
            The name that every set had before.

        Raises:
            ValueError: If there is a validation set and a labelled test set already, or a test file
                would be left out, or no row to train on.
        """
        validation, tests = self.sets("validation"), self.sets("test")
        labelled = [name for name, split in tests.items() if "label" in split.column_names]
        if validation and labelled:
            raise UsageError(
                f"there are {next(iter(validation))} and {labelled[0]} sets with labels already; "
                "leave out --train_val_split"
            )
        rows = len(self.splits["train"])
        if rows - math.ceil(share * rows) < 1:
            raise UsageError(
                f"--train_val_split {share:g} of {rows} training rows leaves none to train on"
            )
        if validation and tests and self.metric not in GLUE:
            raise UsageError(
                "--train_val_split makes the validation file the test set; leave out --test_file"
            )
        parts = self.splits["train"].train_test_split(share, seed=0)
        sources = {name.replace("validation", "test", 1): name for name in validation}
        sources = sources or {name: name for name in tests}
        others = {name: self.splits[source] for name, source in sources.items()}
        self.splits = DatasetDict({"train": parts["train"], "validation": parts["test"]} | others)
        return {"train": "train", "validation": "train"} | sources

    def take(self, train: int | None, others: int | None) -> None:
        """Cuts the splits to fixed random samples of at most the given sizes.

        Args:
            train: Rows of the training set; None for all.
            others: Rows of every other set; None for all.

        Raises:
            ValueError: If a limit is not positive, or the training set is left with one class.
        """
        for name, split in self.splits.items():
            self.splits[name] = sample(split, name, train if name == "train" else others)
        check_two_classes(self.splits["train"]["label"][:], self.classes)


def load_task(task: str, dataset_name: str) -> TextData:
    """Loads a GLUE task or one of the movie reviews' tasks.

    Args:
        task: One of `TASKS`.
        dataset_name: For GLUE: a repository of the Hub, or a folder laid out like `nyu-mll/glue`:
            `TASK/SPLIT-*.parquet`, or csv, tsv, json or jsonl.

    Returns:
        The data.

    Raises:
        ValueError: If the data cannot be loaded or do not fit.
    """
    classes: list[str] | None
    if task in movie_reviews.TASKS:
        columns, classes = ["sentence"], movie_reviews.CLASSES
        splits = dict(movie_reviews.load_movie_reviews(task))
        metric = "regression" if task in REGRESSION_TASKS else "classification"
    else:
        (columns, classes), metric = GLUE[task], task
        splits = _glue_splits(task, dataset_name)
    where = {name: f"{task}, {name} set" for name in splits}
    return _checked(splits, where, columns, None if task in REGRESSION_TASKS else classes, metric)


def load_files(
    files: dict[str, str], label: str, sentence1: str | None = None, sentence2: str | None = None
) -> TextData:
    """Loads files of one's own: csv, tsv, json (a list, or one object a line) or parquet.

    Args:
        files: Path by split: `train`, `validation` and perhaps `test`.
        label: Label column. Numbers with a decimal point mean regression, all else classes.
        sentence1: Text column; by default the one or two columns of text that the file has, beside
            `idx` and `id`, which name the rows.
        sentence2: Second text column, for pairs.

    Returns:
        The data.

    Raises:
        ValueError: If a file cannot be read or does not fit.
    """
    splits = {name: read_rows([Path(path)]) for name, path in files.items()}
    train = splits["train"]
    need_column(train, label, files["train"])
    columns = [column for column in (sentence1, sentence2) if column]
    if not columns:
        others = (c for c in train.column_names if c not in (label, *ROW_NAMES))
        columns = [c for c in others if "string" in dtype_of(train, c)]
        problem = _no_text(train, columns, label) if len(columns) == 2 else ""
        if len(columns) not in (1, 2) or problem:
            raise UsageError(
                f"{files['train']}: {problem}name the text by --sentence1_column (pairs: and "
                f"--sentence2_column); columns: {', '.join(train.column_names)}"
            )
    if "label" in columns and label != "label":
        raise UsageError(f"{files['train']}: rename the text column 'label': labels get that name")
    feature = train.features[label]
    classes: list[str] | None
    if isinstance(feature, ClassLabel):
        classes = feature.names
    elif (dtype := dtype_of(train, label)) in ("list", "null"):
        raise UsageError(f"{files['train']}: column {label!r} holds {feature}, not labels")
    elif "float" in dtype or "decimal" in dtype or are_decimals(train[label][:]):
        classes = None
    else:
        hint = " Numbers to be predicted as such need a decimal point, as in 3.0"
        classes = class_names(train[label][:], files["train"], hint)
    metric = "regression" if classes is None else "classification"
    return _checked(splits, files, columns, classes, metric, label)


def _no_text(train: Dataset, columns: list[str], label: str) -> str:
    """Why one of two columns is hardly a text to learn from; empty if both are."""
    labels = [*map(str, train[label][:])]
    for column in columns:
        values = train[column][:]
        # As the names of the classes in a column of their own are: the model would read the answer.
        pairs, seen = set(zip(values, labels, strict=True)), set(values)
        if len(pairs) == len(seen) == len(set(labels)) < len(values):
            return f"column {column!r} says the label in other words ({values[0]!r}); "
        if all(value and value.isascii() and value.split() == [value] for value in values):
            return f"column {column!r} holds names or numbers ({values[0]!r}), not texts; "
    return ""


def _glue_splits(task: str, dataset_name: str) -> dict[str, Dataset]:
    """The splits of a GLUE task, from a folder or from the Hub."""
    folder = Path(dataset_name).expanduser()
    if folder.is_dir():
        if not (folder / task).is_dir():
            names = sorted(path.name for path in folder.iterdir())
            raise UsageError(f"{folder} has no folder {task!r}; it holds: {', '.join(names)}")
        shards: dict[str, list[Path]] = {}
        for path in sorted((folder / task).iterdir()):
            match = SPLIT_FILE.fullmatch(path.stem)
            if match and path.suffix in FORMATS:
                shards.setdefault(match[1] + (match[2] or ""), []).append(path)
        splits = {name: read_rows(paths) for name, paths in shards.items()}
    elif dataset_name.startswith((".", "/", "~")):
        raise UsageError(f"no folder {dataset_name!r}")
    else:
        try:
            splits = dict(load_dataset(dataset_name, task))
        except UNREADABLE as error:
            raise UsageError(
                f"cannot load {task!r} of {dataset_name!r} from the Hub: {error}. Without it: a "
                f"copy in a folder (--dataset_name FOLDER, with FOLDER/{task}/train-*.parquet "
                "and so on), files of your own (--train_file), or --task_name movie_reviews"
            ) from error
    if "train" not in splits or not any(name.startswith("validation") for name in splits):
        raise UsageError(
            f"{dataset_name}/{task} needs files train-* and validation-* ({', '.join(FORMATS)}); "
            f"found: {', '.join(splits) or 'none'}"
        )
    return splits


def _checked(
    splits: dict[str, Dataset],
    where: dict[str, str],
    columns: list[str],
    classes: list[str] | None,
    metric: str,
    label: str = "label",
) -> TextData:
    """Checks texts and labels row by row, and turns labels into class ids or numbers."""
    checked = DatasetDict()
    for name, split in splits.items():
        for column in columns:
            need_column(split, column, where[name])
            if "string" not in dtype_of(split, column):
                kind = split.features[column]
                raise UsageError(f"{where[name]}: column {column!r} holds {kind}, not text")
            texts = split[column][:]
            if None in texts:
                row = texts.index(None) + 1
                raise UsageError(f"{where[name]}, row {row}: no text in column {column!r}")
        is_test = name.startswith("test")
        if not is_test:
            need_column(split, label, where[name])
        encoded = _encode(split, label, classes, where[name], glue=metric in GLUE)
        check_complete(encoded, where[name], is_test=is_test)
        if name == "train":
            check_two_classes(encoded, classes)
        split = split.select_columns(
            [*columns, *(c for c in ROW_NAMES if c in set(split.column_names) - set(columns))]
        )
        if None not in encoded:
            kind = Value("float32" if classes is None else "int64")
            split = split.add_column("label", encoded, feature=kind)
        checked[name] = split
    return TextData(checked, columns, classes, metric)


def _encode(
    split: Dataset, label: str, classes: list[str] | None, where: str, glue: bool
) -> list[float | None]:
    """Class ids or numbers; None where there is no label."""
    if label not in split.column_names:
        return [None] * len(split)
    by_id = glue and "int" in dtype_of(split, label)
    names = getattr(split.features[label], "names", classes if by_id else None)
    # In GLUE's test sets -1 stands for a label that is kept secret.
    return encode(split[label][:], classes, where, names, unknown=-1 if glue or names else None)

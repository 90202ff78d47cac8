"""The arguments that choose sentences or pairs of them: a task, or files of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_losses.data import movie_reviews
from hf_losses.data.text.dataset import (
    GLUE,
    REGRESSION_TASKS,
    TASKS,
    TextData,
    load_files,
    load_task,
)
from hf_losses.messages import UsageError, nearest
from hf_losses.options import option

HUB = "nyu-mll/glue"
NAMES = {"cola": "CoLA", "mnli": "MNLI", "mrpc": "MRPC", "qnli": "QNLI", "qqp": "QQP"}
NAMES |= {"rte": "RTE", "sst2": "SST-2", "stsb": "STS-B", "wnli": "WNLI"}
ABOUT = {
    "movie_reviews": "labels are the sign of the mean rating",
    "movie_reviews_score": "labels are the mean rating, from -4 to 4",
    "movie_reviews_single_rater": "training labels are the sign of one rater's rating, those of "
    "the other sets the sign of the mean",
}


@dataclass
class TextArguments:
    """The data: a task, or files of one's own."""

    task_name: str | None = option(None, f"{', '.join(TASKS)}; without one: {TASKS[0]}")
    dataset_name: str | None = option(None, f"folder laid out like {HUB}; without one: {HUB}")
    train_file: str | None = option(None, "csv, tsv, json, jsonl or parquet, instead of a task")
    validation_file: str | None = option(None, "goes with --train_file")
    test_file: str | None = option(None, "goes with --train_file; its labels are optional")
    sentence1_column: str | None = option(None, "text column; without one: all there are")
    sentence2_column: str | None = option(None, "second text column, for pairs")
    label_column: str | None = option(None, "numbers with a decimal point are regression")
    train_val_split: float = option(
        0.0,
        "share of the training set to make choices on: it becomes the validation set, and the "
        "validation set there was the test set",
    )
    max_train_samples: int | None = option(None, "train on a fixed random sample of this size")
    max_eval_samples: int | None = option(None, "the same for every validation and test set")

    def __post_init__(self) -> None:
        """Checks what can be checked before anything is read."""
        flags = [n for n in vars(self) if n.endswith(("_file", "_column")) and getattr(self, n)]
        if self.task_name and flags:
            raise UsageError(f"--task_name and --{flags[0]} contradict each other; keep one")
        if not 0 <= self.train_val_split < 1:
            raise UsageError(f"--train_val_split must be in [0, 1), got {self.train_val_split}")
        if flags and not (self.train_file and (self.validation_file or self.train_val_split)):
            raise UsageError(
                f"--{flags[0]} goes with --train_file and --validation_file (or --train_val_split)"
            )
        if not flags:
            self.task_name = self.task_name or TASKS[0]
            if self.task_name not in TASKS:
                raise UsageError(
                    f"unknown task {self.task_name!r}.{nearest(self.task_name, TASKS)} Choose one "
                    f"of: {', '.join(TASKS)}; or give files of your own by --train_file"
                )
        if self.dataset_name and self.task_name not in GLUE:
            raise UsageError(f"--dataset_name goes with a --task_name among: {', '.join(GLUE)}")

    @property
    def name(self) -> str:
        """The task, or the training file without its folder and ending."""
        return self.task_name or Path(self.train_file or "").stem

    @property
    def kind(self) -> str | None:
        """`classification` or `regression`; None for files, whose labels decide it."""
        if self.task_name is None:
            return None
        return "regression" if self.task_name in REGRESSION_TASKS else "classification"

    def load(self) -> TextData:
        """Reads and checks the data.

        Raises:
            ValueError: If it cannot be read, or a row, column or label does not fit.
        """
        if self.task_name:
            data = load_task(self.task_name, self.dataset_name or HUB)
        else:
            files = {
                "train": self.train_file,
                "validation": self.validation_file,
                "test": self.test_file,
            }
            data = load_files(
                {name: path for name, path in files.items() if path},
                self.label_column or "label",
                self.sentence1_column,
                self.sentence2_column,
            )
        sizes = {name: len(split) for name, split in data.splits.items()}
        sources = {name: name for name in data.splits}
        if self.train_val_split:
            sources = data.hold_out(self.train_val_split)
        data.take(self.max_train_samples, self.max_eval_samples)
        partial = [n for n, split in data.splits.items() if len(split) < sizes[sources[n]]]
        data.origin = self._origin(sources) | {"partial": partial}
        return data

    def _origin(self, sources: dict[str, str]) -> dict[str, Any]:
        """Where the data come from; of files and folders the names alone."""
        if self.task_name in ABOUT:
            about = f"{movie_reviews.ABOUT}; {ABOUT[self.task_name]}"
            return {"name": self.task_name, "about": about}
        if not self.task_name:
            files = (self.train_file, self.validation_file, self.test_file)
            names = ", ".join(f"`{Path(file).name}`" for file in files if file)
            return {"name": Path(self.train_file or "").name, "about": f"the files {names}"}
        name, source = f"GLUE {NAMES[self.task_name]}", Path(self.dataset_name or HUB).expanduser()
        if source.is_dir():
            about = f"files of this task in the folder `{source.resolve().name}`"
            return {"name": name, "about": about}
        hub = {"id": self.dataset_name or HUB, "config": self.task_name}
        return {"name": name, **hub, "splits": sources}

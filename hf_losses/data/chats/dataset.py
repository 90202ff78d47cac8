"""Prompts with completions, and chats: reading, checking, and turning into tokens and labels.

Whatever does not fit raises a ValueError that names file and row, before a model is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from transformers import PreTrainedTokenizerBase

from hf_losses.data import movie_reviews
from hf_losses.data.chats.encoding import prompt_tokens, row_tokens
from hf_losses.data.chats.rows import TABLES, check_quotes, check_rows
from hf_losses.data.splits import UNREADABLE, check_recognised, files_and_folders
from hf_losses.data.text.tables import FORMATS, ROW_NAMES, read_rows, sample
from hf_losses.losses.registry import IGNORE_INDEX
from hf_losses.messages import UsageError
from hf_losses.options import option

SENTIMENTS = "movie_review_sentiments"

ABOUT_DEFAULT = f"{movie_reviews.ABOUT}; the completion is the sign of the mean rating in a word"

HUB_SPLITS = {"train": "train", "validation": "validation", "valid": "validation"}

HUB_SPLITS |= {"val": "validation", "dev": "validation", "test": "test"}

HUB_SPLITS |= {"train_sft": "train", "test_sft": "test"}  # Others are for preference learning.


@dataclass
class ChatArguments:
    """The data: a dataset, or files of one's own."""

    dataset_name: str | None = option(
        None, f"Hub name such as trl-lib/Capybara, or a folder of files; without one: {SENTIMENTS}"
    )
    dataset_config_name: str | None = option(None, "configuration of the dataset, if it has some")
    train_file: str | None = option(None, "csv, tsv, json, jsonl or parquet, instead of a dataset")
    validation_file: str | None = option(None, "goes with --train_file")
    test_file: str | None = option(None, "goes with --train_file; its completions are optional")
    prompt_column: str = option("prompt", "text before the completion")
    completion_column: str = option("completion", "text to learn")
    messages_column: str = option(
        "messages", "chat, a list of {role, content}; taken if prompt or completion is missing"
    )
    train_val_split: float = option(
        0.1, "share of the training set that is held out where there is no validation set; 0: none"
    )
    max_train_samples: int | None = option(None, "train on a fixed random sample of this size")
    max_eval_samples: int | None = option(None, "the same for every validation and test set")

    def __post_init__(self) -> None:
        """Checks what can be checked before anything is read."""
        files = [n for n in vars(self) if n.endswith("_file") and getattr(self, n)]
        if self.dataset_name and files:
            raise UsageError(f"--dataset_name and --{files[0]} contradict each other; keep one")
        if files and not self.train_file:
            raise UsageError(f"--{files[0]} goes with --train_file")
        if not 0 <= self.train_val_split < 1:
            raise UsageError(f"--train_val_split must be in [0, 1), got {self.train_val_split}")
        if not files:
            self.dataset_name = self.dataset_name or SENTIMENTS

    @property
    def name(self) -> str:
        """The dataset, or the training file without its folder and ending."""
        if self.train_file:
            return Path(self.train_file).stem
        name = self.dataset_name or ""
        return Path(name).resolve().name if _is_path(name) else name.replace("/", "_")

    def load(self) -> Conversations:
        """Reads and checks the data.

        Raises:
            ValueError: If it cannot be read, or a row or column does not fit.
        """
        origin: dict[str, Any] = {"name": self.name}
        if self.dataset_name == SENTIMENTS:
            stored = _movie_review_prompts()
            where = {name: f"{SENTIMENTS}, {name} set" for name in stored}
            columns = ["prompt", "completion"]
            origin["about"] = ABOUT_DEFAULT
        else:
            stored, where, split_names = self._stored()
            train = stored["train"]
            text_columns = [self.prompt_column, self.completion_column]
            # Datasets of chats often have the first turn as a column `prompt`, too.
            is_chat = self.messages_column in train.column_names and not (
                set(text_columns) <= set(train.column_names)
            )
            columns = [self.messages_column] if is_chat else text_columns
            names = [Path(where[name]).name for name in stored]
            origin["about"] = f"the files {', '.join(f'`{name}`' for name in names)}"
            if self.dataset_name and _is_path(self.dataset_name):
                origin["about"] = f"files of the folder `{self.name}`"
            elif self.dataset_name:
                origin = {"name": self.dataset_name, "id": self.dataset_name}
                origin |= {"config": self.dataset_config_name, "splits": split_names}
        splits = {n: check_rows(split, columns, n, where[n]) for n, split in stored.items()}
        sizes = {name: len(split) for name, split in splits.items()}
        if "validation" not in splits and self.train_val_split:
            if sizes["train"] < 2:
                raise UsageError(f"{where['train']}: one row cannot be split; --train_val_split 0")
            if sizes["train"] <= math.ceil(self.train_val_split * sizes["train"]):
                raise UsageError(
                    f"--train_val_split {self.train_val_split:g} of {sizes['train']} training rows "
                    "leaves none to train on"
                )
            parts = splits["train"].train_test_split(self.train_val_split, seed=0)
            splits |= {"train": parts["train"], "validation": parts["test"]}
            where["validation"] = where["train"]
            if "splits" in origin:
                origin["splits"]["validation"] = origin["splits"]["train"]
        order = [name for name in ("train", "validation", "test") if name in splits]
        for name in order:
            limit = self.max_train_samples if name == "train" else self.max_eval_samples
            splits[name] = sample(splits[name], name, limit)
        origin["partial"] = [n for n in order if len(splits[n]) != sizes.get(n)]
        return Conversations({n: splits[n] for n in order}, where, len(columns) == 1, origin)

    def _stored(self) -> tuple[dict[str, Dataset], dict[str, str], dict[str, str]]:
        """Each set as it is stored, its file or dataset, and the dataset's own name of it."""
        if self.train_file:
            paths = {n: getattr(self, f"{n}_file") for n in ("train", "validation", "test")}
            where = {name: path for name, path in paths.items() if path}
            return {name: read_rows([Path(path)]) for name, path in where.items()}, where, {}
        dataset = self.dataset_name or ""
        stored = _load(dataset, self.dataset_config_name)
        split_names = {HUB_SPLITS[split]: split for split in stored if split in HUB_SPLITS}
        splits = {name: stored[split] for name, split in split_names.items()}
        if "train" not in splits:
            raise UsageError(f"{dataset} has no split 'train', only: {', '.join(stored)}")
        where = {name: f"{dataset}, {name} set" for name in splits}
        return splits, where, split_names


@dataclass
class Conversations:
    """Data that has been checked.

    Attributes:
        splits: `train`, perhaps `validation` and `test`. Columns: `messages` and `weights` (one for
            each message; 0: it is not learned), or `prompt`, `completion` and `weights` (one; the
            completion is None in a test set without
            completions); `row`, the row's number in the file; `idx` or `id` if the file has it.
        where: The file or dataset of each split, for errors.
        is_chat: Whether the rows are chats.
        origin: Where the data come from, see `outputs.dataset_facts`.
        left_out: How many rows of each set `encode` left out since they are too long.
        cut: How many prompts of each set `encode` cut.
        idle: How many rows of each set `encode` left out since nothing in them is learned.
    """

    splits: dict[str, Dataset]
    where: dict[str, str]
    is_chat: bool
    origin: dict[str, Any]
    left_out: dict[str, int] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    idle: dict[str, int] = field(default_factory=dict)
    options = "--dataset_name, --train_file"
    classes = None
    skipped = ()

    @property
    def inputs(self) -> str:
        """The model's input, in words."""
        return "chat" if self.is_chat else "prompt"

    @property
    def target(self) -> str:
        """The text that the model learns, in words."""
        return "the assistant's turns" if self.is_chat else "completion"

    @property
    def _nothing(self) -> str:
        what = "turn of the assistant" if self.is_chat else "completion"
        return f"every {what} has weight 0"

    @property
    def _is_weighted(self) -> bool:
        return any(
            weight not in (0, 1)
            for split in self.splits.values()
            for weights in split["weights"][:]
            for weight in weights
        )

    def sets(self, kind: str) -> dict[str, Dataset]:
        """The `validation` or the `test` set by name, if there is one."""
        return {name: split for name, split in self.splits.items() if name == kind}

    def indices(self, name: str) -> Iterable[Any]:
        """The names of the rows of a set: their `idx` or `id`, or else their positions.

        Args:
            name: Name of the set.
        """
        split = self.splits[name]
        key = next((column for column in ROW_NAMES if column in split.column_names), None)
        return split[key][:] if key else range(len(split))

    def encode(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Dataset]:
        """Makes tokens and labels, and counts rows in `left_out`, `cut` and `idle`.

        Args:
            tokenizer: With an EOS token and, for chats, a template.
            max_length: The largest number of tokens in a row. Longer rows are cut at their
                beginning; a row whose completion or last turn does not fit is left out.

        Returns:
            `input_ids` and `labels` for each set, by its name; a test set without completions is
            missing. Labels are -100 except for the completion or the assistant's turns, with the
            EOS; turns with `"weight": 0` are -100, too. If any weight is neither 0 nor 1, every
            set has `loss_weight` as well, one number per label.

        Raises:
            ValueError: If the template does not fit a row, or a set has no row that fits.
        """

        def encode(row: dict[str, Any], where: str) -> dict[str, Any]:
            ids, weights = row_tokens(row, tokenizer, f"{where}, row {row['row']}")
            labels = [
                token if weight else IGNORE_INDEX
                for token, weight in zip(ids, weights, strict=True)
            ]
            excess = len(ids) - max_length
            # Where the completion or the last turn starts.
            start = len(weights) - weights[::-1].index(0) if 0 in weights else 0
            if excess > 0:
                kept = int(ids[0] == tokenizer.bos_token_id)  # Models expect their BOS.
                ids = ids[:kept] + ids[kept + excess :]
                labels = labels[:kept] + labels[kept + excess :]
                weights = weights[:kept] + weights[kept + excess :]
            fits = excess <= 0 or excess < start
            encoded = {"input_ids": ids, "labels": labels, "loss_weight": weights}
            return encoded | {"fits": fits, "cut": excess > 0}

        sets = {}
        for name, split in self.splits.items():
            if not self.is_chat and None in split["completion"][:1]:
                continue
            if self.is_chat and split["messages"][0][-1]["role"] != "assistant":
                continue
            where = {"where": self.where[name]}
            learned = split.filter(any, input_columns="weights")
            idle = len(split) - len(learned)
            if not len(learned):
                raise UsageError(
                    f"{self.where[name]}: nothing to learn in the {name} set: {self._nothing}"
                )
            rows = learned.map(encode, fn_kwargs=where, remove_columns=split.column_names)
            fitting = rows.filter(lambda fits: fits, input_columns="fits")
            if not len(fitting):
                raise UsageError(
                    f"{self.where[name]}: no row of the {name} set fits into {max_length} tokens; "
                    "raise --max_length, or take a model with more positions"
                )
            counts = (idle, len(rows) - len(fitting), sum(fitting["cut"]))
            for count, by_set in zip(counts, (self.idle, self.left_out, self.cut), strict=True):
                if count:
                    by_set[name] = count
            if len(fitting) < len(split):
                self.origin["partial"] = sorted({*self.origin["partial"], name})
            unused = ["fits", "cut"] + ["loss_weight"] * (not self._is_weighted)
            sets[name] = fitting.remove_columns(unused)
        return sets

    def too_long(self, max_length: int) -> list[str]:
        """Lines to print that say how many rows `encode` left out or cut, and why.

        Args:
            max_length: The one that `encode` was given.
        """
        lines = []
        length = f"{max_length} tokens (--max_length)"
        for counts, reason in (
            (self.left_out, f"left out, since what is to be learned does not fit into {length}"),
            (self.cut, f"cut at their beginning to {length}"),
            (self.idle, f"left out, since {self._nothing}"),
        ):
            if counts:
                rows = ", ".join(f"{count:,} {name}" for name, count in counts.items())
                lines.append(f"Rows {reason}: {rows}\n")
        return lines

    def prompts(
        self, name: str, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> list[list[int]]:
        """The tokens of every row of a set that the model is to continue, cut at their beginning.

        Args:
            name: Name of the set.
            tokenizer: As for `encode`.
            max_length: The largest number of tokens in a prompt.

        Raises:
            ValueError: If the template does not fit a row.
        """
        prompts = []
        for row in self.splits[name]:
            ids = prompt_tokens(row, tokenizer, f"{self.where[name]}, row {row['row']}")
            kept = int(ids[0] == tokenizer.bos_token_id)
            prompts.append(ids[:kept] + ids[kept + max(0, len(ids) - max_length) :])
        return prompts


def _movie_review_prompts() -> dict[str, Dataset]:
    """Movie reviews as prompts, each with its sentiment as the completion."""
    splits = movie_reviews.load_movie_reviews("movie_reviews")
    words = splits["train"].features["label"].names

    def as_prompt(row: dict[str, Any]) -> dict[str, str]:
        prompt = f"Review: {row['sentence']}\nSentiment:"
        return {"prompt": prompt, "completion": f" {words[row['label']]}"}

    return {
        name: split.map(as_prompt, remove_columns=["sentence", "label"])
        for name, split in splits.items()
    }


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or Path(name).is_dir()


def _load(name: str, config: str | None) -> dict[str, Dataset]:
    """Every split of a dataset of the Hub, or of a folder of files."""
    folder = Path(name).expanduser()
    if _is_path(name) and not folder.is_dir():
        raise UsageError(f"no folder {name!r}")
    for path in files_and_folders(folder, TABLES):
        check_quotes(path)
    try:
        splits = dict(load_dataset(str(folder), config))
    except UNREADABLE as error:
        raise UsageError(
            f"cannot load {name!r}: {str(error).splitlines()[0]}. --dataset_name takes a name of "
            "the Hub or a folder; without the Hub: a copy in a folder, or --train_file"
        ) from error
    sets = {HUB_SPLITS[split] for split in splits if split in HUB_SPLITS}
    check_recognised(files_and_folders(folder, FORMATS), sets)
    return splits

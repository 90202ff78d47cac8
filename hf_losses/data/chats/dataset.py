"""Prompts with completions, and chats: read, checked, and made tokens of which some are learned.

Whatever does not fit raises a ValueError that names file and row, before a model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, load_dataset
from transformers import PreTrainedTokenizerBase

from hf_losses.data.chats.encoding import IGNORED, prompt_tokens, row_tokens
from hf_losses.data.chats.rows import TABLES, check_quotes, checked
from hf_losses.data.movie_reviews import load_movie_reviews
from hf_losses.data.sets import check_seen, files_and_folders
from hf_losses.data.text.dataset import MOVIE_REVIEWS
from hf_losses.data.text.tables import FORMATS, read_rows, sample
from hf_losses.messages import UsageError
from hf_losses.options import option

DEFAULT = "movie_review_sentiments"

ABOUT_DEFAULT = f"{MOVIE_REVIEWS}; the completion is the sign of the mean rating in a word"

HUB_SPLITS = {"train": "train", "validation": "validation", "valid": "validation"}

HUB_SPLITS |= {"val": "validation", "dev": "validation", "test": "test"}

HUB_SPLITS |= {"train_sft": "train", "test_sft": "test"}  # Beside splits for preference learning.


@dataclass
class ChatArguments:
    """The data: a dataset, or files of one's own."""

    dataset_name: str | None = option(
        None, f"Hub name such as trl-lib/Capybara, or a folder of files; without one: {DEFAULT}"
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
        own = [n for n in vars(self) if n.endswith("_file") and getattr(self, n)]
        if self.dataset_name and own:
            raise UsageError(f"--dataset_name and --{own[0]} contradict each other; keep one")
        if own and not self.train_file:
            raise UsageError(f"--{own[0]} goes with --train_file")
        if not 0 <= self.train_val_split < 1:
            raise UsageError(f"--train_val_split must be in [0, 1), got {self.train_val_split}")
        if not own:
            self.dataset_name = self.dataset_name or DEFAULT

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
        if self.dataset_name == DEFAULT:
            found = _default()
            where = {name: f"{DEFAULT}, {name} set" for name in found}
            columns = ["prompt", "completion"]
            origin["about"] = ABOUT_DEFAULT
        else:
            found, where, called = self._stored()
            train = found["train"]
            own = [self.prompt_column, self.completion_column]
            # Chats often come with their first turn as a column of its own.
            is_chat = self.messages_column in train.column_names and not (
                set(own) <= set(train.column_names)
            )
            columns = [self.messages_column] if is_chat else own
            names = [Path(where[name]).name for name in found]
            origin["about"] = f"the files {', '.join(f'`{name}`' for name in names)}"
            if self.dataset_name and _is_path(self.dataset_name):
                origin["about"] = f"files of the folder `{self.name}`"
            elif self.dataset_name:
                origin = {"name": self.dataset_name, "id": self.dataset_name}
                origin |= {"config": self.dataset_config_name, "splits": called}
        splits = {n: checked(split, columns, n, where[n]) for n, split in found.items()}
        whole = {name: len(split) for name, split in splits.items()}
        if "validation" not in splits and self.train_val_split:
            if whole["train"] < 2:
                raise UsageError(f"{where['train']}: one row cannot be split; --train_val_split 0")
            parts = splits["train"].train_test_split(self.train_val_split, seed=0)
            splits |= {"train": parts["train"], "validation": parts["test"]}
            where["validation"] = where["train"]
            if "splits" in origin:
                origin["splits"]["validation"] = origin["splits"]["train"]
        order = [name for name in ("train", "validation", "test") if name in splits]
        for name in order:
            limit = self.max_train_samples if name == "train" else self.max_eval_samples
            splits[name] = sample(splits[name], name, limit)
        origin["partial"] = [n for n in order if len(splits[n]) != whole.get(n)]
        return Conversations({n: splits[n] for n in order}, where, len(columns) == 1, origin)

    def _stored(self) -> tuple[dict[str, Dataset], dict[str, str], dict[str, str]]:
        """The splits as they are stored, where each comes from, and what a dataset calls it."""
        if self.train_file:
            given = {n: getattr(self, f"{n}_file") for n in ("train", "validation", "test")}
            where = {name: path for name, path in given.items() if path}
            return {name: read_rows([Path(path)]) for name, path in where.items()}, where, {}
        name = self.dataset_name or ""
        found = _load(name, self.dataset_config_name)
        called = {HUB_SPLITS[split]: split for split in found if split in HUB_SPLITS}
        splits = {split: found[own] for split, own in called.items()}
        if "train" not in splits:
            raise UsageError(f"{name} has no split 'train', only: {', '.join(found)}")
        where = {split: f"{name}, {split} set" for split in splits}
        return splits, where, called


@dataclass
class Conversations:
    """Data that has been checked.

    Attributes:
        splits: `train`, perhaps `validation` and `test`. Columns: `messages` and `learned` (whether
            each of them is), or `prompt` and `completion` (None in a test set without); `row`, that
            of the file; `idx` or `id`.
        where: The file or dataset of each split, for errors.
        is_chat: Whether they are chats.
        origin: Where they come from, see `output.dataset_facts`.
        left_out: How many rows of each set `encode` has left out, where it has.
        cut: How many prompts of each set it has cut.
        idle: How many rows of each set it has left out since nothing in them is to be learned.
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
        """What the model sees, in words."""
        return "chat" if self.is_chat else "prompt"

    @property
    def target(self) -> str:
        """What it learns, in words."""
        return "the assistant's turns" if self.is_chat else "completion"

    def sets(self, kind: str) -> dict[str, Dataset]:
        """The `validation` or the `test` set by name, if there is one."""
        return {name: split for name, split in self.splits.items() if name == kind}

    def indices(self, name: str) -> Iterable[Any]:
        """What names the rows of a set: its `idx` or `id`, or their position.

        Args:
            name: Name of the set.
        """
        split = self.splits[name]
        key = next((column for column in ("idx", "id") if column in split.column_names), None)
        return split[key] if key else range(len(split))

    def encode(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Dataset]:
        """Makes tokens and labels, and counts rows in `left_out`, `cut` and `idle`.

        Args:
            tokenizer: With an EOS token and, for chats, a template.
            max_length: Tokens of a row. Of a longer one the beginning is cut off; one whose
                completion or last turn does not fit is left out.

        Returns:
            `input_ids` and `labels` by the name of the set; a test set without completions has
            none. Labels are -100 but for the completion or the assistant's turns, with the EOS; of
            these, turns with `"weight": 0` are not learned.

        Raises:
            ValueError: If the template does not fit a row, or a set has no row that fits.
        """

        def encode(row: dict[str, Any], where: str) -> dict[str, Any]:
            if not any(row.get("learned", [True])):
                return {"input_ids": [], "labels": [], "fits": False, "cut": False, "idle": True}
            ids, learned = row_tokens(row, tokenizer, f"{where}, row {row['row']}")
            labels = [t if yes else IGNORED for t, yes in zip(ids, learned, strict=True)]
            excess = len(ids) - max_length
            start = len(learned) - learned[::-1].index(0) if 0 in learned else 0
            if excess > 0:
                first = int(ids[0] == tokenizer.bos_token_id)  # Models are used to a BOS.
                ids = ids[:first] + ids[first + excess :]
                labels = labels[:first] + labels[first + excess :]
            fits = excess <= 0 or excess < start
            found = {"input_ids": ids, "labels": labels, "fits": fits, "cut": excess > 0}
            return found | {"idle": False}

        encoded = {}
        for name, split in self.splits.items():
            if not self.is_chat and None in split["completion"][:1]:
                continue
            if self.is_chat and split["messages"][0][-1]["role"] != "assistant":
                continue
            where = {"where": self.where[name]}
            found = split.map(encode, fn_kwargs=where, remove_columns=split.column_names)
            kept = found.filter(lambda fits: fits, input_columns="fits")
            idle = sum(found["idle"])
            if idle == len(found):
                raise UsageError(
                    f"{self.where[name]}: nothing to learn in the {name} set: every turn of the "
                    "assistant has weight 0"
                )
            if not len(kept):
                raise UsageError(
                    f"{self.where[name]}: no row of the {name} set fits into {max_length} tokens; "
                    "raise --max_length, or take a model with more positions"
                )
            counts = (idle, len(found) - len(kept) - idle, sum(kept["cut"]))
            for count, counted in zip(counts, (self.idle, self.left_out, self.cut), strict=True):
                if count:
                    counted[name] = count
            if len(kept) < len(found):
                self.origin["partial"] = sorted({*self.origin["partial"], name})
            encoded[name] = kept.remove_columns(["fits", "cut", "idle"])
        return encoded

    def too_long(self, max_length: int) -> list[str]:
        """What `encode` has counted, in words.

        Args:
            max_length: As it was given.
        """
        found = []
        length = f"{max_length} tokens (--max_length)"
        for counts, what in (
            (self.left_out, f"left out, since what is to be learned does not fit into {length}"),
            (self.cut, f"cut at their beginning to {length}"),
            (self.idle, "left out, since every turn of the assistant has weight 0"),
        ):
            if counts:
                rows = ", ".join(f"{count:,} {name}" for name, count in counts.items())
                found.append(f"Rows {what}: {rows}\n")
        return found

    def prompts(
        self, name: str, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> list[list[int]]:
        """The tokens of every row of a set up to where the model is to go on, cut from the left.

        Args:
            name: Name of the set.
            tokenizer: As for `encode`.
            max_length: Tokens of a prompt.

        Raises:
            ValueError: If the template does not fit a row.
        """
        found = []
        for row in self.splits[name]:
            ids = prompt_tokens(row, tokenizer, f"{self.where[name]}, row {row['row']}")
            first = int(ids[0] == tokenizer.bos_token_id)
            found.append(ids[:first] + ids[first + max(0, len(ids) - max_length) :])
        return found


def _default() -> dict[str, Dataset]:
    """Movie reviews, each with its sentiment as the completion."""
    splits = load_movie_reviews("movie_reviews")
    words = splits["train"].features["label"].names

    def ask(row: dict[str, Any]) -> dict[str, str]:
        prompt = f"Review: {row['sentence']}\nSentiment:"
        return {"prompt": prompt, "completion": f" {words[row['label']]}"}

    return {n: s.map(ask, remove_columns=["sentence", "label"]) for n, s in splits.items()}


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or Path(name).is_dir()


def _load(name: str, config: str | None) -> dict[str, Dataset]:
    folder = Path(name).expanduser()
    if _is_path(name) and not folder.is_dir():
        raise UsageError(f"no folder {name!r}")
    for path in files_and_folders(folder, TABLES):
        check_quotes(path)
    try:
        found = dict(load_dataset(str(folder), config))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UsageError(
            f"cannot load {name!r}: {str(error).splitlines()[0]}. --dataset_name takes a name of "
            "the Hub or a folder; without the Hub: a copy in a folder, or --train_file"
        ) from error
    seen = {HUB_SPLITS[split] for split in found if split in HUB_SPLITS}
    check_seen(files_and_folders(folder, FORMATS), seen)
    return found

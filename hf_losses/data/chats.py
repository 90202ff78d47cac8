"""Prompts with completions, and chats: read, checked, and made tokens of which some are learned.

Whatever does not fit raises a ValueError that names file and row, before a model is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import datasets
import jinja2
from datasets import Dataset, load_dataset
from transformers import PreTrainedTokenizerBase

from hf_losses.data.movie_reviews import load_movie_reviews
from hf_losses.data.sets import check_seen, files_and_folders
from hf_losses.data.text import FORMATS, MOVIE_REVIEWS, layout, need_column, read_rows, sample
from hf_losses.messages import UsageError
from hf_losses.options import option

DEFAULT = "movie_review_sentiments"
ABOUT_DEFAULT = f"{MOVIE_REVIEWS}; the completion is the sign of the mean rating in a word"
HUB_SPLITS = {"train": "train", "validation": "validation", "valid": "validation"}
HUB_SPLITS |= {"val": "validation", "dev": "validation", "test": "test"}
HUB_SPLITS |= {"train_sft": "train", "test_sft": "test"}  # Beside splits for preference learning.
IGNORED = -100  # As a label: no loss for this token.
TABLES = (".csv", ".tsv")
MARKS_ASSISTANT = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass
class DataArguments:
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
        splits = {n: _checked(split, columns, n, where[n]) for n, split in found.items()}
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
            ids, learned = _tokens(row, tokenizer, f"{where}, row {row['row']}")
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
            ids = _prompt(row, tokenizer, f"{self.where[name]}, row {row['row']}")
            first = int(ids[0] == tokenizer.bos_token_id)
            found.append(ids[:first] + ids[first + max(0, len(ids) - max_length) :])
        return found


# ---- Tokens ----------------------------------------------------------------------------------


def _tokens(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, where: str
) -> tuple[list[int], list[int]]:
    """The tokens of a row, up to and with an EOS, and which of them are learned."""
    eos = tokenizer.eos_token_id
    if "messages" not in row:
        prompt = _prompt(row, tokenizer, where)
        # By itself, so that the prompt has the tokens that it has when a completion is generated.
        completion = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
        completion += [eos] * (completion[-1] != eos)
        return prompt + completion, [0] * len(prompt) + [1] * len(completion)
    # What comes behind the last turn to be learned has no influence on it.
    weights = row["learned"][: len(row["learned"]) - row["learned"][::-1].index(True)]
    messages = row["messages"][: len(weights)]
    if MARKS_ASSISTANT.search(_template(tokenizer, where)):
        found = _render(messages, tokenizer, where, return_assistant_tokens_mask=True)
        ids, learned = found["input_ids"], found["assistant_masks"]
        if 1 not in learned:
            raise UsageError(f"{where}: the chat template marks nothing as the assistant's")
        answers = [i for i, turn in enumerate(messages) if turn["role"] == "assistant"]
        if not all(weights[i] for i in answers):
            learned = _without(learned, [weights[i] for i in answers], where)
        last = len(learned) - learned[::-1].index(1)
        start = last - [*learned[:last][::-1], 0].index(0)
    else:
        prompt = _render(messages[:-1], tokenizer, where, tokenize=False, generate=True)
        whole = _render(messages, tokenizer, where, tokenize=False)
        if not whole.startswith(prompt):
            raise UsageError(
                f"{where}: the chat without its last turn is not how the whole chat begins, so "
                "that turn cannot be told apart; mark the assistant's turns in the chat template "
                "by {% generation %} … {% endgeneration %}"
            )
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        start = len(ids)
        ids += tokenizer(whole[len(prompt) :], add_special_tokens=False)["input_ids"]
        learned = [0] * start
    turn = ids[start:]
    # What a template writes behind the EOS, such as a line break, nobody generates.
    turn = turn[: len(turn) - turn[::-1].index(eos)] if eos in turn else [*turn, eos]
    return ids[:start] + turn, learned[:start] + [1] * len(turn)


def _without(marks: list[int], weights: list[bool], where: str) -> list[int]:
    """The marks of the assistant's turns without those that are not learned."""
    runs = [(bool(mark), [*run]) for mark, run in groupby(marks)]
    if sum(mark for mark, _ in runs) != len(weights):
        raise UsageError(
            f"{where}: the chat template does not mark the assistant's turns one by one, so that "
            "those with weight 0 cannot be told from the others"
        )
    each = iter(weights)
    kept = [(mark and next(each), run) for mark, run in runs]
    return [int(learned) for learned, run in kept for _ in run]


def _prompt(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, where: str) -> list[int]:
    if "messages" in row:
        messages = row["messages"]
        asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
        text = _render(asked, tokenizer, where, tokenize=False, generate=True)
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = tokenizer(row["prompt"])["input_ids"]
    # Some tokenizers end every text with an EOS.
    return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids


def _template(tokenizer: PreTrainedTokenizerBase, where: str) -> str:
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:
        raise UsageError(
            f"{where} is a chat, but the tokenizer has no chat template: take a model that was "
            "made for chats, or columns of prompts and completions"
        ) from error


def _render(
    messages: list[dict[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    where: str,
    generate: bool = False,
    **options: Any,
) -> Any:
    _template(tokenizer, where)
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=generate, **options)
    except jinja2.TemplateError as error:
        raise UsageError(f"{where}: the chat template refuses it: {error}") from error


# ---- Reading and checking --------------------------------------------------------------------


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
        _check_quotes(path)
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


def _check_quotes(path: Path) -> None:
    """Raises a ValueError if `datasets`, which takes every table for quoted, would join rows."""
    if path.suffix not in TABLES:  # A folder.
        return
    try:
        quoted = layout(path).quote_char
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error
    if not quoted and re.search(r'(^|\t)"', path.read_text(encoding="utf-8-sig"), re.MULTILINE):
        raise UsageError(
            f"{path} has cells that begin with a quote, which would be taken for that of a .csv: "
            "name the files one by one (--train_file, --validation_file, --test_file)"
        )


def _checked(split: Dataset, columns: list[str], name: str, where: str) -> Dataset:
    """The columns under their usual names and the rows' numbers, after a look at every row."""
    is_test, is_chat, texts = name == "test", len(columns) == 1, {}
    if is_chat:
        (column,) = columns
        need_column(split, column, where)
        chats = split[column][:]
        for row, chat in enumerate(chats, start=1):
            _check_chat(chat, f"{where}, row {row}")
        texts["learned"] = [
            [turn["role"] == "assistant" and turn.get("weight") != 0 for turn in c] for c in chats
        ]
        texts["messages"] = [
            [{key: turn[key] for key in turn if key != "weight"} for turn in c] for c in chats
        ]
        complete = [chat[-1]["role"] == "assistant" for chat in chats]
        missing = "the last turn is not the assistant's"
    else:
        prompt, completion = columns
        texts["prompt"] = _texts(split, prompt, where)
        for row, text in enumerate(texts["prompt"], start=1):
            if not (text and text.strip()):
                raise UsageError(f"{where}, row {row}: no text in column {prompt!r}")
        none = is_test and completion not in split.column_names
        answers = [None] * len(split) if none else _texts(split, completion, where)
        complete = [bool(text and text.strip()) for text in answers]
        texts["completion"] = answers if any(complete) else [None] * len(split)
        missing = f"no text in column {completion!r}"
    if not all(complete) and (any(complete) or not is_test):
        raise UsageError(
            f"{where}, row {complete.index(False) + 1}: {missing}; only a test set may have "
            "nothing to learn, and then in every row"
        )
    kept = {key: split[key][:] for key in ("idx", "id") if key in split.column_names}
    return Dataset.from_dict(texts | kept | {"row": list(range(1, len(split) + 1))})


def _texts(split: Dataset, column: str, where: str) -> list[str | None]:
    need_column(split, column, where)
    texts = split[column][:]
    for row, text in enumerate(texts, start=1):
        if not isinstance(text, str | None):
            raise UsageError(f"{where}, row {row}: column {column!r} holds {text!r:.80}, not text")
    return texts


def _check_chat(chat: Any, where: str) -> None:
    is_list = isinstance(chat, list) and chat and all(isinstance(turn, dict) for turn in chat)
    if not is_list or not all(isinstance(turn.get("role"), str) for turn in chat):
        raise UsageError(f"{where}: a chat must be a list of {{role, content}}, got {chat!r:.80}")
    for number, turn in enumerate(chat, start=1):
        text, role = turn.get("content"), turn["role"]
        if not isinstance(text, str) or (role == "assistant" and not text.strip()):
            raise UsageError(f"{where}: turn {number} ({role}) has no text as content")
        if turn.get("weight") not in (None, 0, 1):
            raise UsageError(
                f"{where}: turn {number} ({role}) has weight {turn['weight']!r}; a turn is learned "
                "(1, or no weight) or not (0), and other weights come with a later version"
            )
    if len(chat) == 1 and chat[0]["role"] == "assistant":
        raise UsageError(
            f"{where}: the assistant's turn answers nothing; a turn before it is needed"
        )

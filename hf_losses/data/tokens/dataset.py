"""Words with tags: from CoNLL, json or parquet files, the Hub, or a task made of movie reviews.

Whatever does not fit raises a ValueError that names file and line or row, before a model is loaded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, Features, List, Value

from hf_losses.data.labels import check_class_count, check_two_classes
from hf_losses.data.movie_reviews import load_movie_reviews
from hf_losses.data.splits import UNREADABLE, check_recognised, files_and_folders
from hf_losses.data.text.tables import check_file, need_column, read_rows, sample
from hf_losses.data.tokens.conll import Sentences, read_conll
from hf_losses.messages import UsageError, nearest
from hf_losses.options import option

CAPITALS = "movie_reviews_capitals"

ABOUT_CAPITALS = (
    "sentences of movie reviews (Pang and Lee, 2004) in lower case; B-CAP and I-CAP mark the runs "
    "of words that began with a capital letter in the original, and follow from it: nobody has "
    "labelled them"
)

CONLL = (".conll", ".bio", ".txt", ".tsv")

STORED = (".json", ".jsonl", ".parquet")

TAG_COLUMNS = ("ner_tags", "tags")

# Names of splits on the Hub and in names of files, and the set that each of them is.
SPLITS = {"train": "train", "validation": "validation", "valid": "validation"}

SPLITS |= {"val": "validation", "dev": "validation", "test": "test"}

SPLIT_FILE = re.compile(rf"({'|'.join(SPLITS)})([-_.].*)?")

WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


@dataclass
class TokenArguments:
    """The data: a dataset, or files of one's own."""

    dataset_name: str | None = option(
        None,
        "Hub name such as lhoestq/conll2003, or a folder with train.conll, dev.conll and so on, or "
        f"with parquet or json files; without one: {CAPITALS} (capital letters, to be restored)",
    )
    dataset_config_name: str | None = option(
        None, "configuration of the dataset, if it has several"
    )
    train_file: str | None = option(
        None, f"CoNLL ({', '.join(CONLL)}: a word, perhaps more, and its tag a line), json, parquet"
    )
    validation_file: str | None = option(None, "goes with --train_file")
    test_file: str | None = option(None, "goes with --train_file; its tags are optional")
    tokens_column: str | None = option(None, "lists of words in json, parquet; without one: tokens")
    tags_column: str | None = option(None, f"lists of tags; without one: {', '.join(TAG_COLUMNS)}")
    max_train_samples: int | None = option(None, "train on a fixed random sample of this size")
    max_eval_samples: int | None = option(None, "the same for the validation and the test set")

    def __post_init__(self) -> None:
        """Checks what can be checked before anything is read."""
        files = [n for n in vars(self) if n.endswith("_file") and getattr(self, n)]
        columns = [n for n in vars(self) if n.endswith("_column") and getattr(self, n)]
        if self.dataset_name and files:
            raise UsageError(f"--dataset_name and --{files[0]} contradict each other; keep one")
        if files and not (self.train_file and self.validation_file):
            raise UsageError(f"--{files[0]} goes with --train_file and --validation_file")
        if not (self.dataset_name or files):
            self.dataset_name = CAPITALS
        if columns and self.dataset_name == CAPITALS:
            raise UsageError(f"--{columns[0]} goes with --train_file or --dataset_name")

    @property
    def on_hub(self) -> bool:
        """Whether the data come from the Hub."""
        if self.dataset_name is None or self.dataset_name == CAPITALS:
            return False
        return not _is_path(self.dataset_name)

    @property
    def name(self) -> str:
        """The dataset, or the training file or folder without what leads to it."""
        name = self.dataset_name or self.train_file or ""
        return name.replace("/", "_") if self.on_hub else Path(name).expanduser().resolve().stem

    def load(self) -> TokenData:
        """Reads and checks the data.

        Raises:
            ValueError: If it cannot be read, or a column, a sentence or a tag does not fit.
        """
        split_names: dict[str, str] = {}  # The names of the sets on the Hub.
        if self.dataset_name == CAPITALS:
            sets = _capitals()
        elif self.dataset_name and (files := _conll_files(self.dataset_name)):
            sets = {name: self._file(path, name) for name, path in files.items()}
        elif self.dataset_name:
            rows = _load(self.dataset_name, self.dataset_config_name)
            split_names = {SPLITS[split]: split for split in rows if split in SPLITS}
            sets = {
                name: self._stored(rows[split], f"{self.dataset_name}, {split} set", name)
                for name, split in split_names.items()
            }
        else:
            paths = {
                name: getattr(self, f"{name}_file") for name in ("train", "validation", "test")
            }
            sets = {name: self._file(Path(path), name) for name, path in paths.items() if path}
        for name in ("train", "validation"):
            if name not in sets:
                raise UsageError(
                    f"{self.dataset_name} has no {name} set; it needs one for training and one for "
                    f"validation, and has: {', '.join(sets) or 'none'}"
                )
        data = _checked(sets)
        for name, split in data.splits.items():
            limit = self.max_train_samples if name == "train" else self.max_eval_samples
            data.splits[name] = sample(split, name, limit)
        check_two_classes(chain.from_iterable(data.splits["train"]["tags"][:]), data.classes)
        partial = [name for name, split in data.splits.items() if len(split) < len(sets[name])]
        data.origin = self._origin() | {"partial": partial}
        if self.on_hub:
            data.origin["splits"] = {name: split_names[name] for name in data.splits}
        return data

    def _origin(self) -> dict[str, Any]:
        """Where the data come from; of files and folders the names alone."""
        if self.dataset_name == CAPITALS:
            return {"name": CAPITALS, "about": ABOUT_CAPITALS}
        if self.on_hub:
            config = self.dataset_config_name
            return {"name": self.dataset_name, "id": self.dataset_name, "config": config}
        if self.dataset_name:
            return {"name": self.name, "about": f"files of the folder `{self.name}`"}
        files = (self.train_file, self.validation_file, self.test_file)
        names = ", ".join(f"`{Path(file).name}`" for file in files if file)
        return {"name": Path(self.train_file or "").name, "about": f"the files {names}"}

    def _file(self, path: Path, name: str) -> Sentences:
        """The sentences of a file of the set `name`."""
        check_file(path, (*CONLL, *STORED))
        if path.suffix in STORED:
            return self._stored(read_rows([path]), str(path), name)
        for column in ("tokens_column", "tags_column"):
            if getattr(self, column):
                raise UsageError(
                    f"--{column} is for json and parquet; a line of {path} is a word, perhaps "
                    "further columns, and its tag"
                )
        return read_conll(path)

    def _stored(self, rows: Dataset, where: str, name: str) -> Sentences:
        """The sentences of a dataset with one sentence in each row."""
        words, tags = self.tokens_column or "tokens", self.tags_column
        if tags is None:
            present = [column for column in TAG_COLUMNS if column in rows.column_names]
            tags = present[0] if present else TAG_COLUMNS[0]
        need_column(rows, words, where)
        if "string" not in _dtype(rows, words):
            kind = rows.features[words]
            raise UsageError(f"{where}: column {words!r} holds {kind}, not lists of words")
        sentences = Sentences(where, rows[words][:])
        if name == "test" and (tags not in rows.column_names or not any(rows[tags][:])):
            return sentences
        need_column(rows, tags, where)
        if not re.match("u?int|(large_)?string", _dtype(rows, tags)):
            kind = rows.features[tags]
            raise UsageError(f"{where}: column {tags!r} holds {kind}, not lists of tags")
        sentences.tags = rows[tags][:]
        sentences.names = getattr(rows.features[tags].feature, "names", None)
        return sentences


@dataclass
class TokenData:
    """Data that has been checked.

    Attributes:
        splits: `train`, `validation` and perhaps `test`, with a sentence in each row: `tokens`,
            and `tags` (ids), which an unlabelled test set lacks.
        classes: Tags by id.
        entities: Whether the tags mark entities (B-…, I-…, O) rather than single words.
        origin: Where the data come from, see `outputs.dataset_facts`.
    """

    splits: DatasetDict
    classes: list[str]
    entities: bool
    origin: dict[str, Any] = field(default_factory=dict)
    inputs = "words"
    options = "--dataset_name, --train_file"
    skipped = ()

    def sets(self, kind: str) -> dict[str, Dataset]:
        """The `validation` or the `test` set by name, if there is one."""
        return {name: split for name, split in self.splits.items() if name == kind}


def _checked(sets: dict[str, Sentences]) -> TokenData:
    """Checks sentence by sentence, and turns tags into ids."""
    texts: dict[str, list[list[str]]] = {}
    for name, sentences in sets.items():
        sentences.check()
        if sentences.tags is not None:
            texts[name] = sentences.tag_texts()
        elif name != "test":
            raise UsageError(f"{sentences.where} has no tags: one column alone")
    train = sets["train"]
    train_tags: list[Any] = [*chain.from_iterable(train.tags or [])]
    if train.names is None:
        check_class_count(train_tags, train.where)
    # Ids without names are sorted as numbers.
    classes = train.names or [str(tag) for tag in sorted(set(train_tags))]
    marks = [name for name in classes if re.match("[BI]-.", name)]
    ids = {name: i for i, name in enumerate(classes)}
    splits = DatasetDict()
    for name in sorted(sets, key=("train", "validation", "test").index):
        sentences = sets[name]
        columns: dict[str, list[Any]] = {"tokens": sentences.tokens}
        features = {"tokens": List(Value("string"))}
        for row, tags in enumerate(texts.get(name, [])):
            for word, tag in enumerate(tags):
                if tag not in ids:
                    raise UsageError(
                        f"{sentences.place(row, word)}: tag {tag!r} is not one of the training "
                        f"set's {len(ids)}.{nearest(tag, ids)} They are: {', '.join(classes[:20])}"
                    )
                if marks and tag not in ("O", *marks):
                    raise UsageError(
                        f"{sentences.place(row, word)}: tag {tag!r} is neither O nor begins with "
                        f"B- or I-, as {marks[0]!r} does.{nearest(tag, ['O', *marks])}"
                    )
        if name in texts:
            columns["tags"] = [[ids[tag] for tag in tags] for tags in texts[name]]
            features["tags"] = List(Value("int64"))
        if name == "train":
            check_two_classes(chain.from_iterable(columns["tags"]), classes)
        splits[name] = Dataset.from_dict(columns, Features(features))
    return TokenData(splits, classes, bool(marks))


def _capitals() -> dict[str, Sentences]:
    """Movie reviews in lower case; the tags mark runs of words that had a capital letter."""
    sets = {}
    for name, split in load_movie_reviews("movie_reviews_score").items():
        tokens, tags = [], []
        for text in split["sentence"][:]:
            words, tag, sentence_tags = WORD.findall(text), "O", []
            for word in words:
                capital = "B-CAP" if tag == "O" else "I-CAP"  # After a tag, the entity goes on.
                tag = capital if word[0].isupper() else "O"
                sentence_tags.append(tag)
            tokens.append([word.lower() for word in words])
            tags.append(sentence_tags)
        sets[name] = Sentences(f"{CAPITALS}, {name} set", tokens, tags)
    return sets


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or Path(name).is_dir()


def _conll_files(name: str) -> dict[str, Path]:
    """The CoNLL files of a folder, by the name of their set."""
    folder = Path(name).expanduser()
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = SPLIT_FILE.fullmatch(path.stem)
        if match and path.suffix in CONLL:
            split = SPLITS[match[1]]
            if split in files:
                raise UsageError(
                    f"{folder} has two files for the {split} set: {files[split].name} and "
                    f"{path.name}; name the right ones by --train_file, --validation_file and "
                    "--test_file"
                )
            files[split] = path
    return files


def _load(name: str, config: str | None) -> dict[str, Dataset]:
    """Every split of a dataset of the Hub, or of a folder of files."""
    path = Path(name).expanduser()
    if _is_path(name) and not path.is_dir():
        raise UsageError(f"no folder {name!r}")
    try:
        splits = dict(datasets.load_dataset(str(path) if path.is_dir() else name, config))
    except UNREADABLE as error:
        raise UsageError(
            f"cannot load {name!r}: {str(error).splitlines()[0]}. --dataset_name takes a name of "
            "the Hub or a folder; without the Hub: a copy in a folder, --train_file and "
            f"--validation_file, or {CAPITALS}"
        ) from error
    sets = {SPLITS[split] for split in splits if split in SPLITS}
    check_recognised(files_and_folders(path, STORED), sets)
    return splits


def _dtype(rows: Dataset, column: str) -> str:
    """Type of the values in a column of lists; empty if the column holds no lists of values."""
    return getattr(getattr(rows.features[column], "feature", None), "dtype", "")

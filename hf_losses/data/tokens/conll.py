"""Sentences of words with tags, and the CoNLL files that hold them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_losses.losses.registry import IGNORE_INDEX
from hf_losses.messages import UsageError


@dataclass
class Sentences:
    """Sentences as they were read.

    Attributes:
        where: File or dataset, for errors.
        tokens: Their words.
        tags: A tag for each word, as text or as an id; None if there are no tags.
        names: The tags' texts by id, if `tags` are ids.
        lines: The line of each sentence's first word, in a file that has one word a line.
    """

    where: str
    tokens: list[list[str]]
    tags: list[list[Any]] | None = None
    names: list[str] | None = None
    lines: list[int] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def place(self, row: int, word: int) -> str:
        """Says where a word stands, for errors.

        Args:
            row: Position of the sentence.
            word: Position of the word in the sentence.
        """
        if self.lines is not None:
            return f"{self.where}, line {self.lines[row] + word}"
        return f"{self.where}, row {row + 1}, word {word + 1}"

    def check(self) -> None:
        """Raises a ValueError if words or tags are missing, or their numbers differ."""
        if not any(self.tokens):
            raise UsageError(f"{self.where} has no sentences")
        for row, words in enumerate(self.tokens):
            if words is None:
                raise UsageError(f"{self.where}, row {row + 1}: no words")
            if None in words or "" in words:
                word = next(i for i, word in enumerate(words) if not word)
                raise UsageError(f"{self.place(row, word)} is empty")
            tags = words if self.tags is None else self.tags[row]
            if tags is None:
                raise UsageError(
                    f"{self.where}, row {row + 1}: no tags; only a test set may lack tags, and "
                    "then in every row"
                )
            if len(tags) != len(words):
                raise UsageError(
                    f"{self.where}, row {row + 1}: {len(words)} words and {len(tags)} tags "
                    f"({' '.join(words[:8])}{' …' if len(words) > 8 else ''})"
                )

    def tag_texts(self) -> list[list[str]]:
        """The tags as texts.

        Raises:
            ValueError: If a tag is missing, or an id has no name.
        """
        by_id = {i: name for i, name in enumerate(self.names or [])}
        texts = []
        for row, tags in enumerate(self.tags or []):
            for word, tag in enumerate(tags):
                if tag in (None, "", IGNORE_INDEX) or (self.names and tag not in by_id):
                    problem = f"{tag} is no id of the {len(by_id)} tags" if by_id else "no tag"
                    if tag == IGNORE_INDEX:
                        problem = f"{tag} stands for no tag, and here every word has one"
                    raise UsageError(f"{self.place(row, word)}: {problem}")
            texts.append([by_id[tag] if self.names else str(tag) for tag in tags])
        return texts


def read_conll(path: Path) -> Sentences:
    """Reads a file with one word a line, and an empty line between sentences.

    Args:
        path: The file. Columns are separated by tabs or spaces; the first one is the word, the
            last one its tag. With one column, there are no tags. Lines that begin with `-DOCSTART-`
            are left out.

    Returns:
        Its sentences.

    Raises:
        ValueError: If the file is not UTF-8, or a line has not as many columns as the first.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: {error}") from error
    tokens: list[list[str]] = []
    tags: list[list[str]] = []
    lines: list[int] = []
    first_line, width, inside = 0, 0, False
    # splitlines and split() would also cut at characters that are part of words.
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.rstrip(" \t")
        columns = line.split("\t") if "\t" in line else re.split(" +", line.lstrip(" "))
        if columns == [""] or columns[0] == "-DOCSTART-":
            inside = False
            continue
        if not width:
            first_line, width = number, len(columns)
        if len(columns) != width:
            raise UsageError(
                f"{path}, line {number}: line {first_line} has {width} columns, but this one "
                f"{len(columns)}: {line.strip()!r}"
            )
        if not inside:
            tokens.append([])
            tags.append([])
            lines.append(number)
            inside = True
        tokens[-1].append(columns[0])
        tags[-1].append(columns[-1])
    counted = any(
        all(words == [*map(str, range(first, first + len(words)))] for words in tokens)
        for first in (0, 1)
    )
    if counted and len(tokens) > 1:
        raise UsageError(
            f"{path}: the first column counts the words of each sentence "
            f"({', '.join(tokens[0][:3])}, …), and it must hold the words: take it out"
        )
    return Sentences(str(path), tokens, tags if width > 1 else None, lines=lines)


def write_conll(path: Path, tokens: Iterable[list[str]], tags: Iterable[list[str]]) -> None:
    """Writes a file that `read_conll` reads: lines of word, tab and tag.

    Args:
        path: The file.
        tokens: The words of every sentence.
        tags: Their tags.
    """
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for words, names in zip(tokens, tags, strict=True):
            for word, name in zip(words, names, strict=True):
                file.write(re.sub("[\t\r\n]", " ", word) + f"\t{name}\n")
            file.write("\n")

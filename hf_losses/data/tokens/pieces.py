"""Sentences as a model reads them: which sub-token stands for a word, and where long ones are cut.

The first sub-token of a word carries its label, the others -100. A sentence with more sub-tokens
than fit becomes several pieces, cut between words. Pieces overlap, so that words at a cut have
context on both sides, but each word is labelled in one piece alone. No word is lost, neither in
training nor in evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_losses.messages import UsageError

IGNORE = -100
OVERLAP = 4  # At most a quarter of a piece stands in the one before, too.


def make_pieces(sentences: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Makes the inputs of a model, in the order of the sentences.

    Args:
        sentences: A sentence a row: `tokens`, and perhaps `tags` (ids).
        tokenizer: A fast one.
        max_length: Sub-tokens in a piece, the special ones included.

    Returns:
        A piece a row: the tokenizer's columns, `starts` (where the first sub-tokens of the words
        that count here are), and `labels` if there are tags.

    Raises:
        ValueError: If the tokenizer cannot tell which word a sub-token belongs to.
    """
    if not tokenizer.is_fast:
        raise UsageError(
            f"{type(tokenizer).__name__} cannot tell which word a sub-token belongs to; take a "
            "model with a fast tokenizer (tokenizer.json)"
        )
    length = min(max_length, tokenizer.model_max_length)
    room = length - tokenizer.num_special_tokens_to_add()
    # To byte-level tokenizers a word is another one with the space before it than without.
    apart = tokenizer(["a", "a"], is_split_into_words=True)["input_ids"]
    space = "" if apart == tokenizer("a a")["input_ids"] else " "

    def cut(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        spaced = [[words[0], *(space + word for word in words[1:])] for words in batch["tokens"]]
        whole = tokenizer(spaced, is_split_into_words=True, add_special_tokens=False, verbose=False)
        pieces, places = [], []
        for row, words in enumerate(spaced):
            sizes = np.bincount(whole.word_ids(row), minlength=len(words)).tolist()
            for word, size in enumerate(sizes):
                if not size:  # Of some words, such as a zero-width space, a tokenizer leaves none.
                    words[word], sizes[word] = tokenizer.unk_token, 1
            for seen, own in windows(sizes, room):
                pieces.append(words[seen.start : seen.stop])
                places.append((row, seen.start, own))
        encoded = tokenizer(pieces, is_split_into_words=True, truncation=True, max_length=length)
        starts, labels = [], []
        for piece, (row, offset, own) in enumerate(places):
            first: dict[int | None, int] = {}
            for position, word in enumerate(encoded.word_ids(piece)):
                first.setdefault(word, position)
            starts.append([first[word - offset] for word in own])
            if "tags" in batch:
                labels.append([IGNORE] * len(encoded["input_ids"][piece]))
                for word, position in zip(own, starts[-1], strict=True):
                    labels[-1][position] = batch["tags"][row][word]
        return {**encoded, "starts": starts} | ({"labels": labels} if "tags" in batch else {})

    filled = sentences.filter(lambda words: len(words) > 0, input_columns="tokens")
    return filled.map(cut, batched=True, remove_columns=filled.column_names)


def windows(sizes: Sequence[int], room: int) -> Iterator[tuple[range, range]]:
    """Divides a sentence into overlapping runs of words.

    Args:
        sizes: Sub-tokens of each word.
        room: Sub-tokens in a window; a word with more is a window by itself.

    Yields:
        The words in each window, and those among them that count there: every word counts once.
    """
    start = counted = 0
    while start < len(sizes):
        end, left = start + 1, room - sizes[start]
        while end < len(sizes) and sizes[end] <= left:
            left -= sizes[end]
            end += 1
        following = end
        if end < len(sizes):
            left = min(room // OVERLAP, room - sizes[end])
            while following - 1 > start and sizes[following - 1] <= left:
                following -= 1
                left -= sizes[following]
        middle = (following + end + 1) // 2
        yield range(start, end), range(counted, middle)
        start, counted = following, middle


def join_pieces(pieces: Dataset, found: np.ndarray, sizes: Sequence[int]) -> list[list[int]]:
    """Puts what was predicted for pieces together again.

    Args:
        pieces: As `make_pieces` returns them.
        found: `[pieces, length]` class ids.
        sizes: Words of every sentence.

    Returns:
        One class id for every word of every sentence.
    """
    ids = iter(
        [
            row[at]
            for row, starts in zip(found.tolist(), pieces["starts"], strict=True)
            for at in starts
        ]
    )
    return [[next(ids) for _ in range(size)] for size in sizes]

"""Cuts sentences into windows that fit a model, and puts the labels of words on sub-tokens.

The first sub-token of a word carries its label, the others -100. A sentence with more sub-tokens
than fit becomes several windows, cut between words. Windows overlap, so that words at a cut have
context on both sides, but each word is labelled in one window alone. No word is lost, neither in
training nor in evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_losses.losses.registry import IGNORE_INDEX
from hf_losses.messages import UsageError

OVERLAP = 4  # A window shares at most 1 / OVERLAP of its sub-tokens with the one before.


def make_windows(
    sentences: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Dataset:
    """Makes the inputs of a model, in the order of the sentences.

    Args:
        sentences: A sentence in each row: `tokens`, and perhaps `tags` (ids).
        tokenizer: A fast tokenizer.
        max_length: The largest number of sub-tokens in a window, with the special ones.

    Returns:
        A window in each row: the tokenizer's columns, `starts` (positions of the first sub-tokens
        of the words that count in this window), and `labels` if there are tags.

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
    # For byte-level tokenizers, the space before a word is a part of it.
    without_space = tokenizer(["a", "a"], is_split_into_words=True)["input_ids"]
    space = "" if without_space == tokenizer("a a")["input_ids"] else " "

    def cut(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        spaced = [[words[0], *(space + word for word in words[1:])] for words in batch["tokens"]]
        uncut = tokenizer(spaced, is_split_into_words=True, add_special_tokens=False, verbose=False)
        windows, places = [], []
        for row, words in enumerate(spaced):
            sizes = np.bincount(uncut.word_ids(row), minlength=len(words)).tolist()
            for word, size in enumerate(sizes):
                if not size:  # Some words, such as a zero-width space, have no sub-tokens.
                    words[word], sizes[word] = tokenizer.unk_token, 1
            for window, counting in split_words(sizes, room):
                windows.append(words[window.start : window.stop])
                places.append((row, window.start, counting))
        encoded = tokenizer(windows, is_split_into_words=True, truncation=True, max_length=length)
        starts, labels = [], []
        for index, (row, offset, counting) in enumerate(places):
            first_position: dict[int | None, int] = {}
            for position, word in enumerate(encoded.word_ids(index)):
                first_position.setdefault(word, position)
            starts.append([first_position[word - offset] for word in counting])
            if "tags" in batch:
                labels.append([IGNORE_INDEX] * len(encoded["input_ids"][index]))
                for word, position in zip(counting, starts[-1], strict=True):
                    labels[-1][position] = batch["tags"][row][word]
        return {**encoded, "starts": starts} | ({"labels": labels} if "tags" in batch else {})

    not_empty = sentences.filter(lambda words: len(words) > 0, input_columns="tokens")
    return not_empty.map(cut, batched=True, remove_columns=not_empty.column_names)


def split_words(sizes: Sequence[int], room: int) -> Iterator[tuple[range, range]]:
    """Divides a sentence into overlapping runs of words.

    Args:
        sizes: Number of sub-tokens of each word.
        room: Largest number of sub-tokens in a window; a word with more is a window by itself.

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


def join_windows(
    windows: Dataset, predictions: np.ndarray, sizes: Sequence[int]
) -> list[list[int]]:
    """Joins the predictions for windows to those for sentences.

    Args:
        windows: What `make_windows` returned.
        predictions: `[windows, length]` class ids.
        sizes: Number of words of each sentence.

    Returns:
        One class id for every word of every sentence.
    """
    ids = iter(
        [
            row[position]
            for row, starts in zip(predictions.tolist(), windows["starts"], strict=True)
            for position in starts
        ]
    )
    return [[next(ids) for _ in range(size)] for size in sizes]

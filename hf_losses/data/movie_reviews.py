"""Movie reviews, each rated by 15 or more people: three tasks on real text.

Origin, licence and numbers: README.md beside this file.
"""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from hf_losses.messages import UsageError

FILE = Path(__file__).parent / "movie_review_snippets.tsv.gz"
ABOUT = (
    "sentences of movie reviews (Pang and Lee, 2004), each rated by 15 or more people (Hutto and "
    "Gilbert, 2014), in the copy that ships with hf_losses"
)
TASKS = ("movie_reviews", "movie_reviews_score", "movie_reviews_single_rater")
CLASSES = ["negative", "positive"]


def load_movie_reviews(task: str) -> DatasetDict:
    """Loads one of the three tasks.

    Args:
        task: `movie_reviews` (sign of the mean rating; means of 0 are left out),
            `movie_reviews_score` (the mean rating itself, from -4 to 4), or
            `movie_reviews_single_rater` (`movie_reviews`, but every training label is the sign of
            one random rater's rating: real label noise).

    Returns:
        Splits `train`, `validation` and `test` with the columns `sentence`, `label` and `id`. A
        hash of the id decides the split, the rater and the order of the rows, so that these are the
        same on every machine, and the first n rows of a split are a random sample of it.

    Raises:
        ValueError: If the task is unknown.
    """
    if task not in TASKS:
        raise UsageError(f"unknown task {task!r}; choose one of: {', '.join(TASKS)}")
    with gzip.open(FILE, "rt", encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t") for line in file][1:]
    splits: dict[str, list[dict[str, object]]] = {"train": [], "validation": [], "test": []}
    for number, mean, ratings, sentence in sorted(rows, key=lambda row: _hash("order", row[0])):
        split = {0: "test", 1: "validation"}.get(_hash("split", number) % 10, "train")
        score = float(mean)
        if task == "movie_reviews_score":
            label: float = score
        elif score == 0:
            continue
        elif task == "movie_reviews_single_rater" and split == "train":
            decided = [int(rating) for rating in ratings.split() if int(rating) != 0]
            label = int(decided[_hash("rater", number) % len(decided)] > 0)
        else:
            label = int(score > 0)
        splits[split].append({"sentence": sentence, "label": label, "id": int(number)})
    kind = Value("float32") if task == "movie_reviews_score" else ClassLabel(names=CLASSES)
    features = Features({"sentence": Value("string"), "label": kind, "id": Value("int64")})
    return DatasetDict({name: Dataset.from_list(r, features) for name, r in splits.items()})


def _hash(purpose: str, number: str) -> int:
    """A number that depends on the id and the purpose alone; Python's own hash is salted."""
    return int.from_bytes(hashlib.sha256(f"{purpose} {number}".encode()).digest()[:8], "big")

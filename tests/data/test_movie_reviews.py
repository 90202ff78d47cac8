"""The shipped data: sizes, labels, and splits that depend on nothing but the ids."""

import gzip
import hashlib
import json

import pytest
from datasets import ClassLabel

from hf_losses.data.movie_reviews import FILE, TASKS, load_movie_reviews


@pytest.fixture(scope="module")
def rows():
    with gzip.open(FILE, "rt", encoding="utf-8") as file:
        header, *lines = [line.rstrip("\n").split("\t") for line in file]
    assert header == ["id", "mean", "ratings", "text"]
    return {int(number): (float(mean), ratings, text) for number, mean, ratings, text in lines}


@pytest.fixture(scope="module")
def tasks():
    return {task: load_movie_reviews(task) for task in TASKS}


def test_consensus_labels_are_the_sign_of_the_mean(rows, tasks):
    for split in tasks["movie_reviews"].values():
        assert split.column_names == ["sentence", "label", "id"]
        assert split.features["label"] == ClassLabel(names=["negative", "positive"])
        for row in split:
            mean, _, text = rows[row["id"]]
            assert mean != 0
            assert row["label"] == int(mean > 0)
            assert row["sentence"] == text


def test_every_sentence_with_an_opinion_lies_in_one_split(rows, tasks):
    ids = [number for split in tasks["movie_reviews"].values() for number in split["id"]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {number for number, (mean, _, _) in rows.items() if mean != 0}


def test_scores_are_the_means(rows, tasks):
    splits = tasks["movie_reviews_score"].values()
    labels = {row["id"]: row["label"] for split in splits for row in split}
    assert labels == pytest.approx({number: mean for number, (mean, _, _) in rows.items()})
    assert sum(label == 0 for label in labels.values()) == 37


def test_single_rater_changes_training_labels_only(rows, tasks):
    single, consensus = tasks["movie_reviews_single_rater"], tasks["movie_reviews"]
    for name in ("validation", "test"):
        assert single[name].to_list() == consensus[name].to_list()
    assert single["train"]["id"] == consensus["train"]["id"]
    for row in single["train"]:
        signs = {int(rating) > 0 for rating in rows[row["id"]][1].split() if int(rating) != 0}
        assert bool(row["label"]) in signs
    pairs = zip(single["train"]["label"], consensus["train"]["label"], strict=True)
    assert sum(a != b for a, b in pairs) == 457  # 5.4 %: as data/README.md says
    assert "457 of the 8,493" in FILE.with_name("README.md").read_text(encoding="utf-8")


def test_a_sentence_lies_in_the_same_split_in_every_task(tasks):
    for name in ("train", "validation", "test"):
        assert set(tasks["movie_reviews"][name]["id"]) <= set(
            tasks["movie_reviews_score"][name]["id"]
        )


def test_sizes_are_those_of_the_readme(tasks):
    readme = FILE.with_name("README.md").read_text(encoding="utf-8")
    for task, splits in tasks.items():
        sizes = " | ".join(f"{len(splits[name]):,}" for name in ("train", "validation", "test"))
        (row,) = [line for line in readme.splitlines() if line.startswith(f"| `{task}` ")]
        assert row.endswith(f"| {sizes} |")


def test_first_rows_are_a_sample_of_both_classes(tasks):
    for split in tasks["movie_reviews"].values():
        assert 0.4 < sum(split["label"][:200]) / 200 < 0.6


def digest(task):
    splits = {name: split.to_list() for name, split in load_movie_reviews(task).items()}
    return hashlib.sha256(json.dumps(splits, sort_keys=True).encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("task", "value"),
    [
        ("movie_reviews", "4a5e25ed639c7f9a"),
        ("movie_reviews_score", "4153141631de4546"),
        ("movie_reviews_single_rater", "4c1cbe0fcff1b54a"),
    ],
)
def test_the_splits_never_change(task, value):
    assert digest(task) == value


def test_unknown_task():
    with pytest.raises(ValueError, match=r"'movies'.*choose one of: movie_reviews,"):
        load_movie_reviews("movies")

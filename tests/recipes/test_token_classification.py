"""recipes/token_classification.py as users call it, on a tiny random BERT and data written here."""

import json
import os
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from datasets import ClassLabel, Features, List, Value
from hub import TOKEN
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    pipeline,
    set_seed,
)

from hf_losses.metrics.tasks import ENTITY_METRICS, EntityMetric

RECIPES = Path(__file__).parents[2] / "recipes"
sys.path.insert(0, str(RECIPES))

import token_classification  # noqa: E402

from hf_losses.compare.plan import make_plan  # noqa: E402
from hf_losses.compare.results import RunSettings  # noqa: E402
from hf_losses.compare.runs import read_result  # noqa: E402
from hf_losses.data import movie_reviews  # noqa: E402
from hf_losses.data.tokens import dataset as token_data  # noqa: E402
from hf_losses.data.tokens import windows as token_windows  # noqa: E402
from hf_losses.data.tokens.conll import read_conll, write_conll  # noqa: E402
from hf_losses.training import output_folder as output  # noqa: E402
from hf_losses.training.reports.machine import emulates_bfloat16  # noqa: E402

PEOPLE = ["anna", "berta", "carl"]
CITIES = ["oslo", "hamburg", "hamham"]
OTHERS = ["sees", "the", "walks", "in", "and", ","]
PARTS = ["ham", "##burg", "##ham"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TAGS = ["B-LOC", "B-PER", "I-PER", "O"]
ZERO_WIDTH = "\u200b"
RECIPE, FLAGS = token_classification, ("--learning_rate", "5e-3")


def sentence(rng):
    """Words and tags: a person is one word or two, and cities may have two sub-tokens."""
    words, tags = [], []
    for _ in range(rng.randint(1, 3)):
        others = rng.choices(OTHERS, k=rng.randint(1, 3))
        words += others
        tags += ["O"] * len(others)
        if rng.random() < 0.5:
            words.append(rng.choice(CITIES))
            tags.append("B-LOC")
        else:
            people = rng.choices(PEOPLE, k=rng.randint(1, 2))
            words += people
            tags += ["B-PER", "I-PER"][: len(people)]
    return {"tokens": words, "ner_tags": tags}


def rows(size, seed):
    rng = random.Random(seed)
    return [sentence(rng) for _ in range(size)]


def part_of_speech(row):
    """The same words with plain tags, which stand for each word by itself."""
    kinds = {"B-LOC": "PROPN", "B-PER": "PROPN", "I-PER": "PROPN"}
    tags = zip(row["tokens"], row["ner_tags"], strict=True)
    return row | {"ner_tags": ["PUNCT" if w == "," else kinds.get(tag, "X") for w, tag in tags]}


def conll(table, middle=""):
    lines = ["-DOCSTART- -X- O", ""] if middle else []
    for row in table:
        tags = row.get("ner_tags") or [""] * len(row["tokens"])
        lines += [f"{w}{middle} {t}".strip() for w, t in zip(row["tokens"], tags, strict=True)]
        lines.append("")
    return "\n".join(lines)


def write(path, table, names=None):
    """In the format of the ending; with `names`, tags are ids of a ClassLabel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".conll", ".txt", ".bio"):
        path.write_text(
            conll(table, " NN" if path.suffix == ".conll" and "ner_tags" in table[0] else "")
        )
    elif path.suffix == ".tsv":
        path.write_text(conll(table).replace(" ", "\t"))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table))
    elif path.suffix == ".json":
        path.write_text(json.dumps(table))
    else:
        features = {"tokens": List(Value("string"))}
        if "ner_tags" in table[0]:
            features["ner_tags"] = List(ClassLabel(names=names) if names else Value("string"))
        if names:
            table = [row | {"ner_tags": [names.index(t) for t in row["ner_tags"]]} for row in table]
        datasets.Dataset.from_list(table, Features(features)).to_parquet(str(path))
    return str(path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Folder of a tiny BERT without a head and without dropout, and a word-piece tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    words = [*SPECIAL, *PEOPLE, "oslo", *OTHERS, *PARTS]
    tokenizer = Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=32,
        **{f"{name[1:-1].lower()}_token": name for name in SPECIAL},
    ).save_pretrained(folder)
    set_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.3,  # As drawn, without pretraining, it learns in seconds.
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return AutoTokenizer.from_pretrained(tiny)


@pytest.fixture
def files(tmp_path):
    data = tmp_path / "data"
    return [
        *("--train_file", write(data / "train.conll", rows(64, 0))),
        *("--validation_file", write(data / "dev.conll", rows(20, 1))),
    ]


def predictions(out):
    """The written tags, a list a sentence, and the words."""
    blocks = (out / "predictions_test.tsv").read_text().rstrip("\n").split("\n\n")
    pairs = [[line.split("\t") for line in block.split("\n")] for block in blocks]
    return [[tag for _, tag in block] for block in pairs], [[w for w, _ in b] for b in pairs]


def spans(tags):
    """Entities of a well-formed sequence or not, found the slow way: every span is tried."""
    entities = set()
    for start in range(len(tags)):
        for end in range(start + 1, len(tags) + 1):
            kind = tags[start][2:]
            opens = tags[start] != "O" and (
                tags[start][0] == "B" or start == 0 or tags[start - 1][2:] != kind
            )
            inside = all(tag == f"I-{kind}" for tag in tags[start + 1 : end])
            if opens and inside and (end == len(tags) or tags[end] != f"I-{kind}"):
                entities.add((kind, start, end))
    return entities


def scores(predicted, true):
    both = [(spans(a), spans(b)) for a, b in zip(predicted, true, strict=True)]
    right = sum(len(a & b) for a, b in both)
    predicted_count, true_count = (sum(len(pair[i]) for pair in both) for i in (0, 1))
    precision, recall = (right / n if n else 0.0 for n in (predicted_count, true_count))
    pairs = [p for a, b in zip(predicted, true, strict=True) for p in zip(a, b, strict=True)]
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if right else 0.0,
        "accuracy": sum(a == b for a, b in pairs) / len(pairs),
    }


# ---- What the model reads ----------------------------------------------------------------------


def read(tokenizer, table, max_length=32):
    """Sub-tokens and labels of the windows, each as one string."""
    table = [{"tokens": words, "tags": tags} for words, tags in table]
    windows = token_windows.make_windows(datasets.Dataset.from_list(table), tokenizer, max_length)
    return [
        (" ".join(tokenizer.convert_ids_to_tokens(row["input_ids"])), row["labels"])
        for row in windows
    ]


def test_the_first_sub_token_carries_the_label(tokenizer):
    table = [(["anna", "sees", "hamburg", ","], [5, 6, 7, 8]), (["hamhamburg", "oslo"], [1, 2])]
    assert read(tokenizer, table) == [
        ("[CLS] anna sees ham ##burg , [SEP]", [-100, 5, 6, 7, -100, 8, -100]),
        ("[CLS] ham ##ham ##burg oslo [SEP]", [-100, 1, -100, -100, 2, -100]),
    ]


def test_a_long_sentence_goes_on_in_another_piece(tokenizer):
    words = ["anna", "sees", "hamburg", "and", "carl", "walks", "in", "oslo", ",", "the"]
    assert read(tokenizer, [(words, [*range(10)]), (["anna"], [9])], max_length=10) == [
        # 8 of the 11 sub-tokens fit; the next window begins 2 earlier, and the cut is amid those.
        (
            "[CLS] anna sees ham ##burg and carl walks in [SEP]",
            [-100, 0, 1, 2, -100, 3, 4, 5, -100, -100],
        ),
        ("[CLS] walks in oslo , the [SEP]", [-100, -100, 6, 7, 8, 9, -100]),
        ("[CLS] anna [SEP]", [-100, 9, -100]),
    ]


def test_a_word_longer_than_a_piece_keeps_its_label(tokenizer):
    table = [(["anna", "ham" * 9, "oslo"], [1, 2, 3])]
    assert read(tokenizer, table, max_length=6) == [
        ("[CLS] anna [SEP]", [-100, 1, -100]),
        ("[CLS] ham ##ham ##ham ##ham [SEP]", [-100, 2, -100, -100, -100, -100]),
        ("[CLS] oslo [SEP]", [-100, 3, -100]),
    ]


def test_a_word_of_which_the_tokenizer_leaves_nothing_keeps_its_label(tokenizer):
    table = [(["anna", ZERO_WIDTH, "oslo"], [1, 2, 3]), ([], []), ([ZERO_WIDTH], [4])]
    assert read(tokenizer, table) == [
        ("[CLS] anna [UNK] oslo [SEP]", [-100, 1, 2, 3, -100]),
        ("[CLS] [UNK] [SEP]", [-100, 4, -100]),
    ]


def test_a_byte_level_tokenizer_reads_words_as_in_running_text():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=32)
    ((text, labels),) = read(tokenizer, [(["an", "o"], [1, 2])])
    assert text == " ".join(tokenizer.tokenize("an o")) == "a n Ġ o"
    assert labels == [1, -100, 2, -100]


@given(st.lists(st.integers(1, 9), max_size=40), st.integers(1, 20))
def test_every_word_counts_once_where_it_can_be_seen(sizes, room):
    windows = list(token_windows.split_words(sizes, room))
    assert [word for _, counted in windows for word in counted] == [*range(len(sizes))]
    for visible, counted in windows:
        assert set(counted) <= set(visible)
        assert sum(sizes[word] for word in visible) <= room or len(visible) == 1
    for (before, _), (after, _) in pairwise(windows):
        assert before.start < after.start <= before.stop < after.stop
        shared = range(after.start, before.stop)
        assert sum(sizes[word] for word in shared) <= room / 4


@pytest.mark.parametrize("tagged", [True, False])
def test_windows_join_again(tokenizer, tagged):
    table = [{"tokens": r["tokens"], "tags": [*range(len(r["tokens"]))]} for r in rows(30, 0)]
    sentences = datasets.Dataset.from_list(table)
    if not tagged:
        sentences = sentences.remove_columns("tags")
    windows = token_windows.make_windows(sentences, tokenizer, 8)
    assert len(windows) > 30
    assert ("labels" in windows.column_names) == tagged
    predictions = np.full((len(windows), 8), -100)
    words = iter(word for row in table for word in row["tags"])
    for row, starts in enumerate(windows["starts"]):
        predictions[row, starts] = [next(words) for _ in starts]
    sizes = [len(row["tokens"]) for row in table]
    assert token_windows.join_windows(windows, predictions, sizes) == [row["tags"] for row in table]


# ---- Data --------------------------------------------------------------------------------------


def load(**arguments):
    data = token_data.TokenArguments(**arguments).load()
    return {name: split.to_dict() for name, split in data.splits.items()}, data


@pytest.mark.parametrize(
    "ending", ["conll", "txt", "bio", "tsv", "json", "jsonl", "parquet", "ids"]
)
def test_all_formats_are_read_alike(tmp_path, ending):
    suffix, names = ("parquet", TAGS) if ending == "ids" else (ending, None)
    splits, data = load(
        train_file=write(tmp_path / f"train.{suffix}", rows(9, 0), names),
        validation_file=write(tmp_path / f"dev.{suffix}", rows(5, 1), names),
        test_file=write(tmp_path / f"test.{suffix}", [{"tokens": r["tokens"]} for r in rows(4, 2)]),
    )
    assert (data.classes, data.entities) == (TAGS, True)
    for name, size, seed in (("train", 9, 0), ("validation", 5, 1)):
        assert splits[name]["tokens"] == [row["tokens"] for row in rows(size, seed)]
        tags = [[TAGS[i] for i in row] for row in splits[name]["tags"]]
        assert tags == [row["ner_tags"] for row in rows(size, seed)]
    assert splits["test"] == {"tokens": [row["tokens"] for row in rows(4, 2)]}


@pytest.mark.parametrize("first", [0, 1])
def test_a_column_that_counts_is_not_taken_for_the_words(tmp_path, first):
    sentences = [["Anna", "sees", "Oslo"], ["Yes"]]
    lines = [
        "\n".join(f"{number}\t{word}\tO" for number, word in enumerate(words, first))
        for words in sentences
    ]
    path = tmp_path / "a.conll"
    path.write_text("\n\n".join(lines))
    with pytest.raises(ValueError, match="the first column counts the words of each sentence"):
        read_conll(path)
    path.write_text("1\tB-NUM\n2\tI-NUM\n\n7\tO\n")
    assert read_conll(path).tokens == [["1", "2"], ["7"]]


def test_what_a_conll_file_may_hold(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text(
        '\ufeff-DOCSTART-\tO\n\n\nNew York\tB-LOC\r\nis\tO\t\n \n-DOCSTART- -X- O\na\xa0b\tO\n"\tO',
        encoding="utf-8",
    )
    table = read_conll(path)
    assert table.tokens == [["New York", "is"], ["a\xa0b", '"']]
    assert table.tags == [["B-LOC", "O"], ["O", "O"]]
    assert [table.place(0, 1), table.place(1, 0)] == [f"{path}, line 5", f"{path}, line 8"]


def test_writes_what_it_reads(tmp_path):
    tokens, tags = [["a\tb", " ", "#"], ["\n"]], [["O", "B-X", "O"], ["O"]]
    write_conll(tmp_path / "a.tsv", tokens, tags)
    table = read_conll(tmp_path / "a.tsv")
    assert table.tokens == [["a b", " ", "#"], [" "]]
    assert table.tags == tags


def test_columns_of_ones_own(tmp_path):
    table = [{"w": row["tokens"], "p": part_of_speech(row)["ner_tags"]} for row in rows(9, 0)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in table))
    columns = {"tokens_column": "w", "tags_column": "p"}
    _, data = load(train_file=str(path), validation_file=str(path), **columns)
    assert (data.classes, data.entities) == (["PROPN", "PUNCT", "X"], False)


def test_ids_without_names_are_plain_tags_in_their_order(tmp_path):
    table = [{"tokens": ["a"] * 11, "tags": [10, *range(10)]}]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(table))
    splits, data = load(train_file=str(path), validation_file=str(path))
    assert data.classes == [str(i) for i in range(11)]
    assert splits["train"]["tags"] == [table[0]["tags"]]


def test_capitals_are_those_of_the_reviews():
    splits, data = load()
    texts = movie_reviews.load_movie_reviews("movie_reviews_score")
    assert {name: len(split["tokens"]) for name, split in splits.items()} == {
        name: len(split) for name, split in texts.items()
    }
    for words, tags, text in zip(*splits["test"].values(), texts["test"]["sentence"], strict=True):
        assert "".join(words) == "".join(text.lower().split())
        capitals = [word[0].isupper() for word in token_data.WORD.findall(text)]
        assert [data.classes[tag] != "O" for tag in tags] == capitals
        before = "O"
        for tag in (data.classes[tag] for tag in tags):
            assert (tag == "I-CAP") <= (before != "O")
            assert (tag == "B-CAP") <= (before == "O")
            before = tag
    assert "nobody has labelled them" in data.origin["about"]


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "conll"])
def test_a_folder_as_a_dataset(tmp_path, ending):
    names = (
        ["train", "dev", "test"] if ending == "conll" else ["train-0", "train-1", "valid", "test"]
    )
    for seed, name in enumerate(names):
        write(tmp_path / "news" / f"{name}.{ending}", rows(6, seed))
    splits, data = load(dataset_name=str(tmp_path / "news"))
    sizes = {name: len(split["tokens"]) for name, split in splits.items()}
    assert sizes == {"train": 6 * (len(names) - 2), "validation": 6, "test": 6}
    facts = output.dataset_facts(data)
    assert facts["about"] == "files of the folder `news`"
    assert (facts["name"], facts["id"], facts["splits"]) == ("news", None, {})


def test_a_dataset_of_the_hub(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", rows(8, 0), TAGS)
    split = datasets.Dataset.from_parquet(path)
    requests = []

    def load_dataset(*arguments):
        requests.append(arguments)
        return {"train": split, "dev": split, "test": split, "extra": split}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    arguments = token_data.TokenArguments(
        dataset_name="me/news", dataset_config_name="en", max_eval_samples=4
    )
    facts = output.dataset_facts(arguments.load())
    assert (requests, arguments.name) == ([("me/news", "en")], "me_news")
    assert (facts["id"], facts["config"]) == ("me/news", "en")
    assert facts["splits"] == {"train": "train", "validation": "dev", "test": "test"}
    assert facts["partial"] == ["validation", "test"]
    assert facts["rows"] == {"train": 8, "validation": 4, "test": 4}


# ---- Metrics -----------------------------------------------------------------------------------


def test_metrics_of_entities_by_hand():
    true = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-PER", "B-PER"]]
    # Right: (PER 0-1) and (PER 2) of 4 true ones; 5 are predicted.
    predicted = [["B-PER", "I-PER", "O", "B-PER"], ["B-LOC", "I-PER", "B-PER"]]
    metrics = EntityMetric().compute(predictions=predicted, references=true)
    assert list(metrics) == list(ENTITY_METRICS)
    assert metrics == pytest.approx(
        {"precision": 3 / 5, "recall": 3 / 4, "f1": 2 / 3, "accuracy": 4 / 7}
    )


@pytest.mark.parametrize("seed", range(5))
def test_metrics_of_entities_equal_their_definition(seed):
    rng = random.Random(seed)
    tags = ["O", "B-X", "I-X", "B-Y", "I-Y"]
    true = [rng.choices(tags, k=rng.randint(1, 9)) for _ in range(20)]
    predicted = [[t if rng.random() < 0.8 else rng.choice(tags) for t in row] for row in true]
    metrics = EntityMetric().compute(predictions=predicted, references=true)
    assert metrics == pytest.approx(scores(predicted, true))


def test_without_entities_their_metrics_are_0():
    metrics = EntityMetric().compute(predictions=[["O", "O"]], references=[["O", "O"]])
    assert metrics == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "accuracy": 1.0}


# ---- What the recipe does ----------------------------------------------------------------------


def test_class_weights_are_balanced_by_words(run, files):
    """Other sub-tokens of a word than the first have no label."""
    weights = '{"weight": "balanced"}'
    result, _ = run(*files, "--loss", "strict_l", "--loss_kwargs", weights, "--max_steps", "1")
    tags = [tag for row in rows(64, 0) for tag in row["ner_tags"]]
    assert result["loss"]["weight"] == [len(tags) / (4 * tags.count(tag)) for tag in TAGS]


def test_trains_evaluates_and_says_where_everything_lies(run, files, tmp_path, capsys, pictures):
    write(tmp_path / "data" / "train.conll", rows(256, 0))
    test = write(tmp_path / "data" / "test.conll", rows(24, 2))
    result, out = run(*files, "--test_file", test, "--loss", "strict_l", "--num_train_epochs", "30")
    assert result["metrics"]["test"]["f1"] > 0.9
    assert set(result["metrics"]["validation"]) == {*ENTITY_METRICS, "loss", "cross_entropy"}
    assert result["metric"] == result["best"]["metric"] == "f1"
    assert result["loss"] == {"name": "strict_l"}
    assert (result["task"], result["model"], result["kind"]) == ("train", "tiny-bert", "strict")
    assert result["classes"] == TAGS
    assert result["dataset"]["rows"] == {"train": 256, "validation": 20, "test": 24}
    assert result["pipeline_tag"] == "token-classification"
    assert [entry["step"] for entry in result["history"]] == [8 * i for i in range(1, 31)]
    assert {"f1", "cross_entropy"} <= set(result["history"][-1])
    assert str(tmp_path) not in (out / "result.json").read_text()
    assert str(Path.home()) not in (out / "result.json").read_text()
    assert all((out / picture).exists() for picture in pictures)
    shown = capsys.readouterr().out
    for part in (
        "256 train, 20 validation, 24 test",
        "words → B-LOC",
        "1/sqrt(p*(2 - p)) - 1",
        str(out),
    ):
        assert part in shown.split("--help")[0]
    for part in (
        "f1",
        f"{result['metrics']['test']['f1']:.4f}",
        "model.safetensors",
        "result.json",
    ):
        assert part in shown.split("--help")[1]
    assert "Long " not in shown
    card = ModelCard.load(out / "README.md")
    assert card.data.pipeline_tag == "token-classification"
    assert set(card.data.metrics) == set(ENTITY_METRICS)
    recognise = pipeline("token-classification", model=str(out), aggregation_strategy="first")
    groups = [entity["entity_group"] for entity in recognise("the anna berta sees hamburg")]
    assert groups == ["PER", "LOC"]


@pytest.mark.parametrize("length", [32, 8])
def test_the_metrics_are_those_of_the_written_predictions(run, files, tmp_path, capsys, length):
    tests = rows(70, 2)  # More than a batch.
    test = write(tmp_path / "data" / "test.conll", tests)
    result, out = run(*files, "--test_file", test, "--do_predict", "--max_length", str(length))
    predicted, words = predictions(out)
    assert words == [row["tokens"] for row in tests]
    assert {tag for row in predicted for tag in row} <= set(TAGS)
    metrics = {name: result["metrics"]["test"][name] for name in ENTITY_METRICS}
    true = [row["ner_tags"] for row in tests]
    if length == 8:
        assert "Long    70 test sentences are read in " in capsys.readouterr().out
        assert metrics["accuracy"] == pytest.approx(scores(predicted, true)["accuracy"])
    else:
        assert metrics == pytest.approx(scores(predicted, true))
        assert 0 < metrics["f1"] < 1


def test_plain_tags_have_accuracy_and_macro_f1(run, files, tmp_path):
    tests = [part_of_speech(row) for row in rows(24, 2)]
    for name, size, seed in (("train", 64, 0), ("dev", 20, 1)):
        path = tmp_path / "data" / f"{name}.conll"
        write(path, [part_of_speech(row) for row in rows(size, seed)])
    test = write(tmp_path / "data" / "test.conll", tests)
    result, out = run(*files, "--test_file", test, "--do_predict")
    assert result["metric"] == result["best"]["metric"] == "accuracy"
    predicted = [tag for row in predictions(out)[0] for tag in row]
    true = [tag for row in tests for tag in row["ner_tags"]]
    pairs = list(zip(predicted, true, strict=True))
    assert result["metrics"]["test"]["accuracy"] == pytest.approx(
        np.mean([a == b for a, b in pairs])
    )
    f1 = [
        2 * pairs.count((k, k)) / max(1, predicted.count(k) + true.count(k))
        for k in {*predicted, *true}
    ]
    assert result["metrics"]["test"]["f1_macro"] == pytest.approx(np.mean(f1))


def logits_of(model, tokenizer, words):
    """One row of logits for every word, computed by hand."""
    encoded = tokenizer(words, is_split_into_words=True, return_tensors="pt")
    with torch.no_grad():
        logits = model.eval()(**encoded).logits[0]
    return torch.stack([logits[encoded.word_ids().index(i)] for i in range(len(words))])


def test_the_saved_model_predicts_the_written_predictions(run, files, tmp_path):
    tests = [{"tokens": row["tokens"]} for row in rows(24, 2)]
    test = write(tmp_path / "data" / "test.jsonl", tests)
    result, out = run(*files, "--test_file", test, "--do_predict")
    assert set(result["metrics"]) == {"validation"}
    model = AutoModelForTokenClassification.from_pretrained(out)
    assert list(model.config.id2label.values()) == TAGS
    assert model.config.hf_losses["name"] == "cross_entropy"
    tokenizer = AutoTokenizer.from_pretrained(out)
    for row, predicted in zip(tests, predictions(out)[0], strict=True):
        ids = logits_of(model, tokenizer, row["tokens"]).argmax(-1).tolist()
        assert predicted == [TAGS[i] for i in ids]


def test_adapter_predicts_the_same_on_the_same_base(run, files, tiny, tmp_path):
    tests = rows(24, 2)
    test = write(tmp_path / "data" / "test.conll", tests)
    arguments = ("--lora", "--lora_r", "4", "--test_file", test, "--do_predict")
    result, out = run(*files, *arguments, "--num_train_epochs", "4")
    assert not (out / "model.safetensors").exists()
    assert json.loads((out / "adapter_config.json").read_text())["task_type"] == "TOKEN_CLS"
    base = AutoModelForTokenClassification.from_pretrained(tiny, num_labels=len(TAGS))
    # Other random weights than those of the run: whatever the adapter leaves out shows.
    torch.nn.init.normal_(base.classifier.weight)
    model, tokenizer = PeftModel.from_pretrained(base, out), AutoTokenizer.from_pretrained(out)
    logits = [logits_of(model, tokenizer, row["tokens"]) for row in tests]
    tags = [[TAGS[i] for i in row.argmax(-1).tolist()] for row in logits]
    assert tags == predictions(out)[0]
    labels = torch.tensor([TAGS.index(tag) for row in tests for tag in row["ner_tags"]])
    expected = torch.nn.functional.cross_entropy(torch.cat(logits), labels).item()
    assert result["metrics"]["test"]["cross_entropy"] == pytest.approx(expected, rel=1e-5)


def test_an_interrupted_run_is_not_overwritten(run, files, capsys):
    saving = ("--save_strategy", "steps", "--save_steps", "1")
    whole, out = run(*files, *saving)
    weights = (out / "model.safetensors").read_bytes()
    (out / "result.json").unlink()  # As if it had been killed after its last but one checkpoint.
    (out / "checkpoint-2" / "trainer_state.json").unlink()
    with pytest.raises(SystemExit):
        run(*files)
    assert "holds an unfinished run: continue it by --resume" in capsys.readouterr().err
    saving = (*saving, "--resume_from_checkpoint", "true")
    with pytest.raises(SystemExit) as stopped:
        run(*files, *saving, "--loss", "strict_l")
    assert stopped.value.code == 2
    assert "was trained with the loss {'name': " in capsys.readouterr().err
    resumed, _ = run(*files, *saving)
    assert "from checkpoint-1" in capsys.readouterr().out
    assert resumed["metrics"] == whole["metrics"]
    assert (out / "model.safetensors").read_bytes() == weights


def test_evaluates_without_training(run, files):
    trained, out = run(*files)
    again, _ = run(*files, "--do_train", "false", name="again", model=str(out))
    assert again["metrics"] == trained["metrics"]
    assert again["training"]["global_step"] == 0


def test_default_data_and_output_folder(tmp_path, tiny, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = ["--max_train_samples", "32", "--max_eval_samples", "8", "--max_length", "16"]
    token_classification.main(
        ["--model_name_or_path", tiny, "--use_cpu", "--loss", "strict_l", "--seed", "3", *sizes]
    )
    folder = tmp_path / "runs/token_classification/movie_reviews_capitals-strict_l-seed3"
    result = json.loads((folder / "result.json").read_text())
    assert set(result["metrics"]) == {"validation", "test"}
    assert ModelCard.load(folder / "README.md").data.language == ["en"]


def test_is_a_page_that_a_user_reads():
    assert len((RECIPES / "token_classification.py").read_text().splitlines()) < 200


# ---- What a model takes ------------------------------------------------------------------------


def test_long_sentences_are_cut_to_the_positions_of_the_model(run, files, tiny, tmp_path, capsys):
    model = tmp_path / "model"
    BertModel.from_pretrained(tiny).save_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(tiny, model_max_length=int(1e30))
    tokenizer.save_pretrained(model)
    table = rows(8, 0) + [{k: v * 20 for k, v in row.items()} for row in rows(4, 1)]
    write(tmp_path / "data" / "train.conll", table)
    files = ("--train_file", str(tmp_path / "data" / "train.conll"), *files[2:])
    result, out = run(*files, model=str(model))
    shown = capsys.readouterr().out
    assert "Length  32 tokens, since the model takes no more" in shown
    assert "12 train sentences are read in" in shown
    assert AutoTokenizer.from_pretrained(out).model_max_length == 32
    cut, _ = run(*files, "--max_length", "32", model=str(model), name="cut")
    assert result["metrics"] == cut["metrics"]


@pytest.mark.parametrize("entities", [True, False])
def test_selects_by_any_metric_that_an_evaluation_reports(check_best_metrics, tmp_path, entities):
    path = Path(write(tmp_path / "a.conll", rows(20, 1)))
    if not entities:  # Then there is no prefix B- or I-, as with parts of speech.
        path.write_text(path.read_text().replace("B-", "").replace("I-", ""))
    check_best_metrics("--train_file", str(path), "--validation_file", str(path))


def test_refuses_a_tokenizer_that_cannot_pad(refused, files, tiny, tmp_path):
    BertModel.from_pretrained(tiny).save_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "model")
    message = refused(*files, model=str(tmp_path / "model"))
    assert "has neither a padding token nor an EOS" in message


# ---- What it refuses ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--loss", "mse"],
            "movie_reviews_capitals is a classification task and 'mse' a regression loss; choose "
            "one of: cross_entropy, strict_m",
        ),
        (["--loss", "liberal_ex"], "unknown loss 'liberal_ex'. Did you mean 'liberal_exp'?"),
        (
            ["--loss", "strict_m_power", "--loss_kwargs", '{"beta": 1}'],
            "has no parameter 'beta'; it ta",
        ),
        (["--dataset_name", "a", "--train_file", "a"], "--dataset_name and --train_file contradi"),
        (["--test_file", "a.conll"], "--test_file goes with --train_file and --validation_file"),
        (["--tags_column", "pos"], "--tags_column goes with --train_file or --dataset_name"),
        (["--dataset_name", "./no"], "no folder './no'"),
        (["--train_file", "no.bio", "--validation_file", "no.bio"], "no file 'no.bio'."),
        (["--train_file", "a.csv", "--validation_file", "a"], "a.csv: unknown format; the name mu"),
        (["--max_train_samples", "0"], "cannot take 0 rows of the train set"),
        (["--max_length", "2"], "--max_length 2 leaves no room for a word"),
        (["--do_predict", "false", "--resume_from_checkpoint", "no"], "no checkpoint folder 'no'"),
        (
            ["--lora", "--lora_target_modules", "nothing"],
            "--lora_target_modules: classifier, dense, key, ",
        ),
        (["--no_such_option", "1"], "--no_such_option"),
    ],
)
def test_refuses(refused, arguments, message):
    assert message in refused(*arguments)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.conll", "", "a.conll has no sentences"),
        ("a.conll", "-DOCSTART- O\n\n", "a.conll has no sentences"),
        ("a.conll", "anna\nsees\n", "a.conll has no tags: one column alone"),
        ("a.conll", "anna NN B-PER\nsees O\n", "a.conll, line 2: line 1 has 3 columns, but this o"),
        ("a.conll", "\n\nanna O\n\nsees\n", "line 5: line 3 has 2 columns, but this one 1: 'sees'"),
        ("a.conll", "anna O\nsees O\n", "every training label is 'O': nothing to tell apart"),
        (
            "a.conll",
            "anna B-PER\nsees O\n\nberta BPER\n",
            "line 4: tag 'BPER' is neither O nor begins with B- or I-, as 'B-PER' does. Did you "
            "mean 'B-PER'?",
        ),
        ("a.conll", b"anna \xff\n", "a.conll: 'utf-8' codec can't decode byte 0xff"),
        ("a.jsonl", "", "a.jsonl has no rows"),
        ("a.jsonl", '{"tokens"\n', "a.jsonl: line 1 is not JSON"),
        ("a.jsonl", '{"token": ["a"]}\n', "has no column 'tokens'. Did you mean 'token'?"),
        ("a.jsonl", '{"tokens": ["a"]}\n', "a.jsonl has no column 'ner_tags'. Columns: tokens"),
        ("a.jsonl", '{"tokens": "a b", "tags": ["O"]}\n', "'tokens' holds Value('string'), not li"),
        (
            "a.jsonl",
            '{"tokens": ["a"], "tags": [0.5]}\n',
            "column 'tags' holds List(Value('float64",
        ),
        (
            "a.jsonl",
            '{"tokens": ["a"], "tags": null}\n',
            "column 'tags' holds Value('null'), not l",
        ),
        (
            "a.jsonl",
            '{"tokens": ["a"], "tags": ["O"]}\n{"tokens": ["a", "b"], "tags": ["O"]}\n',
            "a.jsonl, row 2: 2 words and 1 tags (a b)",
        ),
        (
            "a.jsonl",
            '{"tokens": ["a"], "tags": ["O"]}\n{"tokens": ["a"]}\n',
            "a.jsonl, row 2: no tags; only a test set may lack tags, and then in every row",
        ),
        (
            "a.jsonl",
            '{"tokens": ["a"], "tags": ["O"]}\n{"tags": ["O"]}\n',
            "a.jsonl, row 2: no words",
        ),
        (
            "a.jsonl",
            '{"tokens": ["a", "b"], "tags": ["O", null]}\n',
            "a.jsonl, row 1, word 2: no tag",
        ),
        ("a.jsonl", '{"tokens": ["a", ""], "tags": ["O", "O"]}\n', "row 1, word 2 is empty"),
        (
            "a.jsonl",
            '{"tokens": ["a", "b"], "tags": [1, -100]}\n',
            "a.jsonl, row 1, word 2: -100 stands for no tag, and here every word has one",
        ),
        ("a.parquet", "no parquet", "a.parquet: "),
    ],
)
def test_refuses_a_training_file(refused, files, tmp_path, name, text, message):
    path = tmp_path / "data" / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert message in refused("--train_file", str(path), *files[2:])


@pytest.mark.parametrize("split", ["dev", "test"])
def test_refuses_a_tag_that_the_training_set_does_not_have(refused, files, tmp_path, split):
    test = write(tmp_path / "data" / "test.conll", rows(4, 2))
    path = tmp_path / "data" / f"{split}.conll"
    path.write_text("anna NN B-PER\n\nsees NN O\noslo NN B-LOK\n")
    assert refused(*files, "--test_file", test).endswith(
        f"{split}.conll, line 4: tag 'B-LOK' is not one of the training set's 4. Did you mean "
        "'B-LOC'? They are: B-LOC, B-PER, I-PER, O"
    )


def test_refuses_a_column_in_which_nearly_every_word_has_a_tag_of_its_own(refused, files, tmp_path):
    words = [f"word{i}" for i in range(30)]
    write(tmp_path / "data" / "train.conll", [{"tokens": words, "ner_tags": words}])
    message = refused("--train_file", str(tmp_path / "data" / "train.conll"), *files[2:])
    assert "train.conll: 30 labels would be 30 classes" in message


def test_refuses_an_id_without_a_name(refused, tmp_path):
    path = tmp_path / "a.parquet"
    features = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=TAGS))})
    table = pa.table({"tokens": [["a", "b"]], "tags": [[0, 4]]}).cast(features.arrow_schema)
    pa.parquet.write_table(table, path)
    message = refused("--train_file", str(path), "--validation_file", str(path))
    assert "a.parquet, row 1, word 2: 4 is no id of the 4 tags" in message


def test_refuses_columns_of_a_conll_file(refused, files):
    assert "--tags_column is for json and parquet; a line of" in refused(
        *files, "--tags_column", "pos"
    )


def test_refuses_a_folder_that_is_none(refused, tmp_path):
    write(tmp_path / "news" / "train.conll", rows(4, 0))
    folder = str(tmp_path / "news")
    assert "news has no validation set; it needs one" in refused("--dataset_name", folder)
    write(tmp_path / "news" / "train-2.bio", rows(4, 0))
    message = refused("--dataset_name", folder)
    assert "has two files for the train set: train-2.bio and train.conll" in message
    (tmp_path / "empty").mkdir()
    assert "cannot load '" in refused("--dataset_name", str(tmp_path / "empty"))


def test_refuses_predictions_without_a_test_set(refused, files):
    assert "--do_predict needs a test set" in refused(*files, "--do_predict")


def test_refuses_a_model_that_is_none(refused, files, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "cannot load the model" in refused(*files, model=str(tmp_path / "empty"))


def test_names_the_extra_when_seqeval_is_missing(refused, files, monkeypatch):
    monkeypatch.setitem(sys.modules, "seqeval", None)
    assert "pip install 'hf-losses[tokens]'" in refused(*files)


# ---- As users launch it ------------------------------------------------------------------------

ACCELERATE = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]


def launch(folder, *arguments, launcher=ACCELERATE, **environment):
    done = subprocess.run(
        [*launcher, str(RECIPES / "token_classification.py"), *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def result_of(folder):
    return json.loads(next(folder.rglob("result.json")).read_text())


@pytest.mark.slow
def test_the_default_model_learns_a_few_rows(run, capsys):
    sizes = ("--max_train_samples", "400", "--max_eval_samples", "100", "--learning_rate", "5e-4")
    faster = () if emulates_bfloat16() else ("--bf16",)
    result, _ = run("--loss", "cross_entropy", *sizes, *faster, model=None)
    assert "all-MiniLM-L6-v2" in capsys.readouterr().out
    assert result["metrics"]["test"]["f1"] > 0.5


@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")
def test_pushes_to_the_hub(run, hub, tmp_path, capsys):
    for seed, name in enumerate(("train", "dev", "test")):
        write(tmp_path / "news" / f"{name}.conll", rows(16, seed))
    push = ["--push_to_hub", "--hub_strategy", "end", "--hub_model_id", "me/ner", "--do_predict"]
    run("--dataset_name", str(tmp_path / "news"), *push, "--num_train_epochs", "1")
    published = hub.files["me/ner"]
    names = {"README.md", "model.safetensors", "result.json", "tokenizer.json"}
    assert names | {"predictions_test.tsv"} <= set(published)
    card = ModelCard(published["README.md"].decode())
    assert card.data.pipeline_tag == "token-classification"
    assert "files of the folder `news`" in card.text
    shown = capsys.readouterr()
    assert TOKEN not in shown.out + shown.err
    for content in published.values():
        assert TOKEN.encode() not in content
        assert str(tmp_path).encode() not in content


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(run, tiny, tmp_path):
    # 33 test rows leave an incomplete batch.
    arguments = [
        *("--train_file", write(tmp_path / "train.conll", rows(128, 0))),
        *("--validation_file", write(tmp_path / "dev.conll", rows(64, 1))),
        *("--test_file", write(tmp_path / "test.conll", rows(33, 2)), "--do_predict"),
        *("--loss", "strict_l", "--train_sampling_strategy", "random", "--num_train_epochs", "2"),
        *("--learning_rate", "1e-3", "--per_device_train_batch_size"),
    ]
    expected, one = run(*arguments, "16", name="one")
    model = ("--model_name_or_path", tiny, "--use_cpu", "--output_dir", "two")
    by_two = [*ACCELERATE, "--multi_gpu", "--num_processes", "2"]
    launch(tmp_path, *model, *arguments, "8", launcher=by_two)
    two = tmp_path / "two"
    result = result_of(two)
    assert result["training"]["world_size"] == 2
    for name, metrics in expected["metrics"].items():
        entity_metrics = {key: metrics[key] for key in ENTITY_METRICS}
        assert {key: result["metrics"][name][key] for key in entity_metrics} == pytest.approx(
            entity_metrics, rel=1e-5
        )
    assert predictions(one) == predictions(two)


def test_holds_to_the_contract_of_compare(run, files):
    _, out = run(*files, "--num_train_epochs", "1")
    losses = ["cross_entropy", "liberal_exp"]
    plan = make_plan(str(RECIPES / "token_classification.py"), [*files], losses, seeds=1)
    record = read_result(out, RunSettings(losses[0], "main", 1, {}), plan)
    assert (record.metric.name, record.status) == ("f1", "finished")
    assert len(record.history) == 1

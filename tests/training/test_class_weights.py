"""Class weights of a training: by name, balanced, counted when the trainer is built, and saved."""

import json
from fractions import Fraction

import datasets
import numpy as np
import pytest
import tiny
import torch
from sklearn.utils.class_weight import compute_class_weight
from transformers import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForTokenClassification,
    default_data_collator,
)

from hf_losses import LossTrainer, LossTrainingArguments, get_loss, load_loss
from hf_losses.training.loss.choose import loss_of_arguments

NAMES = {"id2label": {0: "good", 1: "bad", 2: "odd"}, "label2id": {"good": 0, "bad": 1, "odd": 2}}
LABELS = [0] * 10 + [1] * 5 + [2] * 5
CLASSES = np.unique(LABELS)
# n / (C · n_c) by hand.
BALANCED = [20 / 30, 20 / 15, 20 / 15]


def effective(beta):
    """(1 - beta)/(1 - beta^n_c), scaled to a mean of 1, in fractions (Cui et al. 2019)."""
    beta = Fraction(str(beta))
    weights = [(1 - beta) / (1 - beta**count) for count in (10, 5, 5)]
    return [float(3 * weight / sum(weights)) for weight in weights]


def some(labels=LABELS, key="labels"):
    rows = tiny.texts(len(labels))
    for row, label in zip(rows, labels, strict=True):
        del row["labels"]
        row[key] = label
    return rows


@pytest.fixture
def build(tmp_path):
    """A trainer with class weights, of a tiny BERT with the classes good, bad and odd."""

    def build(weight, data=None, model=None, **settings):
        settings = {"loss": "liberal_exp", "loss_kwargs": {"weight": weight}} | settings
        return LossTrainer(
            model=model or tiny.bert(**NAMES),
            args=tiny.arguments(tmp_path / "run", **settings),
            train_dataset=some() if data is None else data,
        )

    return build


FORMS = {
    "list": ([0.1, 2, 3.0], [0.1, 2.0, 3.0]),
    "tuple": ((0.1, 2, 3.0), [0.1, 2.0, 3.0]),
    "array": (np.array([0.1, 2, 3]), [0.1, 2.0, 3.0]),
    "tensor": (torch.tensor([0.25, 2, 3], requires_grad=True), [0.25, 2.0, 3.0]),
    "numbers of NumPy": ([np.float32(0.25), np.int64(2), 3], [0.25, 2.0, 3.0]),
    "names": ({"odd": 3, "good": 0.1, "bad": 2}, [0.1, 2.0, 3.0]),
    "some names": ({"odd": 3}, [1.0, 1.0, 3.0]),
    "indices": ({0: 0.1, 2: 3}, [0.1, 1.0, 3.0]),
    "text of indices": ({"0": 0.1, "2": 3}, [0.1, 1.0, 3.0]),
    "names and indices": ({"bad": 2, "2": 3}, [1.0, 2.0, 3.0]),
    "indices of NumPy": (
        dict(
            zip(CLASSES, compute_class_weight("balanced", classes=CLASSES, y=LABELS), strict=True)
        ),
        BALANCED,
    ),
    "balanced": ("balanced", BALANCED),
    "effective": ("effective", effective(0.999)),
    "effective of another beta": ("effective:0.9", effective(0.9)),
    "effective of beta 0": ("effective:0", [1.0, 1.0, 1.0]),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_is_given_becomes_one_number_per_class(build, form, tmp_path):
    given, right = FORMS[form]
    trainer = build(given)
    assert trainer.loss_config["weight"] == pytest.approx(right, rel=1e-14)
    # The arguments can be saved, and mean the same when they are read again.
    again = json.loads(trainer.args.to_json_string())["loss_kwargs"]
    assert build("", loss_kwargs=again).loss_config == trainer.loss_config
    trainer.save_model(str(tmp_path / "model"))
    assert load_loss(tmp_path / "model").config["weight"] == trainer.loss_config["weight"]
    assert json.loads((tmp_path / "model/training_args.json").read_text())["loss_kwargs"] == again


def test_json_of_the_command_line(build):
    assert build("", loss_kwargs='{"weight": {"bad": 5}}').loss_config["weight"] == [1.0, 5.0, 1.0]
    assert build("", loss_kwargs='{"weight": "balanced"}').loss_config["weight"] == BALANCED


def test_the_numbers_are_shown_once_and_used_saved_and_resumed(build, capsys, tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    trainer = build("balanced", **settings, loss="cross_entropy")
    assert trainer.model.config.problem_type is None  # Its first batch settles it, and the loss.
    shown = "Class weights: good 0.6667, bad 1.333, odd 1.333\n"
    assert capsys.readouterr().out == shown
    batch = default_data_collator(trainer.train_dataset[6:14])
    found, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    log_p = outputs.logits.double().log_softmax(-1)
    rows = zip(log_p, LABELS[6:14], strict=True)
    exact = sum(-BALANCED[label] * row[label].item() for row, label in rows) / 8
    assert found.item() == pytest.approx(exact, rel=1e-6)
    trainer.train()
    assert "Class weights" not in capsys.readouterr().out
    folder = tmp_path / "run/checkpoint-2"
    assert json.loads((folder / "hf_losses.json").read_text())["weight"] == BALANCED
    resumed = build("balanced", **settings, loss="cross_entropy")
    resumed.train(str(folder))
    for one, other in zip(trainer.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match=r"was trained with the loss .*1.3333"):
        build("balanced", some([0, 1, 2]), **settings, loss="cross_entropy").train(str(folder))


class Rows(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


class Photos(Rows):
    """Rows that are dear to make, with their labels at hand."""

    class_labels = np.array(LABELS, dtype=np.uint8)

    def __getitem__(self, i):
        raise AssertionError("no row is asked for")


class Named(Rows):
    """Rows of a user whose attribute of this name holds the classes."""

    class_labels = (0, 1, 2)


asked = []


def decoded(batch):
    asked.extend(batch["label"])
    return batch


def merged(batch):
    """Every label but 0 is class 1, and stands under another name."""
    return {"input_ids": batch["input_ids"], "labels": [int(k > 0) for k in batch["label"]]}


def hub_rows(labels=LABELS, key="label"):
    return datasets.Dataset.from_list([{"input_ids": [1], key: label} for label in labels])


@pytest.mark.parametrize(
    "data",
    [
        some(key="label"),
        some(torch.tensor(LABELS)),
        some(torch.tensor(LABELS).unsqueeze(1).numpy(), key="label_ids"),
        Rows(some()),
        torch.utils.data.Subset(some([1, *LABELS]), range(1, 21)),
        torch.utils.data.ConcatDataset([some(LABELS[:7]), some(LABELS[7:])]),
        Photos([None] * 20),
        Named(some()),
        hub_rows(),
        hub_rows([*LABELS, 0]).select(range(20)),
        hub_rows().with_format("torch"),
        hub_rows().with_transform(decoded),
        # "label" is a text here, and what is learned stands beside it.
        hub_rows().rename_column("label", "labels").add_column("label", ["x"] * 20),
    ],
    ids=lambda data: type(data).__name__,
)
def test_labels_of_any_dataset_are_counted(build, data):
    asked.clear()
    assert build("balanced", data).loss_config["weight"] == BALANCED
    assert len(asked) <= 8  # Of pictures that are slow to read, say.


def test_labels_that_a_transform_changes_are_counted_as_the_model_learns_them(build):
    data = hub_rows().with_transform(merged)
    flat = [int(label > 0) for label in LABELS]
    right = compute_class_weight("balanced", classes=np.arange(2), y=flat).tolist()
    trainer = build("balanced", data, tiny.bert(num_labels=2))
    assert trainer.loss_config["weight"] == pytest.approx(right)


def test_other_training_data_are_counted_again(build):
    trainer = build("balanced", some())
    assert trainer.loss_config["weight"] == BALANCED
    others = [2 - label for label in LABELS]
    trainer.train_dataset = some(others)
    right = compute_class_weight("balanced", classes=np.arange(3), y=others).tolist()
    assert trainer.loss_config["weight"] == pytest.approx(right)


@pytest.mark.parametrize("hub", [False, True])
def test_labels_of_tokens_are_counted_without_ignored_ones(build, hub):
    data = tiny.texts(6, tiny.class_of_each_token)
    flat = torch.cat([row["labels"] for row in data])
    flat = flat[flat != -100].numpy()
    right = compute_class_weight("balanced", classes=np.arange(3), y=flat).tolist()
    if hub:  # Texts of several lengths.
        data = [{key: value.tolist()[: 3 + i] for key, value in data[i].items()} for i in range(6)]
        flat = np.array([label for row in data for label in row["labels"] if label != -100])
        right = compute_class_weight("balanced", classes=np.arange(3), y=flat).tolist()
        data = datasets.Dataset.from_list(data)
    trainer = build("balanced", data, tiny.bert(BertForTokenClassification))
    assert trainer.loss_config["weight"] == right


def stream(rows):
    yield from rows


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from some()


ONE = "give one number per class, such as loss_kwargs"
REFUSED = {
    "too few": ([1, 5], {}, "weight has 2 entries, one per class, but BertForS.* has 3 classes"),
    "text": (["1", "2", "3"], {}, r"number per class.*got \['1', '2', '3'\]"),
    "text of a list": ("[1, 2, 3]", {}, r"unknown weight '\[1, 2, 3\]'"),
    "slip of effective": ("efective:0.9", {}, "unknown weight 'efective:0.9'.* mean 'effective'"),
    "beta of 1": ("effective:1", {}, "'effective:1': beta must be a number from 0 to below 1"),
    "no beta": ("effective:", {}, "'effective:': beta must be a number from 0 to below 1"),
    "effective class without label": (
        "effective",
        {"data": some([0, 0, 1])},
        "'effective' would be infinite for what no training label is: odd",
    ),
    "slip": ("balancd", {}, "unknown weight 'balancd'.* Did you mean 'balanced'"),
    "set": ({1, 2, 3}, {}, "loss_kwargs must be a JSON object.*set is not JSON"),
    "negative": ({"bad": -1}, {}, r"non-negative.*got \[-1.0\]"),
    "text number": ({"bad": "5"}, {}, r"number per class.*got \['5'\]"),
    "nothing": ([], {}, r"number per class.*got \[\]"),
    "unknown name": ({"bat": 2}, {}, "'bat'.*'good', 'bad', 'odd'.*0 to 2.*mean 'bad'"),
    "unknown index": ({3: 2}, {}, "'3' that the model does not have"),
    "twice": ({"bad": 2, 1: 3}, {}, "index 1 twice, again as '1'"),
    "stream": ("balanced", {"data": Stream()}, "a stream .Stream. does not give.*" + ONE),
    "stream of datasets": (
        "balanced",
        {"data": datasets.IterableDataset.from_generator(stream, gen_kwargs={"rows": [1]})},
        "a stream .* does not give in advance: " + ONE,
    ),
    "a class without rows": (
        "balanced",
        {"data": some([0, 0, 2])},
        'infinite for what no training label is: bad;.*\'{"weight": {"bad": 1}}\'',
    ),
    "no labels": ("balanced", {"data": [{"input_ids": [1]}]}, "has none of labels, label, label_i"),
    "no class numbers": (
        "balanced",
        {"data": some(["good", "bad", "odd"])},
        r"class numbers, not <U4 such as \['good', 'bad', 'odd'\]: " + ONE,
    ),
    "nothing to learn": ([0, 0, 0], {}, "all class weights are 0.*" + ONE),
    "several labels": (
        "balanced",
        {"model": tiny.bert(problem_type="multi_label_classification")},
        "do not balance yes and no: " + ONE,
    ),
    "several labels, by their type": (
        "balanced",
        {"data": some(torch.eye(3))},
        r"class numbers, not float32 such as \[1.0, 0.0, 0.0\]: ",
    ),
    "label outside": ("balanced", {"data": some([0, 1, 2, 3, -1])}, r"\[0, 3\).*have \[-1, 3\]"),
    "causal": (
        "balanced",
        {"model": tiny.causal_lm()},
        "labels of whole rows or of single tokens, and not for LlamaForCausalLM: " + ONE,
    ),
    "masked": ("balanced", {"model": tiny.bert(BertForMaskedLM)}, "not for BertForMaskedLM"),
    "vocabulary": ([1] * 3, {"model": tiny.causal_lm()}, "3 entries.*LlamaForC.* has 50 classes"),
    "answers": ([1] * 3, {"model": tiny.bert(BertForQuestionAnswering)}, "positions in a text"),
    "user's module": ("balanced", {"model": torch.nn.Linear(2, 3)}, "needs a model of transf.*Lin"),
    "regression": (
        "balanced",
        {"model": tiny.bert(num_labels=1), "loss": "cross_entropy"},
        "'cross_entropy' is for classification and does not fit",
    ),
    "regression loss": ("balanced", {"loss": "mse"}, "'mse' has no parameter 'weight'"),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_is_refused_when_the_trainer_is_built(build, mistake):
    weight, settings, message = REFUSED[mistake]
    with pytest.raises(ValueError, match=message) as error:
        build(weight, **settings)
    assert "\n" not in str(error.value)


def test_without_training_data_there_is_nothing_to_count(tmp_path):
    args = tiny.arguments(tmp_path, loss="strict_l", loss_kwargs={"weight": "balanced"})
    with pytest.raises(ValueError, match=r"no train_dataset: .*hf_losses\.json beside a trained"):
        LossTrainer(model=tiny.bert(), args=args, eval_dataset=some())


@pytest.mark.parametrize(
    "loss",
    [
        get_loss("liberal_exp", weight=[1, 5]),
        torch.nn.CrossEntropyLoss(torch.tensor([1.0, 5.0])),
        torch.nn.MultiMarginLoss(weight=torch.tensor([1.0, 5.0])),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_a_wrong_number_in_a_loss_that_was_built_is_refused_too(tmp_path, loss):
    with pytest.raises(ValueError, match=r"weight has 2 entries, one per class, but .* 3 classes"):
        LossTrainer(model=tiny.bert(), args=tiny.arguments(tmp_path), loss=loss)


def test_names_that_are_numbers_are_refused_where_they_mean_two_things(build):
    stars = {"id2label": {i: str(i + 1) for i in range(3)}}
    stars["label2id"] = {name: i for i, name in stars["id2label"].items()}
    for weight in ({"1": 5}, {1: 5}):
        with pytest.raises(ValueError, match=r"label of that name .index 0. or the class of that"):
            build(weight, model=tiny.bert(**stars))
    assert build({"3": 5}, model=tiny.bert(**stars)).loss_config["weight"] == [1.0, 1.0, 5.0]
    same = {"id2label": {i: str(i) for i in range(3)}, "label2id": {str(i): i for i in range(3)}}
    assert build({"1": 5}, model=tiny.bert(**same)).loss_config["weight"] == [1.0, 5.0, 1.0]


def test_tokens_of_a_vocabulary_go_by_index(build, tmp_path):
    data = tiny.texts(8, tiny.some_next_tokens)
    right = [1.0] * tiny.VOCABULARY
    right[7] = 0.25
    for fused in (False, True):
        trainer = build({7: 0.25}, data, tiny.causal_lm(), fused_linear=fused, max_steps=1)
        assert trainer.loss_config["weight"] == right
    # The head as one layer with the loss gives the same numbers.
    steps = [
        tiny.gradients(
            tmp_path,
            tiny.causal_lm(),
            data,
            loss="liberal_exp",
            loss_kwargs={"weight": {"7": 0.25}},
            fused_linear=fused,
        )
        for fused in (False, True)
    ]
    assert tiny.difference(*steps) < 1e-5


def test_a_warm_up_begins_with_the_same_weights(build):
    trainer = build("balanced", loss_warmup_steps=2)
    first, _ = trainer._active.initial()
    assert first.config == {"name": "cross_entropy", "weight": BALANCED}
    trainer.train()


def test_models_and_weights_that_come_late(tmp_path, capsys):
    """As in a search: every trial makes a model and sets the arguments anew."""
    args = tiny.arguments(tmp_path, loss="strict_l")
    trainer = LossTrainer(
        model_init=lambda trial: tiny.bert(**NAMES), args=args, train_dataset=some()
    )
    for weight, right in (
        ("balanced", BALANCED),
        (np.array([0.5, 1, 2]), [0.5, 1.0, 2.0]),
        ({"odd": 3}, [1.0, 1.0, 3.0]),
        ("balanced", BALANCED),
    ):
        args.loss_kwargs = {"weight": weight}
        trainer.train()
        assert trainer.loss_config["weight"] == right
        trainer.save_model(str(tmp_path / "model"))
        assert load_loss(tmp_path / "model").config["weight"] == trainer.loss_config["weight"]
    assert capsys.readouterr().out.count("Class weights: ") == 3
    trainer.train_dataset = some([0, 1, 2])
    args.loss_kwargs = {"weight": "balanced", "max_weight": 10}
    assert trainer.loss_config["weight"] == [1.0, 1.0, 1.0]
    args.loss_kwargs = {"weight": [1, 2]}
    with pytest.raises(ValueError, match="weight has 2 entries"):
        trainer.train()


def test_many_classes_are_shown_by_their_ends(build, capsys):
    labels = [*range(30), 7]
    names = {"id2label": {i: f"c{i}" for i in range(30)}, "num_labels": 30}
    names["label2id"] = {f"c{i}": i for i in range(30)}
    build("balanced", some(labels), tiny.bert(**names))
    assert capsys.readouterr().out == "Class weights: 30 from c7 0.5167 to c29 1.033\n"


def test_arguments_check_what_they_can_and_leave_the_rest_for_later():
    assert "weight" not in loss_of_arguments("strict_m_power", '{"weight": "balanced"}').config
    assert loss_of_arguments("huber", {"delta": 2}).config == get_loss("huber", delta=2.0).config
    for given in ("balanced", {"bad": 5}, torch.ones(3)):
        args = LossTrainingArguments(loss="strict_l", loss_kwargs={"weight": given})
        assert json.loads(args.to_json_string())["loss_kwargs"] == args.loss_kwargs
    for given, message in (("5", "unknown weight '5'"), ({"bad": "x"}, "per class"), (5, "got 5")):
        with pytest.raises(ValueError, match=message):
            LossTrainingArguments(loss="strict_l", loss_kwargs={"weight": given})
    with pytest.raises(ValueError, match="'huber' has no parameter 'weight'"):
        LossTrainingArguments(loss="huber", loss_kwargs={"weight": "balanced"})
    with pytest.raises(ValueError, match=r"loss_kwargs must be a JSON obj.*method is not JSON"):
        LossTrainingArguments(loss="strict_l", loss_kwargs={"weight": print})

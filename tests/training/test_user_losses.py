"""Losses that are functions of the user's own count what they are promised to."""

import json
from functools import partial

import pytest
import tiny
import torch
from torch import nn
from transformers import BertForTokenClassification

from hf_losses import LossTrainer


def eval_loss(folder, model, data, loss):
    trainer = LossTrainer(model, tiny.arguments(folder), eval_dataset=data, loss=loss)
    return trainer.evaluate()["eval_loss"]


def logs(logits, labels):
    return -logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[:, None]).squeeze(-1)


def of_labelled(logits, labels):
    return logs(logits[labels != -100], labels[labels != -100])


def mean_of_labelled(logits, labels):
    mask = labels != -100
    return (logs(logits, labels) * mask).sum() / mask.sum()


@pytest.mark.parametrize("loss", [logs, of_labelled, mean_of_labelled])
def test_tokens_without_a_label_do_not_count(loss, tmp_path):
    data = tiny.texts(8, tiny.class_of_each_token)
    data[0]["labels"] = data[0]["labels"].fill_(-100)
    settings = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    expected, seen = (
        tiny.gradients(
            tmp_path,
            tiny.bert(BertForTokenClassification),
            data,
            keywords={"loss": chosen},
            **settings,
        )
        for chosen in ("cross_entropy", loss)
    )
    assert tiny.difference(expected, seen) < 1e-5


@pytest.mark.parametrize("weight", [1.0, [1.0] * tiny.LENGTH], ids=["of a row", "of a token"])
def test_nor_do_they_where_weights_are_given(weight, tmp_path):
    data = tiny.texts(8, tiny.class_of_each_token)
    settings = {"keywords": {"loss": logs}, "per_device_train_batch_size": 4}
    plain, weighted = (
        tiny.gradients(tmp_path, tiny.bert(BertForTokenClassification), rows, **settings)
        for rows in (data, [row | {"loss_weight": weight} for row in data])
    )
    assert any((row["labels"] == -100).any() for row in data)
    assert tiny.difference(plain, weighted) < 1e-6


def test_a_wrong_number_of_values_is_told(tmp_path):
    data = tiny.texts(8, tiny.class_of_each_token)
    model = tiny.bert(BertForTokenClassification)
    with pytest.raises(ValueError, match="returned 5 values for 64 labels"):
        eval_loss(tmp_path, model, data, lambda logits, labels: logs(logits, labels)[:5])


def test_yes_or_no_labels_that_are_left_out_do_not_count(tmp_path):
    def label(generator, ids):
        labels = tiny.yes_or_no_per_class(generator, ids)
        labels[0] = -100
        return labels

    model, data = tiny.bert(problem_type="multi_label_classification"), tiny.texts(8, label)
    expected = eval_loss(tmp_path, model, data, "cross_entropy")
    seen = eval_loss(tmp_path, model, data, nn.BCEWithLogitsLoss())
    assert seen == pytest.approx(expected, rel=1e-5)


def focal(logits, labels, gamma=2.0):
    return logs(logits, labels)


def test_a_loss_is_recorded_with_what_distinguishes_it(tmp_path):
    def config(loss):
        return LossTrainer(tiny.bert(), tiny.arguments(tmp_path), loss=loss).loss_config

    name = f"{__name__}:focal"
    assert config(focal) == {"name": name}
    assert config(partial(partial(focal, gamma=2), gamma=5)) == {"name": name, "gamma": 5}
    plain, weighted, other = (
        config(nn.CrossEntropyLoss(weight=weight))
        for weight in (None, torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 2, 4]))
    )
    assert plain == {
        "name": "torch.nn.modules.loss:CrossEntropyLoss",
        "reduction": "mean",
        "ignore_index": -100,
        "label_smoothing": 0.0,
    }
    assert weighted["weight"] != other["weight"]
    assert {**weighted, "weight": 0} == {**other, "weight": 0} == plain | {"weight": 0}
    assert json.loads(json.dumps(other)) == other


def test_training_with_another_parameter_is_not_resumed(tmp_path):
    def train(gamma, **resume):
        args = tiny.arguments(tmp_path, max_steps=2, save_strategy="steps", save_steps=1)
        data, loss = tiny.texts(8), partial(focal, gamma=gamma)
        LossTrainer(tiny.bert(), args, train_dataset=data, loss=loss).train(**resume)

    train(2.0)
    train(2.0, resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    with pytest.raises(ValueError, match=r"'gamma': 2\.0.* not .*'gamma': 5\.0"):
        train(5.0, resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


class Changing(nn.Module):
    """Counts its steps, where a fresh one begins again."""

    def __init__(self):
        super().__init__()
        self.steps = 0

    def forward(self, logits, labels):
        self.steps += 1
        return logs(logits, labels)


class WithoutConfig(nn.Module):
    def __init__(self):
        super().__init__()
        self.bert = tiny.bert()

    def forward(self, input_ids, attention_mask=None):
        return self.bert(input_ids, attention_mask).logits


def test_a_loss_that_changes_is_resumed(tmp_path):
    def train(**resume):
        args = tiny.arguments(tmp_path, max_steps=2, save_strategy="steps", save_steps=1)
        data, loss = tiny.texts(8), Changing()
        LossTrainer(WithoutConfig(), args, train_dataset=data, loss=loss).train(**resume)

    train()
    train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))

"""An evaluation reports exact numbers beside the user's own."""

import math

import datasets
import numpy as np
import pytest
import tiny
import torch
from transformers import BertForMultipleChoice, Trainer, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from hf_losses import LossTrainer


def trainer_of(folder, model, data, loss="cross_entropy", keywords=None, **settings):
    args = tiny.arguments(folder, **settings)
    return LossTrainer(model, args, eval_dataset=data, loss=loss, **(keywords or {}))


def test_a_metric_of_the_users_stays_whatever_its_name(tmp_path):
    keywords = {"compute_metrics": lambda predicted: {"mse": 38.0}}
    data = tiny.texts(8, tiny.number)
    trainer = trainer_of(tmp_path, tiny.bert(num_labels=1), data, "huber", keywords)
    assert trainer.evaluate()["eval_mse"] == 38


def test_a_loss_of_the_users_stays_as_with_the_stock_trainer(tmp_path):
    keywords = {"compute_metrics": lambda predicted: {"loss": 42.0}}
    trainer = trainer_of(tmp_path, tiny.bert(), tiny.texts(8), "strict_l", keywords)
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == 42
    assert metrics["eval_cross_entropy"] != 42
    assert trainer.compute_metrics is keywords["compute_metrics"]


class Accuracy:
    """As transformers' own examples of `batch_eval_metrics`: a batch may have no metrics yet."""

    kind = "accuracy"

    def __init__(self):
        self.right = []

    def __call__(self, predicted, compute_result=True):
        self.right += (predicted.predictions.argmax(-1) == predicted.label_ids).tolist()
        return {"accuracy": float(np.mean(self.right))} if compute_result else None


class ReadsIt(LossTrainer):
    def prediction_step(self, *args, **kwargs):
        assert self.compute_metrics.kind == "accuracy"
        return super().prediction_step(*args, **kwargs)


def test_metrics_of_batches(tmp_path):
    data, found = tiny.texts(8), []
    for cls in (Trainer, ReadsIt):
        settings = {"batch_eval_metrics": True, "per_device_eval_batch_size": 3}
        args = tiny.arguments(tmp_path, TrainingArguments, **settings)
        trainer = cls(tiny.bert(), args, eval_dataset=data, compute_metrics=Accuracy())
        found.append(trainer.evaluate()["eval_accuracy"])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("model", "label"),
    [
        (tiny.bert, lambda generator, ids: torch.tensor(-100)),
        (tiny.causal_lm, lambda generator, ids: torch.full_like(ids, -100)),
    ],
    ids=["classes", "tokens"],
)
def test_a_set_without_a_label_has_no_loss(tmp_path, model, label):
    """Of 0 it would be the best one of all."""
    data = tiny.texts(8, label)
    stock = Trainer(model(), tiny.arguments(tmp_path, TrainingArguments), eval_dataset=data)
    metrics = trainer_of(tmp_path, model(), data, "strict_l").evaluate()
    for name in ("eval_loss", "eval_cross_entropy"):
        assert math.isnan(metrics[name])
    assert math.isnan(stock.evaluate()["eval_loss"])


class OwnLoop(LossTrainer):
    def evaluation_loop(self, dataloader, *args, **kwargs):
        steps = [self.prediction_step(self.model, batch, False) for batch in dataloader]
        return EvalLoopOutput(None, None, {"eval_steps": len(steps)}, 1)


@pytest.mark.parametrize("weighted", [True, False])
def test_a_loop_of_a_users_own_evaluates_and_does_not_train(tmp_path, caplog, weighted):
    train = datasets.Dataset.from_list(
        [row | ({"loss_weight": 0.5} if weighted else {}) for row in tiny.texts(8)]
    ).with_format("torch")
    data = tiny.texts(8, (lambda generator, ids: torch.tensor(-100)) if not weighted else None)
    args = tiny.arguments(tmp_path, log_level="warning")
    trainer = OwnLoop(tiny.bert(), args, train_dataset=train, eval_dataset=data, loss="strict_l")
    trainer.train()
    assert trainer.evaluate()["eval_steps"] == 1
    trainer.log({"loss": 0.0})
    assert "no item had a label" not in caplog.text


def test_a_metric_may_predict(tmp_path):
    data = tiny.texts(8)
    trainer = trainer_of(tmp_path, tiny.bert(), data, "strict_l")
    expected = trainer.evaluate()
    trainer.compute_metrics = lambda predicted: (
        trainer.predict(data[:4]).metrics if len(predicted.predictions) == 8 else {}
    )
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == expected["eval_loss"]
    assert metrics["eval_ece"] == expected["eval_ece"]


def test_questions_may_have_more_or_fewer_choices(tmp_path):
    data = []
    for row in tiny.texts(9):
        choices = 3 + len(data) % 3
        inputs = {key: row[key].expand(choices, -1) for key in ("input_ids", "attention_mask")}
        data.append(inputs | {"labels": len(data) % 3})
    model = tiny.bert(BertForMultipleChoice)
    trainer = trainer_of(tmp_path, model, data, "strict_l", per_device_eval_batch_size=1)
    metrics = trainer.evaluate()
    assert metrics["eval_cross_entropy"] == pytest.approx(np.mean(np.log([3, 4, 5])), rel=1e-5)
    assert trainer.prediction_counts["eval"]["classes"]["true"] == [3, 3, 3, 0, 0]


def test_the_loop_of_an_evaluation_takes_its_prefix_by_position_too(tmp_path):
    data = tiny.texts(10)
    trainer = trainer_of(tmp_path, tiny.bert(), data, per_device_eval_batch_size=4)
    expected = trainer.predict(data).metrics
    loader = trainer.get_test_dataloader(data)
    metrics = trainer.evaluation_loop(loader, "Test", None, None, "test").metrics
    assert metrics["test_loss"] == expected["test_loss"]
    assert not [name for name in metrics if name.startswith("eval")]

"""An evaluation reports exact numbers beside the user's own."""

import numpy as np
import pytest
import tiny
from transformers import BertForMultipleChoice

from hf_losses import LossTrainer


def trainer_of(folder, model, data, loss="cross_entropy", keywords=None, **settings):
    args = tiny.arguments(folder, **settings)
    return LossTrainer(model, args, eval_dataset=data, loss=loss, **(keywords or {}))


def test_a_metric_of_the_users_stays_whatever_its_name(tmp_path):
    keywords = {"compute_metrics": lambda predicted: {"mse": 38.0}}
    data = tiny.texts(8, tiny.number)
    trainer = trainer_of(tmp_path, tiny.bert(num_labels=1), data, "huber", keywords)
    assert trainer.evaluate()["eval_mse"] == 38


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

"""Predictions by class: against scikit-learn, and in an evaluation."""

import numpy as np
import pytest
import tiny
import torch
from sklearn.metrics import confusion_matrix

from hf_losses import LossTrainer
from hf_losses.metrics.classes import class_counts
from hf_losses.training.reports import evaluation


def by_hand(logits, labels):
    matrix = confusion_matrix(labels, logits.argmax(1), labels=range(logits.shape[1]))
    return [matrix.sum(1).tolist(), matrix.sum(0).tolist(), matrix.diagonal().tolist()]


def test_they_are_the_margins_and_the_diagonal_of_the_confusion_matrix():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 5, generator=generator)
    labels = torch.randint(0, 4, (200,), generator=generator)  # The last class is never there.
    labels[::7] = -100
    kept = labels != -100
    expected = by_hand(logits[kept].numpy(), labels[kept].numpy())
    assert class_counts(logits, labels).tolist() == expected
    parts = zip(logits.split(13), labels.split(13), strict=True)
    assert sum(class_counts(*part) for part in parts).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_of_a_narrow_dtype_are_counted_and_evaluated(tmp_path, dtype):
    labels = torch.tensor([0, 1, 1])
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert torch.equal(class_counts(logits, labels.to(dtype)), class_counts(logits, labels))
    trainer = LossTrainer(model=tiny.bert(), args=tiny.arguments(tmp_path), loss="strict_l")
    rows = tiny.texts(9)
    narrow = [row | {"labels": torch.tensor(row["labels"], dtype=dtype)} for row in rows]
    found = []
    for data in (rows, narrow):
        metrics = trainer.evaluate(data)
        names = ("eval_loss", "eval_cross_entropy", "eval_ece")
        found.append([trainer.prediction_counts, *(metrics[name] for name in names)])
    assert found[0] == found[1]


def test_the_trainer_keeps_the_counts_of_each_evaluated_set(tmp_path, monkeypatch):
    data = tiny.texts(41)  # The last batch has one row.
    trainer = LossTrainer(model=tiny.bert(), args=tiny.arguments(tmp_path), loss="strict_l")
    output = trainer.predict(data)
    trainer.evaluate(tiny.texts(9))
    assert trainer.prediction_counts.keys() == {"test", "eval"}
    counts = trainer.prediction_counts["test"]
    assert [*counts["classes"].values()] == by_hand(output.predictions, output.label_ids)
    assert sum(counts["calibration"]["count"]) == 41
    assert sum(counts["calibration"]["right"]) == sum(counts["classes"]["right"])
    highest = np.exp(output.predictions) / np.exp(output.predictions).sum(1, keepdims=True)
    assert np.isclose(sum(counts["calibration"]["probability"]), highest.max(1).sum(), rtol=1e-5)
    assert sum(trainer.prediction_counts["eval"]["classes"]["true"]) == 9
    monkeypatch.setattr(evaluation, "MOST_CLASSES", 1)
    trainer.evaluate(data)
    assert trainer.prediction_counts["eval"].keys() == {"calibration"}
    regression = LossTrainer(model=tiny.bert(num_labels=1), args=tiny.arguments(tmp_path))
    regression.evaluate(tiny.texts(9, tiny.number))
    assert regression.prediction_counts == {"eval": {}}

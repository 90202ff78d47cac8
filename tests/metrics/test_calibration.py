"""The expected calibration error, by hand and in an evaluation."""

import math

import numpy as np
import pytest
import tiny
import torch

from hf_losses import LossTrainer
from hf_losses.metrics.calibration import calibration_bins, expected_calibration_error


def by_hand(logits, labels):
    """Guo et al.'s equations 2 to 5, row by row in float64."""
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    bins = [[] for _ in range(15)]
    for row, label in zip(shares, labels, strict=True):
        inside = [m for m in range(1, 16) if (m - 1) / 15 < row.max() <= m / 15]
        bins[inside[0] - 1].append((row.max(), row.argmax() == label))
    total = 0.0
    for members in filter(None, bins):
        confidence, right = np.mean(members, axis=0)
        total += len(members) / len(labels) * abs(right - confidence)
    return total


def some(rows, classes, scale):
    generator = np.random.default_rng(rows)
    logits = generator.normal(size=(rows, classes)) * scale
    return logits, generator.integers(0, classes, rows)


def error(logits, labels):
    bins = calibration_bins(torch.as_tensor(logits), torch.as_tensor(labels))
    return expected_calibration_error(bins)


@pytest.mark.parametrize(("rows", "classes", "scale"), [(1, 2, 1), (500, 2, 2), (999, 10, 5)])
def test_it_is_the_papers(rows, classes, scale):
    logits, labels = some(rows, classes, scale)
    assert error(logits, labels) == pytest.approx(by_hand(logits, labels), abs=1e-6)


def test_batches_add_up_to_the_whole():
    logits, labels = map(torch.as_tensor, some(100, 3, 2))
    parts = zip(logits.split(13), labels.split(13), strict=True)
    bins = sum(calibration_bins(*part) for part in parts)
    assert expected_calibration_error(bins) == pytest.approx(error(logits, labels), abs=1e-6)


def test_certain_predictions():
    logits = torch.tensor([[200.0, 0.0]] * 4)
    assert error(logits, torch.tensor([0, 0, 0, 0])) == 0
    assert error(logits, torch.tensor([0, 0, 0, 1])) == 0.25
    assert error(logits.half(), torch.tensor([1, 1, 1, 1])) == 1


def test_ignored_rows_do_not_count():
    logits, labels = map(torch.as_tensor, some(50, 3, 2))
    kept = error(logits[:40], labels[:40])
    labels[40:] = -100
    assert error(logits, labels) == pytest.approx(kept, abs=1e-6)


def test_what_has_no_calibration_is_not_a_number():
    assert math.isnan(error(torch.zeros(2, 2), torch.tensor([-100, -100])))
    assert math.isnan(error(torch.tensor([[math.nan, 0.0]]), torch.tensor([0])))


def test_evaluation_reports_it_for_classifiers_alone(tmp_path):
    arguments = tiny.arguments(tmp_path)
    data = tiny.texts(41)  # The last batch has one row.
    trainer = LossTrainer(model=tiny.bert(), args=arguments, loss="strict_l")
    output = trainer.predict(data)
    expected = by_hand(output.predictions.astype(np.float64), output.label_ids)
    assert output.metrics["test_ece"] == pytest.approx(expected, abs=1e-6)
    # A second evaluation begins anew.
    assert trainer.evaluate(data)["eval_ece"] == output.metrics["test_ece"]
    for model, labels in (
        (tiny.bert(num_labels=1), tiny.number),
        (tiny.causal_lm(), tiny.some_next_tokens),
        (tiny.bert(), tiny.mixture_of_two_classes),
    ):
        trainer = LossTrainer(model=model, args=arguments)
        assert "eval_ece" not in trainer.evaluate(tiny.texts(9, labels))


def test_a_users_own_metric_of_that_name_stays(tmp_path):
    trainer = LossTrainer(
        model=tiny.bert(),
        args=tiny.arguments(tmp_path),
        compute_metrics=lambda outputs: {"ece": 7},
    )
    assert trainer.evaluate(tiny.texts(9))["eval_ece"] == 7

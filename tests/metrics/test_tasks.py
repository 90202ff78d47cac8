"""GlueMetric against formulas written by hand from confusion matrices and ranks."""

import math

import numpy as np
import pytest

from hf_losses.metrics.tasks import METRICS, REGRESSION, GlueMetric

CLASSIFICATION = [name for name in METRICS if name not in REGRESSION]


def confusion(predictions, references, classes):
    table = np.zeros((classes, classes), dtype=int)
    for prediction, reference in zip(predictions, references, strict=True):
        table[reference, prediction] += 1
    return table


def f1_of_class(table, k):
    right, claimed, present = table[k, k], table[:, k].sum(), table[k].sum()
    return 2 * right / (claimed + present) if claimed + present else 0.0


def matthews(table):
    # Gorodkin (2004): covariance of the one-hot vectors, in counts.
    right, total = np.trace(table), table.sum()
    claimed, present = table.sum(axis=0), table.sum(axis=1)
    above = right * total - claimed @ present
    below = math.sqrt(total**2 - claimed @ claimed) * math.sqrt(total**2 - present @ present)
    return above / below if below else 0.0


def pearson(x, y):
    x, y = x - x.mean(), y - y.mean()
    return (x @ y) / math.sqrt((x @ x) * (y @ y))


def ranks(x):
    return np.array([(x < value).sum() + ((x == value).sum() + 1) / 2 for value in x])


def expected(name, predictions, references):
    if name in REGRESSION:
        x, y = (np.asarray(v, dtype=np.float32).astype(float) for v in (predictions, references))
        scores = {"pearson": pearson(x, y), "spearmanr": pearson(ranks(x), ranks(y))}
        return scores | ({"mse": float(((x - y) ** 2).mean())} if name == "regression" else {})
    table = confusion(predictions, references, 3 if name.startswith(("mnli", "class")) else 2)
    if name == "cola":
        return {"matthews_correlation": matthews(table)}
    scores = {"accuracy": np.trace(table) / table.sum()}
    if name in ("mrpc", "qqp"):
        scores["f1"] = f1_of_class(table, 1)
    if name == "classification":
        scores["f1_macro"] = np.mean([f1_of_class(table, k) for k in range(len(table))])
    return scores


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_formulas(name, seed):
    rng = np.random.default_rng(seed)
    if name in REGRESSION:
        references = rng.integers(0, 6, 200) / 1.0  # ties
        predictions = references + rng.normal(size=200)
    else:
        classes = 3 if name.startswith(("mnli", "class")) else 2
        references = rng.integers(0, classes, 200)
        predictions = np.where(rng.random(200) < 0.6, references, rng.integers(0, classes, 200))
    scores = GlueMetric(name).compute(predictions=predictions, references=references)
    assert scores == pytest.approx(expected(name, predictions, references), rel=2e-6)
    assert set(scores) == set(METRICS[name])


@pytest.mark.parametrize("name", METRICS)
def test_perfect_predictions_score_one(name):
    scores = GlueMetric(name).compute(predictions=[0, 1, 1, 0], references=[0, 1, 1, 0])
    assert scores == pytest.approx({metric: float(metric != "mse") for metric in scores})


@pytest.mark.parametrize("references", [[0, 1, 1], [0, 0, 0]])
@pytest.mark.parametrize("name", METRICS)
def test_constant_predictions_give_what_the_hub_gives_without_a_warning(name, references):
    scores = GlueMetric(name).compute(predictions=[0, 0, 0], references=references)
    for metric, value in scores.items():
        if metric in ("pearson", "spearmanr"):
            assert math.isnan(value)
        elif metric in ("f1", "matthews_correlation"):
            assert value == 0.0
        else:
            assert math.isfinite(value)


@pytest.mark.parametrize("name", REGRESSION)
def test_one_example_has_no_correlation(name):
    scores = GlueMetric(name).compute(predictions=[1.0], references=[1.5])
    assert math.isnan(scores["pearson"])
    assert math.isnan(scores["spearmanr"])


def test_hand_example_of_mrpc():
    scores = GlueMetric("mrpc").compute(predictions=[1, 1, 0, 1, 0], references=[1, 0, 1, 1, 0])
    assert scores == pytest.approx({"accuracy": 3 / 5, "f1": 2 / 3})


def test_batches_add_up():
    metric = GlueMetric("sst2")
    metric.add_batch(predictions=[1, 1], references=[1, 0])
    metric.add_batch(predictions=[0, 1], references=[0, 1])
    assert metric.compute() == {"accuracy": 0.75}
    assert metric.compute(predictions=[1], references=[0]) == {"accuracy": 0.0}


def test_writes_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    metric = GlueMetric("stsb", cache_dir=str(tmp_path / "cache"))
    metric.compute(predictions=[1.0, 2.0], references=[1.0, 3.0])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_unknown_configuration_names_the_nearest():
    with pytest.raises(ValueError, match=r"'mprc'.*'mrpc'.*choose one of: cola"):
        GlueMetric("mprc")

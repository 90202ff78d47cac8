"""The metrics of GLUE and of tagged entities as an `evaluate.Metric` that needs no network."""

from __future__ import annotations

import importlib.util
import math
import warnings
from typing import Any

import datasets
import evaluate
import numpy as np
import numpy.typing as npt
from scipy.stats import ConstantInputWarning, NearConstantInputWarning, pearsonr, spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef

from hf_losses.messages import MissingExtra, UsageError, nearest

# The metrics of each configuration; models are chosen by the first.
METRICS: dict[str, tuple[str, ...]] = {
    "cola": ("matthews_correlation",),
    "sst2": ("accuracy",),
    "mrpc": ("f1", "accuracy"),
    "qqp": ("f1", "accuracy"),
    "stsb": ("spearmanr", "pearson"),
    "mnli": ("accuracy",),
    "mnli_matched": ("accuracy",),
    "mnli_mismatched": ("accuracy",),
    "qnli": ("accuracy",),
    "rte": ("accuracy",),
    "wnli": ("accuracy",),
    "hans": ("accuracy",),
    "classification": ("accuracy", "f1_macro"),
    "regression": ("spearmanr", "pearson", "mse"),
}
REGRESSION = ("stsb", "regression")
ENTITY_METRICS = ("f1", "precision", "recall", "accuracy")


class GlueMetric(evaluate.Metric):  # type: ignore[misc]
    """The official metrics of a GLUE task: the values of `evaluate.load("glue", task)`, offline.

    Predictions and references are collected in memory, so that processes with the same cache folder
    do not overwrite each other's.

    Args:
        config_name: A GLUE task (`cola`, `sst2`, `mrpc`, `qqp`, `stsb`, `mnli`, `mnli_matched`,
            `mnli_mismatched`, `qnli`, `rte`, `wnli`, `hans`), or for data of one's own
            `classification` (accuracy and the unweighted mean of the classes' F1) or `regression`
            (correlations and mean squared error).
        **kwargs: Passed to `evaluate.Metric`.

    Raises:
        ValueError: If the configuration is unknown.

    Example:
        >>> GlueMetric("mrpc").compute(predictions=[0, 1], references=[0, 1])
        {'accuracy': 1.0, 'f1': 1.0}
    """

    def __init__(self, config_name: str, **kwargs: Any) -> None:
        if config_name not in METRICS:
            raise UsageError(
                f"unknown metric configuration {config_name!r};{nearest(config_name, METRICS)} "
                f"choose one of: {', '.join(METRICS)}"
            )
        super().__init__(config_name, keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        number = "float32" if self.config_name in REGRESSION else "int64"
        return evaluate.MetricInfo(
            description="The official metrics of the GLUE benchmark (https://gluebenchmark.com).",
            citation="Wang et al. (2019). GLUE: A Multi-Task Benchmark and Analysis Platform for "
            "Natural Language Understanding. ICLR.",
            inputs_description="Args: predictions and references, one number or class index each.",
            features=datasets.Features(
                {name: datasets.Value(number) for name in ("predictions", "references")}
            ),
            format="numpy",
        )

    def _compute(
        self, predictions: npt.NDArray[Any], references: npt.NDArray[Any]
    ) -> dict[str, float]:
        """Computes the metrics of the configuration.

        Args:
            predictions: `[N]` class indices or numbers.
            references: `[N]` of the same kind.

        Returns:
            Metrics by name. Where a metric is not defined, it has scikit-learn's or SciPy's value,
            as on the Hub: F1 and Matthews' correlation are 0, Pearson's and Spearman's correlation
            are NaN (all predictions or all references equal; here also fewer than two, where the
            Hub's metric raises an error).
        """
        with warnings.catch_warnings():
            # The warnings say no more than the value, 0 or NaN.
            warnings.simplefilter("ignore", ConstantInputWarning)
            warnings.simplefilter("ignore", NearConstantInputWarning)
            warnings.filterwarnings("ignore", "A single label was found", UserWarning)
            return self._scores(predictions, references)

    def _scores(
        self, predictions: npt.NDArray[Any], references: npt.NDArray[Any]
    ) -> dict[str, float]:
        if self.config_name in REGRESSION:
            defined = len(predictions) > 1
            scores = {
                "pearson": float(pearsonr(predictions, references)[0]) if defined else math.nan,
                "spearmanr": float(spearmanr(predictions, references)[0]) if defined else math.nan,
            }
            if self.config_name == "regression":
                errors = np.subtract(predictions, references, dtype=np.float64)
                scores["mse"] = float(np.mean(errors**2))
            return scores
        if self.config_name == "cola":
            return {"matthews_correlation": float(matthews_corrcoef(references, predictions))}
        scores = {"accuracy": float(np.mean(predictions == references))}
        if self.config_name in ("mrpc", "qqp"):
            scores["f1"] = float(f1_score(references, predictions, zero_division=0.0))
        if self.config_name == "classification":
            scores["f1_macro"] = float(
                f1_score(references, predictions, average="macro", zero_division=0.0)
            )
        return scores


class EntityMetric(evaluate.Metric):  # type: ignore[misc]
    """Entities found in tagged words: the overall values of `evaluate.load("seqeval")`, offline.

    An entity is correct if its type, its first and its last word are. Entities are read from the
    tags as seqeval does by default and CoNLL's conlleval does: an `I-` that continues no entity
    begins one.

    Args:
        **kwargs: Passed to `evaluate.Metric`.

    Raises:
        ImportError: If seqeval is not installed.

    Example:
        >>> EntityMetric().compute(predictions=[["B-A", "I-A"]], references=[["B-A", "O"]])
        {'f1': 0.0, 'precision': 0.0, 'recall': 0.0, 'accuracy': 0.5}
    """

    def __init__(self, **kwargs: Any) -> None:
        if importlib.util.find_spec("seqeval") is None:
            raise MissingExtra("entities are counted by seqeval: pip install 'hf-losses[tokens]'")
        super().__init__(keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        tags = datasets.Sequence(datasets.Value("string"))
        return evaluate.MetricInfo(
            description="Precision, recall and F1 of entities, and accuracy of their tags.",
            citation="Nakayama (2018). seqeval: A Python framework for sequence labeling "
            "evaluation. https://github.com/chakki-works/seqeval",
            inputs_description="Args: predictions and references, a list of tags per sentence.",
            features=datasets.Features({"predictions": tags, "references": tags}),
        )

    def _compute(
        self, predictions: list[list[str]], references: list[list[str]]
    ) -> dict[str, float]:
        """Computes the metrics.

        Args:
            predictions: The tags of each sentence: `O`, `B-TYPE`, `I-TYPE`.
            references: The true tags of the same sentences.

        Returns:
            Metrics by name; 0 where a metric is not defined.
        """
        from seqeval.metrics import accuracy_score
        from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

        precision, recall, f1, _ = precision_recall_fscore_support(
            references, predictions, average="micro", zero_division=0
        )
        accuracy = accuracy_score(references, predictions)
        scores = zip(ENTITY_METRICS, (f1, precision, recall, accuracy), strict=True)
        return {name: float(score) for name, score in scores}

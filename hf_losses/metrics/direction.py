"""Whether a smaller value of a metric is the better one, as far as its name tells."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence

from hf_losses.losses.registry import list_losses
from hf_losses.messages import UsageError

# Besides the names of all losses. Of any other metric, a larger value is better.
LOWER_IS_BETTER = (
    *(
        "loss",
        "nll",
        "nlpd",
        "negative_log_likelihood",
        "neg_log_likelihood",
        "deviance",
        "crps",
        "perplexity",
        "bits_per_byte",
        "bits_per_character",
    ),
    *("logloss", "log_loss", "ppl", "bpb", "bpc", "kl", "kl_divergence"),
    *("ece", "mce", "brier", "brier_score", "calibration_error", "expected_calibration_error"),
    *("error", "err", "error_rate", "eer", "wer", "cer", "mer", "ter", "wil", "edit_distance"),
    *("false_positive_rate", "false_negative_rate", "fpr", "fnr", "fpr95", "fid", "max_error"),
    *("rmse", "msle", "rmsle", "mape", "smape", "mase", "mean_squared_error", "nmse", "nrmse"),
    *("root_mean_squared_error", "mean_squared_log_error", "root_mean_squared_log_error"),
    *("mean_absolute_error", "median_absolute_error", "mean_absolute_percentage_error"),
    *("misclassification_rate", "miss_rate", "nonfinite_grad_steps"),
)
# Prefixes as in scikit-learn, where more is always better; and as in `recall_at_fpr`.
TURNED_ROUND = ("neg", "negative", "at")
# What may follow such a name without making another metric of it: sets of data, and kinds of means.
QUALIFIERS = frozenset(
    {"train", "dev", "val", "valid", "validation", "test", "clean", "matched", "mismatched"}
    | {"mean", "avg", "average", "median", "micro", "macro", "weighted", "total", "overall", "per"}
    | {"other", "token", "word", "byte", "wikitext", "wikitext2", "ptb", "c4", "lambada"}
)
# What makes a measure of success of such a name.
SUCCESS = frozenset(
    {"accuracy", "acc", "f1", "auc", "auroc", "bleu", "rouge", "precision", "recall", "r2"}
    | {"gain", "skill", "reduction", "improvement", "power"}
)
# Which measure errors whatever follows: a language, a unit, a set of data.
CLEAR = frozenset({"wer", "cer", "perplexity", "ppl", "mse", "rmse", "mae", "mape", "nll"})


def check_comparable(metric: str | None, losses: Iterable[str]) -> None:
    """Raises a ValueError for a metric by which losses cannot be compared.

    Args:
        metric: Its name; None for the script's own choice.
        losses: The losses, perhaps with flags behind their names.
    """
    *sets, last = _words(metric or "")
    if last == "loss" and {*sets} <= {*QUALIFIERS, "eval"} and len({*map(_itself, losses)}) > 1:
        raise UsageError(
            f"the metric {metric!r} is every loss's own value, on a scale of its own: compare by "
            "one that all share, such as --metric cross_entropy (or mse)"
        )


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of a metric is the better one.

    Args:
        metric: Its name, perhaps after that of a set and before what it is of:
            `mse`, `eval_validation_matched_mse`, `perplexity_wikitext`.
    """
    return bool(_known_direction(_words(metric)))


def check_direction_known(metric: str) -> None:
    """Raises a ValueError for a metric that may be an error or something else.

    Args:
        metric: Its name, such as `rmse_celsius`: is that a root mean squared error?
    """
    words = _words(metric)
    if _known_direction(words) is not None or {*words} & SUCCESS:
        return
    for first, end in _parts(words):
        name = "_".join(words[first:end])
        if name in _names() and not _turned_round(words, first):
            raise UsageError(
                f"is a smaller {metric!r} better, as of {name!r}, or a larger one? Say it by "
                "--lower_is_better or --no-lower_is_better"
            )


def _known_direction(words: Sequence[str]) -> bool | None:
    """Whether less is better; None if the last words, but for qualifiers, are no such name."""
    for first, end in _parts(words):
        name, rest = "_".join(words[first:end]), words[end:]
        # `err_10` is the expected reciprocal rank.
        if name in _names() and all(map(_qualifies, rest)) and (name != "err" or not rest):
            return not _turned_round(words, first)
    for index, word in enumerate(words):
        if word in CLEAR and not _turned_round(words, index) and not {*words} & SUCCESS:
            return True
    return None


def _names() -> set[str]:
    return {*LOWER_IS_BETTER, *list_losses()}


def _parts(words: Sequence[str]) -> Iterator[tuple[int, int]]:
    """The first word and the end of each part, the longest from the left first."""
    for first in range(len(words)):
        for end in range(len(words), first, -1):
            yield first, end


def _turned_round(words: Sequence[str], first: int) -> bool:
    return first > 0 and words[first - 1] in TURNED_ROUND


def _words(metric: str) -> list[str]:
    """The words of a name, which may be written as `testLoss`, `val/mse` or `error-rate`."""
    return re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", metric).lower())


def _qualifies(word: str) -> bool:
    return word in QUALIFIERS or word.isdigit() or bool(re.fullmatch(r"top\d+", word))


def _itself(loss: str) -> tuple[str, ...]:
    """The name and the parameters of a loss, without other flags."""
    name, *flags = shlex.split(loss)
    return name, *(
        flag.partition("=")[2] or value
        for flag, value in itertools.pairwise([*flags, ""])
        if flag.partition("=")[0].replace("-", "_") == "__loss_kwargs"
    )

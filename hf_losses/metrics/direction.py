"""Whether a smaller value of a metric is the better one, as far as its name tells."""

from __future__ import annotations

from collections.abc import Iterable

from hf_losses.losses.registry import list_losses
from hf_losses.messages import UsageError

# Besides the names of all losses. Of any other metric, a larger value is better.
LOWER_IS_BETTER = (
    *(
        "loss",
        "nll",
        "negative_log_likelihood",
        "perplexity",
        "bits_per_byte",
        "bits_per_character",
    ),
    *("logloss", "log_loss", "ppl", "bpb", "bpc", "kl", "kl_divergence"),
    *("ece", "mce", "brier", "brier_score", "calibration_error", "expected_calibration_error"),
    *("error", "err", "error_rate", "eer", "wer", "cer", "mer", "ter", "wil", "edit_distance"),
    *("false_positive_rate", "false_negative_rate", "fpr", "fnr", "fid", "max_error"),
    *("rmse", "msle", "rmsle", "mape", "smape", "mase", "mean_squared_error", "nmse", "nrmse"),
    *("root_mean_squared_error", "mean_squared_log_error", "root_mean_squared_log_error"),
    *("mean_absolute_error", "median_absolute_error", "mean_absolute_percentage_error"),
    "nonfinite_grad_steps",
)
# Prefixes as in scikit-learn, where more is always better; and as in `recall_at_fpr`.
TURNED_ROUND = ("neg", "negative", "at")
# What may follow such a name without making another metric of it: sets of data, and kinds of means.
QUALIFIERS = frozenset(
    {"train", "dev", "val", "valid", "validation", "test", "clean", "matched", "mismatched"}
    | {"mean", "avg", "average", "median", "micro", "macro", "weighted", "total", "overall", "per"}
    | {"other", "token", "word", "byte", "wikitext", "wikitext2", "ptb", "c4", "lambada"}
)


def check_comparable(metric: str | None, losses: Iterable[str]) -> None:
    """Raises a ValueError for a metric by which losses cannot be compared.

    Args:
        metric: Its name; None for the script's own choice.
        losses: The losses, perhaps with flags behind their names.
    """
    if metric == "loss" and len({loss.split()[0] for loss in losses}) > 1:
        raise UsageError(
            "the metric 'loss' is every loss's own value, on a scale of its own: compare by one "
            "that all share, such as --metric cross_entropy (or mse)"
        )


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of a metric is the better one.

    Args:
        metric: Its name, perhaps after that of a set and before what it is of:
            `mse`, `eval_validation_matched_mse`, `perplexity_wikitext`.
    """
    words, names = metric.lower().split("_"), {*LOWER_IS_BETTER, *list_losses()}
    for first in range(len(words)):
        for end in range(len(words), first, -1):
            if "_".join(words[first:end]) in names and {*words[end:]} <= QUALIFIERS:
                return not first or words[first - 1] not in TURNED_ROUND
    return False

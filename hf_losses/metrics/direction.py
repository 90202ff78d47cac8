"""Whether a smaller value of a metric is the better one, as far as its name tells."""

from __future__ import annotations

from hf_losses.losses.registry import list_losses

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
    *("ece", "mce", "brier", "brier_score", "calibration_error", "expected_calibration_error"),
    *("error", "error_rate", "eer", "wer", "cer", "mer", "ter", "wil", "edit_distance"),
    *("false_positive_rate", "false_negative_rate", "fpr", "fnr", "fid", "max_error"),
    *("rmse", "msle", "rmsle", "mape", "smape", "mase", "mean_squared_error"),
    *("root_mean_squared_error", "mean_squared_log_error", "root_mean_squared_log_error"),
    *("mean_absolute_error", "median_absolute_error", "mean_absolute_percentage_error"),
    "nonfinite_grad_steps",
)
# Prefixes as in scikit-learn, where more is always better; and as in `recall_at_fpr`.
TURNED_ROUND = ("neg", "negative", "at")


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of a metric is the better one.

    Args:
        metric: Its name, perhaps after that of a set: `mse`, `eval_validation_matched_mse`.
    """
    prefix, _, name = f"_{metric.lower()}".partition("_")
    while name and name not in (*LOWER_IS_BETTER, *list_losses()):
        prefix, _, name = name.partition("_")
    return bool(name) and prefix not in TURNED_ROUND

"""Whether less of a metric is better, as far as its name says so."""

from __future__ import annotations

from hf_losses.losses.registry import list_losses

# These and the names of all losses; whatever else is measured, more is better.
LOWER_IS_BETTER = ("loss", "ece", "rmse", "perplexity", "wer", "cer", "nonfinite_grad_steps")
TURNED_ROUND = ("neg", "negative")  # As scikit-learn does it, so that more is always better.


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of a metric is the better one.

    Args:
        metric: Its name, perhaps after that of a set: `mse`, `eval_validation_matched_mse`.
    """
    before, _, name = f"_{metric.lower()}".partition("_")
    while name and name not in (*LOWER_IS_BETTER, *list_losses()):
        before, _, name = name.partition("_")
    return bool(name) and before not in TURNED_ROUND

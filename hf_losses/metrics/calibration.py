"""Calibration: whether what a classifier predicts with probability 0.8 is right 8 times in 10."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_losses.losses.registry import IGNORE_INDEX

BINS = 15


def calibration_bins(logits: Tensor, labels: Tensor) -> Tensor:
    """Counts predictions in 15 bins of equal width by their probability.

    The bins of several batches or processes can be added up.

    Args:
        logits: `[N, C]`, floating point.
        labels: `[N]`, int64; rows with -100 are left out.

    Returns:
        `[3, 15]`, float32: the number of predictions, the sum of their probabilities, and the
        number of correct ones.
    """
    scores = logits.float()
    highest, predicted = scores.max(-1)
    probability = torch.exp(highest - scores.logsumexp(-1))
    # A bin includes its upper limit; rounding may take a probability past 1.
    bin_of = torch.ceil(probability * BINS).long().sub(1).clamp(0, BINS - 1)
    summands = torch.stack(
        [torch.ones_like(probability), probability, (predicted == labels).float()]
    ).where(labels != IGNORE_INDEX, 0.0)
    return summands.new_zeros(3, BINS).index_add_(1, bin_of, summands)


def expected_calibration_error(bins: Tensor) -> float:
    """The mean distance of probability and accuracy over bins (Guo et al. 2017, arXiv:1706.04599).

    Args:
        bins: `[3, 15]`, see `calibration_bins`.

    Returns:
        From 0 to 1; NaN without predictions, or if a logit was NaN.
    """
    count, probability, correct = bins.cpu().double()  # Some devices have no float64.
    return float((probability - correct).abs().sum() / count.sum())

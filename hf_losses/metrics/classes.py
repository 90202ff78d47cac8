"""How often each class is there, is predicted, and is predicted rightly."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_losses.losses.registry import IGNORE_INDEX


def class_counts(logits: Tensor, labels: Tensor) -> Tensor:
    """Counts the predictions by class: the diagonal and the margins of the confusion matrix.

    The counts of several batches or processes can be added up. A class's recall is right / true,
    its precision right / predicted, and its F1 2 · right / (true + predicted).

    Args:
        logits: `[N, C]`, floating point.
        labels: `[N]`, of any integer dtype; rows with -100 are left out.

    Returns:
        `[3, C]`, float32: by class the rows of it, the predictions of it, and the right ones.
    """
    labels, predicted = labels.long(), logits.argmax(-1)  # index_add_ takes no narrow dtype.
    counted = (labels != IGNORE_INDEX).float()
    counts = logits.new_zeros(3, logits.shape[-1], dtype=torch.float32)
    counts[0].index_add_(0, labels.clamp(min=0), counted)
    counts[1].index_add_(0, predicted, counted)
    counts[2].index_add_(0, predicted, counted * (predicted == labels))
    return counts

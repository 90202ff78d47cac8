"""Loss functions as a hyperparameter of Hugging Face fine-tuning jobs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hf_losses.losses.base import RegressionLoss
from hf_losses.losses.linear import linear_loss
from hf_losses.losses.modules import ClassificationLoss, get_loss
from hf_losses.losses.registry import LossParameter, LossSpec, get_spec, list_losses, register_loss

if TYPE_CHECKING:
    from hf_losses.hub.saved_run import load_loss
    from hf_losses.integrations.cross_encoder import CrossEncoderLoss
    from hf_losses.integrations.stock import compute_loss_func
    from hf_losses.training.arguments import LossTrainingArguments
    from hf_losses.training.trainer import LossMixin, LossTrainer

__version__ = "0.1.0"

__all__ = [
    "ClassificationLoss",
    "CrossEncoderLoss",
    "LossMixin",
    "LossParameter",
    "LossSpec",
    "LossTrainer",
    "LossTrainingArguments",
    "RegressionLoss",
    "compute_loss_func",
    "get_loss",
    "get_spec",
    "linear_loss",
    "list_losses",
    "load_loss",
    "register_loss",
]

# The losses need torch alone; transformers is imported with the first name that needs it.
_LAZY = {
    "LossMixin": "hf_losses.training.trainer",
    "LossTrainer": "hf_losses.training.trainer",
    "compute_loss_func": "hf_losses.integrations.stock",
    "LossTrainingArguments": "hf_losses.training.arguments",
    "CrossEncoderLoss": "hf_losses.integrations.cross_encoder",
    "load_loss": "hf_losses.hub.saved_run",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

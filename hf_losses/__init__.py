"""The loss as a hyperparameter for Hugging Face models that are trained on logits and labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_losses.lazy import attributes

if TYPE_CHECKING:
    from hf_losses.hub.saved_run import load_loss
    from hf_losses.integrations.compute_loss_func import compute_loss_func
    from hf_losses.integrations.cross_encoder import CrossEncoderLoss
    from hf_losses.losses.base import RegressionLoss
    from hf_losses.losses.linear import linear_loss
    from hf_losses.losses.modules import ClassificationLoss, get_loss
    from hf_losses.losses.registry import (
        IGNORE_INDEX,
        LossParameter,
        LossSpec,
        get_spec,
        list_losses,
        neutral_loss,
        register_loss,
    )
    from hf_losses.messages import UsageError
    from hf_losses.training.arguments import LossTrainingArguments
    from hf_losses.training.trainer import LossMixin, LossTrainer

__version__ = "0.1.0"

__all__ = [
    "IGNORE_INDEX",
    "ClassificationLoss",
    "CrossEncoderLoss",
    "LossMixin",
    "LossParameter",
    "LossSpec",
    "LossTrainer",
    "LossTrainingArguments",
    "RegressionLoss",
    "UsageError",
    "compute_loss_func",
    "get_loss",
    "get_spec",
    "linear_loss",
    "list_losses",
    "load_loss",
    "neutral_loss",
    "register_loss",
]

# The module of each public name. It is imported with the first use of the name, so that the losses
# need only torch, and `hf-losses list` not even that.
_MODULES = {
    "ClassificationLoss": "losses.modules",
    "IGNORE_INDEX": "losses.registry",
    "CrossEncoderLoss": "integrations.cross_encoder",
    "LossMixin": "training.trainer",
    "LossParameter": "losses.registry",
    "LossSpec": "losses.registry",
    "LossTrainer": "training.trainer",
    "LossTrainingArguments": "training.arguments",
    "RegressionLoss": "losses.base",
    "UsageError": "messages",
    "compute_loss_func": "integrations.compute_loss_func",
    "get_loss": "losses.modules",
    "get_spec": "losses.registry",
    "linear_loss": "losses.linear",
    "list_losses": "losses.registry",
    "load_loss": "hub.saved_run",
    "neutral_loss": "losses.registry",
    "register_loss": "losses.registry",
}

__getattr__ = attributes(__name__, _MODULES)

"""Training with any loss: arguments, trainer, and what they are made of."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_losses.training.arguments import LossTrainingArguments
    from hf_losses.training.recipe_arguments import RecipeTrainingArguments, check_loss, parse
    from hf_losses.training.trainer import LossMixin, LossTrainer

# By name: where it stands. Imported with the first use.
_MODULES = {
    "LossMixin": "training.trainer",
    "LossTrainer": "training.trainer",
    "LossTrainingArguments": "training.arguments",
    "RecipeTrainingArguments": "training.recipe_arguments",
    "check_loss": "training.recipe_arguments",
    "parse": "training.recipe_arguments",
}

__all__ = [
    "LossMixin",
    "LossTrainer",
    "LossTrainingArguments",
    "RecipeTrainingArguments",
    "check_loss",
    "parse",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"hf_losses.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

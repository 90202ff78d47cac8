"""Training with any loss: arguments, trainer, and what they are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_losses.lazy import attributes

if TYPE_CHECKING:
    from hf_losses.training.arguments import LossTrainingArguments
    from hf_losses.training.recipe_arguments import RecipeTrainingArguments, check_loss, parse
    from hf_losses.training.trainer import LossMixin, LossTrainer

# The module of each public name, imported when the name is first used.
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

__getattr__ = attributes(__name__, _MODULES)

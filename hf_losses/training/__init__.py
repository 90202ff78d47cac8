"""Training with any loss: arguments, trainer, and what they are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_losses.lazy import attributes

if TYPE_CHECKING:
    from hf_losses.training.arguments import LossTrainingArguments
    from hf_losses.training.loss.choose import loss_of_arguments
    from hf_losses.training.output_folder import check_folder, dataset_facts
    from hf_losses.training.recipe_arguments import (
        RecipeTrainingArguments,
        check_loss,
        choose_metric,
        parse,
    )
    from hf_losses.training.trainer import LossMixin, LossTrainer

# The module of each public name, imported with the first use of the name.
_MODULES = {
    "LossMixin": "training.trainer",
    "LossTrainer": "training.trainer",
    "LossTrainingArguments": "training.arguments",
    "RecipeTrainingArguments": "training.recipe_arguments",
    "check_folder": "training.output_folder",
    "check_loss": "training.recipe_arguments",
    "choose_metric": "training.recipe_arguments",
    "dataset_facts": "training.output_folder",
    "loss_of_arguments": "training.loss.choose",
    "parse": "training.recipe_arguments",
}

__all__ = [
    "LossMixin",
    "LossTrainer",
    "LossTrainingArguments",
    "RecipeTrainingArguments",
    "check_folder",
    "check_loss",
    "choose_metric",
    "dataset_facts",
    "loss_of_arguments",
    "parse",
]

__getattr__ = attributes(__name__, _MODULES)

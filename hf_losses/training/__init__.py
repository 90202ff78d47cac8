"""Training with any loss: arguments, trainer, and what they are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_losses.lazy import attributes

if TYPE_CHECKING:
    from hf_losses.training.arguments import LossTrainingArguments
    from hf_losses.training.loss.choose import loss_of_arguments
    from hf_losses.training.output_folder import check_folder, dataset_facts
    from hf_losses.training.recipe.arguments import (
        RecipeTrainingArguments,
        check_loss,
        choose_metric,
        parse,
    )
    from hf_losses.training.recipe.steps import end_run, predict_in_order, train_and_save
    from hf_losses.training.trainer import LossMixin, LossTrainer

# The module of each public name, imported with the first use of the name.
_MODULES = {
    "LossMixin": "training.trainer",
    "LossTrainer": "training.trainer",
    "LossTrainingArguments": "training.arguments",
    "RecipeTrainingArguments": "training.recipe.arguments",
    "check_folder": "training.output_folder",
    "check_loss": "training.recipe.arguments",
    "choose_metric": "training.recipe.arguments",
    "dataset_facts": "training.output_folder",
    "end_run": "training.recipe.steps",
    "loss_of_arguments": "training.loss.choose",
    "parse": "training.recipe.arguments",
    "predict_in_order": "training.recipe.steps",
    "train_and_save": "training.recipe.steps",
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
    "end_run",
    "loss_of_arguments",
    "parse",
    "predict_in_order",
    "train_and_save",
]

__getattr__ = attributes(__name__, _MODULES)

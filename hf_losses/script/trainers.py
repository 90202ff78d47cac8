"""A script's trainers with another loss, which end the program where it would not be used."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import is_compiled_module
from torch import Tensor
from transformers.utils.generic import find_labels

from hf_losses.models.builtin import loss_type
from hf_losses.models.forwards import with_loss
from hf_losses.models.heads import LABELLERS, LOSS_WEIGHT, QUESTION_ANSWERING, SEGMENTATION
from hf_losses.training.base_trainers import code_of
from hf_losses.training.loss.items import item_mask
from hf_losses.training.loss.replaced import LEFT_OUT, losses_among
from hf_losses.training.trainer import LossMixin

# Whose own loss is divided by the items of the whole step, if Trainer counts them.
COUNTED_HEADS = {*LABELLERS} - {QUESTION_ANSWERING, SEGMENTATION}

# Of whose loss scripts take the exponential.
LANGUAGE_MODELS = ("ForCausalLM", "ForMaskedLM", "ForConditionalGeneration")


class SwappedLoss(LossMixin):
    """Comes before a class of trainers, which computes no loss of its own."""

    # A script has attributes of its own.
    hf_losses_swap: Any  # The `Swap`.
    hf_losses_overriding: list[type]  # The script's classes that define a compute_loss.
    _hf_losses_steps: Sequence[int] = ()  # Of each call within one of the script's compute_loss.
    _hf_losses_batch: Any = None  # During a training_step: the micro-batch as it was counted.

    def _check_base(self) -> None:
        """Does nothing: `Swap.trainer_class` has checked the class, and `training_step` will."""

    def _check_trainer(self) -> None:
        swap, name = self.hf_losses_swap, type(self).__name__
        if self.args.gradient_accumulation_steps > 1:
            self._check_training_step()
        for script_loss in (self._active.loss, getattr(self.args, "loss", None)):
            if script_loss not in (None, swap.loss):
                swap.refuse(f"the script gives its {name} the loss {script_loss!r}; keep one")
        if self.compute_loss_func is not None:
            self._refuse_function(self.compute_loss_func)
        model = type(self._wrapped.core)
        takes_labels = self.args.label_names or find_labels(model)
        if not takes_labels and model.__module__.startswith("transformers."):
            swap.refuse(
                f"{model.__name__} takes no labels: what it is trained on is not a function of "
                "logits and labels"
            )
        self._active.loss = swap.loss
        # A script may build a second trainer to predict, without the labels that were counted.
        self._active.class_weights = swap.class_weights
        for option, value in swap.settings.items():
            setattr(self.args, option, value)
        try:
            super()._check_trainer()
            self._active.target()
        except ValueError as error:
            swap.refuse(str(error))

    def _refuse_function(self, function: Any) -> None:
        self.hf_losses_swap.refuse(
            f"the script gives its {type(self).__name__} a compute_loss_func{place(function)}; "
            "take it out"
        )

    def _say_what_is_lost(self, text: str) -> None:
        way_out = f"{LEFT_OUT} (hf_losses.LossTrainer leaves it out, and warns)"
        self.hf_losses_swap.refuse(text.replace(LEFT_OUT, way_out))

    def _check_training_step(self) -> None:
        """Refuses a `training_step` that divides the loss, as old ones of transformers did."""
        for base in type(self).__mro__:
            function = vars(base).get("training_step")
            library = base.__module__.partition(".")[0]
            if function is None or library in ("hf_losses", "transformers", "trl"):
                continue
            names = {*getattr(code_of(function), "co_names", ())}
            # Transformers' own, and copies of it, know when not to divide.
            if names & {"super", "loss_is_scaled_for_ga", "compute_loss_func"}:
                continue
            if names & {"gradient_accumulation_steps", "current_gradient_accumulation_steps"}:
                self.hf_losses_swap.refuse(
                    f"{base.__qualname__}.training_step{place(function)} divides the loss by the "
                    "accumulation steps, as this one has been already: let it call "
                    "super().training_step, or take that out"
                )

    def _check_saved_loss(self, checkpoint: str, saved_loss: dict[str, Any]) -> None:
        try:
            super()._check_saved_loss(checkpoint, saved_loss)
        except ValueError as error:
            self.hf_losses_swap.refuse(str(error))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trains, and leaves the records of the loss in `output_dir`."""
        output = super().train(*args, **kwargs)
        if self.args.should_save:
            # A script may save by model.save_pretrained alone, which does not write these.
            self._write_records(self.args.output_dir)
        return output

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        names = getattr(self.train_dataset, "column_names", None)
        if isinstance(names, list) and LOSS_WEIGHT in names and self.is_world_process_zero():
            self.hf_losses_swap.say(f"examples are weighed by the column {LOSS_WEIGHT!r}")
        with self._refusing():
            return super()._init_training_state(*args, **kwargs)

    def _get_num_items_in_batch(self, *args: Any, **kwargs: Any) -> Any:
        with self._refusing():
            return super()._get_num_items_in_batch(*args, **kwargs)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Ends the program with the reason if this library refuses the first step."""
        try:
            yield
        except ValueError as error:
            if self.hf_losses_swap.trained or not _raised_here(error):
                raise
            self.hf_losses_swap.refuse(str(error))

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Ends the program if the step was made with another loss, wholly or in part."""
        self._used = self._used_own = False
        self._hf_losses_batch, self._hf_losses_steps = inputs, ()
        if self.compute_loss_func != self._loss_of_outputs:
            self._refuse_function(self.compute_loss_func)
        with self._watching_own_loss(), self._refusing():
            loss = super().training_step(model, inputs, *args, **kwargs)
        if not self._used:
            if self.hf_losses_overriding:
                self.hf_losses_swap.refuse_loss_of(type(self), self.hf_losses_overriding[0])
            self.hf_losses_swap.refuse(
                f"{type(self).__name__}.training_step{place(super().training_step)} does not "
                "take it from compute_loss"
            )
        if self._used_own:
            self.hf_losses_swap.refuse(
                f"{type(self).__name__} trains on the model's own loss as well: let its "
                "training_step and compute_loss take that from self.compute_loss(model, inputs) "
                "and super().compute_loss"
            )
        self._hf_losses_batch = None
        self.hf_losses_swap.trained = True
        return loss

    def _loss_of_outputs(self, *args: Any, **kwargs: Any) -> Any:
        loss = super()._loss_of_outputs(*args, **kwargs)
        if loss.requires_grad:
            # A call is not enough: the script may take the outputs and drop the loss.
            loss.register_hook(self._note_use)  # type: ignore[no-untyped-call]
        return loss

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates, and says once that the loss of a language model has no perplexity."""
        output = super().evaluation_loop(*args, **kwargs)
        baseline, swap = self._active.baseline_name, self.hf_losses_swap
        of_words = loss_type(self._wrapped.core) in LANGUAGE_MODELS
        if of_words and swap.loss != baseline and not swap.told and self.is_world_process_zero():
            swap.told = True
            swap.say(
                f"the evaluation's loss is {swap.loss}, so its exponential is no perplexity, "
                f"whatever the script calls it; that of {baseline} is"
            )
        return output

    def _note_use(self, gradient: Any) -> None:
        self._used = True

    @contextmanager
    def _watching_own_loss(self) -> Iterator[None]:
        """Notes whether a loss that the model makes of labels gets a gradient."""

        def look(model: Any, args: Any, kwargs: Any, outputs: Any) -> None:
            if any(kwargs.get(name) is not None for name in self.label_names):
                for loss in losses_among(outputs):
                    if loss.requires_grad:
                        loss.register_hook(self._note_own_use)  # type: ignore[no-untyped-call]

        if self.args.torch_compile or is_compiled_module(self.model):
            yield  # A hook would have it compiled anew.
            return
        hook = self._wrapped.adapted.register_forward_hook(look, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()

    def _note_own_use(self, gradient: Any) -> None:
        if gradient is not None:  # DDP calls it for what is not used, too.
            self._used_own = True


class ScriptsLoss(SwappedLoss):
    """Comes before the script's class in method resolution, and calls its `compute_loss`."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The script's loss, divided as this library's are."""
        self._hf_losses_steps = []
        result = super(LossMixin, self).compute_loss(*args, **kwargs)
        return _scaled(result, 1 / min(self._hf_losses_steps, default=1))


class LossBelow:
    """Comes after the script's class, so that its `super().compute_loss` is the loss.

    The script's class sees what it would of the stock Trainer, so that what it adds to that counts
    as much as there.
    """

    def compute_loss(
        self: Any,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """What the stock Trainer would return if its model had this loss."""
        counted = num_items_in_batch is not None
        steps = _steps(self, counted=counted)
        self._hf_losses_steps = [*self._hf_losses_steps, steps]
        result = LossMixin.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)
        scaled = _scaled(result, steps * _share(self, inputs, counted=counted))
        if return_outputs and scaled is not result:  # The outputs hold the loss too.
            loss, outputs = scaled
            others = outputs[1:] if isinstance(outputs, tuple) else outputs
            scaled = loss, with_loss(others, loss)
        return scaled


def _divides_by_count(trainer: Any, *, counted: bool) -> bool:
    """Whether the model's own loss is divided by the number of items that it is given."""
    core = trainer._wrapped.core
    divides = "loss_function" in getattr(code_of(core.forward), "co_names", ())
    takes_count = loss_type(core) in COUNTED_HEADS and divides and counted
    return bool(trainer.model_accepts_loss_kwargs and takes_count)


def _share(trainer: Any, inputs: Mapping[str, Any], *, counted: bool) -> Tensor | float:
    """The items of a micro-batch as they were counted, over those of a batch made of it.

    A script that has each row twice in a batch, as for R-Drop, gets the mean over both from the
    stock Trainer, unless the model divides by the count.
    """
    if not trainer.model.training or not counted or _divides_by_count(trainer, counted=counted):
        return 1.0
    targets, problem = trainer._wrapped.targets, trainer._active.problem
    batches = (trainer._hf_losses_batch, inputs)
    if not all(map(targets.present, batches)):
        return 1.0
    first, used = (targets.of_batch(batch) for batch in batches)
    if len(used[0]) <= len(first[0]):
        return 1.0
    items = [
        torch.stack([item_mask(labels, problem).sum() for labels in of_batch]).sum()
        for of_batch in (first, used)
    ]
    return items[0] / items[1].clamp(min=1)


def _steps(trainer: Any, *, counted: bool) -> int:
    """By how many micro-batches the stock Trainer would divide what the script's class returns.

    It divides nothing where the model's own loss is one of the whole step already, unless the class
    asks for it: where the script hands on the count, and the model divides by it. (Of a classifier,
    and of others that compute a mean all the same, it does not divide either, but what the script
    adds then weighs as if both had been divided.)

    Args:
        trainer: The trainer.
        counted: Whether the script hands on the number of items of the step.
    """
    scaled = super(LossMixin, trainer).loss_is_scaled_for_ga
    if scaled is None:
        scaled = _divides_by_count(trainer, counted=counted)
    if scaled or not trainer.model.training:
        return 1
    steps: int = trainer.current_gradient_accumulation_steps
    return steps


def _scaled(result: Any, factor: Tensor | float) -> Any:
    """What a `compute_loss` returned, with its loss times a factor."""
    if not torch.is_tensor(factor) and factor == 1:
        return result
    return (result[0] * factor, *result[1:]) if isinstance(result, tuple) else result * factor


def _raised_here(error: Exception) -> bool:
    """Whether this library raised an error."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return bool(frame.f_globals["__name__"].startswith("hf_losses."))


def place(function: Any) -> str:
    """File and line of a function in brackets, for messages; empty if they are not known."""
    code = code_of(function)
    return f" ({code.co_filename}:{code.co_firstlineno})" if code else ""

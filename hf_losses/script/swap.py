"""Another loss for every `Trainer` that a program builds, and for every subclass of it."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import packages_distributions
from typing import Any, NoReturn

from transformers import Trainer
from transformers.utils.generic import find_labels

from hf_losses.models.builtin import loss_type
from hf_losses.models.heads import LABELLERS, QUESTION_ANSWERING, SEGMENTATION
from hf_losses.training.base_trainers import (
    SAME_LOSS,
    code_of,
    full_name,
    never_calls_super,
)
from hf_losses.training.loss.class_weights import ClassWeights
from hf_losses.training.trainer import LossMixin

# For trainers of other libraries: what to do instead of using this command.
INSTEAD = {
    "sentence_transformers.cross_encoder.trainer.CrossEncoderTrainer": (
        "a CrossEncoder takes it as hf_losses.CrossEncoderLoss(model, {loss!r}), "
        "given to the trainer as its loss"
    ),
    "setfit.trainer.BCSentenceTransformersTrainer": (
        "SetFit takes it for its head: "
        "model.model_head.get_loss_fn = functools.partial(hf_losses.get_loss, {loss!r})"
    ),
}


# Whose own loss is divided by the items of the whole step, if Trainer counts them.
COUNTED_HEADS = {*LABELLERS} - {QUESTION_ANSWERING, SEGMENTATION}

CLASS_WEIGHTS = "class weights go into --loss_kwargs '{\"weight\": [1.0, 2.5]}', a number per class"

# Of whose loss scripts take the exponential.
LANGUAGE_MODELS = ("ForCausalLM", "ForMaskedLM", "ForConditionalGeneration")


@dataclass
class Swap:
    """Which loss a program's trainers get, and whether one of them was trained with it.

    Attributes:
        loss: A registered name.
        settings: Fields of `LossTrainingArguments` that belong to the loss, such as `loss_kwargs`.
        stock_loss: `Trainer.compute_loss` as transformers defines it.
        trained: Whether a training step has used the loss.
        told: Whether it was said that the loss has no perplexity.
    """

    loss: str
    settings: dict[str, Any]
    stock_loss: Any
    trained: bool = False
    told: bool = False
    class_weights: ClassWeights = field(default_factory=ClassWeights)
    _swapped: dict[type, type] = field(default_factory=dict)

    def refuse(self, why: str) -> NoReturn:
        """Ends the program, by SystemExit, which no `except Exception` of the script catches."""
        raise SystemExit(f"hf-losses run: error: the loss {self.loss!r} is not in use: {why}")

    def trainer_class(self, cls: type) -> type:
        """A subclass of a trainer's class that uses the loss, under the same name.

        A `compute_loss` of the script stays in force; its `super().compute_loss` is this loss.

        Args:
            cls: `Trainer` or a class that derives from it.

        Returns:
            The same class for the same `cls`.

        Raises:
            SystemExit: If `cls` computes a loss of its own.
        """
        if issubclass(cls, _SwappedLoss):  # As in type(trainer)(…), or copy.copy(trainer).
            return cls
        if cls not in self._swapped:
            trainer = next(
                base for base in cls.__mro__ if base in (LossMixin, Trainer) or _is_same(base)
            )
            if trainer is Trainer and vars(Trainer)["compute_loss"] is not self.stock_loss:
                self.refuse_loss_of(cls, Trainer)
            overriding = [base for base in _derived(cls, trainer) if "compute_loss" in vars(base)]
            for base in overriding:
                if never_calls_super(base):
                    self.refuse_loss_of(cls, base)
            bases: tuple[type, ...] = (_SwappedLoss, cls)
            if overriding and trainer is not LossMixin:
                # Method resolution then goes from the script's class to the loss to the trainer.
                bases = (_ScriptsLoss, cls, type(trainer.__name__, (_LossBelow, trainer), {}))
            attributes = {
                "__module__": cls.__module__,
                "__doc__": cls.__doc__,
                "hf_losses_swap": self,
                "hf_losses_overriding": overriding,
            }
            for base in reversed(_derived(cls, trainer)):
                # The script's own, which LossMixin would hide.
                for name in {"criterion", "loss_config"} & vars(base).keys():
                    attributes[name] = vars(base)[name]
            self._swapped[cls] = type(cls.__name__, bases, attributes)
        return self._swapped[cls]

    def refuse_loss_of(self, cls: type, base: type) -> NoReturn:
        """Ends the program because a class computes another loss.

        Args:
            cls: The class that the script uses.
            base: The class among `cls` and those above it that defines the `compute_loss`.
        """
        function = vars(base)["compute_loss"]
        self.refuse(
            f"{base.__qualname__}.compute_loss{_place(function)} computes another; "
            f"{self._instead_of(cls, base)}"
        )

    def _instead_of(self, cls: type, base: type) -> str:
        """What the user can do instead, for the end of the message."""
        for trainer in map(full_name, cls.__mro__):
            if trainer in INSTEAD:
                return INSTEAD[trainer].format(loss=self.loss)
        library = base.__module__.partition(".")[0]
        if base is not Trainer and library in packages_distributions():
            return (
                f"it belongs to {library}, and what it trains on is not a function of logits and "
                "labels alone: this command cannot replace it"
            )
        return (
            "take it out of the script, or let it call super().compute_loss and return that loss; "
            f"{CLASS_WEIGHTS}"
        )


class _SwappedLoss(LossMixin):
    # A script has attributes of its own.
    hf_losses_swap: Swap
    hf_losses_overriding: list[type]  # The script's classes that define a compute_loss.

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
            function = self.compute_loss_func
            swap.refuse(
                f"the script gives its {name} a compute_loss_func{_place(function)}; take it out"
            )
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

    def _say_what_is_lost(self, text: str) -> None:
        self.hf_losses_swap.refuse(f"{text}; {CLASS_WEIGHTS}")

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
                    f"{base.__qualname__}.training_step{_place(function)} divides the loss by the "
                    "accumulation steps, as this one has been already: let it call "
                    "super().training_step, or take that out"
                )

    def _check_saved_loss(self, checkpoint: str, saved_loss: dict[str, Any]) -> None:
        try:
            super()._check_saved_loss(checkpoint, saved_loss)
        except ValueError as error:
            self.hf_losses_swap.refuse(str(error))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        output = super().train(*args, **kwargs)
        if self.args.should_save:
            # A script may save by model.save_pretrained alone, which does not write these.
            self._write_records(self.args.output_dir)
        return output

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
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

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self._used = False
        with self._refusing():
            loss = super().training_step(*args, **kwargs)
        if not self._used:
            if self.hf_losses_overriding:
                self.hf_losses_swap.refuse_loss_of(type(self), self.hf_losses_overriding[0])
            self.hf_losses_swap.refuse(
                f"{type(self).__name__}.training_step{_place(super().training_step)} does not "
                "take it from compute_loss"
            )
        self.hf_losses_swap.trained = True
        return loss

    def _loss_of_outputs(self, *args: Any, **kwargs: Any) -> Any:
        loss = super()._loss_of_outputs(*args, **kwargs)
        if loss.requires_grad:
            # A call is not enough: the script may take the outputs and drop the loss.
            loss.register_hook(self._note_use)  # type: ignore[no-untyped-call]
        return loss

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        output = super().evaluation_loop(*args, **kwargs)
        baseline, swap = self._active.baseline_name, self.hf_losses_swap
        of_words = loss_type(self._wrapped.core) in LANGUAGE_MODELS
        if of_words and swap.loss != baseline and not swap.told and self.is_world_process_zero():
            swap.told = True
            print(
                f"hf-losses run: the evaluation's loss is {swap.loss}, so its exponential is no "
                f"perplexity, whatever the script calls it; that of {baseline} is",
                file=sys.stderr,
                flush=True,
            )
        return output

    def _note_use(self, gradient: Any) -> None:
        self._used = True


class _ScriptsLoss(_SwappedLoss):
    """Comes before the script's class in method resolution, and calls its `compute_loss`."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        self._hf_losses_steps = 1
        result = super(LossMixin, self).compute_loss(*args, **kwargs)
        return _scaled(result, 1 / self._hf_losses_steps)


class _LossBelow:
    """Comes after the script's class, so that its `super().compute_loss` is the loss.

    The script's class sees what it would of the stock Trainer, so that what it adds to that counts
    as much as there.
    """

    _hf_losses_steps: int  # Of the last call; scripts have attributes of their own.

    def compute_loss(
        self: Any,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        self._hf_losses_steps = _steps(self, counted=num_items_in_batch is not None)
        result = LossMixin.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)
        return _scaled(result, self._hf_losses_steps)


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
        core = trainer._wrapped.core
        divides = "loss_function" in getattr(code_of(core.forward), "co_names", ())
        takes_count = loss_type(core) in COUNTED_HEADS and divides and counted
        scaled = trainer.model_accepts_loss_kwargs and takes_count
    if scaled or not trainer.model.training:
        return 1
    steps: int = trainer.current_gradient_accumulation_steps
    return steps


def _scaled(result: Any, factor: float) -> Any:
    """What a `compute_loss` returned, with its loss times a factor."""
    if factor == 1:
        return result
    return (result[0] * factor, *result[1:]) if isinstance(result, tuple) else result * factor


def _is_same(base: type) -> bool:
    return full_name(base) in SAME_LOSS


def _derived(cls: type, base: type) -> tuple[type, ...]:
    """The class and those of its bases that come before `base` in Python's order."""
    return cls.__mro__[: cls.__mro__.index(base)]


def _raised_here(error: Exception) -> bool:
    """Whether this library raised an error."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return bool(frame.f_globals["__name__"].startswith("hf_losses."))


def _place(function: Any) -> str:
    """File and line of a function in brackets, for messages; empty if they are not known."""
    code = code_of(function)
    return f" ({code.co_filename}:{code.co_firstlineno})" if code else ""

"""Another loss for every `Trainer` that a program builds, whoever derived it from which name."""

from __future__ import annotations

import inspect
import traceback
from dataclasses import dataclass, field
from importlib.metadata import packages_distributions
from types import CodeType
from typing import Any, NoReturn

from transformers import Trainer
from transformers.utils.generic import find_labels

from hf_losses.training.base_trainers import SAME_LOSS, full_name
from hf_losses.training.trainer import LossMixin

# By trainer of a library: what to do in the place of this command.
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


@dataclass
class Swap:
    """Which loss a program's trainers get, and whether one of them was trained with it.

    Attributes:
        loss: A registered name.
        settings: Fields of `LossTrainingArguments` that go with it, such as `loss_kwargs`.
        stock_loss: `Trainer.compute_loss` as transformers defines it.
        trained: Whether a step of training used it.
    """

    loss: str
    settings: dict[str, Any]
    stock_loss: Any
    trained: bool = False
    _swapped: dict[type, type] = field(default_factory=dict)

    def refuse(self, why: str) -> NoReturn:
        """Ends the program; SystemExit also passes through an `except Exception` of the script."""
        raise SystemExit(f"hf-losses run: error: the loss {self.loss!r} is not in use: {why}")

    def trainer_class(self, cls: type) -> type:
        """A subclass of a trainer's class that uses the loss, under the same name.

        A `compute_loss` of the script's own stays in force: its `super()` is this loss.

        Args:
            cls: `Trainer` or a class that derives from it.

        Returns:
            The same class for the same `cls`.

        Raises:
            SystemExit: If `cls` computes a loss of its own.
        """
        if cls not in self._swapped:
            below = next(
                base for base in cls.__mro__ if base in (LossMixin, Trainer) or _is_same(base)
            )
            if below is Trainer and vars(Trainer)["compute_loss"] is not self.stock_loss:
                self.refuse_loss_of(cls, Trainer)
            own = [base for base in _above(cls, below) if "compute_loss" in vars(base)]
            for base in own:
                if _plainly_computes_its_own(base):
                    self.refuse_loss_of(cls, base)
            bases: tuple[type, ...] = (_SwappedLoss, cls)
            if own and below is not LossMixin:
                # Python's order then is the script's class, the loss, and what they derive from.
                bases = (_ScriptsLoss, cls, type(below.__name__, (_LossBelow, below), {}))
            names = {
                "__module__": cls.__module__,
                "__doc__": cls.__doc__,
                "swap": self,
                "own_losses": own,
            }
            self._swapped[cls] = type(cls.__name__, bases, names)
        return self._swapped[cls]

    def refuse_loss_of(self, cls: type, base: type) -> NoReturn:
        """Ends the program because of a `compute_loss`.

        Args:
            cls: The class that the script uses.
            base: It, or the one of the classes above it whose `compute_loss` it is.
        """
        function = vars(base)["compute_loss"]
        self.refuse(
            f"{base.__qualname__}.compute_loss{_place(function)} computes another; "
            f"{self._instead_of(cls, base)}"
        )

    def _instead_of(self, cls: type, base: type) -> str:
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
            "class weights go into --loss_kwargs '{\"weight\": [1.0, 2.5]}', a number per class"
        )


class _SwappedLoss(LossMixin):
    swap: Swap
    own_losses: list[type]

    def _check_base(self) -> None:
        """`Swap.trainer_class` has done it, and `training_step` will."""

    def _check_trainer(self) -> None:
        swap, name = self.swap, type(self).__name__
        for given in (self._active.loss, getattr(self.args, "loss", None)):
            if given not in (None, swap.loss):
                swap.refuse(f"the script gives its {name} the loss {given!r}; keep one")
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
        for option, value in swap.settings.items():
            setattr(self.args, option, value)
        try:
            super()._check_trainer()
            self._active.target()
        except ValueError as error:
            swap.refuse(str(error))

    def check_same_loss(self, checkpoint: str) -> None:
        try:
            super().check_same_loss(checkpoint)
        except ValueError as error:
            self.swap.refuse(str(error))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        trained = super().train(*args, **kwargs)
        if self.args.should_save:
            # For a script that leaves all saving to model.save_pretrained.
            self._write_records(self.args.output_dir)
        return trained

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self._used = False
        try:
            loss = super().training_step(*args, **kwargs)
        except ValueError as error:
            if self.swap.trained or not _is_ours(error):
                raise
            self.swap.refuse(str(error))
        if not self._used:
            if self.own_losses:
                self.swap.refuse_loss_of(type(self), self.own_losses[0])
            self.swap.refuse(
                f"{type(self).__name__}.training_step{_place(super().training_step)} does not "
                "take it from compute_loss"
            )
        self.swap.trained = True
        return loss

    def _loss_of_outputs(self, *args: Any, **kwargs: Any) -> Any:
        loss = super()._loss_of_outputs(*args, **kwargs)
        if loss.requires_grad:
            # Called is not used: the script may take the outputs and drop the loss.
            loss.register_hook(self._note_use)  # type: ignore[no-untyped-call]
        return loss

    def _note_use(self, gradient: Any) -> None:
        self._used = True


class _ScriptsLoss(_SwappedLoss):
    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return super(LossMixin, self).compute_loss(*args, **kwargs)


class _LossBelow:
    def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        return LossMixin.compute_loss(self, *args, **kwargs)


def _is_same(base: type) -> bool:
    return full_name(base) in SAME_LOSS


def _above(cls: type, base: type) -> tuple[type, ...]:
    return cls.__mro__[: cls.__mro__.index(base)]


def _plainly_computes_its_own(base: type) -> bool:
    """Whether nothing in a class calls `super().compute_loss`.

    Not for one that a decorator or an assignment made: there the first step shows it.
    """
    code = _code(vars(base)["compute_loss"])
    if code is None or code.co_qualname != f"{base.__qualname__}.compute_loss":
        return False
    return not any(
        {"super", "compute_loss"} <= {*code.co_names}
        for code in map(_code, vars(base).values())
        if code
    )


def _is_ours(error: Exception) -> bool:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return bool(frame.f_globals["__name__"].startswith("hf_losses."))


def _code(function: Any) -> CodeType | None:
    return getattr(inspect.unwrap(function), "__code__", None)


def _place(function: Any) -> str:
    code = _code(function)
    return f" ({code.co_filename}:{code.co_firstlineno})" if code else ""

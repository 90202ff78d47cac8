"""Another loss for every `Trainer` that a program builds, and for every subclass of it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from importlib.metadata import packages_distributions
from typing import Any, NoReturn

from transformers import Trainer

from hf_losses.script.trainers import LossBelow, ScriptsLoss, SwappedLoss, place
from hf_losses.training.base_trainers import SAME_LOSS, full_name, never_calls_super
from hf_losses.training.loss.class_weights import ClassWeights
from hf_losses.training.loss.replaced import CLASS_WEIGHTS
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

    def say(self, text: str) -> None:
        """Tells the user something, once for each training."""
        print(f"hf-losses run: {text}", file=sys.stderr, flush=True)

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
        if issubclass(cls, SwappedLoss):  # As in type(trainer)(…), or copy.copy(trainer).
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
            bases: tuple[type, ...] = (SwappedLoss, cls)
            if overriding and trainer is not LossMixin:
                # Method resolution then goes from the script's class to the loss to the trainer.
                bases = (ScriptsLoss, cls, type(trainer.__name__, (LossBelow, trainer), {}))
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
            f"{base.__qualname__}.compute_loss{place(function)} computes another; "
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


def _is_same(base: type) -> bool:
    return full_name(base) in SAME_LOSS


def _derived(cls: type, base: type) -> tuple[type, ...]:
    """The class and those of its bases that come before `base` in Python's order."""
    return cls.__mro__[: cls.__mro__.index(base)]

"""Another loss for every `Trainer` that a program builds, whoever derived it from which name."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any, NoReturn

from transformers import Trainer

from hf_losses.base_trainers import SAME_LOSS, full_name
from hf_losses.trainer import LossMixin


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

        Args:
            cls: `Trainer` or a class that derives from it.

        Returns:
            The same class for the same `cls`.

        Raises:
            SystemExit: If `cls` computes a loss of its own.
        """
        for base in cls.__mro__[: cls.__mro__.index(Trainer) + 1]:
            if base is LossMixin or full_name(base) in SAME_LOSS:
                break
            function = vars(base).get("compute_loss", self.stock_loss)
            if function is not self.stock_loss:
                self.refuse(
                    f"{base.__qualname__}.compute_loss{_place(function)} computes another; "
                    "take it out of the script, or let it call hf_losses.get_loss itself"
                )
        if cls not in self._swapped:
            own = {"__module__": cls.__module__, "__doc__": cls.__doc__, "swap": self}
            self._swapped[cls] = type(cls.__name__, (_SwappedLoss, cls), own)
        return self._swapped[cls]


class _SwappedLoss(LossMixin):
    swap: Swap

    def _check_base(self) -> None:
        """`Swap.trainer_class` has done it, and `training_step` will."""

    def _check_trainer(self) -> None:
        swap, name = self.swap, type(self).__name__
        for given in (self._given_loss, getattr(self.args, "loss", None)):
            if given not in (None, swap.loss):
                swap.refuse(f"the script gives its {name} the loss {given!r}; keep one")
        if self.compute_loss_func is not None:
            function = self.compute_loss_func
            swap.refuse(
                f"the script gives its {name} a compute_loss_func{_place(function)}; take it out"
            )
        self._given_loss = swap.loss
        for option, value in swap.settings.items():
            setattr(self.args, option, value)
        try:
            super()._check_trainer()
            self._loss()
        except ValueError as error:
            swap.refuse(str(error))

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self._used = False
        loss = super().training_step(*args, **kwargs)
        if not self._used:
            self.swap.refuse(
                f"{type(self).__name__}.training_step{_place(super().training_step)} does not "
                "take it from compute_loss"
            )
        self.swap.trained = True
        return loss

    def _loss_of_outputs(self, *args: Any, **kwargs: Any) -> Any:
        self._used = True
        return super()._loss_of_outputs(*args, **kwargs)


def _place(function: Any) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f" ({code.co_filename}:{code.co_firstlineno})" if code else ""

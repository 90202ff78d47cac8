"""The space of a search: losses by name or wildcard, and ranges of numbers."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hf_losses import get_loss
from hf_losses.losses.registry import get_spec, match_losses
from hf_losses.messages import UsageError, nearest
from hf_losses.options import option

# Flags whose values a search chooses, and the flags that give their ranges.
SEARCHED = {"loss": "losses", "loss_kwargs": "loss_ranges", "learning_rate": "learning_rate_range"}
# Flags that only the final training of the winner takes.
FOR_THE_WINNER = {"do_train", "do_predict", "eval_strategy", "save_strategy", "push_to_hub"}
FOR_THE_WINNER |= {"load_best_model_at_end", "metric_for_best_model", "resume_from_checkpoint"}


@dataclass
class SearchArguments:
    """The losses and the ranges that a search chooses from."""

    losses: list[str] | None = field(
        default=None, metadata={"help": "names or wildcards; without: all that fit the task"}
    )
    n_trials: int = option(10, "trials in all, also of a search that was stopped and goes on")
    learning_rate_range: list[float] = field(
        default_factory=lambda: [2e-5, 5e-4], metadata={"help": "the lowest and the highest"}
    )
    loss_ranges: list[str] | None = field(
        default=None,
        metadata={
            "help": "LOSS.PARAMETER=LOW:HIGH, such as strict_l.max_weight=2:50; without: a fifth "
            "to five times the default of the losses' own parameters, such as strict_m_power.alpha"
        },
    )

    def expand(self, kind: str) -> list[str]:
        """The losses, wildcards replaced by the names that match.

        Args:
            kind: `classification` or `regression`.

        Raises:
            UsageError: If nothing of that kind matches one of them.
        """
        try:
            return match_losses(self.losses or ["*"], task=kind)
        except UsageError as error:
            raise UsageError(f"--losses: {error}; or give a wildcard, such as '*_l*'") from None

    def ranges(self, losses: list[str]) -> dict[str, list[float]]:
        """Lowest and highest value of `learning_rate` and of every `LOSS.PARAMETER`.

        Args:
            losses: The losses of the search.

        Raises:
            UsageError: If a range is not valid, or a loss does not take the parameter or its
                values.
        """
        ranges = {"learning_rate": self.learning_rate_range}
        for loss in losses:
            for name, parameter in get_spec(loss).parameters.items():
                bound = parameter.above if parameter.minimum is None else parameter.minimum
                lowest = bound or 0.0
                scale = parameter.default - lowest
                ranges[f"{loss}.{name}"] = [lowest + scale / 5, lowest + scale * 5]
        for text in self.loss_ranges or []:
            name, _, bounds = text.partition("=")
            loss, _, parameter_name = name.partition(".")
            try:
                low, high = map(float, bounds.split(":"))
            except ValueError:
                raise UsageError(
                    "--loss_ranges takes LOSS.PARAMETER=LOW:HIGH, such as "
                    f"strict_l.max_weight=2:50, got {text!r}"
                ) from None
            if loss not in losses:
                raise UsageError(
                    f"--loss_ranges {text}: {loss!r} is not among the losses of this search."
                    f"{nearest(loss, losses)} They are: {', '.join(losses)}"
                )
            for value in (low, high):
                get_loss(loss, **{parameter_name: value})  # Refuses unknown names and values.
            ranges[name] = [low, high]
        for name, limits in ranges.items():
            lowest = 0 if name == "learning_rate" else -math.inf
            if len(limits) != 2 or not lowest < limits[0] <= limits[1] < math.inf:
                shown = " ".join(f"{value:g}" for value in limits)
                raise UsageError(
                    f"{name}: {shown} is no range; give the lowest and the highest value, such as "
                    f"{'--learning_rate_range 2e-5 5e-4' if lowest == 0 else f'{name}=0.1:1'}"
                )
        return ranges

    def check(self, flags: Iterable[str], args: Any) -> None:
        """Raises a UsageError if a flag does not belong to a search, or Optuna is missing.

        Args:
            flags: Names of the flags that the user gave.
            args: The training arguments of the trials.
        """
        for name in flags:
            if name in SEARCHED:
                raise UsageError(f"a search chooses --{name} itself: see --{SEARCHED[name]}")
            if name in FOR_THE_WINNER:
                raise UsageError(f"--{name} is for glue.py: add it to the command shown at the end")
        if self.n_trials < 1:
            raise UsageError(f"--n_trials must be at least 1, got {self.n_trials}")
        if args.world_size > 1:
            raise UsageError(
                f"a search runs in one process, not {args.world_size}: start it by python"
            )
        if args.n_gpu > 1:
            raise UsageError(
                f"a search trains on one GPU, not {args.n_gpu}: set CUDA_VISIBLE_DEVICES=0"
            )
        if importlib.util.find_spec("optuna") is None:
            raise UsageError("a search needs Optuna: pip install 'hf-losses[compare]'")

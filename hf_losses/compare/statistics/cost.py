"""What a run of a loss costs.

It is no part of the statistics in `results.json`, which are the same on any machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from hf_losses.compare.results import Results


@dataclass(frozen=True)
class Cost:
    """The medians over the finished runs of a loss; None without any.

    Attributes:
        steps: Optimizer steps; None as well if a run does not report them.
        wall_seconds: Duration of the whole process.
    """

    steps: float | None
    wall_seconds: float | None


def cost(results: Results, stage: str, loss: str) -> Cost:
    """What a run of a loss costs.

    Args:
        results: The results of the runs.
        stage: `main`, `screen` or `confirm`.
        loss: The loss.
    """
    runs = [run for run in results.runs if (run.stage, run.loss) == (stage, loss) and run.finished]
    return Cost(_median([run.steps for run in runs]), _median([run.wall_seconds for run in runs]))


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(median(known)) if known and len(known) == len(values) else None

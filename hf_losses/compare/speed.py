"""How soon a loss reaches what the baseline reaches in the end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any


def time_to_baseline(
    runs: Sequence[Mapping[str, Any]],
    baseline: Sequence[Mapping[str, Any]],
    metric: str,
    lower_is_better: bool,
) -> dict[str, Any] | None:
    """When a loss first reaches what the baseline reaches at its best, on the validation set.

    Args:
        runs: Those of the loss, with `history`.
        baseline: Those of the baseline; a run is held against the one of its seed.
        metric: The compared metric.
        lower_is_better: Whether the better value is the smaller one.

    Returns:
        The medians of `steps` and `seconds` of training (None if less than half of the runs get
        there), how many `runs` there are and how many of them `reached` it, and the steps of each
        `by_seed` (None if it never did); None without evaluations during training. A run
        that failed has not reached it.
    """
    sign = -1 if lower_is_better else 1
    best = {}
    for run in baseline:
        scores = [sign * e[metric] for e in run.get("history") or [] if is_number(e.get(metric))]
        if scores:
            best[run["seed"]] = max(scores)
    paired = [run for run in runs if run["seed"] in best]
    if not paired:
        return None
    steps, seconds = {}, []
    for run in paired:
        reached = [
            entry["step"]
            for entry in run.get("history") or []
            if is_number(entry.get(metric)) and sign * entry[metric] >= best[run["seed"]]
        ]
        steps[str(run["seed"])] = reached[0] if reached else None
        if reached and run["seconds"] and run["steps"]:
            seconds.append(run["seconds"] * reached[0] / run["steps"])
    found = [step for step in steps.values() if step is not None]
    return {
        "steps": _median(found, len(paired)),
        "seconds": _median(seconds, len(paired)) if len(seconds) == len(found) else None,
        "reached": len(found),
        "runs": len(paired),
        "by_seed": steps,
    }


def _median(found: Sequence[float], count: int) -> float | None:
    """The median of `count` values of which those that were not found are infinite."""
    value = median([*found, *[math.inf] * (count - len(found))])
    return value if math.isfinite(value) else None


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)

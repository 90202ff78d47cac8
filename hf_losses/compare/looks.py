"""A further look at the results: more seeds for a comparison that has been finished."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hf_losses.compare.experiment import collect
from hf_losses.compare.plan import PLAN, Plan, add_seeds
from hf_losses.messages import UsageError


def check_begun(*folders: Path) -> None:
    """Refuses to add seeds to what has not begun.

    Args:
        *folders: The folder of each task.

    Raises:
        UsageError: If one of them holds no comparison.
    """
    for folder in folders:
        if not (folder / PLAN).exists():
            raise UsageError(
                f"--add_seeds continues a finished comparison, and {folder} holds none: leave it "
                "out"
            )


def next_look(folder: Path, plans: Mapping[Path, Plan], count: int) -> list[Plan]:
    """Adds seeds on every task, or none if they are those of an interrupted command.

    Args:
        folder: Folder of the whole comparison, for messages.
        plans: The plan by folder of each task, of which there may be one.
        count: Number of further paired runs of every tested loss.

    Returns:
        The plans with these seeds.

    Raises:
        UsageError: If runs are missing that this command does not make.
    """
    added = max((plan.added for plan in plans.values()), key=len)
    if all(plan.added == added and _is_complete(path) for path, plan in plans.items()):
        return [add_seeds(path, plan, count) for path, plan in plans.items()]
    if added[-1:] == [count]:
        # The interruption may have come before every task had its seeds.
        return [
            plan if plan.added == added else add_seeds(path, plan, count)
            for path, plan in plans.items()
        ]
    begun = f"--add_seeds {added[-1]}" if added else "no --add_seeds"
    raise UsageError(
        f"the comparison in {folder} lacks runs, so seeds cannot be added yet: let the same "
        f"command with {begun} finish it"
    )


def _is_complete(folder: Path) -> bool:
    from hf_losses.compare.statistics.summary import statistics

    results = collect(folder)
    last = [stage for stage in statistics(results).stages if stage.tested]
    # A loss of which no trial finished has no value to make further runs with.
    tested = {*(results.tuned if results.plan.tune else results.plan.losses)}
    return bool(last) and not any(
        result.missing for result in last[0].losses if result.loss in tested
    )

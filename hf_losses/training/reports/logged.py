"""What Trainer has logged of a run: its metrics, without times, speeds and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hf_losses.hub.card_names import is_metric


def final_metrics(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """The metrics of each set without its name, which prefixes their keys in what Trainer reports.

    Args:
        metrics: What `Trainer.predict` reported, by name of the set.
    """
    return {
        name: {key.removeprefix(f"{name}_"): v for key, v in values.items() if is_metric(key)}
        for name, values in metrics.items()
    }


def history(log: Sequence[Mapping[str, float]], names: Sequence[str]) -> list[dict[str, float]]:
    """The evaluations on the first validation set during the training.

    Args:
        log: `log_history` of the trainer's state.
        names: The names of the sets, the first validation set first.
    """
    more_sets = [name for name in names if name.startswith("validation")][1:]
    prefix = f"eval_{names[0]}_" if more_sets else "eval_"
    evaluations = []
    for entry in log:
        scores = {
            key.removeprefix(prefix): value
            for key, value in entry.items()
            if key.startswith(prefix) and is_metric(key)
        }
        if scores:
            evaluations.append({"step": entry["step"], "epoch": entry["epoch"], **scores})
    return evaluations

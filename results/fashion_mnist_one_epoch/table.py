"""Writes results.json and table.md from the runs that run.sh left beside it."""

import json
import math
from pathlib import Path

from hf_losses import get_spec, list_losses

HERE = Path(__file__).parent
FIRST = 20  # Steps over which the gradient at the start is averaged.


def summary(run):
    result = json.loads((run / "result.json").read_text())
    log = json.loads((run / "trainer_state.json").read_text())["log_history"]
    steps = [entry for entry in log if "grad_norm" in entry]
    numbers = [entry[key] for entry in steps for key in ("loss", "grad_norm")]
    return {
        "loss": result["loss"],
        "kind": result["kind"],
        "seed": result["seed"],
        "test_accuracy": result["metrics"]["test"]["accuracy"],
        "test_cross_entropy": result["metrics"]["test"]["cross_entropy"],
        "first_gradient_norm": sum(entry["grad_norm"] for entry in steps[:FIRST]) / FIRST,
        "steps": len(steps),
        "all_finite": all(math.isfinite(number) for number in numbers),
        "nonfinite_grad_steps": next(
            entry["train_nonfinite_grad_steps"] for entry in log if "train_runtime" in entry
        ),
        "versions": result["versions"],
        "hardware": result["hardware"],
    }


def main():
    names = list_losses(task="classification")
    found = [summary(HERE / "runs" / name) for name in names]
    second = {
        name: summary(HERE / "runs" / f"second-{name}")
        for name in ("cross_entropy", "liberal_parabolic")
    }
    everything = {"from_scratch": found, "second_epoch_after_cross_entropy": second}
    (HERE / "results.json").write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    lines = [
        "| loss | kind | test accuracy | test cross-entropy | first gradients | finite |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, run in zip(names, found, strict=True):
        finite = run["all_finite"] and not run["nonfinite_grad_steps"]
        lines.append(
            f"| `{name}` | {get_spec(name).kind} | {run['test_accuracy']:.1%} "
            f"| {run['test_cross_entropy']:.3f} | {run['first_gradient_norm']:.2f} "
            f"| {'all ' + str(run['steps']) + ' steps' if finite else 'no'} |"
        )
    (HERE / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

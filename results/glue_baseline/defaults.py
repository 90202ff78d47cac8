"""Would another batch size, or no warm-up, be a better default of recipes/glue.py?

    python results/glue_baseline/defaults.py FOLDER [TASK ...]

FOLDER is laid out like nyu-mll/glue. CoLA and the small MRPC, each with its learning rate in
results.json, on the tenth of the training set that is held out, with three seeds: by the defaults,
with batches of 16, and on CoLA without a warm-up. Two runs go on at a time, with one thread each,
in bfloat16 (--float32 for a CPU that has to emulate it). Writes defaults.json when all runs of a
task are done; interrupted, the same command continues.
"""

import argparse
import json
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from run import HERE, METRICS, train
from scipy.stats import ttest_rel

SEEDS = (1, 2, 3)
DEFAULTS = "batches of 32, a warm-up over a tenth"
SETTINGS = {
    DEFAULTS: (),
    "batches of 16": ("--per_device_train_batch_size", "16"),
    "no warm-up": ("--warmup_steps", "0"),
}
TASKS = {"cola": tuple(SETTINGS), "mrpc": (DEFAULTS, "batches of 16")}


def measure(task: str, folder: str, precision: str) -> dict:
    """Every setting on a task; its difference to the defaults, by seed, with a 95 % interval."""
    stored = json.loads((HERE / "results.json").read_text(encoding="utf-8"))[task]
    rate, metric = str(stored["learning_rate"]), METRICS[task][0]

    def score(setting: str, seed: int) -> tuple[float, dict]:
        name = f"{setting.replace(' ', '_')}-{precision}-seed-{seed}"
        held_out = ("--train_val_split", "0.1", "--seed", str(seed), "--learning_rate", rate)
        bf16 = ("--bf16", str(precision == "bfloat16"))  # The last --bf16 counts.
        result = train(task, name, folder, *held_out, *SETTINGS[setting], *bf16)
        return result["metrics"]["validation"][metric], result

    with ThreadPoolExecutor(2) as pool:
        # Seed by seed, so that all settings share what else goes on on the machine.
        jobs = {(s, seed): pool.submit(score, s, seed) for seed in SEEDS for s in TASKS[task]}
        found = {key: job.result() for key, job in jobs.items()}
    content: dict = {"metric": metric, "learning_rate": float(rate), "precision": precision}
    content["settings"] = {}
    base = [found[DEFAULTS, seed][0] for seed in SEEDS]
    for setting in TASKS[task]:
        scores = [found[setting, seed][0] for seed in SEEDS]
        entry: dict = {"flags": SETTINGS[setting], "scores": scores}
        if setting != DEFAULTS:
            interval = ttest_rel(scores, base).confidence_interval(0.95)
            entry["difference"] = statistics.mean(scores) - statistics.mean(base)
            entry["interval"] = [interval.low, interval.high]
        content["settings"][setting] = entry
    last = found[DEFAULTS, SEEDS[-1]][1]
    return content | {"versions": last["versions"], "hardware": last["hardware"]}


def main() -> None:
    """Measures each task."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", help="laid out like nyu-mll/glue")
    parser.add_argument("tasks", nargs="*", metavar="TASK", default=list(TASKS))
    parser.add_argument("--float32", action="store_true", help="not in bfloat16")
    arguments = parser.parse_args()
    if unknown := [task for task in arguments.tasks if task not in TASKS]:
        parser.error(f"unknown task {unknown[0]!r}; choose from: {', '.join(TASKS)}")
    path, folder = HERE / "defaults.json", str(Path(arguments.folder).resolve())
    for task in arguments.tasks:
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        content[task] = measure(task, folder, "float32" if arguments.float32 else "bfloat16")
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Fine-tunes MiniLM by recipes/glue.py on five tasks of GLUE with the baseline of each.

    python results/glue_baseline/run.py FOLDER [TASK ...]

FOLDER is laid out like nyu-mll/glue. For each task, learning rates are tried with seed 0 on a tenth
of the training set that is held out: three, and further ones until the best has been tried with one
on either side, or the list of them ends. With it five models (seeds 1 to 5) are trained on the
whole training set, and measured on GLUE's validation set. Two runs go on at a time, with one thread
each. Interrupted, the same command continues. The results of each task are written to results.json
when it is done.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from hf_losses.data.text.dataset import load_task
from hf_losses.metrics import METRICS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RUNS = ROOT / "runs" / "glue_baseline"
LEARNING_RATES = ("1e-05", "2e-05", "5e-05", "1e-04", "2e-04", "5e-04", "1e-03")
FIRST = slice(2, 5)
SEEDS = range(1, 6)
# The recipe's own defaults decide all else. A third of SST-2's training set, all of the others.
TASKS = {"rte": (), "mrpc": (), "cola": (), "stsb": (), "sst2": ("--max_train_samples", "22450")}
COMMON = ("--bf16", "--eval_strategy", "no", "--save_strategy", "no", "--use_cpu")


def train(task: str, name: str, folder: str, *flags: str) -> dict:
    """Makes one run, unless it has been made, and returns its result."""
    out = RUNS / task / name
    result = out / "result.json"
    if not result.exists():
        command = [sys.executable, str(ROOT / "recipes" / "glue.py"), "--task_name", task]
        command += ["--dataset_name", folder, "--output_dir", str(out), *TASKS[task], *COMMON]
        command += ["--disable_tqdm", "true", *flags]
        out.parent.mkdir(parents=True, exist_ok=True)
        with open(out.with_suffix(".log"), "w") as log:
            one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=one_thread)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed; see {out.with_suffix('.log')}")
        for path in out.iterdir():  # A model takes 90 MB.
            if path != result and path.is_file():
                path.unlink()
    found = json.loads(result.read_text(encoding="utf-8"))
    print(task, name, found["metrics"], f"{found['training']['runtime']:.0f} s", flush=True)
    return found


def word_overlap(folder: str, task: str) -> dict[str, float]:
    """The accuracies of a threshold on the share of the second text's words that the first has.

    The threshold is fitted on the training set: what the simplest of all models would reach.
    """
    shares, labels = {}, {}
    for name, split in load_task(task, folder).splits.items():
        pairs = zip(split["sentence1"], split["sentence2"], strict=True)
        words = [[re.findall(r"\w+", text.lower()) for text in pair] for pair in pairs]
        shares[name] = np.array(
            [np.mean([word in set(one) for word in other] or [0]) for one, other in words]
        )
        labels[name] = np.array(split["label"])
    positive = 0 if task == "rte" else 1  # Entailment, or a paraphrase.

    def accuracy(name: str, threshold: float) -> float:
        return float(np.mean((shares[name] >= threshold) == (labels[name] == positive)))

    best = max(np.linspace(0, 1, 41), key=lambda threshold: accuracy("train", threshold))
    return {name: accuracy(name, best) for name in ("train", "validation")}


def measure(task: str, folder: str, pool: ThreadPoolExecutor) -> dict:
    """Tunes the learning rate, and trains with the seeds."""
    metric = METRICS[task][0]

    def tried(rate: str) -> dict:
        held_out = ("--train_val_split", "0.1", "--seed", "0", "--learning_rate", rate)
        return train(task, f"tune-{rate}", folder, *held_out)

    def trained(seed: int) -> dict:
        name = f"seed-{seed}-{best}"
        return train(task, name, folder, "--seed", str(seed), "--learning_rate", best)

    low, high = FIRST.start, FIRST.stop
    while True:
        rates = LEARNING_RATES[low:high]
        results = pool.map(tried, rates)
        scores = [result["metrics"]["validation"][metric] for result in results]
        # A correlation with constant predictions does not exist.
        best = max(zip(rates, scores, strict=True), key=lambda pair: pair[1] or 0.0)[0]
        if best == rates[0] and low > 0:
            low -= 1
        elif best == rates[-1] and high < len(LEARNING_RATES):
            high += 1
        else:
            break
    results = list(pool.map(trained, SEEDS))
    last = results[-1]
    return {
        "flags": [*TASKS[task], *COMMON],
        "tuned_on": f"a tenth of the training set, held out; {metric}",
        "learning_rates": dict(zip(map(float, rates), scores, strict=True)),
        "learning_rate": float(best),
        "batch_size": last["training"]["batch_size"],
        "steps": last["training"]["global_step"],
        "epochs": last["training"]["epochs"],
        "rows": last["dataset"]["rows"],
        "seconds": statistics.mean(result["training"]["runtime"] for result in results),
        "metrics": {
            name: [result["metrics"]["validation"][name] for result in results]
            for name in results[0]["metrics"]["validation"]
        },
        **({"word_overlap": word_overlap(folder, task)} if task in ("rte", "mrpc") else {}),
        "model": last["model"],
        "versions": last["versions"],
        "hardware": last["hardware"],
    }


def main() -> None:
    """Measures the tasks one after another."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", help="laid out like nyu-mll/glue")
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(TASKS)}")
    arguments = parser.parse_args()
    if unknown := {*arguments.tasks} - {*TASKS}:
        parser.error(f"unknown task {unknown.pop()!r}; choose from: {', '.join(TASKS)}")
    path = HERE / "results.json"
    with ThreadPoolExecutor(2) as pool:
        for task in arguments.tasks or TASKS:
            found = measure(task, str(Path(arguments.folder).resolve()), pool)
            done = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            ordered = {name: (done | {task: found}).get(name) for name in TASKS}
            content = {name: entry for name, entry in ordered.items() if entry}
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

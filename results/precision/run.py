"""Is bf16 faster than float32 on a CPU, and as accurate? And one thread a run rather than all?

    python results/precision/run.py DATA [--task NAME] [--model MODEL]

DATA/glue is laid out like nyu-mll/glue; DATA/banking77 and DATA/wnut_17 hold parquet files. MiniLM
learns 2,000 phrases of SST-2 by recipes/glue.py with cross_entropy, as in results/which_loss/sst2,
with 6 seeds in each of four ways: float32 or bf16, and two runs at a time with one thread each or
one after the other with two threads. Two seeds are trained in all ways, in turns, before the next
two. Writes results.json here when all are done; interrupted, the same command continues.

The other tasks are about time alone, since compare.sh compares the accuracy: learned as in
results/which_loss, with one thread. Write NAME/time.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import ttest_rel

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RUNS = ROOT / "runs" / "precision"
PAIRS = [(1, 2), (3, 4), (5, 6)]
COMMON = "--eval_strategy no --save_strategy no --use_cpu --disable_tqdm true".split()
PRECISIONS = {"float32": [], "bf16": ["--bf16"]}
WAYS = {f"{name}, {n} thread{'s' * (n > 1)}": (name, n) for n in (1, 2) for name in PRECISIONS}


@dataclass
class Task:
    """What is learned: recipe, folder of data and flags, in how many threads, and what is compared.

    In the flags, {} stands for the folder of data.
    """

    recipe: str
    data: str
    flags: str
    file: str
    threads: tuple[int, ...] = (1,)
    metrics: tuple[str, ...] = ()

    @property
    def ways(self) -> list[str]:
        """Names in `WAYS`."""
        return [name for name, (_, threads) in WAYS.items() if threads in self.threads]


TASKS = {
    "sst2": Task(
        "glue.py",
        "glue",
        "--dataset_name {} --task_name sst2 --max_train_samples 2000 --train_val_split 0.0075 "
        "--max_length 64 --num_train_epochs 3 --learning_rate 6.325e-5",
        "results.json",
        threads=(1, 2),
        metrics=("accuracy", "cross_entropy"),
    ),
    "wnut_17": Task(
        "token_classification.py",
        "wnut_17",
        "--dataset_name {} --max_train_samples 800 --max_eval_samples 600 --num_train_epochs 3 "
        "--learning_rate 4e-4 --train_sampling_strategy group_by_length",
        "wnut_17/time.json",
    ),
    "banking77": Task(
        "glue.py",
        "banking77",
        "--train_file {}/train-00000-of-00001.parquet --test_file {}/test-00000-of-00001.parquet "
        "--train_val_split 0.03 --max_train_samples 770 --max_eval_samples 2000 --max_length 64 "
        "--num_train_epochs 5 --learning_rate 1.265e-3 --train_sampling_strategy group_by_length",
        "banking77/time.json",
    ),
    "cola": Task(
        "glue.py",
        "glue",
        "--dataset_name {} --task_name cola --train_val_split 0.06 --max_length 64 "
        "--per_device_train_batch_size 64 --num_train_epochs 2 --learning_rate 1e-4 "
        "--train_sampling_strategy group_by_length",
        "cola/time.json",
    ),
}


def train(command: list[str], output: Path, seed: int, precision: str, threads: int) -> None:
    """Fine-tunes once, in a process of its own."""
    command = [*command, *PRECISIONS[precision], "--seed", str(seed), "--output_dir", str(output)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with open(output.with_suffix(".log"), "w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env=environment)


def measure(name: str, command: list[str], way: str, seeds: tuple[int, int]) -> dict:
    """Trains with two seeds: the wall time of both, and the result of each."""
    precision, threads = WAYS[way]
    metrics = TASKS[name].metrics
    block = RUNS / name / f"{precision}-{threads}-{seeds[0]}-{seeds[1]}"
    found = block / "block.json"
    if not found.exists():
        block.mkdir(parents=True, exist_ok=True)
        begin = time.perf_counter()
        with ThreadPoolExecutor(2 // threads) as pool:
            jobs = [
                pool.submit(train, command, block / f"seed-{seed}", seed, precision, threads)
                for seed in seeds
            ]
            for job in jobs:
                job.result()
        wall = time.perf_counter() - begin
        results = [json.loads((block / f"seed-{seed}/result.json").read_text()) for seed in seeds]
        scores = [result["metrics"]["test"] for result in results]
        content = {
            "seconds_per_run": round(wall / len(seeds), 1),
            **{metric: [score[metric] for score in scores] for metric in metrics},
            "versions": results[0]["versions"],
            "hardware": results[0]["hardware"],
        }
        found.write_text(json.dumps(content))
        print(way, seeds, content["seconds_per_run"], "s", flush=True)
    return json.loads(found.read_text())


def compared(blocks: dict[str, list[dict]], way: str, other: str, metrics: tuple) -> dict:
    """Time of one way over that of another, and their difference by seed with its 95 % interval."""
    ratios = [
        one["seconds_per_run"] / two["seconds_per_run"]
        for one, two in zip(blocks[way], blocks[other], strict=True)
    ]
    entry: dict = {"time": {"median_ratio": statistics.median(ratios), "ratios": ratios}}
    for metric in metrics:
        values = [
            [value for block in blocks[name] for value in block[metric]] for name in (way, other)
        ]
        interval = ttest_rel(*values).confidence_interval(0.95)
        mean = statistics.mean(values[0]) - statistics.mean(values[1])
        entry[metric] = {"difference": mean, "interval": [interval.low, interval.high]}
    return entry


def main() -> None:
    """Measures all ways in turns."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="holds glue, banking77 and wnut_17")
    parser.add_argument("--task", choices=TASKS, default="sst2")
    parser.add_argument("--model", help="another one than the recipe's, in an empty runs/precision")
    given = parser.parse_args()
    task = TASKS[given.task]
    model = ["--model_name_or_path", given.model] if given.model else []
    data = str(given.folder.resolve() / task.data)
    if not Path(data).is_dir():
        parser.error(f"{data} is no folder; give the one that holds {task.data}")
    flags = [*model, *COMMON, *task.flags.split()]
    command = [sys.executable, str(ROOT / "recipes" / task.recipe)]
    command += [flag.replace("{}", data) for flag in flags]
    blocks: dict[str, list[dict]] = {way: [] for way in task.ways}
    for number, seeds in enumerate(PAIRS):
        for way in task.ways[:: (1, -1)[number % 2]]:
            blocks[way].append(measure(given.task, command, way, seeds))
    pairs = [
        ("bf16, 1 thread", "float32, 1 thread"),
        ("bf16, 2 threads", "float32, 2 threads"),
        ("bf16, 1 thread", "bf16, 2 threads"),
        ("float32, 1 thread", "float32, 2 threads"),
    ]
    result = {
        "flags": flags,
        "seeds": [seed for seeds in PAIRS for seed in seeds],
        "ways": {
            way: {"seconds_per_run": [block["seconds_per_run"] for block in found]}
            | {key: [v for block in found for v in block[key]] for key in task.metrics}
            for way, found in blocks.items()
        },
        "comparisons": {
            f"{way} / {other}": compared(blocks, way, other, task.metrics)
            for way, other in pairs
            if {way, other} <= blocks.keys()
        },
        "versions": blocks["bf16, 1 thread"][0]["versions"],
        "hardware": blocks["bf16, 1 thread"][0]["hardware"],
    }
    (HERE / task.file).parent.mkdir(exist_ok=True)
    (HERE / task.file).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
